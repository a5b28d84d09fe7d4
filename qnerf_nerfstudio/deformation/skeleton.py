"""The deformation that a skeleton in two poses states."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qnerf_nerfstudio.deformation.deformation import Origins
from qnerf_nerfstudio.rigs.bones import Skeleton, bone_motions
from qnerf_nerfstudio.rigs.light import Light, ShadeGrid
from qnerf_nerfstudio.rigs.matter import Anatomy, OwnerGrid, cell_centres, cell_grid
from qnerf_nerfstudio.rigs.skin import BLEND, JOINT

CANDIDATES = 3
"""Bones that are asked for the matter at a point, nearest first."""


@dataclass(frozen=True)
class SkeletonDeformation:
    """Bones move rigidly, each with the matter that it owns.

    The nearest bone that brings matter to a point leads there, and only bones that share a joint with it blend in.
    """

    edited: Skeleton
    """The skeleton in the edited scene."""
    captured: Skeleton
    """The skeleton in the captured scene."""
    anatomy: Anatomy
    """What each bone owns there."""
    motions: Float[Tensor, "K 3 4"]
    """Takes every bone of the edited scene to its place in the captured one."""
    shared: Int[Tensor, "K K"]
    """The joint that two bones share, -1 where they share none."""
    nearby: OwnerGrid
    """Cells of the edited scene that a bone may bring matter to are 0, all others -1."""
    shades: ShadeGrid | None = None
    """What the colours of matter change by; None: they stay."""

    @classmethod
    def of(
        cls, edited: Skeleton, captured: Skeleton, anatomy: Anatomy, light: Light | None = None
    ) -> "SkeletonDeformation":
        """The deformation between two poses of a skeleton; without a light, matter keeps its colours."""
        motions, shared = bone_motions(edited, captured), edited.shared_joints()
        longest = float((edited.joints.amax(0) - edited.joints.amin(0)).max())
        box, shape, side = cell_grid(edited, float((anatomy.reach + anatomy.radii).max()) / longest)
        near = torch.cat(
            [
                (edited.along(part)[0] - anatomy.radii < anatomy.reach + side).any(-1)
                for part in cell_centres(box, shape).split(1 << 16)
            ]
        )
        nearby = OwnerGrid(box, near.reshape(shape).short() - 1)
        shades = None if light is None else light.shades(anatomy.owners, motions)
        return cls(edited, captured, anatomy, motions, shared, nearby, shades)

    def to(self, device: str) -> "SkeletonDeformation":
        """The same on another device."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return SkeletonDeformation(**{name: part.to(device) for name, part in parts.items() if part is not None})

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Origins:
        """Where the matter at points was captured."""
        flat = points.reshape(-1, 3)
        origins = flat.clone()
        kept = self.anatomy.owners(flat) < 0
        certainty = torch.ones_like(flat[:, 0])
        near = (self.nearby(flat) >= 0).nonzero()[:, 0]
        for rows in near.split(1 << 16):
            carried, sources, sure = self._carry(flat[rows])
            origins[rows[carried]] = sources[carried]
            certainty[rows[carried]] = sure[carried]
            kept[rows[carried]] = True
        shape, shades = points.shape[:-1], None
        if self.shades is not None:
            shades, moved = torch.ones_like(certainty), (origins != flat).any(-1).nonzero()[:, 0]
            shades[moved] = self.shades(origins[moved])
            shades = shades.reshape(shape)
        return Origins(origins.reshape(points.shape), kept.reshape(shape), certainty.reshape(shape), shades)

    def _carry(
        self, points: Float[Tensor, "N 3"]
    ) -> tuple[Bool[Tensor, "N"], Float[Tensor, "N 3"], Float[Tensor, "N"]]:
        """Whether bones bring matter to points, from where, and how sure that is."""
        distances, _ = self.edited.along(points)
        distances = distances - self.anatomy.radii
        distance, bone = distances.topk(min(CANDIDATES, distances.shape[-1]), dim=-1, largest=False)
        motion = self.motions[bone]
        sources = (motion[..., :3] @ points[:, None, :, None])[..., 0] + motion[..., 3]
        owner = self.anatomy.owners(sources)
        own = owner == bone
        joint = torch.where(owner >= 0, self.shared[bone, owner.clamp_min(0)], -1)
        apart = (sources - self.captured.joints[joint.clamp_min(0)]).norm(dim=-1)
        own |= (joint >= 0) & (apart < JOINT * self.anatomy.radii[bone])
        own &= distance <= self.anatomy.reach[bone]
        brings = own & (self.anatomy.matter(sources) >= 0)
        # Empty space that goes with a bone replaces no matter: neither what another bone brings, nor what stays.
        own &= (brings.any(-1) | (self.anatomy.owners(points) >= 0) | (self.anatomy.matter(points) < 0))[:, None]
        first = torch.where(torch.where(brings.any(-1, keepdim=True), brings, own), distance, torch.inf).argmin(-1)
        leading = bone.gather(-1, first[:, None])
        own &= (bone == leading) | (self.shared[bone, leading] >= 0)
        closeness = torch.where(own, -distance / (BLEND * self.anatomy.radii.median()), -torch.inf)
        weights = torch.softmax(closeness, dim=-1).nan_to_num()
        # As a sum of offsets, so that what does not move stays where it is to the bit.
        offsets = (weights[..., None] * (sources - points[:, None])).sum(1)
        return own.any(-1), points + offsets, weights.amax(-1)


@dataclass(frozen=True)
class Alone:
    """Shows the captured scene without anything that no part owns."""

    owners: OwnerGrid
    """Which part owns what."""

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Origins:
        """All matter stays where it was captured, and is there where a part owns it."""
        return Origins(points, self.owners(points) >= 0, torch.ones_like(points[..., 0]))

    def to(self, device: str) -> "Alone":
        """The same on another device."""
        return Alone(self.owners.to(device))
