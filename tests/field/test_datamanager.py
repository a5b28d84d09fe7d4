"""The datamanager's targets."""

import pytest
import torch
from torch.nn import functional as F

from qnerf_nerfstudio.controls.influence import RegionOfInfluence
from qnerf_nerfstudio.field.datamanager import QNerfDataManager


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


@pytest.mark.parametrize(("cells", "pixels"), [(4, 6), (5, 7), (7, 5), (3, 16)])
def test_the_nearest_cell_is_that_of_interpolate(cells: int, pixels: int) -> None:
    """Where masks are looked up and where they are resampled they must not differ by a pixel."""
    manager = object.__new__(QNerfDataManager)
    camera = type("Camera", (), {"height": pixels, "width": pixels})
    manager.train_dataset = type("Dataset", (), {"cameras": [camera]})
    maps = torch.arange(float(cells * cells)).reshape(1, cells, cells, 1)
    indices = torch.cartesian_prod(torch.tensor([0]), torch.arange(pixels), torch.arange(pixels))
    found = manager._lookup(maps, indices, interpolate=False).reshape(pixels, pixels)
    resampled = F.interpolate(maps.movedim(-1, 1), (pixels, pixels), mode="nearest-exact")[0, 0]
    assert torch.equal(found, resampled)
    masks = maps[..., 0] % 2 > 0
    weights = RegionOfInfluence(None, masks).blend_weights((pixels, pixels), 0.0)
    seen = manager._lookup(masks[..., None], indices, interpolate=False).reshape(pixels, pixels)
    assert weights is not None and torch.equal(weights[0, 0] > 0, seen)
