"""Figures of edited images against the truth."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROOM_DISTANCE = 0.12
"""A pixel belongs to the figure where a colour channel differs from the empty room by more than this."""


def psnr(
    image: Float[Tensor, "*batch 3 H W"], truth: Float[Tensor, "*batch 3 H W"], mask: Bool[Tensor, "*batch H W"] | None
) -> Float[Tensor, "*batch"]:
    """PSNR in dB of each image in [0, 1], inside a mask where there is one."""
    squared = (image - truth).square().mean(dim=-3)
    weight = torch.ones_like(squared) if mask is None else mask.to(squared)
    error = (squared * weight).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1)).clamp_min(1)
    return -10 * error.clamp_min(1e-10).log10()


def silhouette(image: Float[Tensor, "*batch 3 H W"], room: Float[Tensor, "*batch 3 H W"]) -> Bool[Tensor, "*batch H W"]:
    """Where an image shows something else than the empty room."""
    return (image - room).abs().amax(dim=-3) > ROOM_DISTANCE


def iou(first: Bool[Tensor, "*batch H W"], second: Bool[Tensor, "*batch H W"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of silhouettes."""
    both = (first & second).sum(dim=(-2, -1))
    return both / (first | second).sum(dim=(-2, -1)).clamp_min(1)
