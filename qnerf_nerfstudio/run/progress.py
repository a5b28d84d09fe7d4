"""How far a run is, what it cost so far, and what remains."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from torch import Tensor

from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.wording import format_duration
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.plan import Plan, Task
from qnerf_nerfstudio.run.stages import describe

REPORT_EVERY = 20.0
"""Seconds between two lines in the terminal."""
MEMORY = 0.95
"""Decay of a task's mean time, per training step."""
NOTE_EVERY = 10
"""Training steps between two points of the loss curves."""


@dataclass(frozen=True)
class Status:
    """Where a run is."""

    stage: int
    """Number of the stage, from 1."""
    stages: int
    """Number of all stages."""
    description: str
    """The stage in words."""
    timestep: str
    """The diffusion timestep in words, empty in stages without one."""
    share: float
    """Share of the stage's training steps that are done, 0 to 1."""
    stage_left: float | None
    """Seconds to the end of the stage; None before the first step is timed."""
    left: float | None
    """Seconds to the end of the run; None before any step of diffusion is timed, where one is still to come."""

    def __str__(self) -> str:
        """One line."""
        parts = [f"stage {self.stage} of {self.stages}: {self.description}"]
        if self.timestep:
            parts.append(self.timestep)
        if self.remains:
            parts.append(self.remains)
        return " · ".join(parts)

    @property
    def remains(self) -> str:
        """What is left in words, as far as it is known."""
        if self.stage_left is None:
            return ""
        in_all = "" if self.left is None else f", {format_duration(self.left)} in all"
        return f"{format_duration(self.stage_left)} left in it{in_all}"


class Progress:
    """Times the training steps of a run by a clock in seconds, and estimates what remains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        """Time spent in each stage so far, by its description."""
        self.losses: list[dict[str, float]] = []
        """Points of the loss curves: "step", "stage" (from 1), and the losses by name."""
        self._clock = clock
        self._means: dict[Task, float] = {}
        self._last: tuple[float, Task, str] | None = None
        self._printed = float("-inf")

    def step(self, plan: Plan, step: int) -> Status:
        """Note that training step `step` begins."""
        now, item = self._clock(), plan.at(step)
        number = plan.stage_at(step)
        stage = plan.stages[number]
        description = describe(stage)
        if self._last is not None:
            started, task, before = self._last
            took = now - started
            self.seconds[before] = self.seconds.get(before, 0.0) + took
            self._means[task] = MEMORY * self._means.get(task, took) + (1 - MEMORY) * took
        self._last = (now, item.task, description)
        timestep = ""
        if stage.indices:
            timestep = f"timestep {min(item.index + 1, plan.config.num_steps)} of {plan.config.num_steps}"
        ahead: defaultdict[Task, int] = defaultdict(int)
        for later, each in enumerate(plan.stages[number:], number):
            ahead[each.task] += plan.starts[later + 1] - max(step, plan.starts[later])
        stage_steps = plan.starts[number + 1] - step
        return Status(
            stage=number + 1,
            stages=len(plan.stages),
            description=description,
            timestep=timestep,
            share=1 - max(0, stage_steps) / stage.length,
            stage_left=self._estimate({stage.task: stage_steps}),
            left=self._estimate(ahead),
        )

    def note_losses(self, plan: Plan, step: int, losses: Mapping[str, Tensor]) -> None:
        """Keep the losses of a training step for the curves, of some steps."""
        if step % NOTE_EVERY == 0:
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            self.losses.append({"step": step, "stage": plan.stage_at(step) + 1, **values})

    def save(self, artifacts: EditArtifacts) -> None:
        """Keep times and loss curves with the run."""
        artifacts.save_progress(self.seconds, self.losses)

    def load(self, artifacts: EditArtifacts, step: int) -> None:
        """Go on with what `save` wrote, for a run that resumes at training step `step`."""
        self.seconds, losses = artifacts.load_progress()
        self.losses = [each for each in losses if each["step"] < step]

    def finish(self) -> None:
        """Note that the last training step ended."""
        if self._last is not None:
            started, _, description = self._last
            self.seconds[description] = self.seconds.get(description, 0.0) + self._clock() - started
            self._last = None

    def skip_pause(self) -> None:
        """Forget when the last step began, so that the time until the next one counts for nothing."""
        self._last = None

    def show(self, status: Status) -> None:
        """Print a line where a stage begins, and now and then within it."""
        now = self._clock()
        if status.share > 0 and now - self._printed < REPORT_EVERY:
            return
        self._printed = now
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=1.0, completed=status.share, width=24), str(status))
        CONSOLE.print(line)

    def _estimate(self, steps: dict[Task, int]) -> float | None:
        """Seconds for numbers of steps of each task; tasks not timed yet take the mean of those like them, and where
        there are none nothing can be said."""
        total = 0.0
        for task, count in steps.items():
            like = [mean for each, mean in self._means.items() if _kind(each) == _kind(task)]
            if not like:
                return None
            total += count * self._means.get(task, sum(like) / len(like))
        return total


def _kind(task: Task) -> str:
    """Tasks of one kind take times of one order: training alone, renders of whole views, or passes of diffusion."""
    return "training" if task.trains_only else "renders" if task == Task.CARRY else "diffusion"


def finished_panel(run: Path, artifacts: EditArtifacts, seconds: dict[str, float]) -> Panel:
    """What a run, named by the folder with config.yml, made, where it is, and what each stage cost in seconds."""
    table = Table(show_header=False, box=None)
    for description, spent in seconds.items():
        table.add_row(description, format_duration(spent))
    table.add_row("in all", format_duration(sum(seconds.values())))
    config = run / "config.yml"
    table.add_row("edited views", str(artifacts.images))
    table.add_row("report", f"{run / 'report.html'}")
    table.add_row("as a dataset", f"ns-train nerfacto --data {artifacts.root}")
    table.add_row("look around", f"ns-viewer --load-config {config}")
    table.add_row(
        "video", f"ns-render interpolate --pose-source train --load-config {config} --output-path {run / 'edited.mp4'}"
    )
    return Panel(table, title="edit finished", expand=False)
