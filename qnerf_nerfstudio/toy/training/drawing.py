"""Images and controls of many figures at once on one device, as toy/render.py and controls/ draw them one by one."""

import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.skeleton import BONE_SHADE, line_width
from qnerf_nerfstudio.controls.solids import Surface, depth_images
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_COLOURS
from qnerf_nerfstudio.toy.capture import focal_length
from qnerf_nerfstudio.toy.render import FLOOR_RADIUS, figure_colour, floor_colour, pinhole_rays, wall_colour
from qnerf_nerfstudio.toy.training.figures import JOINTS, Bodies, CapsuleBatch, colour_table

BONES = tuple(bone for bone in OPENPOSE_BONES if set(bone) <= set(JOINTS))
"""The bones of the figure, in their drawing order."""
SUPERSAMPLING = 2
"""Colour is the mean of this number squared of rays in each pixel, as in toy/render.py."""
CPU_RAYS = 2**13
"""Rays that a CPU traces at once, so that what it computes of them stays in its cache."""


def _rays(c2w: Float[Tensor, "B 3 4"], size: int, samples: int) -> tuple[Float[Tensor, "B P 3"], Float[Tensor, "P"]]:
    """Unit directions through square images, and their cosines with the optical axis."""
    local, cosines = _local_rays(size, samples, c2w.device)
    return local @ c2w[:, :, :3].mT, cosines


@lru_cache(maxsize=4)
def _local_rays(size: int, samples: int, device: torch.device) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P"]]:
    """The same in the axes of a camera; kept, as copies to a GPU would wait for what it does."""
    _, local, cosines = pinhole_rays(torch.eye(3, 4), focal_length(size), (size, size), samples)
    return local.to(device), cosines.to(device)


def intersect_capsules(
    origins: Float[Tensor, "B 3"],
    directions: Float[Tensor, "B P 3"],
    start: Float[Tensor, "B K 3"],
    end: Float[Tensor, "B K 3"],
    radius: Float[Tensor, "B K"],
) -> Float[Tensor, "B P K"]:
    """Distance along each unit direction to each capsule, infinite where it is missed; see toy/render.py."""
    ba, oa = end - start, origins[:, None] - start
    baba, baoa, oaoa = ((x * y).sum(-1)[:, None] for x, y in ((ba, ba), (ba, oa), (oa, oa)))
    squared = radius.square()[:, None]
    bard, rdoa = directions @ ba.mT, directions @ oa.mT
    a = baba - bard.square()
    b = baba * rdoa - baoa * bard
    h = b.square() - a * (baba * oaoa - baoa.square() - squared * baba)
    t = (-b - h.clamp_min(0).sqrt()) / a.clamp_min(1e-12)
    y = baoa + t * bard
    # A hand is a sphere: a zero-length segment has no cylinder, only its caps.
    cylinder = a > 1e-12
    side = (h >= 0) & (y > 0) & (y < baba) & cylinder
    first = torch.where(cylinder, y <= 0, baoa <= 0)
    b = torch.where(first, rdoa, rdoa - bard)
    h = b.square() - torch.where(first, oaoa, oaoa - 2 * baoa + baba) + squared
    t = torch.where(side, t, torch.where(h > 0, -b - h.clamp_min(0).sqrt(), math.inf))
    return torch.where(t > 1e-4, t, math.inf)


def intersect_boxes(
    origins: Float[Tensor, "B 3"],
    directions: Float[Tensor, "B P 3"],
    start: Float[Tensor, "B K 3"],
    end: Float[Tensor, "B K 3"],
    radius: Float[Tensor, "B K"],
) -> Float[Tensor, "B P K"]:
    """The same for the boxes around the capsules, which `proxy.limb_boxes` places."""
    length = (end - start).norm(dim=-1, keepdim=True)
    along = torch.where(length > 1e-9, (end - start) / length.clamp_min(1e-9), start.new_tensor([0.0, 0.0, 1.0]))
    # trimesh turns a box about its axis as the reflection that takes the x axis to it does.
    sign = torch.where(along[..., :1] < 0, -1.0, 1.0)
    mirror = along + sign * along.new_tensor([1.0, 0.0, 0.0])
    across = (
        torch.eye(3).to(along)[1:] - mirror[..., None, :] * (along[..., 1:] / (1 + along[..., :1].abs()))[..., None]
    )
    axes = torch.cat([across, along[..., None, :]], dim=-2)
    half = torch.cat([radius[..., None], radius[..., None], length / 2 + radius[..., None]], dim=-1)
    offset = (axes @ (origins[:, None] - (start + end) / 2)[..., None]).squeeze(-1)
    near = far = None
    for axis in range(3):
        slope = directions @ axes[:, :, axis].mT
        slope = torch.where(slope.abs() < 1e-9, 1e-9, slope)
        walls = [(sign * half[:, None, :, axis] - offset[:, None, :, axis]) / slope for sign in (-1, 1)]
        enter, leave = torch.minimum(*walls), torch.maximum(*walls)
        near = enter if near is None else torch.maximum(near, enter)
        far = leave if far is None else torch.minimum(far, leave)
    assert near is not None and far is not None
    return torch.where((near < far) & (near > 1e-4), near, math.inf)


