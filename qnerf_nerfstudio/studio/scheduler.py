"""The learning rate over a stage of the plan."""

from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@dataclass
class StageDecaySchedulerConfig(SchedulerConfig):
    """Exponential decay of the learning rate over a stage of the plan."""

    _target: type = field(default_factory=lambda: StageDecayScheduler)
    decay: float = 0.1
    """Learning rate at the end of a stage, as a share of that at its start."""
    max_steps: int = 1000
    """Length of the stage in training steps; set by the pipeline."""


class StageDecayScheduler(Scheduler):
    """Exponential decay; unlike nerfstudio's schedulers it keeps plain floats, which torch.load reads by default."""

    config: StageDecaySchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """A LambdaLR that decays from lr_init to lr_init * decay over max_steps steps."""
        return LambdaLR(optimizer, lambda step: self.config.decay ** min(1.0, step / self.config.max_steps))
