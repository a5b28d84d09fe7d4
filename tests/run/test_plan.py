"""The plan is pure arithmetic: its invariants hold for any settings."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Revision, Task


@st.composite
def plans(draw) -> Plan:
    num_steps = draw(st.integers(1, 24))
    return Plan(
        PlanConfig(
            num_views=draw(st.integers(1, 20)),
            num_steps=num_steps,
            tau=draw(st.integers(1, num_steps)),
            chunk=draw(st.integers(1, 9)),
            source_iterations=draw(st.integers(0, 7)),
            fit_iterations=draw(st.integers(1, 7)),
            final_iterations=draw(st.integers(1, 7)),
            consolidation=draw(st.sampled_from(["progressive", "one-shot", "none"])),
            start=draw(st.sampled_from(["carried", "inverted"])),
            stop=draw(st.floats(0, 1)),
            ranks=draw(st.integers(1, 3)),
        )
    )


@given(plans())
@settings(deadline=None, max_examples=150)
def test_every_view_goes_through_every_timestep_once(plan: Plan) -> None:
    done: Counter = Counter()
    order: dict[tuple[Task, int], list[int]] = {}
    for item in (plan.at(step, rank) for step in range(plan.total) for rank in range(plan.config.ranks)):
        if item.task in (Task.INVERT, Task.CARRY, Task.DENOISE, Task.DECODE):
            for view in plan.view_indices(item.chunk):
                done[item.task, view, item.index] += 1
                order.setdefault((item.task, view), []).append(item.index)
    steps = range(plan.config.num_steps)
    for view in range(plan.config.num_views):
        assert order[Task.INVERT, view] == list(reversed(steps))
        carried = plan.config.start == "carried"
        assert order.get((Task.CARRY, view)) == ([0] if carried else None)
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
        plan = Plan(PlanConfig(num_views=5, num_steps=20, tau=4, consolidation=consolidation))
        return sum(stage.task == Task.FIT for stage in plan.stages)

    assert (fits("none"), fits("one-shot"), fits("progressive")) == (0, 1, 4)


def test_interval_looks_ahead_and_returns() -> None:
    plan = Plan(PlanConfig(num_views=2, num_steps=20, tau=4, chunk=2))
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
        ("num_views", 0),
        ("num_steps", 0),
        ("fit_iterations", 0),
        ("source_iterations", -1),
        ("stop", 1.5),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PlanConfig(**{"num_views": 4, "num_steps": 20, field: value})


def test_hash_differs_between_plans() -> None:
    first, second = (Plan(PlanConfig(num_views=4, num_steps=20, tau=tau)) for tau in (4, 5))
    assert first.hash != second.hash
    assert first.hash == Plan(PlanConfig(num_views=4, num_steps=20, tau=4)).hash


@given(plans())
@settings(deadline=None)
def test_training_spans_start_where_the_field_learns_something_else_and_cover_the_run(plan: Plan) -> None:
    def fresh(step: int) -> bool:
        after_carried = plan.at(step - 1).task == Task.CARRY
        return plan.at(step).first and (after_carried or plan.at(step).task in (Task.FIT, Task.FINAL))

    starts = {0, *(step for step in range(1, plan.total) if fresh(step))}
    covered = []
    while len(covered) < plan.total:
        span = plan.training_span(len(covered))
        assert span.start == len(covered)
        assert span.start in starts
        assert all(plan.training_span(step) == span for step in span)
        covered += span
    assert len(covered) == plan.total
    assert {plan.training_span(step).start for step in range(plan.total)} == starts


@given(plans(), st.data())
@settings(deadline=None, max_examples=300)
def test_revisions_keep_what_was_done_and_leave_no_view_behind(plan: Plan, data: st.DataObject) -> None:
    for kind in data.draw(st.lists(st.sampled_from(["finish", "again"]), max_size=3)):
        earlier = plan.revisions[-1].step if plan.revisions else 0
        revision = Revision(data.draw(st.integers(earlier, plan.total - 1)), kind)
        reached = plan.at(max(0, revision.step - 1))
        try:
            revised = plan.revised(revision)
        except ValueError as error:
            # Refused only while nothing is edited yet, or where all is finished already.
            inverting = not any(plan.at(step).task == Task.DENOISE for step in range(revision.step))
            started = any(
                plan.at(step).task == Task.DENOISE and plan.at(step).attempt == reached.attempt
                for step in range(revision.step)
            )
            finished = reached.task in (Task.DECODE, Task.FINAL)
            assert inverting or (kind == "finish" and (finished or not started)), error
            continue
        # What was done stays done, and the current round is finished for all chunks.
        for step in range(revision.step):
            before, after = plan.at(step), revised.at(step)
            assert (before.task, before.index, before.chunk, before.attempt, before.interval, before.fitted) == (
                after.task,
                after.index,
                after.chunk,
                after.attempt,
                after.interval,
                after.fitted,
            )
        plan = revised
    attempt = plan.stages[-1].attempt
    assert plan.stages[-1].task == Task.FINAL and plan.stages[-2].task == Task.DECODE
    reached = plan.stages[-2].indices[0]
    fits: set[int] = set()
    order: dict[int, list[int]] = {chunk: [] for chunk in range(plan.chunks)}
    for item in (plan.at(step, rank) for step in range(plan.total) for rank in range(plan.config.ranks)):
        if item.task == Task.FIT and item.attempt == attempt:
            fits.add(item.interval)
        if item.task == Task.DENOISE and item.attempt == attempt and item.chunk < plan.chunks:
            order[item.chunk].append(item.index)
            assert item.fitted is None or item.fitted in fits
    # Every view of the last attempt goes from the noise to where it is decoded, and nothing is done twice.
    assert all(indices == list(range(reached)) for indices in order.values())
    starts = [
        plan.starts[number]
        for number, stage in enumerate(plan.stages[1:], 1)
        if stage.attempt > plan.stages[number - 1].attempt
    ]
    assert all(plan.training_span(start).start == start for start in starts)


def test_a_plan_finished_early_decodes_where_it_is() -> None:
    plan = Plan(PlanConfig(num_views=8, num_steps=20, tau=4, chunk=4, source_iterations=5))
    step = next(step for step in range(plan.total) if plan.at(step).task == Task.DENOISE and plan.at(step).index == 6)
    finished = plan.revised(Revision(step + 1, "finish"))
    assert [(stage.task, stage.indices) for stage in finished.stages[-3:]] == [
        (Task.DENOISE, (4, 5, 6)),
        (Task.DECODE, (7,)),
        (Task.FINAL, ()),
    ]
    assert finished.hash == plan.hash and finished.total < plan.total
    # config.yml may hold any of these lengths.
    assert finished.totals == [plan.total, finished.total]
    again = finished.revised(Revision(finished.total - 1, "again"))
    assert again.stages[-1].attempt == 1
    intervals = [stage.interval for stage in again.stages if stage.task == Task.FIT]
    assert len(set(intervals)) == len(intervals)


def test_carried_views_alone_need_no_diffusion() -> None:
    plan = Plan(PlanConfig(num_views=5, num_steps=4, chunk=2, editing="carried", source_iterations=7))
    assert [stage.task for stage in plan.stages] == [Task.SOURCE, Task.CARRY, Task.DECODE, Task.FINAL]
    assert plan.stages[1].length == plan.stages[2].length == 3
    for kind in ("finish", "again"):
        with pytest.raises(ValueError, match="nothing to steer"):
            plan.revised(Revision(9, kind))


def test_views_are_carried_once_the_field_of_the_photos_is_trained() -> None:
    plan = Plan(PlanConfig(num_views=5, num_steps=4, tau=2, chunk=2, start="carried"))
    assert [stage.task for stage in plan.stages][:3] == [Task.SOURCE, Task.CARRY, Task.INVERT]
    again = plan.revised(Revision(plan.total - 1, "again"))
    assert sum(stage.task == Task.INVERT for stage in again.stages) == 1
    with pytest.raises(ValueError, match="still being inverted"):
        plan.revised(Revision(plan.starts[3] - 1 - plan.rounds, "again"))


@given(plans(), st.data())
@settings(deadline=None, max_examples=60)
def test_training_on_the_photos_ends_early_and_all_else_stays(plan: Plan, data: st.DataObject) -> None:
    number = next((n for n, stage in enumerate(plan.stages) if stage.task == Task.SOURCE and stage.length > 1), None)
    if number is None:
        return
    start, stage = plan.starts[number], plan.stages[number]
    step = data.draw(st.integers(start + 1, start + stage.length - 1))
    revised = plan.revised(Revision(step, "photos"))
    assert revised.at(step - 1).task == Task.SOURCE and revised.at(step - 1).last
    assert revised.stages[:number] == plan.stages[:number] and revised.stages[number + 1 :] == plan.stages[number + 1 :]
    assert revised.total == plan.total - (start + stage.length - step)
    # A run that resumes before that step trains on as it did.
    assert all(revised.decay_steps(at) == plan.decay_steps(at) for at in range(step))
    assert revised.decay_steps(revised.total - 1) == plan.decay_steps(plan.total - 1)
    for wrong in (start, start + stage.length, plan.total - 1):
        with pytest.raises(ValueError, match="not trained on the photos alone"):
            plan.revised(Revision(wrong, "photos"))
