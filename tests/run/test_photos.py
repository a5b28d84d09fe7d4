"""When the field of the photos is good enough to go on with, and what is known of the matter that it moves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.captures import small_capture
from torch import Tensor

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.deformation.deformation import Origins
from qnerf_nerfstudio.run import run as run_module
from qnerf_nerfstudio.run import stages
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Revision, Task
from qnerf_nerfstudio.run.run import BROUGHT, FOGGY, EditRun
from qnerf_nerfstudio.run.stages import STAGES
from qnerf_nerfstudio.studio.pipeline import QNerfPipeline

SHIFT = torch.tensor([0.5, 0.0, 0.0])


@pytest.mark.parametrize("shown", [True, False])
def test_training_on_the_photos_ends_early_only_where_the_field_shows_what_moves(
    shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "photos_quality", lambda run: 20.0)
    plan = Plan(PlanConfig(num_views=2, num_steps=4, source_iterations=1500, start="carried"))
    revisions: list[Revision] = []
    run: Any = SimpleNamespace(
        plan=plan,
        artifacts=EditArtifacts(tmp_path),
        model=SimpleNamespace(device="cpu"),
        shows_what_moves=lambda: shown,
        revise=revisions.append,
    )
    for step in range(1500):
        stages._source(run, plan.at(step))
    # Judged before steps 250, 500 and 750, by when 500 steps have gained nothing.
    assert [each.step for each in revisions[:1]] == ([751] if shown else [])


@pytest.mark.parametrize(
    ("judged", "ends"),
    [
        # Those of captures 2 and 4: one settles, the other one recovers from a dip.
        ((27.4, 28.7, 29.6, 29.2, 29.3), 1250),
        ((27.5, 25.6, 26.2, 26.9, 27.5), None),
        ((27.5, 25.6, 25.5, 26.9, 27.5), 750),
        ((20.0, 20.1), None),
    ],
)
def test_a_field_settles_where_it_gains_nothing_over_any_of_its_last_judgements(
    judged: tuple[float, ...], ends: int | None
) -> None:
    history = [(250 * number, quality) for number, quality in enumerate(judged, 1)]
    settled = [history[last][0] for last in range(len(history)) if stages.has_settled(history[: last + 1])]
    assert next(iter(settled), None) == ends


class Bones:
    """A motion of what a field shows, or does not."""

    def __init__(self, read: bool, alone: bool) -> None:
        self._read, self._alone = read, alone

    def read(self, density: object, colour: float | None, *others: object) -> dict[str, torch.Tensor]:
        """What the light explains stands for the colours."""
        if not self._read:
            raise UserError("the field shows no matter around the bones")
        if colour is None:
            return {}
        return {"explained": torch.tensor(colour)} | ({"harmonics": torch.ones(9)} if colour > 0.5 else {})

    def alone(self, tensors: object) -> SimpleNamespace | None:
        return SimpleNamespace(to=lambda device: None) if self._alone else None


@pytest.mark.parametrize(
    ("motion", "fog", "start", "expected"),
    [
        (Bones(True, True), FOGGY - 0.01, "carried", True),
        (Bones(True, True), FOGGY + 0.01, "carried", False),
        (Bones(True, False), 1.0, "carried", True),  # boxes: all that lies in them moves
        (Bones(False, True), 0.0, "carried", False),
        (Bones(False, True), 1.0, "inverted", True),  # nothing is carried
        (None, 1.0, "carried", True),
    ],
)
def test_a_field_shows_what_moves_where_that_is_found_and_solid(
    motion: Bones | None, fog: float, start: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "translucency", lambda model, views, alone: fog)
    run: Any = object.__new__(EditRun)
    run.plan = Plan(PlanConfig(num_views=2, num_steps=4, start=start))
    _give(run, motion)
    assert run.shows_what_moves() is expected


def _give(run: Any, motion: Bones | None, colour: float = 0.6, relight: bool = True) -> None:
    run.model = SimpleNamespace(device="cpu", density=None, colour=colour)
    influence, region = SimpleNamespace(voxels=None), SimpleNamespace(type="auto")
    run.prepared = SimpleNamespace(
        motion=motion,
        views=[],
        capture=SimpleNamespace(num_train=0),
        projected=SimpleNamespace(influence=influence),
        edit=SimpleNamespace(region=region),
        settings=SimpleNamespace(relight=relight),
    )


@pytest.mark.parametrize(
    ("explained", "relight", "told"),
    [
        (0.6, True, "Light explains 60% of how colours vary along bones; what turns is shaded by it."),
        (-0.2, True, "Light explains 0% of how colours vary along bones; too little: what turns keeps its shading."),
        (0.6, False, ""),
    ],
)
def test_a_run_says_whether_it_shades_what_turns(
    explained: float, relight: bool, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "translucency", lambda model, views, alone: 0.0)
    run: Any = object.__new__(EditRun)
    run.plan = Plan(PlanConfig(num_views=2, num_steps=4, start="carried"))
    motion = Bones(True, True)
    _give(run, motion, explained, relight)
    tensors = run._taken_along(motion)
    assert tensors["read"] and ("harmonics" in tensors) == (relight and explained > 0.5)
    assert " ".join(capsys.readouterr().out.split()) == told


class Shift:
    """All of the scene moves."""

    def __call__(self, points: Tensor) -> Origins:
        kept = torch.ones(points.shape[:-1], dtype=torch.bool)
        return Origins(points - SHIFT, kept, kept.float())


@pytest.mark.parametrize("editing", ["diffusion", "carried"])
def test_stages_on_carried_views_expect_the_matter_that_the_motion_brings(editing: Any, tmp_path: Path) -> None:
    along_bones = torch.zeros(1, 3)
    settings: Any = {"start": "carried", "editing": editing, "consolidation": "one-shot"}
    plan = Plan(PlanConfig(num_views=2, num_steps=6, tau=2, source_iterations=5, **settings))
    run: Any = object.__new__(EditRun)
    run.plan, run.artifacts, run.__dict__["deformation"] = plan, EditArtifacts(tmp_path), Shift()
    run.model = SimpleNamespace(
        device="cpu",
        density=lambda points: 100.0 * (points.norm(dim=-1) < 0.3),
        scene_box=SimpleNamespace(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
    )
    influence = SimpleNamespace(voxels=None)
    run.prepared = SimpleNamespace(
        motion=SimpleNamespace(inside=lambda: along_bones), projected=SimpleNamespace(influence=influence)
    )
    known: dict[Task, Tensor | None] = {}
    for stage in plan.stages:
        known.setdefault(stage.task, run.expected(stage))
        if stage.task == Task.CARRY:
            STAGES[stage.task].end(run, stage)
            # A run that was killed now enters the stage once more.
            assert run.expected(stage) is None
    assert known.pop(Task.SOURCE) is along_bones and known.pop(Task.CARRY) is None
    learns = (
        {Task.DECODE, Task.FINAL}
        if editing == "carried"
        else {Task.INVERT, Task.DENOISE, Task.LOOK_AHEAD, Task.EXTRACT}
    )
    assert {task for task, points in known.items() if points is not None} == learns
    points = run.expected(next(stage for stage in plan.stages if stage.task in learns))
    assert 100 < len(points) <= BROUGHT and bool(((points - SHIFT).norm(dim=-1) < 0.3).all())
    # Where it brings nothing, nothing is expected.
    run.artifacts.brought.save({"points": torch.zeros(0, 3)})
    assert all(run.expected(stage) is None for stage in plan.stages if stage.task != Task.SOURCE)


@pytest.mark.parametrize("shown", [True, False])
def test_the_final_field_begins_with_previews_where_views_began_carried_only(shown: bool, tmp_path: Path) -> None:
    """Where the field of the photos is fog, views begin from the photos, and so does what learns them."""
    run: Any = object.__new__(EditRun)
    run.plan = Plan(PlanConfig(num_views=2, num_steps=4, start="carried"))
    run.artifacts, run.__dict__["deformation"] = EditArtifacts(tmp_path), Shift() if shown else None
    run.artifacts.source_field.save({"weight": torch.ones(1)})
    pipeline: Any = SimpleNamespace(config=SimpleNamespace(warm_start=True))
    (final,) = (stage for stage in run.plan.stages if stage.task == Task.FINAL)
    weights = QNerfPipeline._initial_weights(pipeline, run, final)
    assert list(weights) == ([] if shown else ["weight"])


def test_what_fields_learn_is_kept_in_bytes(tmp_path: Path) -> None:
    """Floats of all photos of a capture fill the memory."""
    capture = read_capture(small_capture(tmp_path, num_views=3))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (capture.num_train, 64, 64, 3), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(len(images), 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    shown = stages.photos_outside(capture, images, masks)
    photos = to_bytes(capture.photos(range(len(images)), (64, 64)))
    assert shown.dtype == torch.uint8
    assert torch.equal(shown[:, 16:48, 16:48], images[:, 16:48, 16:48])
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[16:48, 16:48] = False
    assert torch.equal(shown[:, outside], photos[:, outside])
