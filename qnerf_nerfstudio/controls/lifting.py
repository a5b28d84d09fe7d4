"""From OpenPose drawings in many views to the one skeleton in 3D that they show.

Detectors leave out limbs that they do not see, and get some wrong. What most views agree on is one skeleton; drawn
again, it states the whole edit in every view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
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
JOINT_HUES = (0.1, 0.14)
"""A pixel's colour, scaled to brightness 1, may differ by this from that of its joint: tried in turn, the second one
for JPEG files. Joints differ by 1/3; mixtures of a joint and the bones that cross it are no joints."""
LARGEST = 0.03
"""Radius of the largest joints that are found, as a share of the image's shorter side; OpenPose's have 4 of 512."""
BONE_HUES = 0.2
"""The same for bones, whose place is known."""
TOLERANCE = 0.02
"""Drawings agree with a joint within this share of the image's shorter side."""
AGREEING = 0.4
"""Share of the views that draw a joint which must agree on it."""
MIN_VIEWS = 3
"""Two rays always meet somewhere; the third one agrees or not."""
DRAWN = 0.2
"""A bone is part of the skeleton where this share of the views draws it."""
EXPLAINED = 0.7
"""Share of what is drawn in all views that the skeleton must explain."""
MAX_PAIRS = 500
"""Pairs of rays that a joint is looked for with."""
CANDIDATES = 3
"""Places in a view, and in the scene, that are tried for a joint."""


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


class NoSkeletonError(Exception):
    """Drawings show no single skeleton that their views agree on; the message says what was seen."""


def lift_skeleton(views: Views, drawings: Sequence[UInt8[Tensor, "_ _ 3"]]) -> LiftedSkeleton:
    """The skeleton that drawings in OpenPose's colours show, by robust triangulation of its joints.

    Args:
        views: The cameras; the skeleton is drawn again at their size to be compared.
        drawings: One drawing per view, of any size and line width.

    Raises:
        NoSkeletonError: No single skeleton explains most of what is drawn, as with several persons, hands or faces.
    """
    errors = []
    for hues in JOINT_HUES:
        try:
            return _lift(views, drawings, find_joints(drawings, hues))
        except NoSkeletonError as error:
            errors.append(error)
    raise errors[0]


def _lift(views: Views, drawings: Sequence[UInt8[Tensor, "_ _ 3"]], seen: Float[Tensor, "V J K 2"]) -> LiftedSkeleton:
    """The skeleton that drawings show, from the places where its joints may be; see `lift_skeleton`."""
    height, width = views.size
    pixels = seen * torch.tensor([width, height])
    tolerance = TOLERANCE * min(views.size)
    places = {name: _places(views, pixels[:, index], tolerance) for index, name in enumerate(OPENPOSE_JOINTS)}
    _refuse_few(pixels, places)
    joints = _choose(views, drawings, places)
    bones = [bone for bone in OPENPOSE_BONES if set(bone) <= set(joints)]
    bones = [(a, b) for a, b in bones if _shown(views, drawings, (a, b), joints[a], joints[b]) >= DRAWN]
    if not bones:
        raise NoSkeletonError("no bone in OpenPose's colours is drawn between the joints")
    ends = {name for bone in bones for name in bone}
    skeleton = LiftedSkeleton({name: point for name, point in joints.items() if name in ends}, bones)
    near = dilate(skeleton.draw(views).amax(1) > DARK, max(2, round(tolerance)))
    drawn = torch.stack([_resized(drawing, views.size).amax(0) > DARK for drawing in drawings])
    explained = float((near & drawn).sum() / drawn.sum())
    if explained < EXPLAINED:
        raise NoSkeletonError(
            f"the skeleton that most views agree on, of {len(bones)} bones, explains {explained:.0%} of what is drawn, "
            f"{EXPLAINED:.0%} are needed; several persons, hands and faces are not lifted"
        )
    return skeleton


def _refuse_few(pixels: Float[Tensor, "V J K 2"], places: Mapping[str, list[Tensor]]) -> None:
    """Say what was seen where the views agree on fewer than two joints."""
    seen = ~pixels[:, :, 0].isnan().any(-1)
    agreed = [name for name, points in places.items() if points]
    if not seen.any():
        raise NoSkeletonError("no joint in OpenPose's colours was seen in any view")
    if len(agreed) < 2:
        raise NoSkeletonError(
            f"joints in OpenPose's colours were seen in {int(seen.any(1).sum())} of {len(seen)} views, at most "
            f"{int(seen.sum(1).max())} in one, but the views agree on where {agreed[0] if agreed else 'none'} is"
        )


