"""What cameras are shown in the place of the field as it is."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qnerf_nerfstudio.deformation.deformation import Deformation


@dataclass(frozen=True)
class Look:
    """What cameras are shown in the place of the field as it is."""

    weights: Mapping[str, Tensor]
    """Parameters by name that take the place of the field's own; those that are left out stay."""
    deformation: Deformation | None = None
    """What the field is seen through; None: nothing."""


@contextmanager
def wearing(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put weights in the place of a module's own meanwhile."""
    own = {name: parameter.data for name, parameter in module.named_parameters()}
    try:
        for name, parameter in module.named_parameters():
            parameter.data = weights.get(name, parameter.data)
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data = own[name]


@contextmanager
def untraced() -> Iterator[Any]:
    """Suspend this thread's trace function meanwhile; it is what this gives.

    Nerfstudio's viewer interrupts a render by one that raises, at whatever line: those that give a field its weights
    back must not be among them.
    """
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield trace
    finally:
        sys.settrace(trace)


def traced(trace: Any, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The result of a call that a trace function watches, and may interrupt; nothing else is traced before it or
    after."""
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(None)
