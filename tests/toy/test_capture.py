"""The procedural capture is a dataset with its truth."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import SkeletonControl
from qnerf_nerfstudio.toy.capture import orbit_camera, sample_edit, write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.figure import joints
from qnerf_nerfstudio.toy.render import render


def test_capture_is_a_dataset_with_its_truth(tmp_path: Path) -> None:
    out = tmp_path / "capture"
    write_capture(out, CaptureConfig(seed=4, num_views=6, num_novel_views=8, size=64))
    truth = json.loads((out / "truth/transforms.json").read_text())
    splits = [frame["split"] for frame in truth["frames"]]
    assert (splits.count("train"), splits.count("novel")) == (6, 8)
    body, source, target = sample_edit(4)
    for frame in truth["frames"]:
        depth = np.load(out / "truth" / frame["depth_file_path"])
        mask = np.array(Image.open(out / "truth" / frame["mask_path"])) > 0
        source_mask = np.array(Image.open(out / "truth" / frame["source_mask_path"])) > 0
        image = np.array(Image.open(out / "truth" / frame["file_path"]))
        assert depth.dtype == np.float32
        assert depth.shape == mask.shape == source_mask.shape == image.shape[:2] == (64, 64)
        assert np.isfinite(depth[mask]).all()
        assert (mask != source_mask).any()
    c2w = torch.tensor(truth["frames"][0]["transform_matrix"])[:3]
    photo = np.array(Image.open(out / "images/frame_00001.png")) / 255
    rendered = render(body, source, c2w, truth["fl_x"], (64, 64)).rgb.numpy()
    np.testing.assert_allclose(photo, rendered, atol=1 / 255)
    edit = load_edit(out / "edit.json")
    assert edit.prompt == body.caption()
    for name, at in joints(body, target).items():
        assert isinstance(edit.control, SkeletonControl)
        assert edit.control.target[name] == pytest.approx(at.tolist(), abs=1e-4)
    again = tmp_path / "again"
    write_capture(again, CaptureConfig(seed=4, num_views=6, num_novel_views=8, size=64))
    for path in sorted(out.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()
    with pytest.raises(UserError, match="not empty"):
        write_capture(out, CaptureConfig())


@pytest.mark.parametrize(("field", "value"), [("num_views", 2), ("size", 100), ("size", 0)])
def test_capture_settings_out_of_range_are_named(tmp_path: Path, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} is {value}"):
        write_capture(tmp_path / "x", CaptureConfig(**{field: value}))


def test_orbit_camera_looks_at_the_figure() -> None:
    c2w = orbit_camera(70.0, 30.0, 4.0, 1.0)
    forward = -c2w[:, 2]
    towards = torch.tensor([0.0, 0.0, 1.0]) - c2w[:, 3]
    assert math.isclose(float(forward @ towards / towards.norm()), 1.0, abs_tol=1e-5)
    assert torch.linalg.det(c2w[:, :3]).item() == pytest.approx(1.0, abs=1e-5)
