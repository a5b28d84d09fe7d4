"""What `qnerf pose` does to an edit, without its page: move, mirror, triangulate, undo, save."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views, nearest_to_rays
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.edit.schema import Edit, JointedControl

Side = Literal["source", "target"]
SIDES: tuple[Side, Side] = ("source", "target")
Joints = dict[str, tuple[float, float, float]]
PARALLEL = 0.02
"""Sine of the smallest angle between two rays whose meeting point can be found."""


def parents(root: str, bones: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The joint next to each joint on its way to the root; joints that no bones connect with the root are left out."""
    found: dict[str, str] = {}
    reached = [root]
    while reached:
        joint = reached.pop()
        for bone in bones:
            if joint in bone:
                other = bone[1] if bone[0] == joint else bone[0]
                if other != root and other not in found:
                    found[other] = joint
                    reached.append(other)
    return found


def move_joint(
    joints: Mapping[str, tuple[float, float, float]],
    bones: Sequence[tuple[str, str]],
    name: str,
    position: Sequence[float],
    keep_lengths: bool,
) -> Joints:
    """A skeleton with one joint moved.

    Args:
        joints: The skeleton.
        bones: Its bones.
        name: The joint.
        position: Where it is dragged to.
        keep_lengths: Turn the joint and all that hangs from it about the joint before it, so that no bone changes its
            length; the skeleton's root carries all others along. Otherwise the joint alone moves.
    """
    wanted = np.asarray(position, dtype=float)
    if not keep_lengths:
        return {**joints, name: _point(wanted)}
    root = "neck" if "neck" in joints else next(iter(joints))
    parent_of = parents(root, bones)
    points = {key: np.asarray(at, dtype=float) for key, at in joints.items()}
    if name not in parent_of:
        carried = set(points) if name == root else {name}
        shift = wanted - points[name]
        return {key: _point(at + shift if key in carried else at) for key, at in points.items()}
    pivot = points[parent_of[name]]
    old, new = points[name] - pivot, wanted - pivot
    if np.linalg.norm(old) < 1e-9 or np.linalg.norm(new) < 1e-9:
        return dict(joints)
    turn = np.array(trimesh.geometry.align_vectors(old, new))[:3, :3]
    hanging = {name}
    while added := {key for key, parent in parent_of.items() if parent in hanging} - hanging:
        hanging |= added
    return {key: _point(pivot + turn @ (at - pivot) if key in hanging else at) for key, at in points.items()}


def mirror(joints: Mapping[str, tuple[float, float, float]]) -> Joints:
    """The pose with left and right exchanged, about the plane between the joints whose names begin with l_ and r_.

    Raises:
        UserError: There are no such pairs.
    """
    pairs = [(f"l_{key[2:]}", key) for key in joints if key.startswith("r_") and f"l_{key[2:]}" in joints]
    trunk = [pair for pair in pairs if pair[0][2:] in ("shoulder", "hip")] or pairs
    points = {key: np.asarray(at, dtype=float) for key, at in joints.items()}
    across = sum((points[left] - points[right] for left, right in trunk), np.zeros(3))
    if np.linalg.norm(across) < 1e-9:
        raise UserError("mirror: no joints are named l_... and r_..., so left and right are not known")
    normal = across / np.linalg.norm(across)
    centre = np.mean([points[key] for pair in trunk for key in pair], axis=0)
    swapped = {**{a: b for a, b in pairs}, **{b: a for a, b in pairs}}
    return {
        key: _point((at := points[swapped.get(key, key)]) - 2 * np.dot(at - centre, normal) * normal) for key in joints
    }


def intersect_rays(origins: Float[Tensor, "2 3"], directions: Float[Tensor, "2 3"]) -> tuple[Float[Tensor, "3"], float]:
    """The point closest to two rays, and half of the distance between them.

    Raises:
        UserError: The rays are nearly parallel, or meet behind a camera.
    """
    origins, directions = origins.double(), F.normalize(directions.double(), dim=-1)
    if float(torch.linalg.cross(directions[0], directions[1]).norm()) < PARALLEL:
        raise UserError("the two photos look from nearly the same side; choose two that are further apart")
    point = nearest_to_rays(origins, directions)
    along = ((point - origins) * directions).sum(-1, keepdim=True)
    if (along <= 0).any():
        raise UserError("the two clicks meet behind a camera; click the same joint in both photos")
    first, second = origins + along * directions
    return point, float((first - second).norm()) / 2


