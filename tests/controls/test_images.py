"""Control images and masks from folders: they match the photos, and no file does harm."""

from pathlib import Path

import numpy as np
import pytest
from helpers.images import png_bomb
from PIL import Image

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls import images
from qnerf_nerfstudio.controls.images import load_control_images


def test_control_image_folders_must_match_the_photos(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / f"{name}.png")
    images = load_control_images(tmp_path, ["one.jpg", "two.jpg"], (8, 16))
    assert images.shape == (2, 8, 16, 3)
    with pytest.raises(UserError, match=r"2 images for 3 photos, none for three\.jpg"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg", "three.jpg"], (8, 16))
    with pytest.raises(UserError, match="2 images for 1 photos"):
        load_control_images(tmp_path, ["one.jpg"], (8, 16))
    (tmp_path / "one.png").write_text("no image")
    with pytest.raises(UserError, match=r"one\.png cannot be read"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg"], (8, 16))
    with pytest.raises(UserError, match="not a folder"):
        load_control_images(tmp_path / "none", ["one.jpg"], (8, 16))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_bomb(10_100, 10_000), "more than 100 megapixels"),
        (png_bomb(60_000, 60_000), "more than 100 megapixels"),
        (png_bomb(9_500, 9_500), "cannot be read as an image"),
        (png_bomb(0, 5), "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
    ],
)
def test_images_that_are_none_or_too_large_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "one.png").write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        load_control_images(tmp_path, ["one.jpg"], (8, 8), what="masks")
    assert "one.png" in str(caught.value) and str(caught.value).startswith("masks")


def test_images_of_any_damage_are_read_or_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in images.SUFFIXES:
        path = tmp_path / f"one{suffix}"
        Image.fromarray(generator.integers(0, 255, (20, 30, 3), np.uint8)).save(path)
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
            data[generator.integers(len(data))] = generator.integers(256)
            path.write_bytes(data)
            try:
                assert load_control_images(tmp_path, ["one.jpg"], (8, 8)).shape == (1, 8, 8, 3)
            except UserError as error:
                assert path.name in str(error)
        path.unlink()
