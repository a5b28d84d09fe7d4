"""The field on grids over views."""

import torch
from helpers.cameras import ring

from qnerf_nerfstudio.field.grids import render_grid, render_over
from qnerf_nerfstudio.field.model import QNerfModel


def test_renders_fill_masks_and_leave_the_rest(model: QNerfModel) -> None:
    views = ring(3)
    size = (6, 8)
    photos = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    whole = render_grid(model, views, range(1, 3), size, "rgb").movedim(-1, 1)
    filled = render_over(model, views, range(1, 3), photos, masks)
    expected = torch.where(masks[:, None], whole, photos)
    torch.testing.assert_close(filled, expected)
    assert torch.equal(filled[1], photos[1])
    torch.testing.assert_close(render_over(model, views, range(1, 3), photos, None), whole)