def _point(at: NDArray) -> tuple[float, float, float]:
    return float(at[0]), float(at[1]), float(at[2])


def with_joint(part: JointedControl, beside: str) -> tuple[dict[str, Any], str]:
    """A skeleton with one more joint, at the end of a new bone from another joint.

    Returns:
        The fields that change, and the joint's name.
    """
    number = 1
    while (name := f"joint_{number}") in part.source:
        number += 1
    length = float(np.median([_length(part.source, bone) for bone in part.all_bones])) / 2
    away = _away(part, beside)
    poses = {
        side: {**poses_of(part, side), name: _point(np.array(poses_of(part, side)[beside]) + length * away)}
        for side in SIDES
    }
    return {**_as_json(poses), "bones": [*part.all_bones, (beside, name)]}, name


def without_joint(part: JointedControl, name: str) -> dict[str, Any]:
    """The fields that change where a joint is removed; the joints beside one with two bones become neighbours."""
    beside = _neighbours(part, name)
    bones = [bone for bone in part.all_bones if name not in bone]
    if len(beside) == 2 and tuple(beside) not in bones and tuple(reversed(beside)) not in bones:
        bones.append((beside[0], beside[1]))
    poses = {side: {key: at for key, at in poses_of(part, side).items() if key != name} for side in SIDES}
    return {**_as_json(poses), "bones": bones}


def with_name(part: JointedControl, old: str, new: str) -> dict[str, Any]:
    """The fields that change where a joint gets another name.

    Raises:
        UserError: The name is empty, or another joint's.
    """
    new = new.strip()
    if not new or new in part.source:
        raise UserError(f"no joint can be called {new!r}: " + ("another one is" if new else "a name has letters"))
    names = {key: new if key == old else key for key in part.source}
    poses = {side: {names[key]: at for key, at in poses_of(part, side).items()} for side in SIDES}
    return {**_as_json(poses), "bones": [(names[first], names[second]) for first, second in part.all_bones]}


def with_or_without_bone(part: JointedControl, first: str, second: str) -> dict[str, Any]:
    """The fields that change where a bone between two joints is added, or removed if it is there.

    Raises:
        UserError: It is the same joint twice.
    """
    if first == second:
        raise UserError("a bone has two ends: choose another joint for its other one")
    kept = [bone for bone in part.all_bones if set(bone) != {first, second}]
    return {"bones": kept if len(kept) < len(part.all_bones) else [*kept, (first, second)]}


def poses_of(part: JointedControl, side: Side) -> Joints:
    """The joints of a part in one pose."""
    return dict(part.source if side == "source" else part.target)


def _length(joints: Mapping[str, tuple[float, float, float]], bone: tuple[str, str]) -> float:
    return float(np.linalg.norm(np.subtract(joints[bone[0]], joints[bone[1]])))


def _neighbours(part: JointedControl, name: str) -> list[str]:
    """The joints at the other ends of a joint's bones."""
    return [first if second == name else second for first, second in part.all_bones if name in (first, second)]


def _away(part: JointedControl, name: str) -> NDArray:
    """The direction from the middle of a joint's neighbours to itself; along z where there is none."""
    beside = _neighbours(part, name)
    towards = np.subtract(part.source[name], np.mean([part.source[key] for key in beside], axis=0)) if beside else None
    if towards is None or np.linalg.norm(towards) < 1e-9:
        return np.array([0.0, 0.0, 1.0])
    return towards / np.linalg.norm(towards)


