"""Captures of COLMAP's model, read as nerfstudio's own dataparser reads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers.captures import small_capture
from helpers.colmap import MODEL, as_colmap
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.utils.colmap_parsing_utils import Camera, Image, write_model
from PIL import Image as Photo

from qnerf_nerfstudio.capture.capture import read_capture, sparse_points
from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.capture.colmap import converted, write_transforms
from qnerf_nerfstudio.common.errors import UserError


@pytest.mark.parametrize(("suffix", "cameras"), [(".bin", 1), (".txt", 3)])
@pytest.mark.parametrize("settings", [{}, {"orientation_method": "none", "eval_mode": "fraction", "scale_factor": 2.0}])
def test_a_model_is_read_as_nerfstudio_reads_it(tmp_path: Path, suffix: str, cameras: int, settings: dict) -> None:
    data = small_capture(tmp_path, 9)
    former = as_colmap(data, suffix, cameras)
    parser = ColmapDataParserConfig(data=data, colmap_path=Path(MODEL), downscale_factor=1, **settings)
    write_transforms(parser, tmp_path / "out")
    ours, document = converted(parser, tmp_path / "out"), json.loads((tmp_path / "out/transforms.json").read_text())
    check_capture(ours.data, photos=ours.photos)
    for split in ("train", "val"):
        expected, found = (each.setup().get_dataparser_outputs(split) for each in (parser, ours))
        order = {path.name: row for row, path in enumerate(found.image_filenames)}
        if settings:
            # Fractions are drawn from the order of the database there; which view is held out may differ.
            assert len(order) == len(expected.image_filenames)
            continue
        rows = [order[path.name] for path in expected.image_filenames]
        for key in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height"):
            torch.testing.assert_close(
                getattr(found.cameras, key)[rows], getattr(expected.cameras, key), atol=1e-5, rtol=1e-5
            )
    poses = {Path(frame["file_path"]).name: frame["transform_matrix"] for frame in document["frames"]}
    for frame in former["frames"]:
        np.testing.assert_allclose(poses[Path(frame["file_path"]).name], frame["transform_matrix"], atol=1e-6)
    assert ("fl_x" in document) and ("fl_x" not in document["frames"][0])
    points = trimesh.load(tmp_path / "out/sparse_pc.ply")
    assert isinstance(points, trimesh.PointCloud)
    np.testing.assert_allclose(points.vertices, [[0.1 * i, 0.3, -0.2] for i in range(1, 4)], atol=1e-6)
    np.testing.assert_array_equal(points.colors[:, :3], [[10, 20, 30]] * 3)


def test_smaller_photos_keep_their_cameras(tmp_path: Path) -> None:
    data = small_capture(tmp_path, 6)
    former = as_colmap(data)
    (data / "images_2").mkdir()
    for photo in (data / "images").iterdir():
        Photo.open(photo).resize((33, 33)).save(data / "images_2" / photo.name)
    parser = ColmapDataParserConfig(data=data, colmap_path=Path(MODEL), downscale_factor=2)
    write_transforms(parser, tmp_path / "out")
    document = json.loads((tmp_path / "out/transforms.json").read_text())
    assert (document["w"], document["h"]) == (33, 33)
    assert document["fl_x"] == pytest.approx(former["fl_x"] * 33 / 64)
    assert Path(document["frames"][0]["file_path"]).parent.name == "images_2"
    check_capture(tmp_path / "out", downscale=1, photos=data)


def test_masks_come_along(tmp_path: Path) -> None:
    data = small_capture(tmp_path, 6)
    as_colmap(data)
    (data / "masks").mkdir()
    for photo in (data / "images").iterdir():
        Photo.new("L", (64, 64), 255).save(data / "masks" / f"{photo.stem}.png")
    parser = ColmapDataParserConfig(data=data, colmap_path=Path(MODEL), masks_path=Path("masks"))
    write_transforms(parser, tmp_path / "out")
    frame = json.loads((tmp_path / "out/transforms.json").read_text())["frames"][0]
    assert Path(frame["mask_path"]) == data / "masks" / f"{Path(frame['file_path']).stem}.png"
    check_capture(tmp_path / "out", photos=data)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("no model", "holds no COLMAP model .* colmap --colmap-path"),
        ("no images", "lacks images or points3D"),
        ("cut", "cannot be read as a COLMAP model"),
        ("no photo", "holds no image: COLMAP placed no photo"),
        ("FULL_OPENCV", "is of no kind that nerfstudio reads .* image_undistorter"),
    ],
)
def test_models_that_cannot_be_read_are_refused(tmp_path: Path, fault: str, sentence: str) -> None:
    data = small_capture(tmp_path, 3)
    as_colmap(data, ".bin")
    model = data / MODEL
    if fault == "no model":
        model = data / "sparse"
    elif fault == "no images":
        (model / "images.bin").unlink()
    elif fault == "cut":
        (model / "images.bin").write_bytes((model / "images.bin").read_bytes()[:40])
    elif fault == "no photo":
        write_model({}, {}, {}, model, ".bin")
    else:
        lens = Camera(1, "FULL_OPENCV", 64, 64, np.ones(12))
        image = Image(1, np.array([1.0, 0, 0, 0]), np.zeros(3), 1, "a.png", np.zeros((0, 2)), np.zeros(0))
        write_model({1: lens}, {1: image}, {}, model, ".bin")
    with pytest.raises(UserError, match=sentence):
        write_transforms(ColmapDataParserConfig(data=data, colmap_path=model.relative_to(data)), tmp_path / "out")


def test_photos_outside_of_the_capture_are_not_read(tmp_path: Path) -> None:
    data = small_capture(tmp_path, 3)
    as_colmap(data)
    lens = Camera(1, "PINHOLE", 64, 64, np.array([60.0, 60, 32, 32]))
    qvec, none = np.array([1.0, 0, 0, 0]), np.zeros((0, 2))
    images = {i: Image(i, qvec, np.full(3, i), 1, f"../../{i}.png", none, np.zeros(0)) for i in range(1, 4)}
    write_model({1: lens}, images, {}, data / MODEL, ".bin")
    write_transforms(ColmapDataParserConfig(data=data, colmap_path=Path(MODEL)), tmp_path / "out")
    with pytest.raises(UserError, match="leads out of the capture's folder"):
        check_capture(tmp_path / "out", photos=data)


def test_who_forgets_the_dataparser_is_told(tmp_path: Path) -> None:
    data = small_capture(tmp_path, 3)
    as_colmap(data)
    with pytest.raises(UserError, match=f"COLMAP's model in {MODEL} does; add colmap --colmap-path {MODEL}"):
        check_capture(data)


def test_the_pose_page_reads_it_too(tmp_path: Path) -> None:
    data = small_capture(tmp_path, 6)
    before = read_capture(data)
    as_colmap(data)
    after = read_capture(data)
    order = sorted(range(6), key=after.names.__getitem__), sorted(range(6), key=before.names.__getitem__)
    ours, theirs = (each.dataset_views().c2w[rows] for each, rows in zip((after, before), order, strict=True))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert after.photos(range(6), (64, 64)).shape == (6, 3, 64, 64)
    points = sparse_points(data)
    assert points is not None and points[0].shape == (3, 3)