def _choose(
    views: Views, drawings: Sequence[UInt8[Tensor, "_ _ 3"]], places: Mapping[str, list[Float[Tensor, "3"]]]
) -> dict[str, Float[Tensor, "3"]]:
    """Each joint where most of its bones are drawn from, among the places that views agree on."""
    support = {name: [0.0] * len(points) for name, points in places.items()}
    for a, b in OPENPOSE_BONES:
        shown = [[_shown(views, drawings, (a, b), start, end) for end in places[b]] for start in places[a]]
        for name, shares in ((a, shown), (b, list(zip(*shown, strict=True)))):
            for index, each in enumerate(shares):
                support[name][index] += max(each, default=0.0)
    best = {name: max(range(len(points)), key=support[name].__getitem__) for name, points in places.items() if points}
    return {name: places[name][index] for name, index in best.items()}


def _resized(drawing: UInt8[Tensor, "_ _ 3"], size: tuple[int, int]) -> Float[Tensor, "3 H W"]:
    """A drawing at another size, in [0, 1]."""
    return F.interpolate(to_unit(drawing[None]), size, mode="area")[0]


def find_joints(drawings: Sequence[UInt8[Tensor, "_ _ 3"]], hues: float = JOINT_HUES[0]) -> Float[Tensor, "V J K 2"]:
    """Where drawings show OpenPose's joints.

    Args:
        drawings: Drawings of any size.
        hues: Largest difference from a joint's colour, of colours scaled to brightness 1.

    Returns:
        The places that show a joint's colour best, best first: x and y as shares of width and height, NaN where there
        are fewer than K. ControlNet 1.0 blends bones over joints, and mixtures look like other joints.
    """
    seen = [_joint_pixels(drawing, hues) for drawing in drawings]
    shorter = [min(drawing.shape[:2]) for drawing in drawings]
    radii = [_radius(pixels) / side for side, each in zip(shorter, seen, strict=True) for pixels in each.values()]
    found = torch.full((len(drawings), len(OPENPOSE_JOINTS), CANDIDATES, 2), torch.nan)
    if not radii:
        return found
    share = float(torch.tensor(radii).median())
    for view, (side, joints, drawing) in enumerate(zip(shorter, seen, drawings, strict=True)):
        height, width = drawing.shape[:2]
        for index, pixels in joints.items():
            for rank, centre in enumerate(_discs(pixels, share * side)):
                found[view, index, rank] = centre / torch.tensor([width, height])
    return found


def _joint_pixels(drawing: UInt8[Tensor, "H W 3"], hues: float) -> dict[int, Float[Tensor, "P 2"]]:
    """Pixel coordinates (x, y) of what has the colour of each joint, by the joint's place in OpenPose's list."""
    colours = torch.tensor([OPENPOSE_COLOURS[name] for name in OPENPOSE_JOINTS]) / 255
    y, x = (drawing.amax(-1) >= 255 * BRIGHT).nonzero(as_tuple=True)
    ratio = drawing[y, x].float()
    ratio /= ratio.amax(-1, keepdim=True)
    distance, joint = (ratio[:, None] - colours).abs().amax(-1).min(-1)
    pixels = torch.stack([x, y], dim=-1) + 0.5
    most = 4 * torch.pi * (LARGEST * min(drawing.shape[:2]) + 1) ** 2
    alike = {index: pixels[(joint == index) & (distance <= hues)] for index in range(len(colours))}
    return {index: each for index, each in alike.items() if 0 < len(each) <= most}


def _radius(pixels: Float[Tensor, "P 2"]) -> float:
    """Radius of the disc that most of some pixels belong to: half of a disc is within 1 / sqrt(2) of its radius."""
    return float((pixels - pixels.median(0).values).norm(dim=-1).median()) * 2**0.5


def _discs(pixels: Float[Tensor, "P 2"], radius: float) -> list[Float[Tensor, "2"]]:
    """Centres of the densest discs among some pixels, densest first."""
    least, spread = torch.pi * radius**2 / 8, max(1.5, radius + 0.5)
    centres = []
    while len(pixels) and len(centres) < CANDIDATES:
        near = torch.cdist(pixels, pixels) <= spread
        disc = pixels[near[near.sum(1).argmax()]]
        if len(disc) < least:
            break
        centres.append(disc.mean(0))
        pixels = pixels[(pixels - centres[-1]).norm(dim=-1) > 2 * spread]
    return centres


