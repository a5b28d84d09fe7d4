"""Cameras of made-up captures, and a scene's box."""

import torch
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.toy.capture import orbit_camera

SCENE_BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
LENS = (0.05, -0.02, 0.003, 0.0, 0.004, -0.003)
"""Distortion of a lens, as `Views` has it."""


def views(count: int = 3, distortion: tuple[float, ...] = (0.0,) * 6, size: tuple[int, int] = (96, 128)) -> Views:
    """Cameras side by side that look at a figure."""
    c2w = torch.stack([orbit_camera(40.0 * i, 15.0, 4.0, 1.0) for i in range(count)])
    intrinsics = torch.tensor([[130.0, 125.0, 66.0, 45.0]]).expand(count, 4)
    return Views(c2w, intrinsics, torch.tensor([distortion]).expand(count, 6), size)


def ring(count: int, distance: float = 0.9, size: int = 64, focal: float = 80.0) -> Views:
    """Cameras around the origin that look at it, at three heights."""
    poses = []
    for index in range(count):
        angle, height = torch.tensor(2 * torch.pi * index / count), 0.3 * (index % 3)
        eye = torch.tensor([distance * angle.cos(), distance * angle.sin(), height])
        back = F.normalize(eye, dim=0)
        right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]), back), dim=0)
        poses.append(torch.stack([right, torch.linalg.cross(back, right), back, eye], dim=1))
    intrinsics = torch.tensor([[focal, focal, size / 2, size / 2]]).expand(count, -1)
    return Views(torch.stack(poses), intrinsics, torch.zeros(count, 6), (size, size))


def ball_masks(views: Views, centre: torch.Tensor, radius: float) -> torch.Tensor:
    """Exact silhouettes of a ball."""
    height, width = views.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    fx, fy, cx, cy = views.intrinsics[0]
    local = F.normalize(torch.stack([(x - cx) / fx, -(y - cy) / fy, -torch.ones_like(x)], -1), dim=-1)
    masks = []
    for c2w in views.c2w:
        towards = centre - c2w[:, 3]
        along = (local @ c2w[:, :3].T) @ towards
        masks.append((towards.square().sum() - along.square() < radius**2) & (along > 0))
    return torch.stack(masks)