def _trace(
    bodies: Bodies, capsules: CapsuleBatch, origins: Float[Tensor, "B 3"], directions: Float[Tensor, "B P 3"]
) -> tuple[Float[Tensor, "B P 3"], Bool[Tensor, "B P"]]:
    """Colour along each unit direction, and whether the figure is seen there."""
    table, phase = colour_table(directions), bodies.texture_phase[:, None]
    to_floor = -origins[:, None, 2] / directions[..., 2]
    points = origins[:, None] + directions * to_floor[..., None]
    on_floor = (to_floor > 0) & (points[..., :2].norm(dim=-1) < FLOOR_RADIUS)
    floor, wall = floor_colour(points, table[bodies.floor], phase), wall_colour(directions, table[bodies.wall], phase)
    room = torch.where(on_floor[..., None], floor, wall)

    hits = intersect_capsules(origins, directions, capsules.start, capsules.end, capsules.radius)
    distance, nearest = torch.where(capsules.present[:, None], hits, math.inf).min(dim=-1)
    seen = distance < torch.where(on_floor, to_floor, math.inf)
    rows = torch.arange(len(origins), device=origins.device)[:, None]
    points = origins[:, None] + directions * torch.where(seen, distance, 0.0)[..., None]
    parts = (capsules.start, capsules.end, capsules.radius, capsules.colour, capsules.number)
    figure = figure_colour(points, *(each[rows, nearest] for each in parts))
    return torch.where(seen[..., None], figure, room), seen


def draw_images(
    bodies: Bodies, capsules: CapsuleBatch, c2w: Float[Tensor, "B 3 4"], size: int
) -> tuple[UInt8[Tensor, "B H W 3"], Bool[Tensor, "B H W"]]:
    """Antialiased images, and silhouettes: the pixels of which the figure covers half or more."""
    directions, _ = _rays(c2w, size, SUPERSAMPLING)
    count = max(1, CPU_RAYS // len(c2w)) if c2w.device.type == "cpu" else directions.shape[1]
    traced = [_trace(bodies, capsules, c2w[:, :, 3], part) for part in directions.split(count, dim=1)]
    image, seen = (torch.cat(parts, dim=1) for parts in zip(*traced, strict=True))
    grid = (len(c2w), size, SUPERSAMPLING, size, SUPERSAMPLING)
    image = image.reshape(*grid, 3).mean(dim=(2, 4)).movedim(-1, 1)
    return to_bytes(image), seen.reshape(grid).float().mean(dim=(2, 4)) >= 0.5


def draw_skeletons(
    joints: Float[Tensor, "B J 3"], kept: Bool[Tensor, "B N"], c2w: Float[Tensor, "B 3 4"], size: int
) -> UInt8[Tensor, "B H W 3"]:
    """Skeletons as `controls.skeleton.draw_skeleton` draws them, every edge antialiased by its distance from pixels.

    Args:
        joints: Positions of JOINTS, all of them in front of the camera.
        kept: Which of BONES are drawn; a joint that no bone is left of goes with them.
        c2w: Camera to world.
        size: Width and height of the images.
    """
    local = (joints - c2w[:, None, :, 3]) @ c2w[:, :, :3]
    focal = local.new_tensor([focal_length(size), -focal_length(size)])
    pixels = dict(zip(JOINTS, (size / 2 - focal * local[..., :2] / local[..., 2:]).unbind(1), strict=True))
    places = torch.arange(size, device=joints.device) + 0.5
    y, x = torch.meshgrid(places, places, indexing="ij")
    grid = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    half = line_width((size, size)) / 2
    canvas = joints.new_zeros(len(joints), size * size, 3)

    def paint(cover: Float[Tensor, "B P"], colour: list[int]) -> None:
        canvas.add_((canvas.new_tensor(colour) - canvas) * cover[..., None])

    drawn = {name: torch.zeros_like(kept[:, 0]) for name in JOINTS}
    for (a, b), keep in zip(BONES, kept.unbind(1), strict=True):
        bone = (pixels[b] - pixels[a])[:, None]
        length = bone.norm(dim=-1).clamp_min(1e-4)
        from_a = grid - pixels[a][:, None]
        along = (from_a * bone).sum(-1) / length
        beside = (from_a[..., 0] * bone[..., 1] - from_a[..., 1] * bone[..., 0]).abs() / length
        cover = (0.5 + half - beside).clamp(0, 1) * (along + 0.5).clamp(0, 1) * (length - along + 0.5).clamp(0, 1)
        paint(cover * keep[:, None], [int(BONE_SHADE * value) for value in OPENPOSE_COLOURS[(a, b)]])
        drawn[a], drawn[b] = drawn[a] | keep, drawn[b] | keep
    for name in JOINTS:
        cover = (0.5 + half - (grid - pixels[name][:, None]).norm(dim=-1)).clamp(0, 1)
        paint(cover * drawn[name][:, None], list(OPENPOSE_COLOURS[name]))
    return canvas.round().byte().reshape(-1, size, size, 3)


def draw_depths(
    capsules: list[CapsuleBatch],
    thickness: Float[Tensor, "B"],
    boxes: Bool[Tensor, "B"],
    c2w: Float[Tensor, "B 3 4"],
    size: int,
) -> UInt8[Tensor, "B P H W 3"]:
    """Proxies of figures in P poses as depth: capsules or boxes, thicker or thinner than they are.

    Args:
        capsules: The figures' matter in each pose.
        thickness: Thickness of each figure's proxy, relative to the figure's.
        boxes: Whether its proxy is made of boxes.
        c2w: Camera to world.
        size: Width and height of the images.
    """
    directions, cosines = _rays(c2w, size, 1)
    surfaces = []
    for each in capsules:
        solid = (c2w[:, :, 3], directions, each.start, each.end, each.radius * thickness[:, None])
        hits = torch.where(boxes[:, None, None], intersect_boxes(*solid), intersect_capsules(*solid))
        depth = torch.where(each.present[:, None], hits, math.inf).amin(dim=-1) * cosines
        depth = depth.reshape(-1, size, size)
        surfaces.append(Surface(depth, normals=depth.new_zeros(()).expand(*depth.shape, 3)))
    return torch.stack([to_bytes(images) for images in depth_images(surfaces)], dim=1)
