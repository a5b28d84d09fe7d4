"""Cameras at the size of the photos that are read, splits that share no view, photos of every kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.capture.edited_dataset import edited_transforms, write_dataset
from qnerf_nerfstudio.field.datamanager import QNerfDataManager, QNerfDataManagerConfig

INTRINSICS = {"fl_x": 100.0, "fl_y": 110.0, "cx": 60.0, "cy": 40.0}


def write(folder: Path, size: tuple[int, int] = (128, 96), count: int = 5, **changes: Any) -> dict[str, Any]:
    """A capture of grey photos; returns its transforms. A change of None takes a field out."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for number in range(count):
        name = f"images/frame_{number}.png"
        Image.new("RGB", size, (40 * number, 9, 9)).save(folder / name)
        pose = torch.eye(4)
        pose[:3, 3] = torch.tensor([number, 0.3 * number**2, 1.0])
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    meta: dict[str, Any] = {**INTRINSICS, "w": size[0], "h": size[1], "frames": frames, **changes}
    return save(folder, {key: value for key, value in meta.items() if value is not None})


def save(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    (folder / "transforms.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    return meta


def manager(folder: Path, **settings: Any) -> QNerfDataManager:
    """The datamanager of a capture."""
    check_capture(folder, downscale=settings.get("downscale_factor"))
    parser = NerfstudioDataParserConfig(data=folder, **settings)
    config = QNerfDataManagerConfig(data=folder, dataparser=parser, train_num_rays_per_batch=16)
    made = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert isinstance(made, QNerfDataManager)
    return made


def smaller(folder: Path, size: tuple[int, int]) -> None:
    """Photos of another size in images_2."""
    (folder / "images_2").mkdir()
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            image.resize(size).save(folder / "images_2" / path.name)


@pytest.mark.parametrize(
    "per_frame", [(), ("fl_x",), ("fl_x", "fl_y", "cx", "cy"), ("w", "h"), (*INTRINSICS, "w", "h")]
)
@pytest.mark.parametrize("size", [(64, 48), (65, 49)])
def test_cameras_fit_smaller_photos_and_so_do_those_of_the_edited_dataset(
    tmp_path: Path, per_frame: tuple[str, ...], size: tuple[int, int]
) -> None:
    meta = write(tmp_path, (129, 97) if size[0] % 2 else (128, 96))
    for number, frame in enumerate(meta["frames"]):
        frame |= {key: meta[key] + (number if key in ("fl_x", "cx") else 0) for key in per_frame}
    meta = save(tmp_path, {key: value for key, value in meta.items() if key not in per_frame})
    smaller(tmp_path, size)
    capture = manager(tmp_path, downscale_factor=2).capture
    views = capture.views()
    assert views.size == (size[1], size[0])
    x, y = size[0] / (129 if size[0] % 2 else 128), size[1] / (97 if size[0] % 2 else 96)
    edited = edited_transforms(meta, views.size)
    by_name = {Path(frame["file_path"]).stem: {**edited, **frame} for frame in edited["frames"]}
    for name, intrinsics in zip(capture.names, views.intrinsics, strict=True):
        number = int(Path(name).stem.removeprefix("frame_"))
        fl_x, cx = (INTRINSICS[key] + (number if key in per_frame else 0) for key in ("fl_x", "cx"))
        expected = torch.tensor([fl_x * x, 110 * y, cx * x, 40 * y])
        torch.testing.assert_close(intrinsics, expected, rtol=1e-5, atol=1e-4)
        written = by_name[Path(name).stem]
        torch.testing.assert_close(torch.tensor([written[key] for key in INTRINSICS]), expected, rtol=1e-5, atol=1e-4)
        assert (written["w"], written["h"]) == size
    assert ("fl_x" in edited) == ("fl_x" not in per_frame)


def test_distortion_is_read_wherever_it_is_stated(tmp_path: Path) -> None:
    meta = write(tmp_path, k1=0.1)
    for number, frame in enumerate(meta["frames"]):
        frame["p1"] = 0.01 * number
    save(tmp_path, meta)
    capture = read_capture(tmp_path)
    for name, distortion in zip(capture.names, capture.views().distortion, strict=True):
        expected = torch.tensor([0.1, 0, 0, 0, 0.01 * int(Path(name).stem[-1]), 0])
        torch.testing.assert_close(distortion, expected)


def test_a_view_in_two_splits_is_held_out_once(tmp_path: Path) -> None:
    names = [f"images/frame_{number}.png" for number in range(5)]
    write(tmp_path, train_filenames=names, val_filenames=names[:2], test_filenames=names[:2])
    for capture in (read_capture(tmp_path), manager(tmp_path).capture):
        assert capture.names == [f"frame_{number}.png" for number in (2, 3, 4, 0, 1)]
        assert capture.num_train == 3 and len(capture.views()) == 5
        assert float(capture.photos(range(3, 5), (4, 4))[1, 0].mean()) == pytest.approx(40 / 255)


def test_all_views_train_where_the_same_are_to_evaluate(tmp_path: Path) -> None:
    write(tmp_path)
    capture = manager(tmp_path, eval_mode="all").capture
    assert capture.num_train == 5 and len(capture.views()) == 5


def test_photos_are_upright_where_their_size_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    meta = write(tmp_path, (96, 64))
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :30] = 255
    for path in (tmp_path / "images").iterdir():
        Image.fromarray(pixels).save(path, exif=exif)
    stored = read_capture(tmp_path)
    assert stored.views().size == (64, 96) and float(stored.photos(range(1), (64, 96))[0, 0, :, :28].mean()) == 1
    assert "upright" not in capsys.readouterr().out
    save(tmp_path, {**meta, "w": 64, "h": 96})
    upright = read_capture(tmp_path)
    assert upright.views().size == (96, 64)
    image = upright.photos(range(1), (96, 64))[0, 0]
    assert float(image[:28].mean()) == 1 and float(image[32:].mean()) == 0
    assert "5 of 5 photos are read upright" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16", "L", "1"])
def test_photos_of_every_kind_are_read_as_they_look(tmp_path: Path, mode: str) -> None:
    write(tmp_path)
    for path in (tmp_path / "images").iterdir():
        if mode in ("RGBA", "LA"):
            # What is hidden is black; over white it is white.
            Image.new(mode, (128, 96), (0, 0, 0, 0) if mode == "RGBA" else (0, 0)).save(path)
        elif mode == "I;16":
            Image.fromarray(np.full((96, 128), 65535, np.uint16)).save(path)
        elif mode == "P":
            image = Image.new("P", (128, 96), 3)
            image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 255, 255, 255])
            image.save(path)
        else:
            white = {"CMYK": (0, 0, 0, 0), "L": 255, "1": 1}[mode]
            Image.new(mode, (128, 96), white).save(path, format="TIFF" if mode == "CMYK" else "PNG")
    assert (read_capture(tmp_path).photos(range(5), (96, 128)) == 1).all()


