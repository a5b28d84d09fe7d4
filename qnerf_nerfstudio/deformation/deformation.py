"""What a deformation is: points of the edited scene -> points of the captured one."""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Origins:
    """What a deformation says of points of the edited scene."""

    points: Float[Tensor, "*batch 3"]
    """Where their matter was captured, in scene coordinates."""
    kept: Bool[Tensor, "*batch"]
    """Whether there can be matter at all; there is none where what was captured has moved away."""
    certainty: Float[Tensor, "*batch"]
    """How sure this is, in [0, 1]: less than 1 where several parts of what moves could have brought the matter."""
    shades: Float[Tensor, "*batch"] | None = None
    """What colours are multiplied by, as matter that has turned is lit from another side; None: they stay."""


class Deformation(Protocol):
    """Takes points of the edited scene back to the captured one."""

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Origins:
        """Where the matter at points was captured."""
        ...


class StatedDeformation(Deformation, Protocol):
    """A deformation with tensors of its own."""

    def to(self, device: str) -> Deformation:
        """The same on another device."""
        ...
