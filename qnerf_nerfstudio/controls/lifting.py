"""From OpenPose drawings in many views to the one skeleton in 3D that they show.

Detectors leave out limbs that they do not see, and get some wrong. What most views agree on is one skeleton; drawn
again, it states the whole edit in every view.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views, nearest_to_rays
from qnerf_nerfstudio.common.images import dilate, to_unit
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_COLOURS, OPENPOSE_JOINTS

BRIGHT = 0.68
"""Pixels from this brightness on belong to joints, antialiased ones included; bones have 0.6."""
DARK = 0.2
"""Pixels below this brightness belong to nothing."""
JOINT_HUES = 0.1
"""A pixel's colour, scaled to brightness 1, may differ by this from that of its joint. Joints differ by 1/3; mixtures
of a joint and the bones that cross it are no joints."""
BONE_HUES = 0.2
"""The same for bones, whose place is known."""
TOLERANCE = 0.02
"""Drawings agree with a joint within this share of the image's shorter side, at least 1.5 pixels."""
AGREEING = 0.4
"""Share of the views that draw a joint which must agree on it."""
MIN_VIEWS = 3
"""Two rays always meet somewhere; the third one agrees or not."""
DRAWN = 0.2
"""A bone is part of the skeleton where this share of the views draws it."""
EXPLAINED = 0.7
"""Share of what is drawn in all views that the skeleton must explain."""
MAX_PAIRS = 500
"""Pairs of views that a joint is looked for with."""


@dataclass(frozen=True)
class LiftedSkeleton:
    """A skeleton in world coordinates, as OpenPose names it."""

    joints: dict[str, Float[Tensor, "3"]]
    """Position of each joint that enough views agree on."""
    bones: list[tuple[str, str]]
    """The bones between them that enough views draw."""

    def draw(self, views: Views) -> Float[Tensor, "V 3 H W"]:
        """The skeleton in every view, in [0, 1]."""
        return to_unit(draw_skeleton(views, self.joints, self.bones))


def lift_skeleton(views: Views, images: Float[Tensor, "V 3 H W"]) -> LiftedSkeleton | None:
    """The skeleton that drawings in OpenPose's colours show, by robust triangulation of its joints.

    Args:
        views: The cameras; their size is that of the images.
        images: One drawing per view, in [0, 1].

    Returns:
        None where no single skeleton explains most of what is drawn, as with several persons, hands or faces.
    """
    pixels = find_joints(images)
    tolerance = max(1.5, TOLERANCE * min(views.size))
    found = {name: triangulate(views, pixels[:, index], tolerance) for index, name in enumerate(OPENPOSE_JOINTS)}
    joints = {name: point for name, point in found.items() if point is not None}
    bones = [bone for bone in OPENPOSE_BONES if set(bone) <= set(joints) and _is_drawn(views, images, bone, joints)]
    if not bones:
        return None
    ends = {name for bone in bones for name in bone}
    skeleton = LiftedSkeleton({name: point for name, point in joints.items() if name in ends}, bones)
    near = dilate(skeleton.draw(views).amax(1) > DARK, round(tolerance))
    drawn = images.amax(1) > DARK
    return skeleton if (near & drawn).sum() >= EXPLAINED * drawn.sum() else None


