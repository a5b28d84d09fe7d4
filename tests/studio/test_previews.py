"""`qnerf preview` as its help shows it, and settings that edit.json states."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.captures import small_capture
from helpers.commands import RUN, SHORT, command, qnerf, where
from PIL import Image

from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.previews import METHODS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_capture(tmp_path_factory.mktemp("preview"), num_views=6, size=64)


@pytest.fixture
def _small_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make previews in this process short."""
    method: Any = copy.deepcopy(METHODS["qnerf-edit-tiny"])
    method.pipeline.editor.num_steps, method.pipeline.editor.resolution = 6, 64
    monkeypatch.setitem(METHODS, "qnerf-edit-tiny", method)


def shown(out: Path, rows: int, columns: int) -> torch.Tensor:
    """The pictures of a sheet, [rows, columns, 256, 256, 3]."""
    (sheet,) = load_images([out])
    pictures = sheet[:, -columns * 256 :]
    parts = [pictures[: 2 * 256], pictures[2 * 256 + 10 :]]
    return torch.cat(parts).unflatten(1, (columns, 256)).unflatten(0, (rows, 256)).movedim(1, 2)


@pytest.mark.usefixtures("_small_method")
def test_a_sheet_shows_photos_controls_and_trials(data: Path, tiny_editor: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheets/look.png"
    models = ("--method", "qnerf-edit-tiny", "--model", tiny_editor, "--controlnet", tiny_editor / "controlnet")
    scales = ("--guidance-scale", "1", "3", "--controlnet-scale", "0.5", "1")
    output = qnerf("preview", "--data", data, "--views", "2", *models, *scales, "--out", out)
    assert "2 views, 4 trials" in output
    with Image.open(out) as sheet:
        assert sheet.height == 6 * 256 + 10
    pictures = shown(out, 6, 2)
    photos = torch.stack(load_images([data / "images/frame_00001.png"]))
    small = torch.nn.functional.interpolate(pictures[0, :1].movedim(-1, 1), (64, 64), mode="area").movedim(1, -1)
    assert float((small - photos).abs().mean()) < 0.03
    trials = pictures[2:].flatten(1)
    assert all(float((a - b).abs().mean()) > 1e-4 for a, b in zip(trials, trials.roll(1, 0), strict=True))
    again = command("qnerf", "preview", "--data", data, *models, "--out", out, code=2)
    assert "is there already" in again
    wrong = command("qnerf", "preview", "--data", data, *models, "--guidance-scale", "0.5", code=2)
    assert "guidance_scale is 0.5; expected at least 1" in wrong


@pytest.mark.usefixtures("_small_method")
def test_seeds_begin_from_fresh_noise_and_repeat(data: Path, tiny_editor: Path, tmp_path: Path) -> None:
    models = ("--method", "qnerf-edit-tiny", "--model", tiny_editor, "--controlnet", tiny_editor / "controlnet")
    sheets = []
    for number in range(2):
        out = tmp_path / f"{number}.png"
        qnerf("preview", "--data", data, "--views", "1", *models, "--seed", "1", "2", "--out", out)
        sheets.append(shown(out, 4, 1))
    assert torch.equal(*sheets)
    assert float((sheets[0][2] - sheets[0][3]).abs().mean()) > 1e-3


def test_settings_of_an_edit_count_where_the_command_line_says_nothing(
    data: Path, tiny_editor: Path, tmp_path: Path
) -> None:
    scene = tmp_path / "scene"
    shutil.copytree(data, scene)
    edit = json.loads((scene / "edit.json").read_text())
    edit["settings"] = {"guidance_scale": 2.5, "controlnet_scale": 0.8, "seed": 7}
    (scene / "edit.json").write_text(json.dumps(edit))
    models = ("--pipeline.editor.model", tiny_editor, "--pipeline.editor.controlnet", tiny_editor / "controlnet")
    stated = ("--pipeline.editor.controlnet-scale", "0.4")
    short = (*SHORT, "--pipeline.consolidation", "none")
    command("ns-train", "qnerf-edit-tiny", "--data", scene, *where(tmp_path), *short, *models, *stated)
    manifest = json.loads((tmp_path / RUN / "edit/manifest.json").read_text())
    found = manifest["settings"]
    assert found["--pipeline.editor.guidance-scale"] == "2.5" and found["--machine.seed"] == "7"
    assert found["--pipeline.editor.controlnet-scale"] == "(0.4,)"
    assert manifest["attempts"][0]["guidance_scale"] == 2.5
