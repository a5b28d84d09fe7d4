"""The plan is pure arithmetic: its invariants hold for any settings."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.plan import Plan, PlanConfig, Task


@st.composite
def plans(draw) -> Plan:
    num_steps = draw(st.integers(1, 24))
    return Plan(
        PlanConfig(
            views=draw(st.integers(1, 20)),
            num_steps=num_steps,
            tau=draw(st.integers(1, num_steps)),
            chunk=draw(st.integers(1, 9)),
            source_iterations=draw(st.integers(0, 7)),
            fit_iterations=draw(st.integers(1, 7)),
            final_iterations=draw(st.integers(1, 7)),
            consolidation=draw(st.sampled_from(["progressive", "one-shot", "none"])),
            stop=draw(st.floats(0, 1)),
        )
    )


@given(plans())
@settings(deadline=None, max_examples=150)
def test_every_view_goes_through_every_timestep_once(plan: Plan) -> None:
    done: Counter = Counter()
    order: dict[tuple[Task, int], list[int]] = {}
    for step in range(plan.total):
        item = plan.at(step)
        if item.task in (Task.INVERT, Task.DENOISE, Task.DECODE):
            for view in plan.views_of(item.chunk):
                done[item.task, view, item.index] += 1
                order.setdefault((item.task, view), []).append(item.index)
    steps = range(plan.config.num_steps)
    for view in range(plan.config.views):
        assert order[Task.INVERT, view] == list(reversed(steps))
        assert order[Task.DENOISE, view] == list(steps)
        assert order[Task.DECODE, view] == [plan.config.num_steps]
    assert set(done.values()) == {1}


@given(plans())
@settings(deadline=None, max_examples=150)
def test_targets_come_from_a_cleaner_timestep(plan: Plan) -> None:
    extracted: dict[int, int] = {}
    fitted: set[int] = set()
    for step in range(plan.total):
        item = plan.at(step)
        if item.task == Task.EXTRACT:
            extracted[item.interval] = item.index
        if item.task == Task.FIT:
            fitted.add(item.interval)
        if item.task == Task.DENOISE and item.interval > 0:
            assert item.interval - 1 in fitted
            if plan.config.consolidation == "progressive" and item.interval in extracted:
                assert item.index < extracted[item.interval]
    for interval, index in extracted.items():
        assert index <= plan.config.num_steps - 1
        assert index >= (interval + 1) * plan.config.tau or plan.config.consolidation == "none"


@given(plans())
@settings(deadline=None, max_examples=100)
def test_stages_tile_the_run(plan: Plan) -> None:
    assert plan.total == sum(stage.length for stage in plan.stages)
    firsts = [step for step in range(plan.total) if plan.at(step).first]
    lasts = [step for step in range(plan.total) if plan.at(step).last]
    assert firsts == list(plan.starts[:-1])
    assert lasts == [start - 1 for start in plan.starts[1:]]
    assert plan.at(plan.total + 5).task == Task.FINAL


def test_consolidation_modes_differ_in_their_fits() -> None:
    def fits(consolidation: str) -> int:
        plan = Plan(PlanConfig(views=5, num_steps=20, tau=4, consolidation=consolidation))
        return sum(stage.task == Task.FIT for stage in plan.stages)

    assert (fits("none"), fits("one-shot"), fits("progressive")) == (0, 1, 4)


def test_interval_looks_ahead_and_returns() -> None:
    plan = Plan(PlanConfig(views=2, num_steps=20, tau=4, chunk=2))
    tasks = [(stage.task, stage.indices) for stage in plan.stages[2:6]]
    assert tasks == [
        (Task.DENOISE, (0, 1, 2, 3)),
        (Task.LOOK_AHEAD, (4, 5, 6, 7)),
        (Task.EXTRACT, (8,)),
        (Task.FIT, ()),
    ]
    assert plan.stages[6].indices == (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau", 0),
        ("tau", 21),
        ("chunk", 0),
        ("views", 0),
        ("num_steps", 0),
        ("fit_iterations", 0),
        ("source_iterations", -1),
        ("stop", 1.5),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PlanConfig(**{"views": 4, "num_steps": 20, field: value})


def test_hash_tells_plans_apart() -> None:
    first, second = (Plan(PlanConfig(views=4, num_steps=20, tau=tau)) for tau in (4, 5))
    assert first.hash != second.hash
    assert first.hash == Plan(PlanConfig(views=4, num_steps=20, tau=4)).hash


@given(plans())
@settings(deadline=None)
def test_training_spans_start_with_fits_and_the_final_field_and_cover_the_run(plan: Plan) -> None:
    starts = {
        0,
        *(step for step in range(plan.total) if plan.at(step).first and plan.at(step).task in (Task.FIT, Task.FINAL)),
    }
    covered = []
    while len(covered) < plan.total:
        span = plan.training_span(len(covered))
        assert span.start == len(covered)
        assert span.start in starts
        assert all(plan.training_span(step) == span for step in span)
        covered += span
    assert len(covered) == plan.total
    assert {plan.training_span(step).start for step in range(plan.total)} == starts
