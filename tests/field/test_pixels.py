"""Where rays are drawn."""

import torch
from torch import Tensor

from qnerf_nerfstudio.field.pixels import RegionPixelSampler, RegionPixelSamplerConfig


def batch_of(images: list[int], size: tuple[int, int] = (20, 30)) -> dict[str, Tensor]:
    """Images of a dataset whose pixels hold their image's number, row and column."""
    pixels = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), dim=-1).float()
    filled = [torch.cat([torch.full((*size, 1), float(number)), pixels], dim=-1) for number in images]
    return {"image": torch.stack(filled), "image_idx": torch.tensor(images)}


def drawn(sampler: RegionPixelSampler, batch: dict[str, Tensor]) -> Tensor:
    """Indices of drawn pixels, whose colours must be theirs."""
    torch.manual_seed(0)
    sampled = sampler.sample(batch)
    torch.testing.assert_close(sampled["image"], sampled["indices"].float())
    return sampled["indices"]


def sampler_of(share: float, masks: Tensor | None) -> RegionPixelSampler:
    sampler = RegionPixelSampler(RegionPixelSamplerConfig(num_rays_per_batch=4000, region_share=share))
    sampler.look_at(masks)
    return sampler


def test_a_share_of_rays_sees_the_masks_evenly() -> None:
    # Masks of half of the images' resolution; the batch holds the images in another order.
    masks = torch.zeros(3, 10, 15, dtype=torch.bool)
    masks[1, 2:4, 5:8] = True
    indices = drawn(sampler_of(0.75, masks), batch_of([2, 0, 1]))
    image, row, column = indices.unbind(-1)
    inside = (image == 1) & (row >= 4) & (row < 8) & (column >= 10) & (column < 16)
    # The others fall on these 24 of 1800 pixels, too.
    assert abs(inside.float().mean() - (0.75 + 0.25 * 24 / 1800)) < 0.01
    counts = torch.bincount(row[inside] * 30 + column[inside])
    assert (counts > 0).sum() == 24 and counts.max() < 2 * counts[counts > 0].min()
    others = indices[~inside]
    assert set(others[:, 0].tolist()) == {0, 1, 2} and others[:, 1].max() == 19 and others[:, 2].max() == 29


def test_without_masks_or_share_nerfstudios_sampler_draws() -> None:
    masks = torch.ones(3, 10, 15, dtype=torch.bool)
    assert torch.equal(
        drawn(sampler_of(0.5, None), batch_of([0, 1, 2])), drawn(sampler_of(0, masks), batch_of([0, 1, 2]))
    )


def test_images_that_the_batch_leaves_out_and_masked_pixels_are_not_drawn() -> None:
    masks = torch.zeros(4, 20, 30, dtype=torch.bool)
    masks[[0, 3], 5:7] = True
    batch = batch_of([3, 2])
    batch["mask"] = torch.ones(2, 20, 30, 1, dtype=torch.bool)
    batch["mask"][:, 6] = False
    torch.manual_seed(0)
    image, row, _ = sampler_of(0.8, masks).sample(batch)["indices"].unbind(-1)
    assert set(image.tolist()) == {2, 3} and not (row == 6).any()
    # Half of the cells are of an image that is there, half of those are not masked; chance finds others.
    assert ((image == 3) & (row == 5)).float().mean() > 0.8 / 4
