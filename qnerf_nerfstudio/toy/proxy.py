"""Proxies of the figure: a mesh of capsules, and a box around every part."""

import numpy as np
import torch
import trimesh

from qnerf_nerfstudio.toy.figure import Body, Pose, capsules

Box = tuple[list[float], list[float], list[float]]
"""Centre, rotation (degrees about the fixed x, y and z axes, in this order) and side lengths."""


def capsule_mesh(body: Body, pose: Pose, thickness: float = 1.0) -> trimesh.Trimesh:
    """The figure's surface as one mesh, its radii scaled by `thickness`."""
    shape = capsules(body, pose)
    parts = []
    for start, end, radius in zip(shape.start, shape.end, shape.radius.tolist(), strict=True):
        length = float((end - start).norm())
        part = trimesh.creation.capsule(height=length, radius=radius * thickness, count=[16, 12])
        # Where the origin of trimesh's capsule lies depends on its version.
        part.apply_translation(-part.bounds.mean(axis=0))
        part.apply_transform(_frame(start, end))
        parts.append(part)
    joined = trimesh.util.concatenate(parts)
    assert isinstance(joined, trimesh.Trimesh)
    return joined


def limb_boxes(body: Body, pose: Pose, thickness: float = 1.0) -> list[Box]:
    """A box around every part of the figure."""
    shape = capsules(body, pose)
    boxes = []
    for start, end, radius in zip(shape.start, shape.end, shape.radius.tolist(), strict=True):
        width = 2 * radius * thickness
        angles = np.degrees(np.array(trimesh.transformations.euler_from_matrix(_frame(start, end), axes="sxyz")))
        size = [width, width, float((end - start).norm()) + width]
        boxes.append((((start + end) / 2).tolist(), angles.tolist(), size))
    return boxes


def _frame(start: torch.Tensor, end: torch.Tensor) -> np.ndarray:
    """The frame in the middle between two points whose z axis leads from one to the other, [4, 4]."""
    along = (end - start).double().numpy()
    if np.linalg.norm(along) < 1e-9:
        along = np.array([0.0, 0.0, 1.0])
    frame = np.array(trimesh.geometry.align_vectors([0.0, 0.0, 1.0], along))
    frame[:3, 3] = ((start + end) / 2).double().numpy()
    return frame