class PoseDocument:
    """An edit.json that is worked on: every change can be undone, and nothing is written before `save`.

    Args:
        path: Where edit.json is or is to be.
        edit: The edit to begin with.
    """

    def __init__(self, path: Path, edit: Edit) -> None:
        self.path = path
        self._first = self._edit = edit
        self._undone: list[Edit] = []

    @property
    def edit(self) -> Edit:
        """The edit as it is now."""
        return self._edit

    @property
    def parts(self) -> list[Any]:
        """The controls that the edit is made of."""
        control = self._edit.control
        return list(control.parts) if control.type == "parts" else [control]

    def change_part(self, index: int, merge: bool = False, **values: Any) -> None:
        """Change fields of a part; see `change`.

        Raises:
            UserError: The result would be no valid edit.
        """
        parts = self.parts
        parts[index] = {**parts[index].model_dump(mode="json"), **values}
        control = self._edit.control
        self.change(merge, control=parts[0] if control.type != "parts" else {"type": "parts", "parts": parts})

    def change(self, merge: bool = False, **values: Any) -> None:
        """Change fields of the edit, such as its prompt.

        Args:
            merge: Undo it together with the change before.
            values: New values by field.

        Raises:
            UserError: The result would be no valid edit.
        """
        document = {**self._edit.model_dump(mode="json"), **_as_json(values)}
        try:
            changed = Edit.model_validate(document)
        except ValueError as error:
            raise UserError(f"not changed: {error}") from error
        if changed != self._edit:
            if not (merge and self._undone):
                self._undone.append(self._edit)
            self._edit = changed

    def joints(self, index: int, side: Side) -> Joints:
        """The joints of a skeleton part."""
        part = self.parts[index]
        assert isinstance(part, JointedControl)
        return poses_of(part, side)

    def set_joints(self, index: int, side: Side, joints: Joints, merge: bool = False) -> None:
        """Change the joints of a skeleton part; see `change`."""
        self.change_part(index, merge, **{side: {name: list(at) for name, at in joints.items()}})

    def set_placement(self, index: int, side: Side, values: Mapping[str, Sequence[float]], merge: bool = False) -> None:
        """Change vectors of the placement of a box or a mesh, such as its position; see `change`."""
        placed = getattr(self.parts[index], side).model_dump(mode="json")
        vectors = {name: [float(value) for value in vector] for name, vector in values.items()}
        self.change_part(index, merge, **{side: {**placed, **vectors}})

    def undo(self) -> bool:
        """Undo the last change; False if there is none."""
        if not self._undone:
            return False
        self._edit = self._undone.pop()
        return True

    def reset(self) -> None:
        """Go back to the first edit; this can be undone, too."""
        if self._edit != self._first:
            self._undone.append(self._edit)
            self._edit = self._first

    def save(self) -> Path | None:
        """Write edit.json; one that exists is kept beside it.

        Returns:
            Where the old file is kept, None where there was none.
        """
        backup = None
        if self.path.exists():
            number = 1
            while (backup := self.path.with_name(f"{self.path.stem}.{number}.json")).exists():
                number += 1
            shutil.copy2(self.path, backup)
        write_json(self.path, self._edit.model_dump(mode="json", exclude_defaults=True, exclude_none=True))
        return backup


def _as_json(values: dict[str, Any]) -> Any:
    """Values as JSON has them: models inside become dictionaries."""
    return json.loads(json.dumps(values, default=lambda each: each.model_dump(mode="json")))


def quaternion(rotation: Sequence[float]) -> NDArray:
    """The quaternion (w, x, y, z) of a placement's rotation in degrees."""
    return np.array(trimesh.transformations.quaternion_from_euler(*np.radians(rotation), axes="sxyz"))


def degrees(wxyz: Sequence[float] | NDArray) -> list[float]:
    """The inverse of `quaternion`."""
    matrix = trimesh.transformations.quaternion_matrix(np.asarray(wxyz, dtype=float))
    angles = np.degrees(np.array(trimesh.transformations.euler_from_matrix(matrix, axes="sxyz")))
    return [round(float(angle), 4) for angle in angles]


class PhotoClicks:
    """Clicks on the same joint in two photos, which together give its position.

    Args:
        views: Cameras of the photos.
    """

    def __init__(self, views: Views) -> None:
        self._views = views
        self._rays: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, index: int, direction: Float[Tensor, "3"]) -> bool:
        """Take a click on the backdrop of a photo, as the direction of its ray; whether there are two clicks now.

        Raises:
            UserError: The click hits no pixel of the photo, or the photo has its click already.
        """
        if index in self._rays:
            raise UserError("that is the same photo; choose another one and look through it")
        origin, direction = self._views.c2w[index, :, 3], direction.to(self._views.c2w)
        pixels, valid = self._views[index : index + 1].project((origin + direction)[None])
        (height, width), (x, y) = self._views.size, pixels[0, 0].tolist()
        if not bool(valid) or not (0 <= x < width and 0 <= y < height):
            raise UserError("the click does not hit the photo; look through it first")
        self._rays[index] = origin, direction
        return len(self._rays) == 2

    def point(self) -> tuple[Float[Tensor, "3"], float]:
        """The point that both clicks show, and half of the distance between their rays; see `intersect_rays`."""
        origins, directions = zip(*self._rays.values(), strict=True)
        return intersect_rays(torch.stack(origins), torch.stack(directions))
