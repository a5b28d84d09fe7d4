"""Nerfstudio's hash encoding for torch, the same to rounding, three to four times as fast on a CPU.

The points are the last, contiguous dimension of everything that is computed, and each feature is gathered from, and its
gradient added to, a vector of its own. All corners of all levels go through each operation at once, so that a GPU gets
few kernels, and gradients are added without the sorting that indexing's own take there.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn

PRIMES = (1, 2654435761 - 2**32, 805459861)
"""Instant-NGP's, wrapped to 32 bits: the low bits of a product, which are all that a table of 2^k rows looks at, stay
the same."""


class _Gather(torch.autograd.Function):
    """Weighted sums of rows of a table."""

    @staticmethod
    def forward(
        ctx: Any, table: Float[Tensor, "T F"], rows: Int[Tensor, "8 M"], weights: Float[Tensor, "8 M"]
    ) -> Float[Tensor, "F M"]:
        ctx.save_for_backward(rows, weights)
        ctx.shape = table.shape
        flat = rows.flatten()
        return torch.stack(
            [(column.index_select(0, flat).view_as(weights) * weights).sum(0) for column in table.T.contiguous()]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "F M"]) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        flat = rows.flatten()
        columns = [
            weights.new_zeros(ctx.shape[0]).index_add_(0, flat, (weights * each).flatten()) for each in gradients[0]
        ]
        return torch.stack(columns, dim=-1), None, None


class GatheredHashEncoding(HashEncoding):
    """HashEncoding that gathers so, and gives positions no gradient.

    Args:
        stock: The torch encoding whose table and levels this one takes over.
        compiled: Compile it.
    """

    primes: Int[Tensor, "3"]

    def __init__(self, stock: HashEncoding, compiled: bool = False) -> None:
        nn.Module.__init__(self)
        kept = {name: value for name, value in vars(stock).items() if not name.startswith("_")}
        # As buffers they move to a GPU with the table, and not in every step.
        tables = {"scalings": kept.pop("scalings"), "hash_offset": kept.pop("hash_offset").int()}
        self.__dict__.update(kept)
        for name, values in (tables | {"primes": torch.tensor(PRIMES, dtype=torch.int32)}).items():
            self.register_buffer(name, values, persistent=False)
        self.hash_table = stock.hash_table
        if compiled:
            self.pytorch_fwd = torch.compile(self.pytorch_fwd, dynamic=True)

    def pytorch_fwd(self, in_tensor: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs L*F"]:
        """Features of points in [0, 1], all levels side by side."""
        # Nerfacto's positions always ask for a gradient, which only normals and camera optimisation use.
        scaled = in_tensor.detach().reshape(-1, 3).T[:, None] * self.scalings[:, None]  # [3, L, N]
        low = scaled.floor()
        high_share = scaled - low
        primes = self.primes[:, None, None]
        low_hash = low.int() * primes
        hashes = torch.stack([low_hash, low_hash + primes], dim=1)  # [3, 2, L, N]
        shares = torch.stack([1 - high_share, high_share], dim=1)
        rows = hashes[0, :, None, None] ^ hashes[1, None, :, None] ^ hashes[2, None, None, :]  # [2, 2, 2, L, N]
        rows = (rows & (self.hash_table_size - 1)) + self.hash_offset[:, None]
        weights = shares[0, :, None, None] * shares[1, None, :, None] * shares[2, None, None, :]
        gathered = _Gather.apply(self.hash_table, rows.view(8, -1), weights.view(8, -1))
        assert isinstance(gathered, Tensor)
        features = gathered.unflatten(1, (len(self.scalings), -1)).transpose(0, 1)  # [L, F, N]
        return features.flatten(0, 1).T.reshape(*in_tensor.shape[:-1], -1)


def gather_encodings(module: nn.Module, compiled: bool = False) -> None:
    """Replace every hash encoding in a module that runs in torch, and compile it if asked; those of tiny-cuda-nn
    stay."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is HashEncoding and child.tcnn_encoding is None:
                setattr(parent, name, GatheredHashEncoding(child, compiled))
