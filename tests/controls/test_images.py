"""Control images and masks from folders: they match the photos, and no file does harm."""

from pathlib import Path

import numpy as np
import pytest
from helpers.images import png_bomb
from PIL import Image

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls import images
from qnerf_nerfstudio.controls.images import load_control_images, load_masks


def test_control_image_folders_must_match_the_photos(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / f"{name}.png")
    images = load_control_images(tmp_path, ["one.jpg", "two.jpg"], (10, 20), (8, 16))
    assert images.shape == (2, 8, 16, 3)
    with pytest.raises(UserError, match=r"2 images for 3 photos, none for three\.jpg"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg", "three.jpg"], (10, 20), (8, 16))
    with pytest.raises(UserError, match=r"2 images for 1 photos, two\.png is of no photo"):
        load_control_images(tmp_path, ["one.jpg"], (10, 20), (8, 16))
    with pytest.raises(UserError, match=r"one\.png is 20x10 pixels, the photos are 20x20; make it of their aspect"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg"], (20, 20), (8, 16))
    (tmp_path / "._one.png").write_text("what a Mac leaves behind")
    assert len(load_control_images(tmp_path, ["one.jpg", "two.jpg"], (10, 20), (8, 16))) == 2
    Image.new("RGB", (20, 10)).save(tmp_path / "one.webp")
    with pytest.raises(UserError, match=r"one\.png and one\.webp are of one photo"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg"], (10, 20), (8, 16))
    (tmp_path / "one.webp").unlink()
    (tmp_path / "one.png").write_text("no image")
    with pytest.raises(UserError, match=r"one\.png cannot be read"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg"], (10, 20), (8, 16))
    with pytest.raises(UserError, match="not a folder"):
        load_control_images(tmp_path / "none", ["one.jpg"], (10, 20), (8, 16))


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
        load_masks(tmp_path, ["one.jpg"], (8, 8), (8, 8))
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
                assert load_control_images(tmp_path, ["one.jpg"], (20, 30), (8, 8)).shape == (1, 8, 8, 3)
            except UserError as error:
                assert path.name in str(error)
        path.unlink()


def test_control_images_are_over_black_and_masks_count_their_alpha(tmp_path: Path) -> None:
    pixels = np.full((10, 20, 4), 255, np.uint8)
    pixels[:, 10:, 3] = 0
    for mode in ("RGBA", "LA", "PA"):
        image = Image.fromarray(pixels)
        if mode == "PA":
            # A palette of white, transparent and opaque.
            image = Image.new("P", (20, 10), 0)
            image.putpalette([255] * 6)
            image.paste(1, (10, 0, 20, 10))
            image.save(tmp_path / "one.png", transparency=b"\xff\x00")
        else:
            image.convert(mode).save(tmp_path / "one.png")
        drawn = load_control_images(tmp_path, ["one.jpg"], (10, 20), (10, 20))
        assert (drawn[:, :, :9] == 255).all() and (drawn[:, :, 11:] == 0).all(), mode
        mask = load_masks(tmp_path, ["one.jpg"], (10, 20), (10, 20))
        assert mask[:, :, :9].all() and not mask[:, :, 11:].any(), mode


def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 60000, 64).astype("uint16"), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "one.png")
    drawn = load_control_images(tmp_path, ["one.jpg"], (64, 64), (64, 64)).float() / 255
    assert abs(float(drawn.max()) - 60000 / 65535) < 0.01 and float(drawn.min()) == 0
    assert abs(float(drawn[0, :, 32].mean()) - 60000 / 65535 / 2) < 0.01
    # Nothing of a mask this dark is white.
    Image.fromarray(ramp // 4).save(tmp_path / "one.png")
    assert not load_masks(tmp_path, ["one.jpg"], (64, 64), (64, 64)).any()


def test_images_turned_by_exif_are_read_as_the_photos_stand(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :5] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png", exif=exif)
    upright = load_control_images(tmp_path, ["one.jpg"], (20, 10), (20, 10))
    assert (upright[:, :4] == 255).all() and (upright[:, 6:] == 0).all()
    stored = load_control_images(tmp_path, ["one.jpg"], (10, 20), (10, 20))
    assert (stored[:, :, :4] == 255).all() and (stored[:, :, 6:] == 0).all()
