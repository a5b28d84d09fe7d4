"""A pixel sampler that draws a share of the rays where views see the region of influence."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor


@dataclass
class RegionPixelSamplerConfig(PixelSamplerConfig):
    """Nerfstudio's pixel sampler, with an eye on the region of influence."""

    _target: type = field(default_factory=lambda: RegionPixelSampler)
    region_share: float = 0.5
    """Share of the rays that are drawn where views see the region of influence alone, 0 to 1."""


class RegionPixelSampler(PixelSampler):
    """Draws a share of the pixels inside of masks, the others anywhere."""

    config: RegionPixelSamplerConfig

    def __init__(self, config: RegionPixelSamplerConfig, **settings: object) -> None:
        super().__init__(config, **settings)
        self._cells: Int[Tensor, "K 3"] = torch.zeros(0, 3, dtype=torch.long)
        self._shape = (1, 1)
        self._rows: Int[Tensor, "N"] = torch.zeros(0, dtype=torch.long)

    def look_at(self, masks: Bool[Tensor, "N h w"] | None) -> None:
        """Draw the share inside of these masks of the dataset's images, of any resolution; None: anywhere."""
        self._cells = torch.zeros(0, 3, dtype=torch.long) if masks is None else masks.nonzero()
        if masks is not None:
            self._shape = (masks.shape[1], masks.shape[2])

    def sample(self, image_batch: dict) -> dict:
        """A batch of rays' pixels out of a batch of images."""
        # The position of every image of the dataset in the batch, -1 for those that it leaves out.
        numbers = image_batch["image_idx"].cpu().long()
        count = int(torch.cat([numbers, self._cells[:, 0]]).max()) + 1
        self._rows = torch.full((count,), -1).scatter(0, numbers, torch.arange(len(numbers)))
        return super().sample(image_batch)

    def sample_method(
        self,
        batch_size: int,
        num_images: int,
        image_height: int,
        image_width: int,
        mask: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Int[Tensor, "batch_size 3"]:
        """Pixels (row of the batch of images, row, column); those that a mask of the capture leaves out stay so."""
        indices = super().sample_method(batch_size, num_images, image_height, image_width, mask, device)
        share = round(self.config.region_share * batch_size)
        if share == 0 or len(self._cells) == 0:
            return indices
        image, *cell = self._cells[torch.randint(len(self._cells), (share,))].unbind(-1)
        within = torch.rand(2, share)
        sizes = zip(cell, within, self._shape, (image_height, image_width), strict=True)
        row, column = (((at + part) * size / cells).long().clamp(max=size - 1) for at, part, cells, size in sizes)
        picked = torch.stack([self._rows[image], row, column], dim=-1).to(indices)
        there = picked[:, 0] >= 0
        if mask is not None and not self.config.ignore_mask:
            kept = mask[picked[:, 0].clamp_min(0).to(mask.device), picked[:, 1], picked[:, 2], 0].bool()
            there &= kept.to(there.device)
        indices[:share] = torch.where(there[:, None], picked, indices[:share])
        return indices
