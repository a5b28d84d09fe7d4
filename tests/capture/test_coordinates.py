"""Geometry of the dataset in the scene's coordinates."""

import json
from pathlib import Path

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.toy.capture import sample_edit, write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.figure import joints


@pytest.mark.parametrize("applied", [None, [[0.0, 1, 0, 0.1], [1, 0, 0, -0.2], [0, 0, -1, 0.3]]])
def test_geometry_travels_with_the_cameras(tmp_path: Path, applied: list | None) -> None:
    """A point projects to the same pixel before and after nerfstudio's rotation, centring and scaling."""
    out = tmp_path / "capture"
    write_capture(out, CaptureConfig(seed=2, num_views=8, size=64))
    path = out / "transforms.json"
    meta = json.loads(path.read_text())
    if applied is not None:
        path.write_text(json.dumps({**meta, "applied_transform": applied}))
    parser = NerfstudioDataParserConfig(data=out).setup()
    outputs = parser.get_dataparser_outputs(split="train")
    to_scene = dataset_to_scene(outputs, out)
    frames = {frame["file_path"].split("/")[-1]: frame for frame in meta["frames"]}
    body, source, _ = sample_edit(2)
    points = torch.stack(list(joints(body, source).values()))
    intrinsics = torch.tensor([[meta["fl_x"], meta["fl_y"], meta["cx"], meta["cy"]]])
    for index, name in enumerate(outputs.image_filenames):
        original = torch.tensor(frames[name.name]["transform_matrix"])[None, :3]
        moved = outputs.cameras.camera_to_worlds[index : index + 1]
        before = Views(original, intrinsics, torch.zeros(1, 6), (64, 64)).project(points)[0]
        carried = points @ to_scene[:, :3].T + to_scene[:, 3]
        after = Views(moved, intrinsics, torch.zeros(1, 6), (64, 64)).project(carried)[0]
        torch.testing.assert_close(before, after, atol=0.02, rtol=0)
