"""A capture that holds COLMAP's model instead of a transforms.json, edited by commands."""

import json
from pathlib import Path

import pytest
import torch
from helpers.captures import small_capture
from helpers.colmap import MODEL, as_colmap
from helpers.commands import RUN, SHORT, command, edited_by, where

from qnerf_nerfstudio.capture.capture import read_capture


def test_a_capture_of_colmap_is_edited_as_any_other(tmp_path: Path, tiny_editor: Path) -> None:
    data, out = small_capture(tmp_path, 6), tmp_path / "out"
    views = read_capture(data).dataset_views()
    former = as_colmap(data)
    parser = ["colmap", "--colmap-path", MODEL, "--eval-interval", "3"]
    words = ["qnerf-edit-tiny", "--data", data, *where(out), *edited_by(tiny_editor), *SHORT, "--vis", "tensorboard"]
    command("ns-train", *words, *parser)
    assert not (data / "transforms.json").exists()
    written = json.loads((out / RUN / "edit/transforms.json").read_text())
    assert {Path(frame["file_path"]).parent.as_posix() for frame in written["frames"]} == {"images"}
    assert written["fl_x"] == pytest.approx(former["fl_x"]) and (written["w"], written["h"]) == (64, 64)
    edited = read_capture(out / RUN / "edit")
    torch.testing.assert_close(
        edited.dataset_views().c2w.sort(0).values, views.c2w.sort(0).values, atol=1e-4, rtol=1e-4
    )
    assert list((out / RUN / "edit/images").glob("*.png"))
    command("ns-eval", "--load-config", out / RUN / "config.yml", "--output-path", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 0
    again = command("ns-train", *words, "--load-dir", out / RUN / "nerfstudio_models", *parser, code=2)
    assert "is finished" in again.replace("\n", " ")