def _places(views: Views, pixels: Float[Tensor, "V K 2"], tolerance: float) -> list[Float[Tensor, "3"]]:
    """The points that views agree on, most of them first."""
    points = []
    while len(points) < CANDIDATES:
        point = triangulate(views, pixels, tolerance)
        if point is None:
            break
        points.append(point)
        projected, _ = views.project(point[None])
        taken = (pixels - projected).norm(dim=-1, keepdim=True) < tolerance
        pixels = pixels.masked_fill(taken, torch.nan)
    return points


def triangulate(views: Views, pixels: Float[Tensor, "V K 2"], tolerance: float) -> Float[Tensor, "3"] | None:
    """The point that most views see at one of their pixels, within a tolerance; None where they do not agree.

    Tries the point nearest to the rays of every pair of views, keeps the one with the least truncated reprojection
    error (MSAC; Torr and Zisserman, "MLESAC", 2000), and fits it to the rays that agree.

    Args:
        views: The cameras.
        pixels: Pixel coordinates (x, y) of where a view may see the point; NaN where it does not.
        tolerance: Distance in pixels up to which a view agrees.
    """
    origins, directions = views.rays_through(pixels.nan_to_num())
    seen = ~pixels.isnan().any(-1) & ~directions.isnan().any(-1)
    if seen.any(1).sum() < MIN_VIEWS:
        return None
    directions = F.normalize(directions, dim=-1)
    view, candidate = seen.nonzero().T
    first, second = torch.combinations(torch.arange(len(view))).T
    apart = view[first] != view[second]
    pairs = torch.stack([first[apart], second[apart]], dim=-1)
    pairs = pairs[:: -(-len(pairs) // MAX_PAIRS)]
    origins, directions = origins[view, candidate], directions[view, candidate]
    points = nearest_to_rays(origins[pairs], directions[pairs]).float()
    errors = _errors(views, pixels, seen, points, tolerance).amin(1)
    point = points[errors[seen.any(1)].square().sum(0).argmin()]
    for _ in range(2):
        error, best = _errors(views, pixels, seen, point[None], tolerance)[..., 0].min(1)
        agreeing = error < tolerance
        if agreeing.sum() < max(MIN_VIEWS, AGREEING * seen.any(1).sum()):
            return None
        rays = agreeing[view] & (candidate == best[view])
        point = nearest_to_rays(origins[rays], directions[rays]).float()
    return point


def _errors(
    views: Views,
    pixels: Float[Tensor, "V K 2"],
    seen: Bool[Tensor, "V K"],
    points: Float[Tensor, "P 3"],
    limit: float,
) -> Float[Tensor, "V K P"]:
    """Reprojection errors in pixels, at most `limit`."""
    projected, valid = views.project(points)
    errors = (projected[:, None] - pixels[:, :, None]).norm(dim=-1).clamp_max(limit)
    return torch.where(valid[:, None] & seen[..., None] & ~errors.isnan(), errors, limit)


def _shown(
    views: Views,
    drawings: Sequence[UInt8[Tensor, "_ _ 3"]],
    bone: tuple[str, str],
    start: Float[Tensor, "3"],
    end: Float[Tensor, "3"],
) -> float:
    """Share of the views that show the colour of a bone between two points."""
    fractions = torch.linspace(0.3, 0.7, 5)[:, None]
    pixels, valid = views.project(torch.lerp(start[None], end[None], fractions))
    height, width = views.size
    shares = pixels / torch.tensor([width, height])
    valid = valid & ((shares >= 0) & (shares < 1)).all(-1)
    colours = torch.stack([_at(drawing, each) for drawing, each in zip(drawings, shares, strict=True)])
    brightness = colours.amax(-1)
    ratio = colours / brightness[..., None].clamp_min(DARK)
    colour = torch.tensor(OPENPOSE_COLOURS[bone]) / 255
    alike = (ratio - colour).abs().amax(-1) <= BONE_HUES
    shown = valid & alike & (brightness > DARK) & (brightness < BRIGHT)
    return float((shown.sum(-1) >= 3).float().mean())


def _at(drawing: UInt8[Tensor, "H W 3"], shares: Float[Tensor, "P 2"]) -> Float[Tensor, "P 3"]:
    """Colours in [0, 1] of a drawing's pixels at shares of its width and height, the nearest for those outside."""
    height, width = drawing.shape[:2]
    x, y = (shares.nan_to_num().clamp(0, 1) * torch.tensor([width, height])).long().unbind(-1)
    return drawing[y.clamp_max(height - 1), x.clamp_max(width - 1)] / 255
