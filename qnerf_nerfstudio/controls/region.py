"""Where in the scene an edit may change matter: a stated shape, or the visual hull of what control images change."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views, invert_affine, transform_points
from qnerf_nerfstudio.common.images import dilate
from qnerf_nerfstudio.controls.solids import placement_matrix
from qnerf_nerfstudio.edit.schema import BoxRegion, SphereRegion

RESOLUTION = 64
"""Cells along each side, first of the scene box, then of the region's own box."""
AGREEING = 2 / 3
"""Share of the views which see a cell that must see a change there: some controls leave out a limb, or are wrong."""
SEEING = 0.5
"""A cell counts as seen by at least this share of the views that see the most often changed cell change, so that matter
close to a few cameras is no change."""


@dataclass(frozen=True)
class VoxelRegion:
    """A part of the scene box as a grid of cells."""

    box: Float[Tensor, "2 3"]
    """Lower and upper corner of the scene box."""
    cells: Bool[Tensor, "G G G"]
    """Which cells belong to the region, by x, y and z."""

    def contains(self, points: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points lie in the region; none outside of the scene box does."""
        resolution = self.cells.shape[0]
        index = ((points - self.box[0]) / (self.box[1] - self.box[0]) * resolution).floor().long()
        inside = ((index >= 0) & (index < resolution)).all(dim=-1)
        x, y, z = index.clamp(0, resolution - 1).unbind(-1)
        return self.cells[x, y, z] & inside

    def to(self, device: torch.device | str) -> "VoxelRegion":
        """The same region on another device."""
        return VoxelRegion(self.box.to(device), self.cells.to(device))

    def centres(self) -> Float[Tensor, "P 3"]:
        """Centres of the cells of the region."""
        resolution = self.cells.shape[0]
        return self.box[0] + (self.cells.nonzero() + 0.5) / resolution * (self.box[1] - self.box[0])

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "N 3"]:
        """Random points of the region, evenly spread; none where it has no cells."""
        centres = self.centres()
        chosen = torch.randint(max(1, len(centres)), (count if len(centres) else 0,), generator=generator)
        inside = torch.rand(len(chosen), 3, generator=generator) - 0.5
        return centres[chosen] + inside / self.cells.shape[0] * (self.box[1] - self.box[0])

    def seen(self, views: Views) -> Bool[Tensor, "V H W"]:
        """Pixels of views behind which a cell of the region lies."""
        height, width = views.size
        masks = torch.zeros(len(views), height, width, dtype=torch.bool)
        centres = self.centres()
        radius = float((self.box[1] - self.box[0]).norm()) / self.cells.shape[0] / 2
        for index in range(len(views)):
            view = views[index : index + 1]
            pixels, valid = view.project(centres)
            x, y = pixels[0, valid[0]].floor().long().unbind(-1)
            kept = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            masks[index, y[kept], x[kept]] = True
            if kept.any():
                distance = (centres[valid[0]][kept] - view.c2w[0, :, 3]).norm(dim=-1).quantile(0.1).clamp_min(1e-3)
                reach = min(int(radius * float(view.intrinsics[0, :2].max()) / float(distance)) + 1, max(views.size))
                masks[index] = dilate(masks[index], reach)
        return masks


def shape_region(
    shape: BoxRegion | SphereRegion, to_scene: Float[Tensor, "3 4"], hull: VoxelRegion | None
) -> VoxelRegion:
    """The cells of a box or a sphere, inside the hull of the control where there is one.

    Args:
        shape: The shape, in the dataset's coordinates.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
        hull: The visual hull of what the control images change.
    """
    if isinstance(shape, BoxRegion):
        own = placement_matrix(shape.position, shape.rotation, [side / 2 for side in shape.size])
    else:
        own = placement_matrix(shape.position, (0, 0, 0), [shape.radius] * 3)
    matrix = to_scene @ own
    corners = transform_points(torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3), matrix)
    box = torch.stack([corners.amin(0), corners.amax(0)])
    region = VoxelRegion(box, torch.ones(RESOLUTION, RESOLUTION, RESOLUTION, dtype=torch.bool))
    centres = region.centres()
    local = transform_points(centres, invert_affine(matrix))
    inside = local.abs().amax(-1) <= 1 if isinstance(shape, BoxRegion) else local.norm(dim=-1) <= 1
    if hull is not None:
        inside = inside & hull.contains(centres)
    return VoxelRegion(box, inside.reshape(region.cells.shape))


def visual_hull(views: Views, changed: Bool[Tensor, "V h w"], box: Float[Tensor, "2 3"]) -> VoxelRegion | None:
    """The cells of the scene box that most of the views which see them see changed; None where there are none.

    Args:
        views: Cameras.
        changed: Where each view changes, at any resolution.
        box: Lower and upper corner of the scene box.
    """
    views, box = views.resized((changed.shape[1], changed.shape[2])), box.cpu()
    for _ in range(2):
        region = _agreeing(views, changed, box)
        centres = region.centres()
        if len(centres) == 0:
            return None
        side = (box[1] - box[0]) / RESOLUTION
        box = torch.stack([centres.amin(0) - side, centres.amax(0) + side])
    return region


def _agreeing(views: Views, changed: Bool[Tensor, "V h w"], box: Float[Tensor, "2 3"]) -> VoxelRegion:
    """The cells of a box that most views see changed."""
    region = VoxelRegion(box, torch.ones(RESOLUTION, RESOLUTION, RESOLUTION, dtype=torch.bool))
    centres = region.centres()
    height, width = views.size
    seeing, seeing_change = torch.zeros(len(centres)), torch.zeros(len(centres))
    for index in range(len(views)):
        for start in range(0, len(centres), 1 << 16):
            part = slice(start, start + (1 << 16))
            pixels, valid = views[index : index + 1].project(centres[part])
            x, y = pixels[0].floor().unbind(-1)
            kept = valid[0] & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            x, y = (torch.where(kept, each, torch.zeros_like(each)).long() for each in (x, y))
            seeing[part] += kept
            seeing_change[part] += kept & changed[index, y, x]
    expected = AGREEING * seeing.clamp_min(SEEING * float(seeing_change.max()))
    # One view alone says nothing about where along its rays a change lies.
    agreeing = seeing_change >= expected.clamp_min(2)
    return VoxelRegion(box, agreeing.reshape(region.cells.shape))
