"""Query maps and their PCA code.

Queries hold what is in the scene, and where it is in the image: a UNet's padding tells it. The mean over views at each
place, the screen mean, is the second part, which no field in 3D can explain; the code is of what is left. That is
standardised per channel, so that no channel and no layer drowns another, and coded by an orthonormal basis per layer,
so that distances between codes are distances between (standardised) queries.
"""

from dataclasses import dataclass, replace

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
    mean: Float[Tensor, "H W C"]
    """Mean of every channel over all views at each place: the screen mean."""
    std: Float[Tensor, "C"]
    """Standard deviation of every channel from the screen mean."""
    screen: float
    """Share of the variance of queries, in the code's directions, that the screen mean explains in its own views."""
    basis: Float[Tensor, "C K"]
    """Orthonormal principal directions of the standardised queries, strongest first."""

    @property
    def width(self) -> int:
        """Number of code channels, K."""
        return self.basis.shape[1]

    def encode(self, queries: Float[Tensor, "*batch H W C"]) -> Float[Tensor, "*batch H W K"]:
        """Code of query maps, in units of a standard deviation."""
        return ((queries.float() - self.mean) / self.std) @ self.basis

    def decode(self, code: Float[Tensor, "*batch H W K"]) -> Float[Tensor, "*batch H W C"]:
        """The query maps with this code (what the code leaves out is taken to be the screen mean)."""
        return code @ self.basis.T * self.std + self.mean

    def replace(
        self, queries: Float[Tensor, "*batch H W C"], code: Float[Tensor, "*batch H W K"], weight: float
    ) -> Float[Tensor, "*batch H W C"]:
        """Move the code of `queries` towards `code` by `weight` in [0, 1]; what the code leaves out stays."""
        change = weight * (code - self.encode(queries))
        return queries + (change @ self.basis.T * self.std).to(queries.dtype)

    def to(self, device: torch.device | str) -> "LayerCodec":
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("mean", "std", "basis")}
        return replace(self, **moved)


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
        return QueryCodec({name: layer.to(device) for name, layer in self.layers.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Everything that defines the codec, for safetensors."""
        named: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            named[f"{name}/size"] = torch.tensor(layer.size)
            named[f"{name}/screen"] = torch.tensor(layer.screen)
            named |= {f"{name}/mean": layer.mean, f"{name}/std": layer.std, f"{name}/basis": layer.basis}
        return named

    @staticmethod
    def from_tensors(named: dict[str, Tensor]) -> "QueryCodec":
        """Restore a codec from `tensors()`."""
        layers = {}
        for name in sorted({key.rsplit("/", 1)[0] for key in named}):
            height, width = named[f"{name}/size"].tolist()
            parts = {part: named[f"{name}/{part}"] for part in ("mean", "std", "basis")}
            layers[name] = LayerCodec((height, width), screen=float(named[f"{name}/screen"]), **parts)
        return QueryCodec(layers)


class CodecFit:
    """Fits a QueryCodec from chunks of views: only sums and second moments are kept, never the maps themselves.

    Args:
        width: Number of code channels per layer (fewer where a layer has fewer channels).
    """

    def __init__(self, width: int) -> None:
        self.code_width = width
        self.counts: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}

    def add(self, maps: QueryMaps) -> None:
        """Take the query maps of a chunk of views into account."""
        for name, queries in maps.items():
            doubles = queries.double()
            flat = doubles.flatten(0, 2)
            self.counts[name] = self.counts.get(name, 0) + len(queries)
            self.sums[name] = self.sums.get(name, 0) + doubles.sum(0)
            self.moments[name] = self.moments.get(name, 0) + flat.T @ flat

    def codec(self) -> QueryCodec:
        """The codec of all chunks added so far."""
        layers = {}
        for name in sorted(self.moments):
            height, width, _ = self.sums[name].shape
            mean = self.sums[name] / self.counts[name]
            places = mean.flatten(0, 1)
            # Moments of the deviations, and of the screen mean about its own mean; together those of all queries.
            covariance = self.moments[name] / (self.counts[name] * height * width) - places.T @ places / len(places)
            std = covariance.diagonal().clamp_min(1e-12).sqrt()
            correlation = covariance / torch.outer(std, std)
            basis = torch.linalg.eigh(correlation)[1].flip(1)[:, : self.code_width]
            # An eigenvector's sign is arbitrary; fixing it makes the code the same on every machine.
            basis = (basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()).float().contiguous()
            # Both in the directions of the code: variances of the screen mean, and of the deviations from it.
            code = (places / std).float() @ basis
            screen, left = code.var(0, correction=0).sum(), ((correlation.float() @ basis) * basis).sum()
            share = float(screen / (screen + left))
            layers[name] = LayerCodec((height, width), mean.float(), std.float(), share, basis)
        return QueryCodec(layers)
