"""Linear query heads by least squares."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-3
"""Weight of the squared weights, for features of unit mean square."""


class HeadFit:
    """Fits the heads of all layers by ridge regression (Hoerl and Kennard 1970) of codes on query features.

    Renders of a layer are means of renders at the finest layer's resolution, and a linear head commutes with the mean:
    each layer is fitted at its own resolution. Only second moments are kept, never the features.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.squares: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}

    def add(self, features: Float[Tensor, "V h w F"], codes: dict[str, Float[Tensor, "V H W K"]]) -> None:
        """Take views into account: features at the finest layer's resolution, codes by layer."""
        for name, code in codes.items():
            size = (code.shape[1], code.shape[2])
            pooled = F.adaptive_avg_pool2d(features.movedim(-1, 1), size).movedim(1, -1)
            inputs, outputs = pooled.flatten(0, 2).double(), code.flatten(0, 2).double()
            self.counts[name] = self.counts.get(name, 0) + len(inputs)
            self.squares[name] = self.squares.get(name, 0) + inputs.T @ inputs
            self.products[name] = self.products.get(name, 0) + inputs.T @ outputs

    def weights(self) -> Float[Tensor, "W F"]:
        """Weights of the heads of all layers, one below the other in the order of their names."""
        heads = []
        for name in sorted(self.squares):
            squares, products = self.squares[name] / self.counts[name], self.products[name] / self.counts[name]
            # Features that no ray gathers get no weight.
            scale = squares.diagonal().clamp_min(1e-12).sqrt()
            penalty = RIDGE * torch.eye(len(scale), dtype=scale.dtype)
            solved = torch.linalg.solve(squares / torch.outer(scale, scale) + penalty, products / scale[:, None])
            heads.append((solved / scale[:, None]).T)
        return torch.cat(heads).float()
