"""A capture as nerfstudio reads it."""

import json
from pathlib import Path

import torch

from qnerf_nerfstudio.capture.capture import read_capture


def test_views_return_to_the_coordinates_of_transforms_json(capture: Path) -> None:
    frames = {
        Path(frame["file_path"]).name: torch.tensor(frame["transform_matrix"])
        for frame in json.loads((capture / "transforms.json").read_text())["frames"]
    }
    read = read_capture(capture)
    expected = torch.stack([frames[name][:3] for name in read.names])
    torch.testing.assert_close(read.dataset_views().c2w, expected, atol=1e-5, rtol=0)
    assert (read.views().c2w - expected).abs().max() > 0.1
