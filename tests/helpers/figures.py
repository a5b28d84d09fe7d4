"""The procedural figure as matter: its skeleton, and a density that is exact."""

from collections.abc import Callable

import torch
from torch import Tensor

from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.toy.figure import Body, Pose, capsules, joints


def figure_skeleton(body: Body, pose: Pose) -> Skeleton:
    """OpenPose's bones of the figure."""
    placed = joints(body, pose)
    names = list(placed)
    bones = [[names.index(each) for each in bone] for bone in OPENPOSE_BONES if set(bone) <= set(names)]
    return Skeleton(torch.stack(list(placed.values())), torch.tensor(bones))


def offsets(body: Body, pose: Pose, points: Tensor) -> Tensor:
    """Offsets of points [N, 3] from the nearest point on the axis of each of the figure's K capsules, [N, K, 3]."""
    parts = capsules(body, pose)
    axis, offset = parts.end - parts.start, points[:, None] - parts.start
    share = ((offset * axis).sum(-1) / axis.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
    return offset - share[..., None] * axis


def signed_distance(body: Body, pose: Pose, points: Tensor) -> Tensor:
    """Signed distance of points [N, 3] from the figure."""
    return (offsets(body, pose, points).norm(dim=-1) - capsules(body, pose).radius).amin(-1)


def figure_density(body: Body, pose: Pose, floor: float | None = 0.0) -> Callable[[Tensor], Tensor]:
    """The density of the figure, hollow inside as fields are, and of a floor."""

    def density(points: Tensor) -> Tensor:
        distance = signed_distance(body, pose, points)
        matter = (distance < 0) & (distance > -0.04)
        if floor is not None:
            matter |= points[:, 2] < floor
        return 300.0 * matter

    return density
