"""What a run says of its progress."""

import pytest

from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Task
from qnerf_nerfstudio.run.progress import Progress


def test_progress_states_what_remains() -> None:
    plan = Plan(PlanConfig(num_views=2, num_steps=4, tau=2, chunk=2, source_iterations=6, final_iterations=10))
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    cost = {task: 1.0 if task in (Task.SOURCE, Task.FIT, Task.FINAL) else 3.0 for task in Task}
    total = sum(cost[plan.at(step).task] for step in range(plan.total))
    for step in range(plan.total):
        status = progress.step(plan, step)
        if step > 5:
            assert status.left == pytest.approx(total - now[0])
        now[0] += cost[plan.at(step).task]
    assert status.stage == status.stages == len(plan.stages)
    progress.finish()
    assert sum(progress.seconds.values()) == pytest.approx(total)
    assert "stage 1 of" in str(Progress().step(plan, 0))


def test_renders_of_carried_views_do_not_stand_for_diffusion() -> None:
    plan = Plan(PlanConfig(num_views=4, num_steps=4, tau=2, chunk=2, source_iterations=6, start="carried"))
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    for step in range(plan.total):
        status, task = progress.step(plan, step), plan.at(step).task
        # Until a step of inversion is timed, what diffusion takes is unknown; what is left of a stage is not.
        known = step > 8
        assert (status.left is not None) == known
        assert (" in all" in str(status)) == known
        assert ("left in it" in str(status)) == (step not in (0, 6, 8))
        now[0] += 60.0 if task == Task.CARRY else 1.0
        if known:
            assert status.left is not None and status.left < plan.total
