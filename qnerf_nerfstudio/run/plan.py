"""The plan of a run: what each training step does. Pure arithmetic, no model.

Every training step does one slice: one chunk of views through one timestep of diffusion, or nothing but training of
the field, which takes a gradient step in every one of them. Where several processes share a run, each does a chunk of
its own in the same step.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Literal

Consolidation = Literal["progressive", "one-shot", "none"]
Editing = Literal["diffusion", "carried"]
Start = Literal["carried", "inverted"]


class Task(StrEnum):
    """What a training step does besides training the field."""

    INVERT = "invert"
    """Invert a chunk of source or carried views by one timestep (the field trains on the source photos)."""
    SOURCE = "source"
    """Nothing: the field trains on the source photos."""
    CARRY = "carry"
    """Render a chunk of views of the carried field (the field goes on training on the source photos)."""
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

    @property
    def trains_only(self) -> bool:
        """Whether steps of this task train the field and do nothing else."""
        return self in (Task.SOURCE, Task.FIT, Task.FINAL)


@dataclass(frozen=True)
class Slice:
    """One training step's share of the work."""

    task: Task
    """What is done."""
    interval: int = 0
    """Number of the interval, from 0 and on through all attempts; steps after the last fit belong to the interval after
    it."""
    index: int = 0
    """Index of the timestep before the slice (see ControlNetEditor), for inversions the index it leads to."""
    chunk: int = 0
    """Number of the chunk of views."""
    attempt: int = 0
    """Number of the attempt at the edit; a revision may begin another one."""
    fitted: int | None = None
    """The interval whose QNeRF the field is, None before the attempt's first fit."""
    first: bool = False
    """Whether this is the first step of its stage."""
    last: bool = False
    """Whether this is the last step of its stage."""
    step: int = 0
    """The training step."""


@dataclass(frozen=True)
class Stage:
    """A run of equal tasks: timesteps x rounds of chunks, or `iterations` steps of training only."""

    task: Task
    interval: int
    indices: tuple[int, ...]
    """Indices of the timesteps in order; empty for training only."""
    length: int
    """Number of training steps."""
    attempt: int = 0
    """Number of the attempt at the edit that it belongs to."""
    fitted: int | None = None
    """The interval whose QNeRF the field is when the stage begins, None before the attempt's first fit."""


