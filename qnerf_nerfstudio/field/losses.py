"""The query loss, and weights of views that the others contradict."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Objective = Literal["rgb", "queries"]
"""What shapes the density: colours, or query maps."""
TOLERANCE = 3.0
"""A view whose error lies this many robust standard deviations above the median counts half."""
FEWEST_VIEWS = 3
"""Known views from which on most of them can contradict one."""


def view_weights(errors: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Weights in [0, 1] of views with these mean errors (NaN: not known yet, 1): those of Geman and McClure's estimator
    for what exceeds the median, in robust standard deviations (1.4826 times the median absolute deviation).

    Fewer views than FEWEST_VIEWS contradict none of them."""
    if errors.isfinite().sum() < FEWEST_VIEWS:
        return torch.ones_like(errors)
    median = errors.nanmedian()
    deviation = 1.4826 * (errors - median).abs().nanmedian()
    excess = (errors - median).clamp_min(0) / (TOLERANCE * deviation).clamp_min(1e-12)
    # The weight is (c^2 / (c^2 + x^2))^2; this scale of c makes it one half at the tolerance.
    return (1 + (2**0.5 - 1) * excess.square()).pow(-2).nan_to_num(nan=1.0)


def query_loss(rendered: Float[Tensor, "R W"], target: Float[Tensor, "R W"], widths: list[int]) -> Float[Tensor, ""]:
    """Mean over rays of the sum over layers of the mean squared difference of their channels.

    "Consolidating Attention Features for Multi-view Image Editing" states the norm, not its square.
    """
    layers = zip(rendered.split(widths, -1), target.split(widths, -1), strict=True)
    return torch.stack([(a - b).square().mean(-1) for a, b in layers]).sum(0).mean()
