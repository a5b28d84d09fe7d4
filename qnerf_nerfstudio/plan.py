"""The plan of a run: what each training step does. Pure arithmetic, no model.

Every training step does one slice: one chunk of views through one timestep of diffusion, or nothing but training of
the field, which takes a gradient step in every one of them.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from typing import Literal

Consolidation = Literal["progressive", "one-shot", "none"]


class Task(str, Enum):
    """What a training step does besides training the field."""

    INVERT = "invert"
    """Invert a chunk of source views by one timestep (the field trains on the source photos)."""
    SOURCE = "source"
    """Nothing: the field trains on the source photos."""
    DENOISE = "denoise"
    """Advance a chunk of edited views by one timestep, guided where a QNeRF has been fitted."""
    LOOK_AHEAD = "look-ahead"
    """The same without guidance, on a copy that extraction looks at."""
    EXTRACT = "extract"
    """Extract the query maps of a chunk of views."""
    FIT = "fit"
    """Nothing: the field fits the query maps."""
    DECODE = "decode"
    """Decode a chunk of edited views into images."""
    FINAL = "final"
    """Nothing: the final RGB field trains on the edited views."""


@dataclass(frozen=True)
class Slice:
    """One training step's share of the work."""

    task: Task
    """What is done."""
    interval: int = 0
    """Number of the interval, from 0; steps after the last fit belong to the interval after it."""
    index: int = 0
    """Index of the timestep before the slice (see ControlNetEditor), for INVERT the index it leads to."""
    chunk: int = 0
    """Number of the chunk of views."""
    first: bool = False
    """Whether this is the first step of its stage."""
    last: bool = False
    """Whether this is the last step of its stage."""


@dataclass(frozen=True)
class Stage:
    """A run of equal tasks: `steps` x `chunks` slices, or `iterations` steps of training only."""

    task: Task
    interval: int
    indices: tuple[int, ...]
    """Indices of the timesteps in order; empty for training only."""
    length: int
    """Number of training steps."""

    @property
    def description(self) -> str:
        """The stage in words."""
        words = {
            Task.INVERT: "inversion of the source views",
            Task.SOURCE: "field on the source photos",
            Task.DENOISE: f"editing, interval {self.interval + 1}",
            Task.LOOK_AHEAD: f"look-ahead, interval {self.interval + 1}",
            Task.EXTRACT: f"extraction of queries, interval {self.interval + 1}",
            Task.FIT: f"QNeRF fit, interval {self.interval + 1}",
            Task.DECODE: "decoding of the edited views",
            Task.FINAL: "final field on the edited views",
        }
        return words[self.task]


@dataclass(frozen=True)
class PlanConfig:
    """Everything that the plan depends on."""

    views: int
    """Number of views, held-out ones included."""
    num_steps: int
    """Number of diffusion timesteps, T."""
    tau: int = 4
    """Timesteps of an interval's guided part, and of its look-ahead."""
    chunk: int = 8
    """Views in one slice."""
    source_iterations: int = 500
    """Training steps on the source photos after the inversion."""
    fit_iterations: int = 300
    """Training steps of a QNeRF fit."""
    final_iterations: int = 2000
    """Training steps of the final field."""
    consolidation: Consolidation = "progressive"
    """"progressive" alternates editing and fits, "one-shot" fits once, early, "none" edits view by view."""
    stop: float = 1.0
    """No interval starts after this share of the timesteps."""

    def __post_init__(self) -> None:
        checks = {
            "views": (self.views >= 1, "at least 1"),
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "tau": (1 <= self.tau <= self.num_steps, f"1 to num_steps ({self.num_steps})"),
            "chunk": (self.chunk >= 1, "at least 1"),
            "source_iterations": (self.source_iterations >= 0, "at least 0"),
            "fit_iterations": (self.fit_iterations >= 1, "at least 1"),
            "final_iterations": (self.final_iterations >= 1, "at least 1"),
            "stop": (0 <= self.stop <= 1, "0 to 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {expected}")


@dataclass(frozen=True)
class Plan:
    """The stages of a run in order."""

    config: PlanConfig
    stages: tuple[Stage, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self._stages()))

    @property
    def chunks(self) -> int:
        """Number of chunks that the views are cut into."""
        return -(-self.config.views // self.config.chunk)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First training step of every stage, and the number of all steps."""
        starts = [0]
        for stage in self.stages:
            starts.append(starts[-1] + stage.length)
        return tuple(starts)

    @property
    def total(self) -> int:
        """Number of training steps of the run."""
        return self.starts[-1]

    @property
    def hash(self) -> str:
        """A short name of this plan; two runs with the same hash do the same slices."""
        return hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode()).hexdigest()[:12]

    def views_of(self, chunk: int) -> range:
        """Indices of the views of a chunk."""
        start = chunk * self.config.chunk
        return range(start, min(start + self.config.chunk, self.config.views))

    def stage_at(self, step: int) -> int:
        """Number of the stage that training step `step` belongs to; steps past the end belong to the last."""
        return min(bisect_right(self.starts, step) - 1, len(self.stages) - 1)

    def training_span(self, step: int) -> range:
        """The training steps around `step` that share one optimizer; fits and the final field start afresh."""
        fresh = [
            start
            for start, stage in zip(self.starts, self.stages, strict=False)
            if stage.task in (Task.FIT, Task.FINAL)
        ]
        bounds = [0, *fresh, self.total]
        number = min(bisect_right(bounds, step), len(bounds) - 1)
        return range(bounds[number - 1], bounds[number])

    def at(self, step: int) -> Slice:
        """What training step `step` does.

        Raises:
            IndexError: The step is negative.
        """
        if step < 0:
            raise IndexError(f"step {step} is negative")
        number = self.stage_at(step)
        stage, offset = self.stages[number], step - self.starts[number]
        ends = {"first": offset == 0, "last": offset == stage.length - 1}
        if not stage.indices:
            return Slice(stage.task, stage.interval, **ends)
        index, chunk = stage.indices[offset // self.chunks], offset % self.chunks
        return Slice(stage.task, stage.interval, index, chunk, **ends)

    def _sliced(self, task: Task, interval: int, indices: range) -> Stage:
        return Stage(task, interval, tuple(indices), len(indices) * self.chunks)

    def _stages(self) -> Iterator[Stage]:
        config, total = self.config, self.config.num_steps
        yield self._sliced(Task.INVERT, 0, range(total - 1, -1, -1))
        if config.source_iterations > 0:
            yield Stage(Task.SOURCE, 0, (), config.source_iterations)
        index, interval = 0, 0
        # An interval needs tau guided steps, and at least one further timestep to look ahead to.
        limit = {"progressive": config.stop * total, "one-shot": 1, "none": 0}[config.consolidation]
        while index < limit and index + config.tau < total:
            remembered = index + config.tau
            ahead = min(remembered + config.tau, total - 1)
            yield self._sliced(Task.DENOISE, interval, range(index, remembered))
            if ahead > remembered:
                yield self._sliced(Task.LOOK_AHEAD, interval, range(remembered, ahead))
            yield self._sliced(Task.EXTRACT, interval, range(ahead, ahead + 1))
            yield Stage(Task.FIT, interval, (), config.fit_iterations)
            index, interval = remembered, interval + 1
        yield self._sliced(Task.DENOISE, interval, range(index, total))
        yield self._sliced(Task.DECODE, interval, range(total, total + 1))
        yield Stage(Task.FINAL, interval, (), config.final_iterations)
