"""Captures that nerfstudio could not train on: each ends ns-train with one sentence, before anything is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.mistakes import (
    DROP,
    NAN,
    VIEWS,
    Case,
    Make,
    Mistakes,
    after,
    bomb,
    ends_in_one_sentence,
    grouped,
    knob,
    put,
    truncate,
    write,
)
from PIL import Image


def transforms(key: str, value: Any) -> Make:
    return put("transforms.json", key, value)


def photo(change: Callable[[Path], object], index: int = 1) -> Make:
    return lambda case: change(case.photos[index])


def save(size: tuple[int, int], mode: str = "RGB") -> Callable[[Path], object]:
    return lambda path: Image.new(mode, size).save(path)


def to_jpegs(case: Case) -> None:
    """The photos as JPEGs, the second of them cut off."""
    for path in case.photos:
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    text = (case.data / "transforms.json").read_text()
    (case.data / "transforms.json").write_text(text.replace(".png", ".jpg"))
    truncate(case.photos[1])


def outside(file: str, link: bool = False) -> Make:
    """Move a file out of the capture, and link to it from where it was if wanted."""

    def make(case: Case) -> None:
        beyond = case.data.parent / Path(file).name
        shutil.move(case.data / file, beyond)
        if link:
            (case.data / file).symlink_to(beyond)

    return make


def twice_the_same_stem(case: Case) -> None:
    (case.data / "more").mkdir()
    shutil.copy(case.photos[0], case.data / "more" / case.photos[0].name)
    transforms("frames.1.file_path", f"more/{case.photos[0].name}")(case)


def matrix(*rows: list[float]) -> Make:
    return transforms("frames.1.transform_matrix", list(rows))


def all_in_one_place(case: Case) -> None:
    for index in range(VIEWS):
        for row in range(3):
            transforms(f"frames.{index}.transform_matrix.{row}.3", 1.0)(case)


def large_photos(case: Case) -> None:
    """Photos beyond nerfstudio's automatic resolution, of whose smaller copies one is missing."""
    (case.data / "images_2").mkdir()
    for path in case.photos:
        shutil.copy(path, case.data / "images_2" / path.name)
        Image.new("RGB", (1700, 64)).save(path)
    (case.data / "images_2" / case.photos[2].name).unlink()
    case.photos[2].write_bytes(b"")


E1, E2, E3 = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]

LAST = [0.0, 0.0, 0.0, 1.0]

