"""An analytic renderer of the figure and its room: exact colour, depth and silhouette for any pinhole camera."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from qnerf_nerfstudio.toy.figure import COLOURS, Body, Capsules, Pose, capsules

FLOOR_RADIUS = 2.6
LIGHT = torch.tensor([0.40, 0.55, 0.73])


@dataclass(frozen=True)
class Frame:
    """What one camera sees."""

    rgb: Float[Tensor, "H W 3"]
    """Colour in [0, 1], antialiased."""
    depth: Float[Tensor, "H W"]
    """Distance along the optical axis in metres at pixel centres; infinite where only background is seen."""
    mask: Bool[Tensor, "H W"]
    """True where the figure is seen at the pixel's centre."""


def pinhole_rays(
    c2w: Float[Tensor, "3 4"], focal: float, size: tuple[int, int], samples: int
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"], Float[Tensor, "N"]]:
    """Rays of a pinhole camera (OpenGL axes), `samples` x `samples` in every pixel.

    Returns:
        Origins, unit directions, and the cosine between each direction and the optical axis.
    """
    height, width = size
    ys = (torch.arange(height * samples) + 0.5) / samples
    xs = (torch.arange(width * samples) + 0.5) / samples
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    local = torch.stack([(x - width / 2) / focal, -(y - height / 2) / focal, -torch.ones_like(x)], -1).reshape(-1, 3)
    lengths = local.norm(dim=-1)
    directions = (local / lengths[:, None]) @ c2w[:, :3].T
    return c2w[:, 3].expand_as(directions), directions, 1 / lengths


def intersect_capsules(
    origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"], shape: Capsules
) -> Float[Tensor, "N K"]:
    """Distance along each unit direction to each capsule, infinite where it is missed.

    The closed form for rays and capsules of Inigo Quilez, "intersectors" (iquilezles.org).
    """
    ba = shape.end - shape.start
    oa = origins[:, None] - shape.start
    baba = (ba * ba).sum(-1)
    bard = directions @ ba.T
    baoa = (oa * ba).sum(-1)
    rdoa = (oa * directions[:, None]).sum(-1)
    oaoa = (oa * oa).sum(-1)
    a = baba - bard * bard
    b = baba * rdoa - baoa * bard
    c = baba * oaoa - baoa * baoa - shape.radius**2 * baba
    h = b * b - a * c
    # A hand is a sphere: a zero-length segment has no cylinder, only its caps.
    t = torch.where(a > 1e-12, (-b - h.clamp_min(0).sqrt()) / a.clamp_min(1e-12), torch.zeros_like(a))
    y = baoa + t * bard
    on_side = (h >= 0) & (y > 0) & (y < baba) & (a > 1e-12)
    cap = torch.where((y <= 0)[..., None], oa, origins[:, None] - shape.end)
    b = (cap * directions[:, None]).sum(-1)
    h = b * b - ((cap * cap).sum(-1) - shape.radius**2)
    cap_t = -b - h.clamp_min(0).sqrt()
    t = torch.where(on_side, t, torch.where(h > 0, cap_t, torch.full_like(cap_t, math.inf)))
    return torch.where(t > 1e-4, t, torch.full_like(t, math.inf))


def figure_colour(
    points: Float[Tensor, "*batch 3"],
    start: Float[Tensor, "*batch 3"],
    end: Float[Tensor, "*batch 3"],
    radius: Float[Tensor, "*batch"],
    colour: Float[Tensor, "*batch 3"],
    number: Num[Tensor, "*batch"],
) -> Float[Tensor, "*batch 3"]:
    """Two-tone bands along every capsule under one directional light: matter that can be told apart in every view.

    Args:
        points: Points on the figure.
        start: First end of each point's capsule.
        end: Its second end.
        radius: Its radius.
        colour: Its base colour.
        number: Its number among the capsules of its figure.
    """
    ba = end - start
    length = ba.norm(dim=-1).clamp_min(1e-6)
    along = ((points - start) * ba).sum(-1) / length
    axis = start + ba * (along / length).clamp(0, 1)[..., None]
    normal = (points - axis) / radius[..., None]
    bands = 0.86 + 0.14 * torch.sin(along * (2 * math.pi / 0.26) + number * 1.3)
    shade = 0.62 + 0.38 * (normal @ LIGHT.to(normal)).clamp(-0.6, 1)
    return colour * (bands * shade)[..., None]


def floor_colour(
    points: Float[Tensor, "*batch N 3"], base: Float[Tensor, "*batch 3"], phase: Float[Tensor, "*batch 1"] | float
) -> Float[Tensor, "*batch N 3"]:
    """Soft checks in shades of the floor's base colour, moved by the texture's phase."""
    x, y = points[..., 0], points[..., 1]
    checks = torch.sin(2.6 * x + phase) * torch.sin(2.6 * y + 0.7 * phase)
    return base[..., None, :] * (0.80 + 0.20 * torch.tanh(3 * checks))[..., None]


def wall_colour(
    directions: Float[Tensor, "*batch N 3"], base: Float[Tensor, "*batch 3"], phase: Float[Tensor, "*batch 1"] | float
) -> Float[Tensor, "*batch N 3"]:
    """The background in unit directions: stripes in shades of its base colour, brighter above."""
    azimuth = torch.atan2(directions[..., 1], directions[..., 0])
    tone = 0.78 + 0.14 * torch.sin(3 * azimuth + phase) + 0.16 * directions[..., 2]
    return (base[..., None, :] * tone[..., None]).clamp(0, 1)


def _trace(
    origins: Tensor, directions: Tensor, near: Tensor, body: Body, shape: Capsules | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour, distance along the ray, and whether the figure was hit; only rays that are `near` can hit it."""
    rgb = wall_colour(directions, torch.tensor(COLOURS[body.wall]), body.texture_phase)
    distance = torch.full((len(origins),), math.inf)
    to_floor = -origins[:, 2] / directions[:, 2]
    points = origins + directions * to_floor[:, None]
    on_floor = (to_floor > 0) & (points[:, :2].norm(dim=-1) < FLOOR_RADIUS)
    rgb[on_floor] = floor_colour(points[on_floor], torch.tensor(COLOURS[body.floor]), body.texture_phase)
    distance[on_floor] = to_floor[on_floor]

    figure = torch.zeros(len(origins), dtype=torch.bool)
    if shape is None:
        return rgb, distance, figure
    near = torch.nonzero(near).squeeze(-1)
    hits, nearest = intersect_capsules(origins[near], directions[near], shape).min(dim=-1)
    seen = hits < distance[near]
    near, hits, nearest = near[seen], hits[seen], nearest[seen]
    points = origins[near] + directions[near] * hits[:, None]
    capsule = (shape.start[nearest], shape.end[nearest], shape.radius[nearest], shape.colour[nearest])
    rgb[near] = figure_colour(points, *capsule, nearest)
    distance[near] = hits
    figure[near] = True
    return rgb, distance, figure


def render(
    body: Body,
    pose: Pose | None,
    c2w: Float[Tensor, "3 4"],
    focal: float,
    size: tuple[int, int],
    supersampling: int = 2,
) -> Frame:
    """Render the figure in its room.

    Args:
        body: Proportions and colours.
        pose: Joint angles; None renders the empty room.
        c2w: Camera to world, OpenGL axes (x right, y up, looking along -z), metres.
        focal: Focal length in pixels; the principal point is the image's centre.
        size: Height and width in pixels.
        supersampling: Colour is the mean of this number squared of rays in each pixel.

    Returns:
        Colour, depth and silhouette; depth and silhouette are exact at pixel centres.
    """
    shape = None if pose is None else capsules(body, pose)
    origins, directions, cosines = pinhole_rays(c2w, focal, size, 1)
    rgb, distance, figure = _trace(origins, directions, torch.ones(len(origins), dtype=torch.bool), body, shape)
    if supersampling > 1:
        # No part of the figure is thinner than a pixel: what the finer rays can hit lies next to what was hit.
        close = torch.nn.functional.max_pool2d(figure.reshape(1, 1, *size).float(), 5, stride=1, padding=2)
        close = close.repeat_interleave(supersampling, 2).repeat_interleave(supersampling, 3).reshape(-1) > 0
        origins, directions, _ = pinhole_rays(c2w, focal, size, supersampling)
        rgb = _trace(origins, directions, close, body, shape)[0]
        rgb = rgb.reshape(size[0], supersampling, size[1], supersampling, 3).mean(dim=(1, 3))
    return Frame(rgb=rgb.reshape(*size, 3), depth=(distance * cosines).reshape(size), mask=figure.reshape(size))
