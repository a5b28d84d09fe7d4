"""Bones as capsules, and how each moves from the edited scene back to the captured one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

FLAT = 0.05
"""Joints whose second principal spread is below this share of the first lie on a line: their turning about it is
unknown."""


@dataclass(frozen=True)
class Skeleton:
    """K bones between J joints."""

    joints: Float[Tensor, "J 3"]
    """Positions in scene coordinates."""
    bones: Int[Tensor, "K 2"]
    """Indices of the joints at both ends of every bone."""

    @classmethod
    def named(cls, joints: Mapping[str, Float[Tensor, "3"]], bones: Sequence[tuple[str, str]]) -> "Skeleton":
        """The skeleton of bones between named joints; joints without a bone are left out."""
        names = sorted({name for bone in bones for name in bone})
        numbers = [[names.index(name) for name in bone] for bone in bones]
        return cls(torch.stack([joints[name] for name in names]), torch.tensor(numbers))

    @classmethod
    def joined(cls, skeletons: Sequence["Skeleton"]) -> "Skeleton":
        """Several skeletons as one."""
        firsts = accumulate((len(each.joints) for each in skeletons[:-1]), initial=0)
        bones = [each.bones + first for each, first in zip(skeletons, firsts, strict=True)]
        return cls(torch.cat([each.joints for each in skeletons]), torch.cat(bones))

    @property
    def start(self) -> Float[Tensor, "K 3"]:
        """The first end of every bone."""
        return self.joints[self.bones[:, 0]]

    @property
    def end(self) -> Float[Tensor, "K 3"]:
        """The second end of every bone."""
        return self.joints[self.bones[:, 1]]

    @property
    def lengths(self) -> Float[Tensor, "K"]:
        """Length of every bone."""
        return (self.end - self.start).norm(dim=-1)

    def along(self, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
        """Distance of points from every bone, and where their feet lie along it: 0 at its start, 1 at its end; not
        clamped."""
        axis, offset = self.end - self.start, points[:, None] - self.start
        share = (offset * axis).sum(-1) / axis.square().sum(-1).clamp_min(1e-12)
        return (offset - share.clamp(0, 1)[..., None] * axis).norm(dim=-1), share

    def degrees(self) -> Int[Tensor, "J"]:
        """Number of bones at every joint."""
        return torch.bincount(self.bones.flatten(), minlength=len(self.joints))

    def shared_joints(self) -> Int[Tensor, "K K"]:
        """The joint that two bones share, -1 where they share none, and on the diagonal."""
        same = self.bones[:, None, :, None] == self.bones[None, :, None, :]
        found = torch.where(same.any(-1), self.bones[:, None], -1).amax(-1)
        return found.fill_diagonal_(-1)

    def double(self) -> "Skeleton":
        """The same in double precision: nearly opposite directions leave few digits of a rotation."""
        return Skeleton(self.joints.double(), self.bones)

    def to(self, device: str) -> "Skeleton":
        """The same on another device."""
        return Skeleton(*(getattr(self, item.name).to(device) for item in fields(self)))


def bone_motions(edited: Skeleton, captured: Skeleton) -> Float[Tensor, "K 3 4"]:
    """Affine maps that take every bone of the edited scene to its place in the captured one.

    A bone turns rigidly and changes its length along itself. The joint with most bones and its neighbours turn as one
    (Kabsch, 1976); from there each bone turns the least relative to the one before it, as a straight limb has no twist
    that joints would show.
    """
    single, edited, captured = edited.joints.dtype, edited.double(), captured.double()
    rotations: dict[int, Tensor] = {}
    root = int(edited.degrees().argmax())
    queue = [(root, _trunk_rotation(edited, captured, root))]
    reached = {root}
    bones = edited.bones.tolist()
    while queue:
        joint, parent = queue.pop(0)
        for number, (first, second) in enumerate(bones):
            if number in rotations or joint not in (first, second):
                continue
            other = second if joint == first else first
            before, after = (each.joints[other] - each.joints[joint] for each in (edited, captured))
            rotations[number] = least_rotation(parent @ before, after) @ parent
            if other not in reached:
                reached.add(other)
                queue.append((other, rotations[number]))
        if not queue and len(rotations) < len(bones):  # another group of bones, joined to none of the others
            joint = next(first for number, (first, _) in enumerate(bones) if number not in rotations)
            reached.add(joint)
            queue.append((joint, _trunk_rotation(edited, captured, joint)))
    rotation = torch.stack([rotations[number] for number in range(len(bones))])
    axis = F.normalize(edited.end - edited.start, dim=-1)
    stretch = captured.lengths / edited.lengths.clamp_min(1e-9) - 1
    linear = rotation @ (torch.eye(3).to(axis) + stretch[:, None, None] * axis[:, :, None] * axis[:, None, :])
    shift = captured.start - (linear @ edited.start[..., None])[..., 0]
    return torch.cat([linear, shift[..., None]], dim=-1).to(single)


def _trunk_rotation(edited: Skeleton, captured: Skeleton, root: int) -> Float[Tensor, "3 3"]:
    """The rotation of a joint and its neighbours from the edited to the captured scene."""
    touching = edited.bones[(edited.bones == root).any(-1)]
    others = torch.where(touching[:, 0] == root, touching[:, 1], touching[:, 0])
    before, after = (each.joints[others] - each.joints[root] for each in (edited, captured))
    spread = torch.linalg.svdvals(before)
    if torch.equal(before, after) or len(others) < 2 or spread[1] < FLAT * spread[0]:
        return least_rotation(before[0], after[0])
    left, _, right = torch.linalg.svd(before.T @ after)
    sign = torch.ones(3).to(before)
    sign[2] = torch.linalg.det(right.T @ left.T).sign()
    return right.T @ torch.diag(sign) @ left.T


def least_rotation(before: Float[Tensor, "3"], after: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """The rotation by the smallest angle that turns one direction into another (Rodrigues' formula)."""
    if torch.equal(before, after):
        return torch.eye(3).to(before)
    before, after = F.normalize(before, dim=0), F.normalize(after, dim=0)
    cosine = before @ after
    if cosine <= -1 + 1e-10:
        aside = torch.eye(3).to(before)[before.abs().argmin()]
        axis = F.normalize(torch.linalg.cross(before, aside), dim=0)
        return 2 * torch.outer(axis, axis) - torch.eye(3).to(before)
    x, y, z = torch.linalg.cross(before, after)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    return torch.eye(3).to(before) + cross + cross @ cross / (1 + cosine)
