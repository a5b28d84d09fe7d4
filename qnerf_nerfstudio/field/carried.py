"""The carried field: a field seen through a deformation, by looking up its samples where their matter was captured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor

from qnerf_nerfstudio.deformation.deformation import Deformation, Origins

STILL = 5e-4
"""Matter that moves less than this stays where it is: half a pixel of 500 where cameras stand about 1 away."""

PART = 65536
"""Points that are looked up at once."""


@dataclass(frozen=True)
class Changes:
    """A deformation whose certainty tells what it changes: 0 where matter comes, goes or moves, else 1."""

    deformation: Deformation
    """The deformation."""
    carried: bool
    """Whether the edited scene is shown, in which matter has moved, or the captured one, in which it has not yet."""

    def __call__(self, points: Tensor) -> Origins:
        """Where the matter at points was captured, and whether the deformation leaves it alone."""
        origins = self.deformation(points)
        still = origins.kept & ((origins.points - points).norm(dim=-1) < STILL)
        origins = replace(origins, certainty=still.float())
        if self.carried:
            return origins
        return replace(origins, points=points, kept=torch.ones_like(origins.kept), shades=None)


def brought_matter(
    density: Callable[[Tensor], Tensor], deformation: Deformation, points: Float[Tensor, "N 3"], least: float
) -> Float[Tensor, "M 3"]:
    """Those of some points to which a deformation brings matter from elsewhere.

    Args:
        density: The captured field's density at points [P, 3], per unit of length, on any device.
        deformation: The deformation.
        points: Points of the edited scene, in scene coordinates.
        least: Density from which on there is matter.
    """
    brought, changes = [], Changes(deformation, carried=True)
    for part in points.split(PART):
        origins = changes(part)
        moved = origins.kept & (origins.certainty == 0)
        dense = density(origins.points[moved]) >= least
        brought.append(part[moved][dense])
    return torch.cat(brought)


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
    if origins.shades is not None:
        outputs[FieldHeadNames.RGB] = (outputs[FieldHeadNames.RGB] * origins.shades[..., None]).clamp_max(1)
    outputs[FieldHeadNames.DENSITY] = torch.where(origins.kept[..., None], outputs[FieldHeadNames.DENSITY], 0.0)
    return outputs, origins
