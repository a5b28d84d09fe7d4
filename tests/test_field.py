"""The field, the model's losses, and the datamanager's targets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components.scene_colliders import NearFarCollider

from qnerf_nerfstudio import __version__
from qnerf_nerfstudio.controls.region import Region
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.field.field import QNerfHeadNames
from qnerf_nerfstudio.field.losses import query_loss, view_weights
from qnerf_nerfstudio.field.model import QNerfModel, QNerfModelConfig, annealed_span
from qnerf_nerfstudio.methods import qnerf_edit_tiny


def build(**settings: object) -> QNerfModel:
    torch.manual_seed(0)
    config = replace(qnerf_edit_tiny.config.pipeline.model, **settings)
    assert isinstance(config, QNerfModelConfig)
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    built = config.setup(scene_box=box, num_train_data=3, metadata={}, device="cpu")
    assert isinstance(built, QNerfModel)
    return built


@pytest.fixture
def model() -> QNerfModel:
    return build()


def rays(count: int = 7) -> RayBundle:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return RayBundle(
        origins=torch.rand(count, 3, generator=generator) - 0.5,
        directions=directions,
        pixel_area=torch.full((count, 1), 1e-4),
        camera_indices=torch.zeros(count, 1, dtype=torch.long),
        nears=torch.full((count, 1), 0.05),
        fars=torch.full((count, 1), 5.0),
    )


@torch.no_grad()
def test_heads_after_compositing_equal_heads_per_sample(model: QNerfModel) -> None:
    model.eval()
    samples, _, _ = model.proposal_sampler(rays(), density_fns=model.density_fns)
    outputs: dict = dict(model.field.forward(samples))
    weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
    per_sample = (weights * model.field.codes(outputs[QNerfHeadNames.FEATURES])).sum(-2)
    composited = model.field.codes((weights * outputs[QNerfHeadNames.FEATURES]).sum(-2))
    torch.testing.assert_close(composited, per_sample, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("view_dependent", [False, True])
def test_queries_have_no_view_direction_and_colours_only_where_asked(view_dependent: bool) -> None:
    model = build(view_dependent=view_dependent)
    model.eval()
    bundle = rays()
    samples, _, _ = model.proposal_sampler(bundle, density_fns=model.density_fns)
    before: dict = dict(model.field.forward(samples))
    # The same positions, seen from the other side.
    frustums = samples.frustums
    middle = (frustums.starts + frustums.ends) / 2
    frustums.origins = frustums.origins + 2 * frustums.directions * middle
    frustums.directions = -frustums.directions
    after: dict = dict(model.field.forward(samples))
    torch.testing.assert_close(after[QNerfHeadNames.FEATURES], before[QNerfHeadNames.FEATURES], atol=1e-4, rtol=1e-3)
    change = (after[FieldHeadNames.RGB] - before[FieldHeadNames.RGB]).abs().max()
    assert (change > 1e-3) == view_dependent


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
    kept = {"version": __version__, "from_scratch": True}
    model.set_extra_state({**kept, "steps_since_update": 3, "step": 5})
    model.eval()
    model.get_outputs(rays())
    assert model.get_extra_state() == {**kept, "steps_since_update": 3, "step": 5}
    model.train()
    model.get_outputs(rays())
    assert model.get_extra_state() == {**kept, "steps_since_update": 0, "step": 5}


@pytest.mark.parametrize("changed", [False, True])
def test_rays_that_see_the_edit_change_the_field_inside_the_region_only(model: QNerfModel, changed: bool) -> None:
    model.train()
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    gradients = []
    for cells in (torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 2, dtype=torch.bool)):
        model.region = Region(box, cells)
        bundle = rays()
        bundle.metadata["changed"] = torch.full((7, 1), changed)
        model.zero_grad()
        outputs = model.get_outputs(bundle)
        outputs["rgb"].sum().backward()
        gradients.append(sum(float(p.grad.abs().sum()) for p in model.field.parameters() if p.grad is not None))
    assert gradients[0] > 0
    assert (gradients[1] > 0) == (not changed)


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


@given(st.lists(st.floats(0.9, 1.1), min_size=5, max_size=30), st.floats(3, 50))
@settings(deadline=None, max_examples=50)
def test_views_that_the_others_contradict_count_less(errors: list[float], outlier: float) -> None:
    errors_ = torch.tensor([*errors, float("nan"), outlier])
    weights = view_weights(errors_)
    assert ((weights >= 0) & (weights <= 1)).all() and weights[-2] == 1
    assert (weights[:-2][errors_[:-2] <= errors_[:-2].median()] > 0.9).all()
    # With errors within 0.2 of each other an outlier of 3 lies at least 2.1 tolerances out, one of 6 at least 5.5.
    assert weights[-1] < (0.01 if outlier >= 6 else 0.15)
    # Scaling all errors changes nothing; the tolerance is where a view counts half.
    torch.testing.assert_close(view_weights(8 * errors_), weights, atol=1e-3, rtol=1e-3)
    tolerated = torch.tensor([0.0, 1, 2, 3, 4, 2 + 3 * 1.4826])
    assert view_weights(tolerated)[-1].item() == pytest.approx(0.5, abs=1e-4)


def test_running_errors_follow_the_views_that_were_drawn(model: QNerfModel) -> None:
    model._note_errors(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]))
    assert model.view_errors[0] == 2 and model.view_errors[1].isnan() and model.view_errors[2] == 5
    model._note_errors(torch.tensor([12.0]), torch.tensor([0]))
    assert model.view_errors[0].item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert model.view_errors[2] == 5
    model.begin_stage(3, "rgb", {})
    assert model.view_errors.isnan().all()


@given(st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_query_loss_is_the_sum_of_scaled_norms(first: int, second: int) -> None:
    generator = torch.Generator().manual_seed(first * 7 + second)
    a, b = (torch.randn(4, first + second, generator=generator) for _ in range(2))
    expected = (a - b)[:, :first].norm(dim=-1) / first**0.5 + (a - b)[:, first:].norm(dim=-1) / second**0.5
    torch.testing.assert_close(query_loss(a, b, [first, second]), expected.mean(), atol=1e-4, rtol=1e-4)


def test_lookup_interpolates_between_cells() -> None:
    class Camera:
        height, width = 16, 32

    manager = object.__new__(QNerfDataManager)
    manager.train_dataset = type("Dataset", (), {"cameras": [Camera]})
    ramp = torch.arange(8.0)[None, None, :, None].expand(2, 4, 8, 1)
    indices = torch.tensor([[0, 8, 0], [1, 8, 13], [1, 3, 14], [0, 15, 31]])
    values = manager._lookup(ramp, indices, interpolate=True).squeeze(-1)
    expected = ((indices[:, 2] + 0.5) / 4 - 0.5).clamp(0, 7)
    torch.testing.assert_close(values, expected)
    nearest = manager._lookup(ramp, indices, interpolate=False).squeeze(-1)
    torch.testing.assert_close(nearest, expected.round())
