"""Images and masks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qnerf_nerfstudio.common.images import dilate


@given(height=st.integers(1, 40), width=st.integers(1, 40), reach=st.integers(0, 50), seed=st.integers(0, 100))
def test_masks_grow_by_squares(height: int, width: int, reach: int, seed: int) -> None:
    masks = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed)) < 0.05
    expected = torch.nn.functional.max_pool2d(masks[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
    assert torch.equal(dilate(masks, reach), expected)
