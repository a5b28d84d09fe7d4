"""Skeleton controls: joints and bones in 3D, drawn into every view in OpenPose's style."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_COLOURS, OPENPOSE_JOINTS

BONE_SHADE = 0.6
"""Bones are this much darker than their colours, joints are not."""
_SUPERSAMPLING = 4
_SEGMENTS = 16


def skeleton_colours(
    joints: Sequence[str], bones: Sequence[tuple[str, str]]
) -> dict[str | tuple[str, str], tuple[int, int, int]]:
    """Colours of joints and bones: OpenPose's where the skeleton is made of its names, else hues in order."""
    if set(joints) <= set(OPENPOSE_JOINTS) and set(bones) <= set(OPENPOSE_BONES):
        return OPENPOSE_COLOURS
    names: list[str | tuple[str, str]] = [*joints, *bones]
    hues = [*(i / len(joints) for i in range(len(joints))), *(i / max(1, len(bones)) for i in range(len(bones)))]
    rgb = (colorsys.hsv_to_rgb(hue, 1.0, 1.0) for hue in hues)
    return {name: (round(r * 255), round(g * 255), round(b * 255)) for name, (r, g, b) in zip(names, rgb, strict=True)}


def line_width(size: tuple[int, int]) -> float:
    """Width in pixels of the bones in images of this height and width: OpenPose's at 512 pixels, scaled."""
    return max(1.5, 8 * min(size) / 512)


def draw_skeleton(
    views: Views,
    joints: Mapping[str, Float[Tensor, "3"]],
    bones: Sequence[tuple[str, str]],
) -> UInt8[Tensor, "V H W 3"]:
    """Draw a skeleton into every view, on black.

    Bones are sampled along their length, so that lens distortion bends them as it bends the photo, and only the parts
    in front of the camera are drawn. Line widths follow OpenPose's at 512 pixels and scale with the image.

    Args:
        views: The cameras.
        joints: Position of each joint in world coordinates.
        bones: Pairs of joint names.

    Returns:
        One control image per view, values 0 to 255.
    """
    colours = skeleton_colours(list(joints), bones)
    height, width = views.size
    stroke = line_width(views.size) * _SUPERSAMPLING
    radius = stroke / 2
    fractions = torch.linspace(0, 1, _SEGMENTS + 1)[:, None]
    strokes = [joints[a].cpu() * (1 - fractions) + joints[b].cpu() * fractions for a, b in bones]
    points = torch.stack([joint.cpu() for joint in joints.values()])
    pixels, visible = views.project(torch.cat([points, *strokes]))
    pixels, visible = (pixels * _SUPERSAMPLING).cpu().numpy(), visible.cpu().numpy()
    # Far outside the image coordinates can be huge; the drawing library needs them bounded.
    visible &= (np.abs(pixels) < 16 * _SUPERSAMPLING * max(views.size)).all(-1)

    images = []
    for view_pixels, view_visible in zip(pixels, visible, strict=True):
        canvas = Image.new("RGB", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
        draw = ImageDraw.Draw(canvas)
        for index, bone in enumerate(bones):
            first = len(points) + index * (_SEGMENTS + 1)
            red, green, blue = (int(BONE_SHADE * value) for value in colours[bone])
            for k in range(first, first + _SEGMENTS):
                if view_visible[k] and view_visible[k + 1]:
                    segment = [tuple(view_pixels[k]), tuple(view_pixels[k + 1])]
                    draw.line(segment, fill=(red, green, blue), width=round(stroke))
        for index, name in enumerate(joints):
            if view_visible[index]:
                x, y = view_pixels[index]
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colours[name])
        small = canvas.resize((width, height), Image.Resampling.BOX)
        images.append(torch.from_numpy(np.array(small)))
    return torch.stack(images)