def find_joints(images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V J 2"]:
    """Pixel coordinates (x, y) of OpenPose's joints in drawings; NaN where one is not drawn, or in several places."""
    colours = torch.tensor([OPENPOSE_COLOURS[name] for name in OPENPOSE_JOINTS]) / 255
    height, width = images.shape[-2:]
    radius = 4 * min(height, width) / 512
    spread, least, most = max(1.5, radius + 0.5), torch.pi * radius**2 / 3, 4 * torch.pi * (radius + 1) ** 2
    found = torch.full((len(images), len(colours), 2), torch.nan)
    for view, image in enumerate(images):
        y, x = (image.amax(0) >= BRIGHT).nonzero(as_tuple=True)
        ratio = image[:, y, x].T / image[:, y, x].amax(0)[:, None]
        distance, joint = (ratio[:, None] - colours).abs().amax(-1).min(-1)
        pixels = torch.stack([x, y], dim=-1) + 0.5
        for index in joint[distance <= JOINT_HUES].unique().tolist():
            alike = pixels[(joint == index) & (distance <= JOINT_HUES)]
            if len(alike) > most:
                continue
            near = torch.cdist(alike, alike) <= spread
            disc = alike[near[near.sum(1).argmax()]]
            # The rest are mixtures of others, as where bones cross joints.
            if len(disc) >= least and len(disc) >= 2 / 3 * len(alike):
                found[view, index] = disc.mean(0)
    return found


def triangulate(views: Views, pixels: Float[Tensor, "V 2"], tolerance: float) -> Float[Tensor, "3"] | None:
    """The point that most views see at their pixel, within a tolerance in pixels; None where they do not agree.

    Tries the point nearest to the rays of every pair of views, keeps the one with the least truncated reprojection
    error (MSAC; Torr and Zisserman, "MLESAC", 2000), and fits it to the rays that agree.

    Args:
        views: The cameras.
        pixels: Pixel coordinates (x, y); NaN where a view does not see the point.
        tolerance: Distance in pixels up to which a view agrees.
    """
    seen = ~pixels.isnan().any(-1)
    origins, directions = (each[:, 0] for each in views.rays_through(pixels.nan_to_num()[:, None]))
    seen &= ~directions.isnan().any(-1)
    if seen.sum() < MIN_VIEWS:
        return None
    directions = F.normalize(directions, dim=-1)
    pairs = torch.combinations(seen.nonzero()[:, 0])
    pairs = pairs[:: -(-len(pairs) // MAX_PAIRS)]
    candidates = nearest_to_rays(origins[pairs], directions[pairs]).float()
    points = candidates[_errors(views, pixels, candidates, tolerance)[seen].square().sum(0).argmin()]
    for _ in range(2):
        agreeing = seen & (_errors(views, pixels, points[None], tolerance)[:, 0] < tolerance)
        if agreeing.sum() < max(MIN_VIEWS, AGREEING * seen.sum()):
            return None
        points = nearest_to_rays(origins[agreeing], directions[agreeing]).float()
    return points


def _errors(
    views: Views, pixels: Float[Tensor, "V 2"], points: Float[Tensor, "P 3"], limit: float
) -> Float[Tensor, "V P"]:
    """Reprojection errors in pixels, at most `limit`."""
    projected, valid = views.project(points)
    errors = (projected - pixels[:, None]).norm(dim=-1).clamp_max(limit)
    return torch.where(valid & ~errors.isnan(), errors, limit)


def _is_drawn(
    views: Views, images: Float[Tensor, "V 3 H W"], bone: tuple[str, str], joints: dict[str, Float[Tensor, "3"]]
) -> bool:
    """Whether enough views show the colour of a bone along it."""
    fractions = torch.linspace(0.3, 0.7, 5)[:, None]
    pixels, valid = views.project(torch.lerp(joints[bone[0]][None], joints[bone[1]][None], fractions))
    height, width = views.size
    x, y = pixels.floor().long().unbind(-1)
    valid = valid & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    colours = images.movedim(1, -1)[torch.arange(len(images))[:, None], y, x]
    brightness = colours.amax(-1)
    ratio = colours / brightness[..., None].clamp_min(DARK)
    colour = torch.tensor(OPENPOSE_COLOURS[bone]) / 255
    alike = (ratio - colour).abs().amax(-1) <= BONE_HUES
    shown = valid & alike & (brightness > DARK) & (brightness < BRIGHT)
    return bool((shown.sum(-1) >= 3).sum() >= max(2, DRAWN * len(images)))
