"""Projection of points through real cameras, lens distortion included."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_NEWTON_STEPS = 10


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
        distorted = _distort(torch.stack([x, y], dim=-1), self.distortion)
        pixels = distorted * self.intrinsics[:, None, :2] + self.intrinsics[:, None, 2:]
        if not self.distortion.any():
            return pixels, in_front

        r2 = x * x + y * y
        k1, k2, k3, k4 = self.distortion[:, :4, None].unbind(1)
        fractions = torch.linspace(0, 1, 33, device=r2.device, dtype=r2.dtype)
        s = r2[..., None] * fractions
        k1, k2, k3, k4 = (k[..., None] for k in (k1, k2, k3, k4))
        slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
        return pixels, in_front & (slope > 0).all(-1)

    def rays(self) -> tuple[Float[Tensor, "V N 3"], Float[Tensor, "V N 3"]]:
        """The ray through the centre of every pixel, row by row; see `rays_through`."""
        height, width = self.size
        rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        pixels = torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(self.intrinsics)
        return self.rays_through(pixels.expand(len(self), -1, -1))

    def rays_through(self, pixels: Float[Tensor, "V N 2"]) -> tuple[Float[Tensor, "V N 3"], Float[Tensor, "V N 3"]]:
        """The rays through pixels (x, y): the inverse of `project`.

        Returns:
            Origins, and directions in world coordinates whose length along the optical axis is 1, so that a point at
            `origin + t * direction` has depth t. Directions of pixels that no real lens would show are NaN.
        """
        wanted = (pixels - self.intrinsics[:, None, 2:]) / self.intrinsics[:, None, :2]
        found = _undistort(wanted.double(), self.distortion.double()).to(self.c2w)
        local = torch.stack([found[..., 0], -found[..., 1], -torch.ones_like(found[..., 0])], dim=-1)
        directions = local @ self.c2w[:, :, :3].mT
        return self.c2w[:, None, :, 3].expand_as(directions), directions


def nearest_to_rays(
    origins: Float[Tensor, "*batch N 3"], directions: Float[Tensor, "*batch N 3"]
) -> Float[Tensor, "*batch 3"]:
    """The points with the least sum of squared distances to N lines each, in double precision.

    Args:
        origins: A point on each line.
        directions: Unit vectors along the lines.
    """
    origins, directions = origins.double(), directions.double()
    across = torch.eye(3, dtype=torch.float64) - directions[..., :, None] * directions[..., None, :]
    moments = (across @ origins[..., None]).sum(-3)
    return (torch.linalg.pinv(across.sum(-3), hermitian=True) @ moments)[..., 0]


def focus_of(views: Views) -> tuple[Float[Tensor, "3"], float]:
    """The point closest to all optical axes, and the median distance of the cameras from it."""
    centres = views.c2w[:, :, 3].double()
    focus = nearest_to_rays(centres, F.normalize(-views.c2w[:, :, 2].double(), dim=-1))
    return focus.float(), float((centres - focus).norm(dim=-1).median().clamp_min(1e-6))


def invert_affine(affine: Float[Tensor, "3 4"]) -> Float[Tensor, "3 4"]:
    """The map that takes back what an affine map does."""
    inverse = torch.linalg.inv(affine[:, :3])
    return torch.cat([inverse, -inverse @ affine[:, 3:]], dim=-1)


def transform_points(points: Float[Tensor, "*batch 3"], affine: Float[Tensor, "3 4"]) -> Float[Tensor, "*batch 3"]:
    """Points under an affine map."""
    return points @ affine[:, :3].T + affine[:, 3]


def transform_cameras(c2w: Float[Tensor, "V 3 4"], similarity: Float[Tensor, "3 4"]) -> Float[Tensor, "V 3 4"]:
    """Camera poses under a similarity: a rotation, a uniform scale and a shift."""
    rotation = similarity[:, :3] / similarity[:, :3].det() ** (1 / 3)
    centres = transform_points(c2w[:, :, 3], similarity)
    return torch.cat([rotation @ c2w[:, :, :3], centres[..., None]], dim=-1)


def _distort(points: Float[Tensor, "V N 2"], distortion: Float[Tensor, "V 6"]) -> Float[Tensor, "V N 2"]:
    """Where a lens moves image points (focal length 1, origin at the principal point)."""
    x, y = points.unbind(-1)
    k1, k2, k3, k4, p1, p2 = distortion[:, :, None].unbind(1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
        ],
        dim=-1,
    )


def _undistort(wanted: Float[Tensor, "V N 2"], distortion: Float[Tensor, "V 6"]) -> Float[Tensor, "V N 2"]:
    """Points that the lens moves to `wanted`, by Newton's method; NaN where there are none."""
    if not distortion.any():
        return wanted
    points = wanted.clone()
    step = 1e-6
    for _ in range(_NEWTON_STEPS):
        here = _distort(points, distortion)
        along_x = (_distort(points + points.new_tensor([step, 0]), distortion) - here) / step
        along_y = (_distort(points + points.new_tensor([0, step]), distortion) - here) / step
        jacobian = torch.stack([along_x, along_y], dim=-1)
        points = points + torch.linalg.solve(jacobian, (wanted - here)[..., None])[..., 0]
    missed = (_distort(points, distortion) - wanted).norm(dim=-1) > 1e-6
    return torch.where(missed[..., None], torch.nan, points)
