"""edit.json: the statement of an edit, in the dataset's own coordinates."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qnerf_nerfstudio.controls.skeleton import OPENPOSE_BONES
from qnerf_nerfstudio.errors import UserError

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate, Coordinate]
Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Kind = Literal["openpose", "depth", "normal"]
"""What a control image shows, and so which ControlNets can read it."""


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
    kind: Kind | None = None
    """What the images show, so that a ControlNet which cannot read it is refused; by default any ControlNet's."""


class Placement(_Strict):
    """A solid's place: scaled, then rotated, then moved."""

    position: Point = (0.0, 0.0, 0.0)
    """Where the solid's origin is; a box's origin is its centre."""
    rotation: Point = (0.0, 0.0, 0.0)
    """Degrees about the fixed x, y and z axes, in this order."""


class MeshPlacement(Placement):
    """A mesh and its place."""

    mesh: str
    """Mesh file, relative to edit.json: anything that trimesh reads."""
    scale: Length | tuple[Length, Length, Length] = 1.0
    """Factor of the mesh's own size, or one for each of its axes."""

    @property
    def factors(self) -> tuple[float, float, float]:
        """Scale along x, y and z."""
        if isinstance(self.scale, tuple):
            return self.scale
        return self.scale, self.scale, self.scale


class BoxPlacement(Placement):
    """A box and its place."""

    size: tuple[Length, Length, Length]
    """Lengths of its sides along its own axes."""


class MeshControl(_Strict):
    """A proxy mesh where it is in the captured scene, and where (or what) it is to be in the edited one."""

    type: Literal["mesh"]
    source: MeshPlacement
    """The mesh in the captured scene."""
    target: MeshPlacement
    """The mesh in the edited scene; the same file elsewhere, or another one."""
    draw: Literal["depth", "normal"] = "depth"
    """What its control images show."""


class BoxControl(_Strict):
    """An oriented box that stands for what moves, drawn as depth: a coarse control."""

    type: Literal["box"]
    source: BoxPlacement
    """The box in the captured scene."""
    target: BoxPlacement
    """The box in the edited scene."""
    draw: Literal["depth", "normal"] = "depth"
    """What its control images show."""


class PartsControl(_Strict):
    """Several controls at once, drawn into one control image: what is nearer hides what is behind it."""

    type: Literal["parts"]
    parts: tuple[Annotated[SkeletonControl | MeshControl | BoxControl, Field(discriminator="type")], ...] = Field(
        min_length=1
    )
    """The parts; all of them skeletons, or all of them solids drawn in the same way."""

    @model_validator(mode="after")
    def _one_kind(self) -> "PartsControl":
        kinds = [control_kind(part) for part in self.parts]
        for index, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    f"part {index} is drawn as {kind}, part 0 as {kinds[0]}; one ControlNet reads all parts, so draw "
                    f"them alike"
                )
        return self


class ControlRegion(_Strict):
    """The edit stays where the control changes: the visual hull of what its control images change."""

    type: Literal["control"]


class BoxRegion(BoxPlacement):
    """The edit stays in an oriented box."""

    type: Literal["box"]


class SphereRegion(_Strict):
    """The edit stays in a sphere."""

    type: Literal["sphere"]
    position: Point
    """Its centre."""
    radius: Length
    """Its radius."""


class Everywhere(_Strict):
    """The edit may change all of the scene."""

    type: Literal["everywhere"]


Control = SkeletonControl | ImagesControl | MeshControl | BoxControl | PartsControl
Influence = ControlRegion | BoxRegion | SphereRegion | Everywhere


class Edit(_Strict):
    """The contents of edit.json."""

    prompt: str
    """Describes the edited scene."""
    source_prompt: str
    """Describes the captured scene."""
    negative_prompt: str = ""
    """What classifier-free guidance steers away from."""
    control: Annotated[Control, Field(discriminator="type")]
    """The 3D statement of the edit."""
    region: Annotated[Influence, Field(discriminator="type")] = ControlRegion(type="control")
    """Where the edit may change the scene; elsewhere edited views keep the photos' pixels."""
    masks: str | None = None
    """Folder of masks, relative to edit.json, one per photo and named as it: black pixels keep the photo, whatever the
    region says."""

    @field_validator("prompt")
    @classmethod
    def _prompt_stated(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is empty; describe the edited scene")
        return prompt


def control_kind(control: Control) -> Kind | None:
    """What the images of a control show; None where the user did not say."""
    if isinstance(control, SkeletonControl):
        return "openpose"
    if isinstance(control, ImagesControl):
        return control.kind
    if isinstance(control, PartsControl):
        return control_kind(control.parts[0])
    return control.draw


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _tidy(document: Any, location: tuple[str | int, ...]) -> tuple[list[str], list[str]]:
    """The keys that a user wrote on the way to an error, and the keys that are known beside the last of them.

    pydantic puts the value of "type" into an error's location, after the key whose object it belongs to.
    """
    keys: list[str] = []
    model: Any = Edit
    value: Any = document
    tagged = True
    for part in location:
        if not tagged and isinstance(value, dict) and value.get("type") == part:
            model, tagged = (_REGIONS if keys[0] == "region" else _CONTROLS)[str(part)], True
            continue
        keys.append(str(part))
        if part in ("source", "target") and model in _PLACEMENTS:
            model = _PLACEMENTS[model]
        try:
            value, tagged = value[part], part in ("source", "target")
        except (KeyError, IndexError, TypeError):
            value = None
    return keys, list(model.model_fields)


_CONTROLS: dict[str, Any] = {
    "skeleton": SkeletonControl,
    "images": ImagesControl,
    "mesh": MeshControl,
    "box": BoxControl,
    "parts": PartsControl,
}
_REGIONS: dict[str, Any] = {
    "control": ControlRegion,
    "box": BoxRegion,
    "sphere": SphereRegion,
    "everywhere": Everywhere,
}
_PLACEMENTS: dict[Any, Any] = {MeshControl: MeshPlacement, BoxControl: BoxPlacement}


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
        # A misspelt key is also a missing one; it is the former that a user looks for.
        errors = error.errors()
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        keys, known = _tidy(document, first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key{_nearest(keys[-1], known)}"
        elif first["type"] == "missing":
            message = "is missing"
        raise UserError(f"{path}: {'.'.join(keys) or 'the document'}: {message}") from error