def test_masks_of_palettes_and_alpha_mean_what_they_show(tmp_path: Path) -> None:
    meta = write(tmp_path)
    (tmp_path / "masks").mkdir()
    for number, frame in enumerate(meta["frames"]):
        frame["mask_path"] = f"masks/{number}.png"
        pixels = np.full((96, 128, 4), 255, np.uint8)
        pixels[:, 64:, 3] = 0
        if number:
            # A palette whose first colour is white: bytes of 0 are white.
            image = Image.fromarray((np.arange(128)[None].repeat(96, 0) >= 64).astype(np.uint8), "P")
            image.putpalette([255, 255, 255, 0, 0, 0])
            image.save(tmp_path / frame["mask_path"])
        else:
            Image.fromarray(pixels).save(tmp_path / frame["mask_path"])
    save(tmp_path, meta)
    dataset = manager(tmp_path).train_dataset
    for number in range(len(dataset)):
        mask = dataset[number]["mask"]
        assert mask.shape == (96, 128, 1) and mask[:, :64].all() and not mask[:, 64:].any()


def test_sparse_points_that_are_not_there_count_as_none(tmp_path: Path) -> None:
    write(tmp_path / "scene", ply_file_path="sparse_pc.ply", place="Küche")
    (tmp_path / "edit").mkdir()
    check_capture(tmp_path / "scene")
    write_dataset(tmp_path / "edit", tmp_path / "scene/transforms.json", (96, 128))
    written = json.loads((tmp_path / "edit/transforms.json").read_text(encoding="utf-8"))
    assert "ply_file_path" not in written and written["place"] == "Küche"
