"""How long training goes on, and what changes while it does: learning rate and moving average."""

import math
import time

import torch
from torch import nn

from qnerf_nerfstudio.toy.training.checkpoint import Progress

WARM_UP = 50
"""Steps in which the learning rate rises to its peak."""


class Budget:
    """A number of steps, or a time that counts over all calls.

    Args:
        steps: Number of steps.
        minutes: The time, which replaces the steps where it is given.
        before: What earlier calls did.
        started: `time.monotonic()` at the start of this call.
    """

    def __init__(self, steps: int, minutes: float | None, before: Progress, started: float) -> None:
        self.steps, self.minutes, self.before, self.started = steps, minutes, before, started

    def progress(self, step: int) -> Progress:
        """What is done once `step` steps are."""
        return Progress(step, self.before.seconds + time.monotonic() - self.started)

    def share(self, step: int) -> float:
        """Share of the budget that is used up once `step` steps are done; 1 or more is the end."""
        if self.minutes is not None:
            return self.progress(step).seconds / (60 * self.minutes)
        return step / self.steps if self.steps else 1.0

    def line(self, step: int) -> str:
        """The same in words, with the time that a step of this call takes."""
        rate = (time.monotonic() - self.started) / max(1, step - self.before.steps)
        return f"{step}, {min(1.0, self.share(step)):.0%} done, {rate:.2f} s/step"


def learning_rate(step: int, share: float, peak: float) -> float:
    """Linear warm-up over the steps, times a cosine decay to a hundredth of the peak over the share of the budget."""
    decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return peak * min(1.0, (step + 1) / WARM_UP) * decay


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float = 0.995) -> None:
    """Exponential moving average of the weights, with a warm-up of the decay."""
    move_weights(average, model, 1 - min(decay, (1 + step) / (10 + step)))


@torch.no_grad()
def move_weights(module: nn.Module, towards: nn.Module, share: float) -> None:
    """Move the weights of a module towards those of another one, by a share of the way."""
    for weight, other in zip(module.parameters(), towards.parameters(), strict=True):
        weight.lerp_(other.to(weight), share)
