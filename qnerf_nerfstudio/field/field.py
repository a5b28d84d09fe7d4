"""QNeRF's field: nerfacto's density and colour, and linear query heads on what rays gather."""

from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.encodings import Encoding, RFFEncoding
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import Tensor, nn

PLACE_FREQUENCIES, PLACE_SCALE = 32, 3.0
"""Fourier features of a place, and the standard deviation of their frequencies, in turns across contracted space."""


class QNerfHeadNames(Enum):
    """Field outputs beside nerfstudio's FieldHeadNames."""

    FEATURES = "features"
    PLACES = "places"


class NoDirections(Encoding):
    """Stands in for an encoding of view directions and tells nothing about them.

    Args:
        width: Number of output channels, all zero.
    """

    def __init__(self, width: int) -> None:
        super().__init__(in_dim=3)
        self.width = width

    def get_out_dim(self) -> int:
        """Number of output channels."""
        return self.width

    def forward(self, in_tensor: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch W"]:
        """Zeros."""
        return torch.zeros(*in_tensor.shape[:-1], self.width, device=in_tensor.device)


class QNerfField(NerfactoField):
    """A nerfacto field with query codes: linear in the base features that a ray gathers and in where it ends.

    Queries depend on position alone: no view direction, no timestep.

    Args:
        aabb: Bounds of the scene.
        num_images: Number of training images.
        feature_dim: Width of the base features that are composited along rays.
        query_width: Number of code channels of all query layers together.
        view_dependent: Whether colours depend on the view direction.
        **kwargs: NerfactoField's further arguments.
    """

    def __init__(
        self,
        aabb: Tensor,
        num_images: int,
        feature_dim: int,
        query_width: int,
        view_dependent: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(aabb, num_images, geo_feat_dim=feature_dim, **kwargs)
        if not view_dependent:
            self.direction_encoding = NoDirections(self.direction_encoding.get_out_dim())
        self.place_encoding = RFFEncoding(3, PLACE_FREQUENCIES, PLACE_SCALE, include_input=True)
        # Without a bias a linear head commutes with compositing also where rays end in empty space. Codes are
        # standardised, so there is no mean to carry.
        width = feature_dim + self.place_encoding.get_out_dim() + 1
        self.query_head = nn.Linear(width, query_width, bias=False)

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict[Any, Tensor]:
        """Colour as nerfacto's, base features and place of every sample."""
        outputs: dict[Any, Tensor] = dict(super().get_outputs(ray_samples, density_embedding))
        assert density_embedding is not None
        outputs[QNerfHeadNames.FEATURES] = density_embedding
        # Where nerfacto's density was looked up: in contracted space, from 0 to 1.
        outputs[QNerfHeadNames.PLACES] = self._sample_locations.detach()
        return outputs

    def query_features(
        self,
        features: Float[Tensor, "*batch F"],
        places: Float[Tensor, "*batch 3"],
        accumulation: Float[Tensor, "*batch 1"],
    ) -> Float[Tensor, "*batch F+P"]:
        """What query heads look at: base features along rays, and Fourier features of where the rays end.

        Args:
            features: Composited base features.
            places: Composited places.
            accumulation: Matter that the rays gather; without any all query features are zero.
        """
        ends = places / accumulation.clamp_min(1e-6)
        encoded = torch.cat([torch.ones_like(accumulation), self.place_encoding(ends)], dim=-1)
        return torch.cat([features, accumulation * encoded], dim=-1)

    def codes(self, features: Float[Tensor, "*batch F+P"]) -> Float[Tensor, "*batch W"]:
        """Query codes of query features: the heads of all layers, side by side."""
        return self.query_head(features.to(self.query_head.weight.dtype))
