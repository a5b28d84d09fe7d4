"""Query maps and their PCA code.

Queries are standardised per channel over all views, so that no channel and no layer drowns another, and coded by an
orthonormal basis per layer, so that distances between codes are distances between (standardised) queries.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

QueryMaps = dict[str, Float[Tensor, "V H W C"]]
"""Query maps of V views by layer name; H, W and C differ between layers."""


@dataclass(frozen=True)
class Extraction:
    """What the field learns from a chunk of views."""

    queries: QueryMaps
    """Self-attention queries of every chosen layer, float32."""
    preview: Float[Tensor, "V 3 H W"]
    """The decoded prediction of the clean image, in [0, 1]."""


@dataclass(frozen=True)
class LayerCodec:
    """Standardisation and basis of one layer."""

    size: tuple[int, int]
    """Height and width of the layer's query maps."""
    mean: Float[Tensor, "C"]
    """Mean of every channel over all views."""
    std: Float[Tensor, "C"]
    """Standard deviation of every channel over all views."""
    basis: Float[Tensor, "C K"]
    """Orthonormal principal directions of the standardised queries, strongest first."""

    @property
    def width(self) -> int:
        """Number of code channels, K."""
        return self.basis.shape[1]

    def encode(self, queries: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch K"]:
        """Code of queries, in units of a standard deviation."""
        return ((queries.float() - self.mean) / self.std) @ self.basis

    def decode(self, code: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch C"]:
        """The queries with this code (what the code leaves out is taken to be the mean)."""
        return code @ self.basis.T * self.std + self.mean

    def replace(
        self, queries: Float[Tensor, "*batch C"], code: Float[Tensor, "*batch K"], weight: float
    ) -> Float[Tensor, "*batch C"]:
        """Move the code of `queries` towards `code` by `weight` in [0, 1]; what the code leaves out stays."""
        change = weight * (code - self.encode(queries))
        return queries + (change @ self.basis.T * self.std).to(queries.dtype)


@dataclass(frozen=True)
class QueryCodec:
    """The codecs of all layers, in the order of their names; codes of all layers are concatenated in this order."""

    layers: dict[str, LayerCodec]

    @property
    def width(self) -> int:
        """Number of code channels of all layers together."""
        return sum(layer.width for layer in self.layers.values())

    @property
    def finest(self) -> tuple[int, int]:
        """Height and width of the query maps of the finest layer."""
        return max(layer.size for layer in self.layers.values())

    def join(self, codes: dict[str, Float[Tensor, "V H W K"]]) -> Float[Tensor, "V h w W"]:
        """Codes of all layers side by side, at the finest layer's resolution."""
        layers = [F.interpolate(codes[name].movedim(-1, 1), self.finest, mode="bilinear") for name in self.layers]
        return torch.cat(layers, dim=1).movedim(1, -1)

    def split(self, code: Float[Tensor, "*batch W"]) -> dict[str, Float[Tensor, "*batch K"]]:
        """Take a concatenated code apart."""
        return dict(zip(self.layers, code.split([layer.width for layer in self.layers.values()], -1), strict=True))

    def encode(self, maps: QueryMaps) -> dict[str, Float[Tensor, "V H W K"]]:
        """Code of every layer's query maps."""
        return {name: layer.encode(maps[name]) for name, layer in self.layers.items()}

    def to(self, device: torch.device | str) -> "QueryCodec":
        """The same codec on another device."""
        moved = {
            name: LayerCodec(layer.size, layer.mean.to(device), layer.std.to(device), layer.basis.to(device))
            for name, layer in self.layers.items()
        }
        return QueryCodec(moved)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that defines the codec, for safetensors."""
        named: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            named[f"{name}/size"] = torch.tensor(layer.size)
            named |= {f"{name}/mean": layer.mean, f"{name}/std": layer.std, f"{name}/basis": layer.basis}
        return named

    @staticmethod
    def from_tensors(named: dict[str, Tensor]) -> "QueryCodec":
        """Restore a codec from `tensors()`."""
        layers = {}
        for name in sorted({key.rsplit("/", 1)[0] for key in named}):
            height, width = named[f"{name}/size"].tolist()
            layers[name] = LayerCodec(
                (height, width), named[f"{name}/mean"], named[f"{name}/std"], named[f"{name}/basis"]
            )
        return QueryCodec(layers)


class CodecFit:
    """Fits a QueryCodec from chunks of views: only sums and second moments are kept, never the maps themselves.

    Args:
        width: Number of code channels per layer (fewer where a layer has fewer channels).
    """

    def __init__(self, width: int) -> None:
        self.code_width = width
        self.sizes: dict[str, tuple[int, int]] = {}
        self.counts: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}

    def add(self, maps: QueryMaps) -> None:
        """Take the query maps of a chunk of views into account."""
        for name, queries in maps.items():
            flat = queries.flatten(0, 2).double()
            self.sizes[name] = (queries.shape[1], queries.shape[2])
            self.counts[name] = self.counts.get(name, 0) + len(flat)
            self.sums[name] = self.sums.get(name, 0) + flat.sum(0)
            self.moments[name] = self.moments.get(name, 0) + flat.T @ flat

    def codec(self) -> QueryCodec:
        """The codec of all chunks added so far."""
        layers = {}
        for name in sorted(self.moments):
            moment = self.moments[name]
            mean = self.sums[name] / self.counts[name]
            covariance = moment / self.counts[name] - torch.outer(mean, mean)
            std = covariance.diagonal().clamp_min(1e-12).sqrt()
            correlation = covariance / torch.outer(std, std)
            basis = torch.linalg.eigh(correlation)[1].flip(1)[:, : self.code_width]
            # An eigenvector's sign is arbitrary; fixing it makes the code the same on every machine.
            basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
            layers[name] = LayerCodec(self.sizes[name], mean.float(), std.float(), basis.float().contiguous())
        return QueryCodec(layers)
