"""The carried field: a field seen through a deformation, by looking up its samples where their matter was captured."""

from collections.abc import Callable
from typing import Any

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor

from qnerf_nerfstudio.deformation.deformation import Deformation, Origins


def carried_density(density_fn: Callable[[Tensor], Tensor], deformation: Deformation) -> Callable[[Tensor], Tensor]:
    """A proposal network's density through a deformation."""

    def look_up(positions: Tensor) -> Tensor:
        origins = deformation(positions)
        return torch.where(origins.kept[..., None], density_fn(origins.points), 0.0)

    return look_up


def carried_outputs(field: Field, samples: RaySamples, deformation: Deformation) -> tuple[dict[Any, Tensor], Origins]:
    """What a field holds at samples through a deformation, and where these come from.

    The samples stay where they are on their rays: only the positions that the field looks up are offset.
    """
    frustums = samples.frustums
    positions = frustums.get_positions()
    origins = deformation(positions)
    frustums.set_offsets(origins.points - positions)
    outputs: dict[Any, Tensor] = dict(field.forward(samples))
    frustums.offsets = None
    outputs[FieldHeadNames.DENSITY] = torch.where(origins.kept[..., None], outputs[FieldHeadNames.DENSITY], 0.0)
    return outputs, origins
