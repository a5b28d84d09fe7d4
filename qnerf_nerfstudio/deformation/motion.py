"""The motion that an edit states, if it states one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.controls.draw import PlacedSkeleton, placed_mesh, placed_skeletons
from qnerf_nerfstudio.controls.lifting import LiftedSkeleton
from qnerf_nerfstudio.deformation.deformation import StatedDeformation
from qnerf_nerfstudio.deformation.meshes import MeshDeformation
from qnerf_nerfstudio.deformation.skeleton import Alone, SkeletonDeformation
from qnerf_nerfstudio.deformation.solids import BoxesDeformation
from qnerf_nerfstudio.edit.schema import BoxControl, Edit, ImagesControl, MeshControl, skeleton_parts, solid_parts
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.rigs.light import Colour, Light, read_light
from qnerf_nerfstudio.rigs.matter import Allowed, Anatomy, Density, OwnerGrid, read_anatomy, read_matter

MIDDLE, POINTS = (0.25, 0.75), 8
"""Part of a bone, as shares of its length, that lies inside of what it moves, and points that are taken there."""


class Motion(Protocol):
    """What moves where; what it takes along is read off the field of the photos."""

    def inside(self) -> Float[Tensor, "N 3"] | None:
        """Points of the captured scene that lie inside of matter; None where nothing is known."""
        ...

    def read(self, density: Density, colour: Colour | None, allowed: Allowed | None, views: Views) -> dict[str, Tensor]:
        """What the motion takes along, as named tensors.

        Args:
            density: The field of the photos.
            colour: Its colours, which the light is read off; None: matter that turns keeps its shading.
            allowed: Whether matter at points may move; None: all may.
            views: The cameras of the photos.

        Raises:
            UserError: There is no matter where the motion begins.
        """
        ...

    def deformation(self, tensors: dict[str, Tensor]) -> StatedDeformation:
        """The deformation that takes along what was read."""
        ...

    def alone(self, tensors: dict[str, Tensor]) -> StatedDeformation | None:
        """Shows what was read, in the captured scene, without anything else; None where nothing was read."""
        ...


@dataclass(frozen=True)
class SkeletonMotion:
    """Skeletons in two poses."""

    captured: Skeleton
    """In the captured scene."""
    edited: Skeleton
    """In the edited scene."""

    def inside(self) -> Float[Tensor, "N 3"]:
        """Points along the middle of every bone, away from joints, which may lie on the surface."""
        share = torch.linspace(*MIDDLE, POINTS)[:, None, None]
        return torch.lerp(self.captured.start, self.captured.end, share).flatten(0, 1)

    def read(self, density: Density, colour: Colour | None, allowed: Allowed | None, views: Views) -> dict[str, Tensor]:
        """What belongs to the bones, and the light on it."""
        matter = read_matter(density, self.captured)
        anatomy = read_anatomy(matter, self.captured, allowed)
        grid = anatomy.owners
        tensors = {"radii": anatomy.radii, "reach": anatomy.reach, "box": grid.box, "owners": grid.owners}
        tensors["matter"] = anatomy.matter.owners
        if colour is None:
            return tensors
        light, explained = read_light(matter, grid, colour, views)
        if light is not None:
            tensors |= {"harmonics": light.harmonics, "normals": light.normals.half()}
            tensors["exponent"] = torch.tensor(light.exponent)
        return {**tensors, "explained": torch.tensor(explained)}

    def deformation(self, tensors: dict[str, Tensor]) -> StatedDeformation:
        """The deformation of what was read."""
        owners, matter = (OwnerGrid(tensors["box"], tensors[name]) for name in ("owners", "matter"))
        anatomy = Anatomy(tensors["radii"], tensors["reach"], owners, matter)
        light = None
        if "harmonics" in tensors:
            light = Light(tensors["harmonics"], tensors["normals"].float(), float(tensors["exponent"]))
        return SkeletonDeformation.of(self.edited, self.captured, anatomy, light)

    def alone(self, tensors: dict[str, Tensor]) -> StatedDeformation:
        """Shows what belongs to the bones alone."""
        return Alone(OwnerGrid(tensors["box"], tensors["owners"]))


@dataclass(frozen=True)
class SolidsMotion:
    """Boxes or meshes in two poses."""

    solids: BoxesDeformation | MeshDeformation
    """What they state."""

    def inside(self) -> None:
        """Nothing is known: what solids enclose may be empty in part."""

    def read(self, density: Density, colour: Colour | None, allowed: Allowed | None, views: Views) -> dict[str, Tensor]:
        """Nothing: what lies in a solid moves with it, whatever it is."""
        return {}

    def deformation(self, tensors: dict[str, Tensor]) -> StatedDeformation:
        """The deformation, which nothing was read for."""
        return self.solids

    def alone(self, tensors: dict[str, Tensor]) -> None:
        """Nothing was read."""


def stated_motion(
    edit: Edit,
    folder: Path,
    to_scene: Float[Tensor, "3 4"],
    lifted: tuple[LiftedSkeleton, LiftedSkeleton] | None,
) -> Motion | str:
    """The motion that an edit states, or why it states none.

    Args:
        edit: The edit.
        folder: Folder of edit.json.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
        lifted: The skeletons that control images show, in the captured and in the edited scene.
    """
    control = edit.control
    if isinstance(control, ImagesControl):
        return _lifted_motion(lifted)
    if skeletons := skeleton_parts(control):
        before, after = placed_skeletons(skeletons, to_scene)
        return _skeleton_motion(before, after)
    return _solids_motion(solid_parts(control), folder, to_scene)


def _lifted_motion(lifted: tuple[LiftedSkeleton, LiftedSkeleton] | None) -> Motion | str:
    """The motion between the skeletons that control images show."""
    if lifted is None:
        return "control images show no skeleton that has one pose in the captured scene and another in the edited"
    before, after = lifted
    bones = [bone for bone in before.bones if set(bone) <= set(after.joints)]
    if not bones:
        return "the skeletons of source and target have no bone in common"
    return _skeleton_motion([(before.joints, bones)], [(after.joints, bones)])


def _solids_motion(parts: Sequence[BoxControl | MeshControl], folder: Path, to_scene: Tensor) -> Motion | str:
    """The motion of boxes and meshes."""
    boxes = [part for part in parts if isinstance(part, BoxControl)]
    if len(boxes) == len(parts):
        return SolidsMotion(BoxesDeformation.of(boxes, to_scene))
    pairs = [(placed_mesh(part.source, folder, to_scene), placed_mesh(part.target, folder, to_scene)) for part in parts]
    if any(not np.array_equal(before.faces, after.faces) for before, after in pairs):
        return "meshes of other triangles in source and target are two shapes, and no motion"
    return SolidsMotion(MeshDeformation.of(pairs))


def _skeleton_motion(before: Sequence[PlacedSkeleton], after: Sequence[PlacedSkeleton]) -> SkeletonMotion:
    """One motion of several skeletons, which have the same bones before and after it."""
    captured, edited = (Skeleton.joined([Skeleton.named(*each) for each in side]) for side in (before, after))
    return SkeletonMotion(captured, edited)
