"""edit.json: the statement of an edit, in the dataset's own coordinates."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from qnerf_nerfstudio.controls.cameras import Views
from qnerf_nerfstudio.controls.images import load_control_images
from qnerf_nerfstudio.controls.skeleton import OPENPOSE_BONES, draw_skeleton
from qnerf_nerfstudio.errors import UserError

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate, Coordinate]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SkeletonControl(_Strict):
    """A skeleton in its source and target pose."""

    type: Literal["skeleton"]
    source: dict[str, Point] = Field(min_length=1)
    """Position of every joint in the captured scene."""
    target: dict[str, Point] = Field(min_length=1)
    """Position of every joint in the edited scene."""
    bones: tuple[tuple[str, str], ...] | None = None
    """Pairs of joints; by default OpenPose's limbs between the joints that there are."""

    @model_validator(mode="after")
    def _joints_known(self) -> "SkeletonControl":
        for name in sorted(set(self.source) ^ set(self.target)):
            missing, present = ("target", self.target) if name in self.source else ("source", self.source)
            raise ValueError(f"joint {name!r} is missing in {missing}{_nearest(name, present)}")
        for first, second in self.bones or ():
            for name in (first, second):
                if name not in self.source:
                    raise ValueError(f"bones name an unknown joint {name!r}{_nearest(name, self.source)}")
            if self.source[first] == self.source[second] or self.target[first] == self.target[second]:
                raise ValueError(f"the bone {first!r} to {second!r} has no length")
        if not self.all_bones:
            raise ValueError('no two joints form a limb of OpenPose; list "bones" as pairs of joint names')
        return self

    @property
    def all_bones(self) -> tuple[tuple[str, str], ...]:
        """The bones, OpenPose's by default."""
        if self.bones is not None:
            return self.bones
        return tuple(bone for bone in OPENPOSE_BONES if bone[0] in self.source and bone[1] in self.source)


class ImagesControl(_Strict):
    """Ready-made control images, one per photo."""

    type: Literal["images"]
    source: str
    """Folder of the captured scene's control images, relative to edit.json, named as the photos are."""
    target: str
    """Folder of the edited scene's control images."""


class Edit(_Strict):
    """The contents of edit.json."""

    prompt: str
    """Describes the edited scene."""
    source_prompt: str
    """Describes the captured scene."""
    negative_prompt: str = ""
    """What classifier-free guidance steers away from."""
    control: Annotated[SkeletonControl | ImagesControl, Field(discriminator="type")]
    """The 3D statement of the edit."""


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    if "skeleton" in location:
        return list(SkeletonControl.model_fields)
    if "images" in location:
        return list(ImagesControl.model_fields)
    return list(Edit.model_fields)


def load_edit(path: Path) -> Edit:
    """Read and check an edit.json.

    Raises:
        UserError: The file is missing, is not JSON, or a field is wrong; the message names file and field.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: qnerf-edit needs the edit stated there (prompt, source_prompt, control; see the "
            f"README), or name another file with --pipeline.edit"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    try:
        return Edit.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        # pydantic puts the discriminator's value into the location; a user thinks in keys.
        keys = [str(key) for key in location if key not in ("skeleton", "images")]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key{_nearest(keys[-1], _known_keys(location))}"
        elif first["type"] == "missing":
            message = "is missing"
        raise UserError(f"{path}: {'.'.join(keys) or 'the document'}: {message}") from error


def control_images(
    edit: Edit,
    folder: Path,
    views: Views,
    names: list[str],
    to_scene: Float[Tensor, "3 4"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "V 3 H W"], Float[Tensor, "V 3 H W"]]:
    """The source and target control images of every view.

    Args:
        edit: The edit.
        folder: Folder of edit.json, that relative paths start from.
        views: Cameras in scene coordinates.
        names: File name of every view's photo.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
        size: Height and width of the control images.

    Returns:
        Source and target control images in [0, 1].

    Raises:
        UserError: Control images are missing or unreadable, or the control is outside every view.
    """
    control = edit.control
    pairs = []
    for key in ("source", "target"):
        stated = getattr(control, key)
        if isinstance(control, ImagesControl):
            images = load_control_images(folder / stated, names, size)
        else:
            joints = {name: to_scene[:, :3] @ to_scene.new_tensor(at) + to_scene[:, 3] for name, at in stated.items()}
            images = draw_skeleton(views.resized(size), joints, control.all_bones)
            if not images.any():
                raise UserError(
                    f"{folder / 'edit.json'}: control.{key}: the skeleton is outside every view; joints are positions "
                    f"in the coordinates of transforms.json"
                )
        pairs.append(torch.as_tensor(images).movedim(-1, 1).float() / 255)
    return pairs[0], pairs[1]