@dataclass(frozen=True)
class PlanConfig:
    """Everything that the plan depends on."""

    num_views: int
    """Number of views, held-out ones included."""
    num_steps: int
    """Number of diffusion timesteps, T."""
    tau: int = 4
    """Timesteps of an interval's guided part, and of its look-ahead."""
    chunk: int = 8
    """Views in one slice."""
    source_iterations: int = 500
    """Training steps on the source photos alone, at most."""
    fit_iterations: int = 300
    """Training steps of a QNeRF fit."""
    final_iterations: int = 2000
    """Training steps of the final field."""
    consolidation: Consolidation = "progressive"
    """"progressive" alternates editing and fits, "one-shot" fits once, early, "none" edits view by view."""
    editing: Editing = "diffusion"
    """"carried" takes the carried views for the edited ones, without diffusion."""
    start: Start = "inverted"
    """What edited views begin from: the "carried" views, inverted, or the source views ("inverted")."""
    stop: float = 1.0
    """No interval starts after this share of the timesteps."""
    ranks: int = 1
    """Processes that share the chunks of every stage."""

    def __post_init__(self) -> None:
        checks = {
            "num_views": (self.num_views >= 1, "at least 1"),
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "tau": (1 <= self.tau <= self.num_steps, f"1 to num_steps ({self.num_steps})"),
            "chunk": (self.chunk >= 1, "at least 1"),
            "source_iterations": (self.source_iterations >= 0, "at least 0"),
            "fit_iterations": (self.fit_iterations >= 1, "at least 1"),
            "final_iterations": (self.final_iterations >= 1, "at least 1"),
            "stop": (0 <= self.stop <= 1, "0 to 1"),
            "ranks": (self.ranks >= 1, "at least 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def carries(self) -> bool:
        """Whether views of the carried field are rendered."""
        return "carried" in (self.start, self.editing)


@dataclass(frozen=True)
class Revision:
    """A change of the plan while it is walked."""

    step: int
    """The training step that it was asked for at. What all chunks of views have to do at the timestep at hand is
    finished first."""
    kind: Literal["photos", "finish", "again"]
    """"photos" ends the training on the source photos; "finish" decodes the edited views as they are and goes to the
    final field; "again" edits once more, from the inverted views on."""


@dataclass(frozen=True)
class Plan:
    """The stages of a run in order."""

    config: PlanConfig
    revisions: tuple[Revision, ...] = ()
    stages: tuple[Stage, ...] = field(init=False)

    def __post_init__(self) -> None:
        stages = tuple(self._stages())
        for revision in self.revisions:
            stages = self._revised(stages, revision)
        object.__setattr__(self, "stages", stages)

    def revised(self, revision: Revision) -> "Plan":
        """The plan with one more revision.

        Raises:
            ValueError: The revision asks for what cannot be done at its step.
        """
        return Plan(self.config, (*self.revisions, revision))

    @property
    def chunks(self) -> int:
        """Number of chunks that the views are cut into."""
        return -(-self.config.num_views // self.config.chunk)

    @property
    def rounds(self) -> int:
        """Number of training steps in which all chunks go through one timestep."""
        return -(-self.chunks // self.config.ranks)

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
    def totals(self) -> list[int]:
        """The number of training steps as the plan was, before its first revision and after each of them."""
        return [Plan(self.config, self.revisions[:count]).total for count in range(len(self.revisions) + 1)]

    @property
    def hash(self) -> str:
        """A short name of this plan before any revision; two runs with the same hash start with the same slices."""
        return hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode()).hexdigest()[:12]

    def view_indices(self, chunk: int) -> range:
        """Indices of the views of a chunk; none where there is no such chunk."""
        start = chunk * self.config.chunk
        return range(start, min(start + self.config.chunk, self.config.num_views))

    def stage_at(self, step: int) -> int:
        """Number of the stage that training step `step` belongs to; steps past the end belong to the last."""
        return min(bisect_right(self.starts, step) - 1, len(self.stages) - 1)

    def training_span(self, step: int) -> range:
        """The training steps around `step` that share one optimizer; what comes after the carried views, fits, the
        final field and further attempts start afresh."""
        fresh = [
            start
            for start, stage, before in zip(self.starts[1:], self.stages[1:], self.stages, strict=False)
            if stage.task in (Task.FIT, Task.FINAL) or stage.attempt > before.attempt or before.task == Task.CARRY
        ]
        bounds = [0, *fresh, self.total]
        number = min(bisect_right(bounds, step), len(bounds) - 1)
        return range(bounds[number - 1], bounds[number])

    def decay_steps(self, step: int) -> int:
        """Training steps over which the learning rate decays around `step`. A revision that ends the training on the
        photos leaves the decay as it was: a run that resumes before it must train as before."""
        span = self.training_span(step)
        return len(span) if span.start > 0 else len(Plan(self.config).training_span(0))

    def at(self, step: int, rank: int = 0) -> Slice:
        """What training step `step` does in the process `rank`.

        In the last round of a timestep some processes may find no chunk left: theirs has no views.

        Raises:
            IndexError: The step is negative.
        """
        if step < 0:
            raise IndexError(f"step {step} is negative")
        number = self.stage_at(step)
        stage, offset = self.stages[number], step - self.starts[number]
        index, chunk = 0, 0
        if stage.indices:
            index = stage.indices[offset // self.rounds]
            chunk = offset % self.rounds * self.config.ranks + rank
        return Slice(
            stage.task,
            stage.interval,
            index,
            chunk,
            stage.attempt,
            stage.fitted,
            first=offset == 0,
            last=offset == stage.length - 1,
            step=step,
        )

    def _sliced(self, task: Task, interval: int, indices: range, attempt: int = 0, fitted: int | None = None) -> Stage:
        return Stage(task, interval, tuple(indices), len(indices) * self.rounds, attempt, fitted)

    def _stages(self) -> Iterator[Stage]:
        config = self.config
        inversion = self._sliced(Task.INVERT, 0, range(config.num_steps - 1, -1, -1))
        if not config.carries:
            yield inversion
        if config.source_iterations > 0:
            yield Stage(Task.SOURCE, 0, (), config.source_iterations)
        if config.carries:
            yield self._sliced(Task.CARRY, 0, range(1))
        if config.editing == "carried":
            yield from self._end(0, 0, 0, None)
            return
        if config.carries:
            yield inversion
        yield from self._attempt(0, 0)

    def _attempt(self, attempt: int, interval: int) -> Iterator[Stage]:
        """The stages of an edit from the inverted views on, its intervals counted from `interval`."""
        config, total = self.config, self.config.num_steps
        index, fitted = 0, None
        # An interval needs tau guided steps, and at least one further timestep to look ahead to.
        limit = {"progressive": config.stop * total, "one-shot": 1, "none": 0}[config.consolidation]
        while index < limit and index + config.tau < total:
            remembered = index + config.tau
            ahead = min(remembered + config.tau, total - 1)
            yield self._sliced(Task.DENOISE, interval, range(index, remembered), attempt, fitted)
            if ahead > remembered:
                yield self._sliced(Task.LOOK_AHEAD, interval, range(remembered, ahead), attempt, fitted)
            yield self._sliced(Task.EXTRACT, interval, range(ahead, ahead + 1), attempt, fitted)
            yield Stage(Task.FIT, interval, (), config.fit_iterations, attempt, fitted)
            index, fitted, interval = remembered, interval, interval + 1
        yield self._sliced(Task.DENOISE, interval, range(index, total), attempt, fitted)
        yield from self._end(attempt, interval, total, fitted)

    def _end(self, attempt: int, interval: int, index: int, fitted: int | None) -> Iterator[Stage]:
        """Decode the edited views at a timestep index, and train the final field on them."""
        yield self._sliced(Task.DECODE, interval, range(index, index + 1), attempt, fitted)
        yield Stage(Task.FINAL, interval, (), self.config.final_iterations, attempt, fitted)

    def _revised(self, stages: tuple[Stage, ...], revision: Revision) -> tuple[Stage, ...]:
        """Stages up to a revision, and what it puts instead of the others."""
        if revision.kind == "photos":
            return self._without_rest_of_photos(stages, revision.step)
        kept: list[Stage] = []
        start = 0
        for stage in stages:
            if start >= revision.step:
                break
            length = min(stage.length, revision.step - start)
            if stage.indices:
                timesteps = -(-length // self.rounds)
                kept.append(replace(stage, indices=stage.indices[:timesteps], length=timesteps * self.rounds))
            else:
                kept.append(replace(stage, length=length))
            start += stage.length
        if self.config.editing == "carried":
            raise ValueError("the views are carried, not edited by diffusion models; there is nothing to steer")
        inverted = sum(len(stage.indices) for stage in kept if stage.task == Task.INVERT)
        if inverted < self.config.num_steps:
            raise ValueError("the views are still being inverted; nothing is edited yet")
        last = kept[-1]
        if revision.kind == "again":
            return (*kept, *self._attempt(last.attempt + 1, max(stage.interval for stage in kept) + 1))
        if last.task in (Task.DECODE, Task.FINAL):
            raise ValueError("the edited views are finished; the final field is being trained already")
        edited = [stage for stage in kept if stage.task == Task.DENOISE and stage.attempt == last.attempt]
        if not edited:
            raise ValueError("no view is edited yet")
        fits = [stage.interval for stage in kept if stage.task == Task.FIT and stage.attempt == last.attempt]
        interval = edited[-1].interval if last.task == Task.DENOISE else edited[-1].interval + 1
        return (*kept, *self._end(last.attempt, interval, edited[-1].indices[-1] + 1, fits[-1] if fits else None))

    @staticmethod
    def _without_rest_of_photos(stages: tuple[Stage, ...], step: int) -> tuple[Stage, ...]:
        """The stages, with that of training on the photos ended before `step`."""
        start = 0
        for number, stage in enumerate(stages):
            if stage.task == Task.SOURCE and start < step < start + stage.length:
                return (*stages[:number], replace(stage, length=step - start), *stages[number + 1 :])
            start += stage.length
        raise ValueError(f"the field is not trained on the photos alone at training step {step}")
