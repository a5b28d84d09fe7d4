"""What is checked of a capture before long work: nerfstudio can read it."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.captures import small_capture
from helpers.real import SCENES, needs_scenes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.common.errors import UserError


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_capture(tmp_path_factory.mktemp("capture"), num_views=3, size=32)


def read_by_nerfstudio(data: Path) -> None:
    """Let nerfstudio's dataparser read a capture, whose cameras must come out finite."""
    parser = NerfstudioDataParserConfig(data=data).setup()
    for split in ("train", "val"):
        cameras = parser.get_dataparser_outputs(split=split).cameras
        assert cameras.camera_to_worlds.isfinite().all()
        assert (cameras.fx > 0).all() and cameras.fx.isfinite().all() and cameras.cx.isfinite().all()


@needs_scenes
@pytest.mark.parametrize("name", ["bear", "dinosaur"])
def test_real_captures_pass(name: str) -> None:
    check_capture(SCENES / name)


def test_a_transforms_file_passes_as_its_folder_does(capture: Path) -> None:
    check_capture(capture)
    check_capture(capture / "transforms.json")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_photos_of_usual_formats_pass(capture: Path, tmp_path: Path, suffix: str) -> None:
    data = tmp_path / "scene"
    shutil.copytree(capture, data)
    text = (data / "transforms.json").read_text()
    (data / "transforms.json").write_text(text.replace(".png", suffix))
    for photo in list((data / "images").iterdir()):
        with Image.open(photo) as image:
            image.save(photo.with_suffix(suffix))
    check_capture(data)


def test_large_photos_are_read_from_the_folder_of_smaller_ones(capture: Path, tmp_path: Path) -> None:
    data = tmp_path / "scene"
    shutil.copytree(capture, data)
    document = json.loads((data / "transforms.json").read_text())
    for factor, size in ((2, (850, 400)), (1, (1700, 800))):
        folder = data / ("images" if factor == 1 else f"images_{factor}")
        folder.mkdir(exist_ok=True)
        for frame in document["frames"]:
            Image.new("RGB", size).save(folder / Path(frame["file_path"]).name)
    # Stated for the large photos, of which nerfstudio opens the first alone.
    document |= {"w": 1700, "h": 800}
    (data / "transforms.json").write_text(json.dumps(document))
    (data / document["frames"][1]["file_path"]).unlink()
    check_capture(data)
    read_by_nerfstudio(data)
    with pytest.raises(UserError, match="1 of 3 photos are missing"):
        check_capture(data, downscale=1)
    with pytest.raises(UserError, match=r"3 of 3 photos are missing, the first is .*images_4"):
        check_capture(data, downscale=4)


def test_files_outside_of_the_folder_may_be_allowed(capture: Path, tmp_path: Path) -> None:
    document = json.loads((capture / "transforms.json").read_text())
    for frame in document["frames"]:
        frame["file_path"] = str(capture / frame["file_path"])
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"--pipeline.outside-paths True"):
        check_capture(tmp_path)
    check_capture(tmp_path, outside_paths=True)
    read_by_nerfstudio(tmp_path)


VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 2.5, 1e-9, 1e8, 1e30, 1e300, 10**400, math.nan, math.inf, "", "x", "32", "../x", "a\0b"),
    *("/etc/passwd", "x" * 300, "\ud800", [], {}, [[]], [0.0] * 6, [[1, 0, 0, 0]] * 4, ["images/frame_00001.png"]),
]

EXTRA = [
    *("k1", "k4", "distortion_params", "camera_model", "orientation_override", "applied_transform", "applied_scale"),
    *("mask_path", "depth_file_path", "train_filenames", "val_filenames", "ply_file_path", "fl_x", "cx", "w", "h"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a document."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


def is_finite(value: object) -> bool:
    """Whether a value is a number that can be multiplied: an integer of a thousand digits is none."""
    return isinstance(value, int | float) and abs(value) <= 1e300


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_capture_is_refused_or_read(capture: Path, data: st.DataObject) -> None:
    document = json.loads((capture / "transforms.json").read_text())
    for _ in range(data.draw(st.integers(0, 3))):
        known = places(document)
        holder, key = known[data.draw(st.integers(0, len(known) - 1))] if known else (document, "frames")
        kind = data.draw(st.sampled_from(("value", "shift", "drop", "swap", "add", "shift")))
        if kind == "value":
            holder[key] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
        elif kind == "shift" and is_finite(holder.get(key) if isinstance(holder, dict) else holder[key]):
            holder[key] = holder[key] * data.draw(st.sampled_from((-1, 0, 0.99, 1.001, 2, 1e5))) + data.draw(
                st.sampled_from((0, 1e-6, 0.01, 1, -3))
            )
        elif kind == "drop":
            del holder[key]
        elif kind == "swap" and known:
            other, name = known[data.draw(st.integers(0, len(known) - 1))]
            holder[key] = copy.deepcopy(other[name])
        elif kind == "add" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(EXTRA))] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
    text = json.dumps(document)
    if data.draw(st.integers(0, 9)) == 0:
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut]
    path = capture / "mutated.json"
    path.write_text(text)
    try:
        check_capture(path)
    except UserError as error:
        assert str(error).isprintable(), repr(error)
        return
    read_by_nerfstudio(path)
