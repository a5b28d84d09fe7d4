"""Where an edit may change the scene and its views; elsewhere the photos stay as they are."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.images import load_masks
from qnerf_nerfstudio.controls.region import VoxelRegion, shape_region, visual_hull
from qnerf_nerfstudio.edit.schema import BoxRegion, Edit, Everywhere, SphereRegion

CHANGE_WINDOW = 0.02
"""Side of the window in which a change of a view is averaged, as a share of the view's shorter side."""


@dataclass(frozen=True)
class RegionOfInfluence:
    """Where an edit may change the scene, and its views."""

    voxels: VoxelRegion | None
    """The part of the scene; None: all of it."""
    masks: Bool[Tensor, "V H W"] | None
    """The pixels of every view, at the resolution of the control images; None: all of them."""

    def latent_masks(self, stride: int) -> Float[Tensor, "V 1 h w"] | None:
        """1 for the latents that see a pixel which may change, else 0."""
        return None if self.masks is None else F.max_pool2d(self.masks[:, None].float(), stride)

    def blend_weights(self, size: tuple[int, int], feather: float) -> Float[Tensor, "V 1 H W"] | None:
        """Share of the edited view in every pixel: 1 inside, 0 outside, and a soft edge that lies inside.

        Args:
            size: Height and width of the images that are composited.
            feather: Width of the edge as a share of the shorter side.
        """
        if self.masks is None:
            return None
        inside = F.interpolate(self.masks[:, None].float(), size, mode="nearest-exact")
        reach = round(feather * min(size) / 2)
        if reach == 0:
            return inside
        window = 2 * reach + 1
        # What lies beyond the image is no outside: an edit that leaves the image has no seam there.
        eroded = -F.max_pool2d(-inside, window, stride=1, padding=reach)
        return _averaged(eroded, reach)


def composite(
    edited: Float[Tensor, "V 3 H W"], photos: Float[Tensor, "V 3 H W"], weights: Float[Tensor, "V 1 H W"] | None
) -> Float[Tensor, "V 3 H W"]:
    """Edited views with the photos' own pixels where `weights` is 0."""
    return edited if weights is None else torch.where(weights > 0, torch.lerp(photos, edited, weights), photos)


def keep_unchanged(
    edited: Float[Tensor, "V 3 H W"], begun: Float[Tensor, "V 3 H W"], coded: Float[Tensor, "V 3 H W"], change: float
) -> Float[Tensor, "V 3 H W"]:
    """Edited views with the own pixels of the views that editing began from, where the editor changes nothing.

    With d the mean absolute difference between the edited view and the coded one around a pixel, its share of the view
    that editing began from is exp(-(d / change)²).

    Args:
        edited: What the editor makes, in [0, 1].
        begun: The views that editing began from, in [0, 1].
        coded: What the editor's VAE makes of these alone.
        change: Difference of colours, above 0, from which on edited views prevail.
    """
    reach = round(CHANGE_WINDOW * min(edited.shape[-2:]) / 2)
    differences = _averaged((edited - coded).abs().mean(1, keepdim=True), reach)
    return torch.lerp(edited, begun, (-(differences / change).square()).exp())


def _averaged(maps: Float[Tensor, "V 1 H W"], reach: int) -> Float[Tensor, "V 1 H W"]:
    """The mean of maps in a window of 2 * reach + 1 pixels around each; the border's values go on beyond it."""
    return F.avg_pool2d(F.pad(maps, (reach,) * 4, mode="replicate"), 2 * reach + 1, stride=1)


def find_region_of_influence(
    edit: Edit,
    folder: Path,
    views: Views,
    names: list[str],
    different: Bool[Tensor, "V H W"],
    num_train: int,
    to_scene: Float[Tensor, "3 4"],
    scene_box: Float[Tensor, "2 3"],
) -> RegionOfInfluence:
    """The region of influence that edit.json states.

    Args:
        edit: The edit.
        folder: Folder of edit.json.
        views: Cameras of all views, in scene coordinates.
        names: File name of every view's photo.
        different: Where the control images of source and target differ.
        num_train: Number of training views; they come first.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
        scene_box: Lower and upper corner of the scene box.

    Raises:
        UserError: Nothing that the control changes lies in the region, or masks are missing or leave nothing to change.
    """
    size = (different.shape[1], different.shape[2])
    voxels = None
    if not isinstance(edit.region, Everywhere) and different[:num_train].any():
        voxels = visual_hull(views[:num_train], different[:num_train], scene_box)
        if voxels is None:
            CONSOLE.print(
                "The control images change no part of the scene box that most views see: the edit may change all that "
                "its region allows.",
                style="yellow",
                soft_wrap=True,
            )
    if isinstance(edit.region, BoxRegion | SphereRegion):
        voxels = shape_region(edit.region, to_scene, voxels)
        if not voxels.cells.any():
            raise UserError(
                f"{folder / 'edit.json'}: region: the {edit.region.type} holds nothing of what the control changes; "
                f"move or grow it, positions are in the coordinates of transforms.json"
            )
    masks = None if voxels is None else voxels.seen(views.resized(size))
    if edit.masks is not None:
        stated = load_masks(folder / edit.masks, names, views.size, size)
        masks = stated if masks is None else masks & stated
    if masks is not None and not masks.any():
        raise UserError(
            f"{folder / 'edit.json'}: region and masks leave no pixel of any view to change; masks are white where the "
            f"edit may be"
        )
    return RegionOfInfluence(voxels, masks)
