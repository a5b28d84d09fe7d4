"""QNeRF's field: nerfacto's density and colour, and linear query heads on the shared base features."""

from enum import Enum
from typing import Any

from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import Tensor, nn


class QNerfHeadNames(Enum):
    """Field outputs beside nerfstudio's FieldHeadNames."""

    FEATURES = "features"


class QNerfField(NerfactoField):
    """A nerfacto field whose base features carry query codes as well as geometry and colour.

    Queries depend on position alone: no view direction, no timestep.

    Args:
        aabb: Bounds of the scene.
        num_images: Number of training images.
        feature_dim: Width of the base features that are composited along rays.
        query_width: Number of code channels of all query layers together.
        **kwargs: NerfactoField's further arguments.
    """

    def __init__(self, aabb: Tensor, num_images: int, feature_dim: int, query_width: int, **kwargs: Any) -> None:
        super().__init__(aabb, num_images, geo_feat_dim=feature_dim, **kwargs)
        # Without a bias a linear head commutes with compositing also where rays end in empty space. Codes are
        # standardised, so there is no mean to carry.
        self.query_head = nn.Linear(feature_dim, query_width, bias=False)

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict[Any, Tensor]:
        """Colour as nerfacto's, and the base features of every sample."""
        outputs: dict[Any, Tensor] = dict(super().get_outputs(ray_samples, density_embedding))
        assert density_embedding is not None
        outputs[QNerfHeadNames.FEATURES] = density_embedding
        return outputs

    def codes(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch W"]:
        """Query codes of (composited) features: the heads of all layers, side by side."""
        return self.query_head(features.to(self.query_head.weight.dtype))
