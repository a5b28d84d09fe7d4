"""What the denoiser is asked in a training step."""

import pytest
import torch

from qnerf_nerfstudio.toy.training.models import build_scheduler
from qnerf_nerfstudio.toy.training.pairs import LatentPairs
from qnerf_nerfstudio.toy.training.tasks import LEAST_EXPLAINED, Task, as_rendered, draw_task

COUNT = 64
SCHEDULER = build_scheduler()


def some_pairs() -> LatentPairs:
    """Pairs of random latents, whose controls are of one value: 100 and 200, loose 10 and 20."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.tensor([100, 200], dtype=torch.uint8)[None, :, None, None, None].repeat(COUNT, 1, 8, 8, 3)
    return LatentPairs(
        latents=torch.randn(COUNT, 2, 4, 2, 2, generator=generator).half(),
        controls=whole,
        loose=whole // 10,
        masks=torch.ones(COUNT, 1, 2, 2, dtype=torch.bool),
        tokens=torch.randint(9, (COUNT, 5), generator=generator),
    )


def drawn(followed: bool, pairs: LatentPairs) -> Task:
    """A task on pairs."""
    generator = torch.Generator().manual_seed(3)
    return draw_task(pairs, SCHEDULER, torch.zeros(1, 5, dtype=torch.long), 0.1, followed, generator)


@pytest.mark.parametrize("followed", [False, True])
def test_the_velocities_lead_from_what_is_given_to_the_clean_latents(followed: bool) -> None:
    pairs = some_pairs()
    task = drawn(followed, pairs)
    # The scheduler's own step says what a prediction means.
    step = type(SCHEDULER).from_config(SCHEDULER.config, clip_sample=False)
    step.set_timesteps(step.config.num_train_timesteps)
    each = zip(task.velocities, task.timesteps.tolist(), task.noisy, strict=True)
    clean = torch.stack([step.step(v, t, x).pred_original_sample for v, t, x in each])
    sources, targets = clean.chunk(2)
    first = (sources - pairs.latents[:, 0].float()).flatten(1).abs().amax(1) < 1e-2
    assert 0.2 * COUNT < first.sum() < 0.8 * COUNT
    at = first.long()
    rows = torch.arange(COUNT)
    torch.testing.assert_close(sources, pairs.latents[rows, 1 - at].float(), atol=1e-2, rtol=0)
    torch.testing.assert_close(targets, pairs.latents[rows, at].float(), atol=1e-2, rtol=0)


def test_targets_that_follow_queries_see_a_wrong_control_and_begin_on_the_way_from_their_sources() -> None:
    task = drawn(True, some_pairs())
    assert task.right is not None
    shown = (task.controls[:, 0, 0, 0] * 255).round()
    right = (task.right.controls[:, 0, 0, 0] * 255).round()
    assert torch.equal(shown[:COUNT], right[:COUNT])
    assert torch.equal(right[:COUNT] + right[COUNT:], torch.full((COUNT,), 300.0))
    for value in (torch.zeros(COUNT), right[:COUNT], right[COUNT:] / 10):
        assert (shown[COUNT:] == value).sum() > COUNT / 6
    assert not (shown[COUNT:] == right[COUNT:]).any()
    assert torch.equal(task.noisy[:COUNT], task.right.noisy[:COUNT])
    source, target = task.right.noisy.chunk(2)
    share = ((task.noisy[COUNT:] - target) / (source - target)).flatten(1)
    early = task.timesteps[:COUNT] >= 300
    assert (share.amax(1) - share.amin(1))[early].max() < 0.05
    assert share[early].std() > 0.2
    assert share[~early].abs().max() < 1e-5


def test_other_targets_see_their_own_control_or_a_loose_one() -> None:
    task = drawn(False, some_pairs())
    assert task.right is None
    sources, targets = (task.controls[:, 0, 0, 0] * 255).round().chunk(2)
    loose = sources < 50
    assert 0.2 * COUNT < loose.sum() < 0.8 * COUNT
    torch.testing.assert_close(sources + targets, torch.where(loose, 30.0, 300.0))


def test_queries_are_left_as_a_field_explains_them() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = 3 + 2 * torch.randn(20, 32 * 32, 24, generator=generator)
    rendered = as_rendered(queries, generator)
    assert rendered.shape == queries.shape
    assert (rendered.mean(1) - queries.mean(1)).square().mean().sqrt() < 0.15
    left, own = rendered - rendered.mean(1, keepdim=True), queries - queries.mean(1, keepdim=True)
    shares = (left * own).sum((1, 2)) / own.square().sum((1, 2))
    assert (shares > LEAST_EXPLAINED - 0.05).all()
    assert shares.max() < 1.05
    assert shares.std() > 0.1
    missed = (queries - rendered).square().mean((1, 2)) / queries.var(1).mean(-1)
    torch.testing.assert_close(1 - missed, shares, atol=0.1, rtol=0)
