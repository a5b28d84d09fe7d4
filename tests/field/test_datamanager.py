"""The datamanager's targets."""

import torch

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
