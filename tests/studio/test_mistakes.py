"""Mistakes as a user sees them; test_bad_captures, test_bad_edits and test_bad_options have all of them."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import command
from nerfstudio.scripts import train as train_script

from qnerf_nerfstudio.methods import qnerf_edit_tiny


def no_mistake(_: Path) -> None:
    """Leave a capture as it is."""


def half_a_document(data: Path) -> None:
    (data / "edit.json").write_text((data / "edit.json").read_text()[:100])


def half_a_photo(data: Path) -> None:
    photo = data / "images/frame_00003.png"
    photo.write_bytes(photo.read_bytes()[:500])


@pytest.mark.parametrize(
    ("mistake", "options", "words"),
    [
        (no_mistake, ["--pipeline.editor.model", "nobody/nothing"], "--pipeline.editor.model: cannot load"),
        (no_mistake, ["--pipeline.tau", "99"], "--pipeline.tau is 99; expected 1 to num_steps (20)"),
        (half_a_document, [], "edit.json is not valid JSON"),
        (half_a_photo, [], "images/frame_00003.png"),
    ],
)
def test_mistakes_end_the_command_with_one_sentence(
    capture: Path, tmp_path: Path, mistake: Callable[[Path], None], options: list[str], words: str
) -> None:
    shutil.copytree(capture, tmp_path / "scene")
    mistake(tmp_path / "scene")
    # A visual hull takes seconds, and is none of the mistakes.
    where = ["--data", tmp_path / "scene", "--output-dir", tmp_path / "out", "--pipeline.region", "False"]
    text = command("ns-train", "qnerf-edit-tiny", *where, *options, code=2)
    assert words in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.safetensors"))


def wrong_edits(folder: Path, capture: Path) -> dict[str, Path]:
    """Edits that cannot be made, by what is wrong with them."""
    document = json.loads((capture / "edit.json").read_text())
    target = document["control"]["target"]
    target["r_ellbow"] = target.pop("r_elbow")
    (folder / "joint.json").write_text(json.dumps(document))
    (folder / "empty").mkdir()
    document["control"] = {"type": "images", "source": "empty", "target": "empty"}
    (folder / "images.json").write_text(json.dumps(document))
    return {"none": folder / "nowhere.json", "joint": folder / "joint.json", "images": folder / "images.json"}


@pytest.mark.parametrize(
    ("edit", "settings", "words"),
    [
        ("none", {}, "nowhere.json does not exist"),
        ("joint", {}, "joint \"r_ellbow\" is none of OpenPose's (did you mean 'r_elbow'?)"),
        ("images", {}, "has 0 images for 10 photos"),
        (None, {"prompt": " "}, "--prompt is empty"),
        (None, {"max_num_iterations": 7}, "--max-num-iterations is 7"),
    ],
)
def test_mistakes_in_settings_end_in_one_sentence(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture, edit: str | None, settings: dict, words: str
) -> None:
    config = copy.deepcopy(qnerf_edit_tiny.config)
    config.data, config.output_dir, config.vis = capture, tmp_path / "out", "tensorboard"
    if edit is not None:
        config.pipeline.edit = wrong_edits(tmp_path, capture)[edit]  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(SystemExit) as stop:
        train_script.main(config)
    assert stop.value.code == 2
    assert words in capsys.readouterr().out.replace("\n", " ")
    assert not list(tmp_path.rglob("*.safetensors"))
