"""The model: its stages, and what each objective changes."""

import sys
from typing import Any

import pytest
import torch
from helpers.cameras import SCENE_BOX
from helpers.fields import build, rays
from hypothesis import given
from hypothesis import strategies as st
from nerfstudio.model_components.scene_colliders import NearFarCollider
from nerfstudio.models.nerfacto import NerfactoModel

from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.controls.region import VoxelRegion
from qnerf_nerfstudio.field.annealing import annealed_span
from qnerf_nerfstudio.field.look import Look
from qnerf_nerfstudio.field.losses import query_loss
from qnerf_nerfstudio.field.model import EXPECTED_STEPS, LATER_STEPS, QNerfModel


@pytest.mark.parametrize(
    ("objective", "asked", "pulls"), [("queries", True, True), ("queries", False, False), ("rgb", True, False)]
)
def test_queries_shape_the_density_in_fits_and_where_asked_only(
    model: QNerfModel, objective: str, asked: bool, pulls: bool
) -> None:
    model.train()
    model.config.queries_shape_density = asked
    model.objective = objective
    outputs = model.get_outputs(rays())
    query_loss(outputs["queries"], torch.ones(7, 72), [36, 36]).backward()
    assert model.field.query_head.weight.grad is not None
    base = [p.grad for p in model.field.mlp_base.parameters() if p.grad is not None]
    assert any(bool((grad != 0).any()) for grad in base) == pulls


def test_something_has_to_shape_the_density() -> None:
    with pytest.raises(ValueError, match="queries_shape_density"):
        build(preview_loss_mult=0.0)
    build(preview_loss_mult=0.0, queries_shape_density=True)


def test_stages_start_from_the_weights_they_are_given(model: QNerfModel) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    moved = {name: value.clone() for name, value in model.named_parameters()}
    for step, objective, weights, expected in (
        (20, "rgb", model.initial_weights, before),
        (30, "queries", moved, moved),
    ):
        model.begin_stage(step, objective, weights)
        assert all(
            torch.equal(value, expected[name])
            for name, value in model.named_parameters()
            if name != "device_indicator_param"
        )
        assert (model.objective, model.stage_start) == (objective, step)


def test_looking_at_the_field_does_not_change_its_training(model: QNerfModel) -> None:
    kept = {"version": __version__, "from_scratch": True, "near_plane": 0.2, "far_plane": 9.0, "anneal": 0.5}
    model.set_extra_state({**kept, "steps_since_update": 3, "step": 5})
    model.eval()
    model.get_outputs(rays())
    assert model.get_extra_state() == {**kept, "steps_since_update": 3, "step": 5}
    model.train()
    model.get_outputs(rays())
    assert model.get_extra_state() == {**kept, "steps_since_update": 0, "step": 5}


@pytest.mark.parametrize("sees_edit", [False, True])
def test_rays_that_see_the_edit_change_the_field_inside_the_region_only(model: QNerfModel, sees_edit: bool) -> None:
    model.train()
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    gradients = []
    for cells in (torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 2, dtype=torch.bool)):
        model.region = VoxelRegion(box, cells)
        bundle = rays()
        bundle.metadata["sees_edit"] = torch.full((7, 1), sees_edit)
        model.zero_grad()
        outputs = model.get_outputs(bundle)
        outputs["rgb"].sum().backward()
        gradients.append(sum(float(p.grad.abs().sum()) for p in model.field.parameters() if p.grad is not None))
    assert gradients[0] > 0
    assert (gradients[1] > 0) == (not sees_edit)


def test_nothing_is_rendered_that_was_not_trained(model: QNerfModel) -> None:
    spans = []
    for _ in range(2):
        bundle = rays()
        bundle.nears = bundle.fars = None
        assert model.collider is not None
        bundle = model.collider(bundle)
        assert bundle.nears is not None and bundle.fars is not None
        spans.append((bundle.nears.unique().tolist(), bundle.fars.unique().tolist()))
        model.eval()
    assert spans[0] == spans[1] == ([pytest.approx(model.config.near_plane)], [model.config.far_plane])


@given(st.floats(0.01, 0.9), st.floats(1.1, 1000), st.floats(0, 1), st.floats(0, 1))
def test_annealed_depths_widen_around_the_focus_to_the_planes(
    near: float, far: float, one: float, other: float
) -> None:
    early, late = sorted((one, other))
    narrow, wide = annealed_span(near, far, early), annealed_span(near, far, late)
    assert near <= wide[0] * (1 + 1e-9) and wide[0] <= narrow[0] * (1 + 1e-9) and narrow[0] < 1
    assert 1 < narrow[1] <= wide[1] * (1 + 1e-9) and wide[1] <= far * (1 + 1e-9)
    assert annealed_span(near, far, 1.0) == (pytest.approx(near), pytest.approx(far))


