"""Projection of points through real cameras, lens distortion included."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """The cameras of V views as plain tensors, in one common image size."""

    c2w: Float[Tensor, "V 3 4"]
    """Camera to world, OpenGL axes (x right, y up, looking along -z)."""
    intrinsics: Float[Tensor, "V 4"]
    """fx, fy, cx, cy in pixels; the centre of the first pixel is at (0.5, 0.5)."""
    distortion: Float[Tensor, "V 6"]
    """k1, k2, k3, k4, p1, p2 of nerfstudio's perspective camera model (OpenCV's for k4 = 0)."""
    size: tuple[int, int]
    """Image height and width in pixels."""

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, chosen: slice) -> "Views":
        """Some of the views."""
        return Views(self.c2w[chosen], self.intrinsics[chosen], self.distortion[chosen], self.size)

    def resized(self, size: tuple[int, int]) -> "Views":
        """The same cameras with their images resampled to `size` (height, width)."""
        scale_y, scale_x = size[0] / self.size[0], size[1] / self.size[1]
        scale = torch.tensor([scale_x, scale_y, scale_x, scale_y], device=self.intrinsics.device)
        return Views(self.c2w, self.intrinsics * scale, self.distortion, size)

    def project(self, points: Float[Tensor, "P 3"]) -> tuple[Float[Tensor, "V P 2"], Bool[Tensor, "V P"]]:
        """Project world points into every view.

        Returns:
            Pixel coordinates (x, y), and whether each point lies in front of the camera and within the range of
            angles where the distortion polynomial is monotonic. Beyond it the polynomial folds points back into
            the image where no real lens would show them; coordinates of such points mean nothing.
        """
        points = points.to(self.c2w)
        rotation, centre = self.c2w[:, :, :3], self.c2w[:, :, 3]
        local = (points[None] - centre[:, None]) @ rotation
        depth = -local[..., 2]
        in_front = depth > 1e-6
        safe = torch.where(in_front, depth, torch.ones_like(depth))
        x, y = local[..., 0] / safe, -local[..., 1] / safe
        k1, k2, k3, k4, p1, p2 = self.distortion[:, :, None].unbind(1)
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        distorted_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        distorted_y = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
        fx, fy, cx, cy = self.intrinsics[:, :, None].unbind(1)
        pixels = torch.stack([fx * distorted_x + cx, fy * distorted_y + cy], dim=-1)
        if not self.distortion.any():
            return pixels, in_front

        fractions = torch.linspace(0, 1, 33, device=r2.device, dtype=r2.dtype)
        s = r2[..., None] * fractions
        k1, k2, k3, k4 = (k[..., None] for k in (k1, k2, k3, k4))
        slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
        return pixels, in_front & (slope > 0).all(-1)