CAPTURE: Mistakes = {
    "folder-missing": (knob("data", Path("/nowhere/scene")), ("/nowhere/scene does not exist", "ns-process-data")),
    "file-missing": (
        lambda case: (case.data / "transforms.json").unlink(),
        ("transforms.json does not exist", "ns-process-data"),
    ),
    "empty": (write("transforms.json", ""), ("transforms.json is not valid JSON", "ns-process-data")),
    "no-json": (write("transforms.json", "{'w': 64}"), ("transforms.json is not valid JSON",)),
    "no-object": (write("transforms.json", "[]"), ("transforms.json holds no JSON object",)),
    "too-deep": (write("transforms.json", "[" * 100_000), ("transforms.json is nested too deep",)),
    "nan": (transforms("fl_x", NAN), ("transforms.json is not valid JSON", "NaN is no number")),
    "no-frames": (transforms("frames", DROP), ("transforms.json: frames", "expected a list of objects")),
    "frames-no-list": (transforms("frames", {"a": 1}), ("transforms.json: frames", "expected a list of objects")),
    "one-frame": (
        lambda case: transforms("frames", json.loads((case.data / "transforms.json").read_text())["frames"][:1])(case),
        ("transforms.json: frames: has 1", "at least 2 photos"),
    ),
    "frame-without-path": (transforms("frames.1.file_path", DROP), ("frames[1].file_path: expected the photo's path",)),
    "frame-without-pose": (
        transforms("frames.1.transform_matrix", DROP),
        ("frames[1].transform_matrix", "is missing", "4 rows of 4 finite numbers"),
    ),
    "pose-of-three-rows": (matrix(E1, E2, E3), ("frames[1].transform_matrix", "4 rows of 4 finite numbers")),
    "pose-of-words": (transforms("frames.1.transform_matrix.0.0", "1.0"), ("frames[1].transform_matrix", "finite")),
    "pose-too-large": (transforms("frames.1.transform_matrix.0.3", 1e300), ("frames[1].transform_matrix", "finite")),
    "pose-transposed": (
        matrix(E1, E2, E3, [1.0, 2.0, 3.0, 1.0]),
        ("frames[1].transform_matrix", "the last row", "expected 0, 0, 0, 1"),
    ),
    "pose-singular": (matrix(E1, E1, E3, LAST), ("frames[1].transform_matrix", "no rotation", "export the cameras")),
    "pose-mirrored": (matrix(E2, E1, E3, LAST), ("frames[1].transform_matrix", "mirrored")),
    "cameras-in-one-place": (all_in_one_place, ("transform_matrix", "stand in one place", "several viewpoints")),
    "no-focal-length": (transforms("fl_x", DROP), ("frames[0].fl_x is missing", "once for all frames")),
    "camera-angle": (
        after(transforms("fl_x", DROP), transforms("camera_angle_x", 0.6)),
        ("frames[0].fl_x is missing", "w / (2 tan(camera_angle_x / 2))"),
    ),
    "no-height": (transforms("h", DROP), ("frames[0].h is missing",)),
    "focal-length-zero": (transforms("fl_y", 0), ("transforms.json: fl_y is 0; expected a positive number",)),
    "width-negative": (transforms("w", -64), ("transforms.json: w is -64; expected a positive number",)),
    "centre-of-words": (transforms("cx", "32"), ('transforms.json: cx is "32"; expected a number',)),
    "distortion-of-words": (transforms("k1", None), ("transforms.json: k1 is null; expected a number",)),
    "distortion-too-short": (transforms("distortion_params", [0.0]), ("distortion_params: expected 6 numbers",)),
    "size-of-other-photos": (
        transforms("w", 128),
        ("transforms.json: w is 128, but the photos are 64x64", "fl_x, fl_y, cx and cy"),
    ),
    "fisheye": (transforms("camera_model", "OPENCV_FISHEYE"), ('camera_model is "OPENCV_FISHEYE"', "undistort")),
    "unknown-camera": (transforms("camera_model", ["?"]), ("camera_model", "PINHOLE")),
    "mixed-sizes": (photo(save((32, 64))), ("different sizes", "frame_00002.png 32x64", "rescale them")),
    "float-beyond-one": (
        photo(lambda path: Image.new("F", (64, 64), 3.0).save(path, format="TIFF")),
        ("frame_00002.png", "floats are read from 0 to 1", "8 or 16 bits"),
    ),
    "integers-of-32-bits": (
        photo(lambda path: Image.new("I", (64, 64), 3).save(path, format="TIFF")),
        ("frame_00002.png", "32-bit integers", "8 or 16 bits"),
    ),
    "fisheye-of-a-frame": (
        transforms("frames.1.camera_model", "OPENCV_FISHEYE"),
        ('frames[1].camera_model is "OPENCV_FISHEYE"', "undistort"),
    ),
    "fisheye-flag": (transforms("is_fisheye", True), ("is_fisheye is true", "undistort")),
    "backslashes": (
        transforms("frames.1.file_path", "images\\frame_00002.png"),
        ("1 of 4 photos are missing", "with slashes, as images/frame_00002.png"),
    ),
    "other-case": (
        transforms("frames.1.file_path", "images/Frame_00002.PNG"),
        ("1 of 4 photos are missing", "there is frame_00002.png"),
    ),
    "no-suffix": (
        transforms("frames.1.file_path", "images/frame_00002"),
        ("1 of 4 photos are missing", "there is frame_00002.png", "with its suffix"),
    ),
    "only-large-photos": (
        knob("pipeline.datamanager.dataparser.downscale_factor", 2),
        ("4 of 4 photos are missing", "images_2/frame_00001.png", "nerfstudio-data --downscale-factor 1"),
    ),
    "photo-missing": (
        photo(lambda path: path.unlink()),
        ("1 of 4 photos are missing", "frame_00002.png", "take their frames out"),
    ),
    "photos-missing": (lambda case: shutil.rmtree(case.data / "images"), ("4 of 4 photos are missing",)),
    "photo-truncated": (photo(truncate), ("frame_00002.png cannot be read as an image", "export it again")),
    "jpeg-truncated": (to_jpegs, ("frame_00002.jpg cannot be read as an image", "Truncated")),
    "photo-no-image": (
        photo(lambda path: path.write_text("<html>")),
        ("frame_00002.png cannot be read as an image", "PNG or JPEG"),
    ),
    "photo-bomb": (photo(bomb), ("frame_00002.png has more than 100 megapixels", "save it smaller")),
    "first-photo-bomb": (photo(bomb, 0), ("frame_00001.png has more than 100 megapixels",)),
    "same-stem": (twice_the_same_stem, ("frames[1].file_path", "both called frame_00001", "its own name")),
    "photo-above": (
        after(outside("images/frame_00002.png"), transforms("frames.1.file_path", "../frame_00002.png")),
        ("file_path: ../frame_00002.png leads out", "--pipeline.outside-paths True"),
    ),
    "photo-elsewhere": (
        transforms("frames.1.file_path", "/etc/frame.png"),
        ("file_path: /etc/frame.png leads out", "--pipeline.outside-paths True"),
    ),
    "photo-linked": (
        outside("images/frame_00002.png", link=True),
        ("file_path: images/frame_00002.png leads out", "--pipeline.outside-paths True"),
    ),
    "points-elsewhere": (transforms("ply_file_path", "../x.ply"), ("ply_file_path: ../x.ply leads out",)),
    "small-photo-missing": (large_photos, ("1 of 4 photos are missing", "images_2/frame_00003.png")),
    "small-photos-linked": (
        after(large_photos, outside("images_2", link=True)),
        ("file_path: images_2/frame_00001.png leads out", "--pipeline.outside-paths True"),
    ),
    "mask-of-another-size": (
        lambda case: [
            transforms(f"frames.{index}.mask_path", "mask.png")(case) or save((32, 32), "L")(case.data / "mask.png")
            for index in range(VIEWS)
        ],
        ("mask_path", "mask.png is 32x32", "the photos are 64x64"),
    ),
    "downscale-0": (
        knob("pipeline.datamanager.dataparser.downscale_factor", 0),
        ("nerfstudio-data --downscale-factor is 0; expected at least 1",),
    ),
    "masks-of-some": (
        transforms("frames.1.mask_path", "images/frame_00002.png"),
        ("mask_path is in 1 of 4 frames", "in all of them, or in none"),
    ),
    "split-of-unknown": (
        after(transforms("train_filenames", ["a.png"]), transforms("val_filenames", [])),
        ('train_filenames: "a.png" is no frame\'s file_path',),
    ),
    "applied-transform": (transforms("applied_transform", [[1, 0], [0, 1]]), ("applied_transform: expected 3 rows",)),
    "orientation": (transforms("orientation_override", "left"), ("orientation_override", "pca, up, vertical, none")),
}


MISTAKES = grouped(capture=CAPTURE)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name: str, case: Case, capsys: pytest.CaptureFixture) -> None:
    make, words = MISTAKES[name]
    make(case)
    ends_in_one_sentence(case, words, capsys)