def test_a_field_anneals_where_it_starts_from_scratch_only() -> None:
    model = build(space_annealing=10)
    full = (model.config.near_plane, model.config.far_plane)

    def span(step: int) -> tuple[float, float]:
        model._begin_step(step)
        assert isinstance(model.collider, NearFarCollider)
        return model.collider.near_plane, model.collider.far_plane

    assert span(7) == annealed_span(*full, 0.7) != full
    assert span(10) == full
    again = build(space_annealing=10)
    model.begin_stage(20, "rgb", {name: value.detach().clone() for name, value in again.named_parameters()})
    assert span(0) == full
    # A process that goes on in the middle of a stage knows how the stage began.
    again.set_extra_state(model.get_extra_state())
    assert not again.from_scratch
    model.begin_stage(30, "rgb", model.initial_weights)
    assert span(0) == annealed_span(*full, 0.0)
    again.set_extra_state(model.get_extra_state())
    assert again.from_scratch


def test_running_errors_follow_the_views_that_were_drawn(model: QNerfModel) -> None:
    model._note_errors(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]))
    assert model.view_errors[0] == 2 and model.view_errors[1].isnan() and model.view_errors[2] == 5
    model._note_errors(torch.tensor([12.0]), torch.tensor([0]))
    assert model.view_errors[0].item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert model.view_errors[2] == 5
    model.begin_stage(3, "rgb", {})
    assert model.view_errors.isnan().all()


@pytest.mark.parametrize(
    ("step", "from_scratch", "told"),
    [(LATER_STEPS, True, True), (EXPECTED_STEPS, True, False), (0, False, True), (LATER_STEPS, False, False)],
)
def test_a_stage_begins_with_the_matter_that_is_known(
    model: QNerfModel, step: int, from_scratch: bool, told: bool
) -> None:
    model.train()
    model.step, model.from_scratch = step, from_scratch
    model.expected = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.1, 0.2]])
    batch = {"image": torch.rand(7, 3), "indices": torch.zeros(7, 3, dtype=torch.long)}
    losses = model.get_loss_dict(model.get_outputs(rays()), batch, {"distortion": torch.zeros(())})
    assert ("expected_loss" in losses) == told
    if told:
        before = model.density(model.expected)
        optimizer = torch.optim.Adam(model.field.parameters(), lr=1e-2)
        losses["expected_loss"].backward()
        optimizer.step()
        assert bool((model.density(model.expected) > before).all())


def test_a_random_background_is_seen_by_views_that_are_weighed_too() -> None:
    """Where rays gather little matter the colour behind them is random, which keeps the field from painting fog."""
    model = build(background_color="random").train()
    model.restrict(VoxelRegion(SCENE_BOX, torch.ones(4, 4, 4, dtype=torch.bool)))
    outputs = model.get_outputs(rays())
    outputs |= {"rgb": torch.zeros(7, 3), "accumulation": torch.zeros(7, 1)}
    batch = {"image": torch.zeros(7, 3), "indices": torch.zeros(7, 3, dtype=torch.long)}
    batch["sees_edit"] = torch.ones(7, dtype=torch.bool)
    torch.manual_seed(1)
    losses = model.get_loss_dict(outputs, batch, {"distortion": torch.zeros(())})
    assert float(losses["rgb_loss"]) > 0.1


def test_no_points_have_no_density(model: QNerfModel) -> None:
    assert model.density(torch.zeros(0, 3)).shape == (0,)
    assert model.colour(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


def test_a_look_that_is_interrupted_anywhere_gives_the_field_back(
    model: QNerfModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The viewer raises at any line of a render when the camera moves."""

    def render(*arguments: Any) -> dict:
        total = 0
        for number in range(3):
            total += number
        return {}

    monkeypatch.setattr(NerfactoModel, "get_outputs_for_camera", render)
    own = {name: parameter.data.data_ptr() for name, parameter in model.named_parameters()}
    model.look = Look({name: torch.zeros_like(value) for name, value in model.named_parameters()})
    interrupted = 0
    for at in range(40):
        lines = iter(range(at, -1, -1))

        def trace(frame: Any, event: str, argument: Any, lines: Any = lines) -> Any:
            if event == "line" and next(lines, 1) == 0:
                raise InterruptedError
            return trace

        sys.settrace(trace)
        try:
            model.get_outputs_for_camera(None)  # pyright: ignore[reportArgumentType]
        except InterruptedError:
            interrupted += 1
        finally:
            sys.settrace(None)
        assert {name: parameter.data.data_ptr() for name, parameter in model.named_parameters()} == own
        assert model.deformation is None and not model.weights_lock._is_owned()  # pyright: ignore
    assert interrupted > 5
