"""Rig controls: the mesh of what was captured, in both poses of its skeleton."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import trimesh

from qnerf_nerfstudio.controls.solids import load_mesh
from qnerf_nerfstudio.edit.schema import JointedControl, Point, RigControl
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.rigs.skin import Rig

Bones = tuple[tuple[str, str], ...]


def stated_skeleton(control: JointedControl, side: Literal["source", "target"]) -> Skeleton:
    """The skeleton of a control in one pose, in the dataset's coordinates."""
    return _skeleton(tuple(getattr(control, side).items()), control.all_bones)


def rigged_mesh(control: RigControl, folder: Path, side: Literal["source", "target"]) -> trimesh.Trimesh:
    """The mesh of a rig in one pose, in the dataset's coordinates.

    Args:
        control: The rig.
        folder: Folder of edit.json.
        side: The pose.

    Raises:
        UserError: The mesh is missing or unreadable, or far away from the skeleton.
    """
    path = folder / control.mesh
    if side == "source":
        return load_mesh(path)
    rig = _rig(path, load_mesh(path), tuple(control.source.items()), control.all_bones)
    return rig.posed(stated_skeleton(control, side))


@lru_cache(maxsize=4)
def _rig(path: Path, mesh: trimesh.Trimesh, joints: tuple[tuple[str, Point], ...], bones: Bones) -> Rig:
    """A rig; the pose page asks for it at every move of a drag."""
    rig = Rig(mesh, _skeleton(joints, bones))
    rig.refuse_far(f"control.mesh: {path}")
    return rig


def _skeleton(joints: tuple[tuple[str, Point], ...], bones: Bones) -> Skeleton:
    return Skeleton.named({name: torch.tensor(at) for name, at in joints}, bones)
