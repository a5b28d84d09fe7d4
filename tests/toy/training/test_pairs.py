"""Pairs for training, and the pool that keeps them."""

from dataclasses import fields

import pytest
import torch

from qnerf_nerfstudio.toy.training import pairs
from qnerf_nerfstudio.toy.training.drawing import BONES
from qnerf_nerfstudio.toy.training.figures import sample_scenes
from qnerf_nerfstudio.toy.training.pairs import CPU_CHUNK, ImagePairs, Pool, draw_controls, draw_pairs, pairs_after

CPU = torch.device("cpu")


def numbered(count: int, generator: torch.Generator) -> ImagePairs:
    """A chunk of pairs that only hold a random number."""
    value = torch.randint(255, (count, 2, 1, 1, 3), generator=generator).byte()
    return ImagePairs(value, value[..., 0] > 127)


def test_pairs_have_depths_and_skeletons_of_what_they_show() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(8, generator)
    drawn, (controls, loose) = draw_pairs(scenes, 64), draw_controls(scenes, 64, generator)
    assert drawn.images.shape == controls.shape == (8, 2, 64, 64, 3)
    assert not torch.equal(drawn.images[:, 0], drawn.images[:, 1])
    grey = (controls[..., 0] == controls[..., 1]).flatten(1).all(1)
    assert grey.tolist() == [True] * 4 + [False] * 4
    seen = controls[:4, ..., 0] > 0
    assert (seen & drawn.masks[:4]).sum() > 0.8 * drawn.masks[:4].sum()
    assert torch.equal(controls[:4], loose[:4])
    bones = controls[4:].amax(-1) > 0
    assert (bones & drawn.masks[4:]).sum() > 0.8 * bones.sum()


def test_loose_skeletons_leave_out_limb_bones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "DEPTH_CONTROL_SHARE", 0.0)
    generator = torch.Generator().manual_seed(1)
    whole, loose = (
        (drawn > 0).flatten(1).sum(1) for drawn in draw_controls(sample_scenes(8, generator), 64, generator)
    )
    assert (loose <= whole).all()
    assert 0.5 * whole.sum() < loose.sum() < 0.9 * whole.sum()
    assert len(BONES) == 13


def test_a_pool_replaces_its_oldest_chunks_and_is_the_same_after_a_resume() -> None:
    whole, resumed = (Pool(numbered, 3 * CPU_CHUNK, seed, CPU) for seed in (4, 4))
    first = None
    for step in range(8):
        whole.grow_to(pairs_after(step, 4 * CPU_CHUNK, CPU_CHUNK, CPU))
        first = whole.held.images[:CPU_CHUNK].clone() if first is None else first
    assert len(whole) == 3 * CPU_CHUNK
    assert not torch.equal(first, whole.held.images[:CPU_CHUNK])
    resumed.grow_to(pairs_after(7, 4 * CPU_CHUNK, CPU_CHUNK, CPU))
    assert all(
        torch.equal(getattr(whole.held, item.name), getattr(resumed.held, item.name)) for item in fields(whole.held)
    )
    batches = [pool.sample(5, torch.Generator().manual_seed(9)) for pool in (whole, resumed)]
    assert torch.equal(batches[0].images, batches[1].images)
    other = Pool(numbered, 3 * CPU_CHUNK, 5, CPU)
    other.grow_to(3 * CPU_CHUNK)
    assert not torch.equal(other.held.images, whole.held.images)


def test_pairs_are_seen_a_bounded_number_of_times() -> None:
    for device, start in (("cpu", 128), ("cuda", 1000)):
        made = [pairs_after(steps, 12, 1000, torch.device(device)) for steps in (0, 600)]
        assert made == [start, start + 600 * 12 // pairs.SIGHTINGS]
