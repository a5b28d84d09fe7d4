"""What a denoising step is conditioned on, beside latents and prompts: the source branch, rendered queries."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.diffusion.queries import QueryCodec, QueryMaps


@dataclass(frozen=True)
class SourceBranch:
    """The views that editing begins from at the timestep at hand, whose keys and values are injected."""

    latents: Float[Tensor, "V C h w"]
    """Their latents on the source trajectory."""
    controls: Float[Tensor, "V K H W"]
    """Their control images in [0, 1], three channels for each ControlNet."""


@dataclass(frozen=True)
class QueryTargets:
    """Rendered queries that the edited views are drawn to."""

    codec: QueryCodec
    """The code that they are stated in."""
    codes: dict[str, Float[Tensor, "V H W K"]]
    """Rendered codes by layer."""
    confidence: Float[Tensor, "V"]
    """How far each view is to be trusted to its targets, 0 to 1; scales the steps of guidance."""
    clean: Float[Tensor, "V C h w"] | None = None
    """Clean latents of the field's render of each view; None draws to the queries alone."""

    def distance(self, maps: QueryMaps) -> Float[Tensor, "V"]:
        """Distance between each view's queries and their targets, summed over layers.

        Per layer this is the root mean square over tokens and code channels of the standardised difference, so that
        layers of different size weigh the same.
        """
        total = torch.zeros_like(self.confidence)
        for name, layer in self.codec.layers.items():
            difference = layer.encode(maps[name]) - self.codes[name]
            total = total + difference.square().mean(dim=(1, 2, 3)).clamp_min(1e-12).sqrt()
        return total

    def replace_queries(self, layer: str, queries: Float[Tensor, "V N C"], weight: float) -> Float[Tensor, "V N C"]:
        """Queries of a layer moved towards their targets by `weight` in [0, 1]."""
        codec = self.codec.layers[layer]
        return codec.replace(queries.unflatten(1, codec.size), self.codes[layer], weight).flatten(1, 2)
