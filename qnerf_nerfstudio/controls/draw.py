"""From an edit to the source and target control image of every view."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import trimesh
from jaxtyping import Bool, Float
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views, transform_points
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import dilate, to_unit
from qnerf_nerfstudio.controls.images import load_control_images
from qnerf_nerfstudio.controls.rigged import rigged_mesh
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.controls.solids import (
    MAX_FACES,
    box_mesh,
    depth_images,
    load_mesh,
    normal_images,
    placement_matrix,
    raycast,
    transform_mesh,
)
from qnerf_nerfstudio.edit.schema import (
    BoxPlacement,
    Edit,
    ImagesControl,
    JointedControl,
    Kind,
    MeshPlacement,
    RigControl,
    skeleton_parts,
    solid_parts,
)

Images = Float[Tensor, "V 3 H W"]
Controls = Float[Tensor, "V C H W"]
"""Control images of one kind or more, three channels each."""
PlacedSkeleton = tuple[Mapping[str, Float[Tensor, "3"]], Sequence[tuple[str, str]]]
"""Joints in scene coordinates, and bones."""
HEAD = ("neck", "nose")
"""The bone beyond which a head goes on."""


def control_images(
    edit: Edit,
    folder: Path,
    views: Views,
    names: list[str],
    to_scene: Float[Tensor, "3 4"],
    size: tuple[int, int],
) -> tuple[Controls, Controls]:
    """The source and target control images of every view.

    Args:
        edit: The edit.
        folder: Folder of edit.json, that relative paths start from.
        views: Cameras in scene coordinates.
        names: File name of every view's photo.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
        size: Height and width of the control images.

    Returns:
        Source and target control images in [0, 1]; those of several kinds are channels beside each other, in the order
        that the control names them.

    Raises:
        UserError: Control images or meshes are missing or unreadable, or the control is outside every view.
    """
    control = edit.control
    if isinstance(control, ImagesControl):
        source, target = (
            load_control_images(folder / each, names, views.size, size) for each in (control.source, control.target)
        )
        return to_unit(source), to_unit(target)
    views = views.resized(size)
    if isinstance(control, RigControl):
        drawn = _rig(control, folder, views, to_scene)
    elif skeletons := skeleton_parts(control):
        drawn = _skeletons(skeletons, views, to_scene)
    else:
        parts = solid_parts(control)
        sides = [[placed_mesh(getattr(part, key), folder, to_scene) for part in parts] for key in ("source", "target")]
        drawn = _joined(_solids(sides, parts[0].draw, folder, views).values())
    for key, images in zip(("source", "target"), drawn, strict=True):
        if not images.any():
            raise UserError(
                f"{folder / 'edit.json'}: control.{key}: the {control.type} is outside every view, or too small to be "
                f"seen in any; positions are in the coordinates of transforms.json"
            )
    return drawn


def overlaid(images: Controls) -> Images:
    """Control images of several kinds over each other, to be looked at."""
    return images.unflatten(1, (-1, 3)).amax(1)


def _joined(kinds: Iterable[tuple[Images, Images]]) -> tuple[Controls, Controls]:
    """Source and target images of several kinds, as channels beside each other."""
    source, target = zip(*kinds, strict=True)
    return torch.cat(source, dim=1), torch.cat(target, dim=1)


def _rig(control: RigControl, folder: Path, views: Views, to_scene: Float[Tensor, "3 4"]) -> tuple[Controls, Controls]:
    """Draw a rig in all of its kinds."""
    sides = [[transform_mesh(rigged_mesh(control, folder, side), to_scene)] for side in ("source", "target")]
    drawn = _solids(sides, [kind for kind in control.draw if kind != "openpose"], folder, views)
    if "openpose" in control.draw:
        drawn["openpose"] = _skeletons([control], views, to_scene)
    return _joined(drawn[kind] for kind in control.draw)


def _skeletons(parts: Sequence[JointedControl], views: Views, to_scene: Tensor) -> tuple[Images, Images]:
    """Draw skeletons, later ones over earlier ones."""
    drawn = []
    for placed in placed_skeletons(parts, to_scene):
        canvas = torch.zeros(len(views), *views.size, 3, dtype=torch.uint8)
        for joints, bones in placed:
            images = draw_skeleton(views, joints, bones)
            canvas = torch.where((images > 0).any(-1, keepdim=True), images, canvas)
        drawn.append(to_unit(canvas))
    return drawn[0], drawn[1]


def placed_skeletons(
    parts: Sequence[JointedControl], to_scene: Float[Tensor, "3 4"]
) -> tuple[Sequence[PlacedSkeleton], Sequence[PlacedSkeleton]]:
    """The skeletons of the captured and of the edited scene, in scene coordinates.

    Args:
        parts: The skeletons' controls.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
    """

    def placed(stated: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
        return {name: transform_points(to_scene.new_tensor(at), to_scene) for name, at in stated.items()}

    before, after = ([(placed(getattr(part, key)), part.all_bones) for part in parts] for key in ("source", "target"))
    return before, after


def head_pixels(
    before: Sequence[PlacedSkeleton], after: Sequence[PlacedSkeleton], views: Views
) -> Bool[Tensor, "V H W"]:
    """Where heads of OpenPose's skeletons move, with what is above the nose: no joint tells of hair and hats.

    Args:
        before: The skeletons of the captured scene.
        after: The same in the edited scene.
        views: The cameras.
    """
    moved = torch.zeros(len(views), *views.size, dtype=torch.bool)
    for skeletons in zip(before, after, strict=True):
        if all(HEAD in bones and set(HEAD) <= set(joints) for joints, bones in skeletons):
            moved |= differing_pixels(*(_head(views, joints) for joints, _ in skeletons))
    return moved


def _head(views: Views, joints: Mapping[str, Float[Tensor, "3"]]) -> Images:
    """The bone from the neck to the nose, and as far again."""
    neck, nose = (joints[name] for name in HEAD)
    return to_unit(draw_skeleton(views, {"neck": neck, "nose": 2 * nose - neck}, [HEAD]))


def placed_mesh(placed: MeshPlacement | BoxPlacement, folder: Path, to_scene: Float[Tensor, "3 4"]) -> trimesh.Trimesh:
    """A box or the mesh of a file where it is placed, in scene coordinates.

    Args:
        placed: The placement, in the dataset's coordinates.
        folder: Folder of edit.json.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.

    Raises:
        UserError: The mesh is missing or unreadable.
    """
    if isinstance(placed, MeshPlacement):
        mesh, factors = load_mesh(folder / placed.mesh), placed.factors
    else:
        mesh, factors = box_mesh(), placed.size
    return transform_mesh(mesh, to_scene @ placement_matrix(placed.position, placed.rotation, factors))


def _solids(
    sides: Sequence[list[trimesh.Trimesh]], kinds: Sequence[Kind], folder: Path, views: Views
) -> dict[Kind, tuple[Images, Images]]:
    """Draw the meshes of source and target as depth, as normals, or both."""
    surfaces = []
    for key, meshes in zip(("source", "target"), sides, strict=True):
        if (faces := sum(len(mesh.faces) for mesh in meshes)) > MAX_FACES:
            raise UserError(
                f"{folder / 'edit.json'}: control.parts: the meshes of {key} have {faces} triangles in all, at most "
                f"{MAX_FACES} are drawn; simplify the proxies"
            )
        _tell_of_units(views, meshes, f"{folder / 'edit.json'}: control.{key}")
        surfaces.append(raycast(views, meshes))
    drawn: dict[Kind, tuple[Images, Images]] = {}
    for kind in kinds:
        source, target = normal_images(views, surfaces) if kind == "normal" else depth_images(surfaces)
        drawn[kind] = source, target
    return drawn


def _tell_of_units(views: Views, meshes: list[trimesh.Trimesh], where: str) -> None:
    """Say so where a solid is around all cameras, as one in millimetres is where the capture is in metres."""
    centres = views.c2w[:, :, 3].cpu().numpy()
    for mesh in meshes:
        if ((centres > mesh.bounds[0]) & (centres < mesh.bounds[1])).all():
            CONSOLE.print(
                f"{where}: a solid encloses every camera; is it in the units of transforms.json? Scale it by scale.",
                style="yellow",
                soft_wrap=True,
                markup=False,
            )


def differing_pixels(source: Controls, target: Controls) -> Bool[Tensor, "V H W"]:
    """Where control images of source and target differ, grown by a tenth of the image: limbs are wider than bones."""
    return dilate((source - target).abs().amax(1) > 0.02, max(1, min(source.shape[-2:]) // 10))
