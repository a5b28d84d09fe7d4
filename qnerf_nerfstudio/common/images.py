"""Images between files, bytes and tensors: bounded reading, atomic writing, resampling."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.common.files import atomic_write

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused by their header, before anything of them is decoded."""


@contextmanager
def open_image(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image whose header is read.

    Args:
        path: The file.
        formats: What it may be whatever its suffix says: Pillow starts other programs for some formats.

    Raises:
        Image.DecompressionBombError: It has more than MAX_PIXELS pixels.
        OSError: It is none of these formats.
    """
    with warnings.catch_warnings():
        # Pillow warns a little below our bound, and raises a little above it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path, formats=formats)
    with image:
        if math.prod(image.size) > MAX_PIXELS:
            raise Image.DecompressionBombError
        yield image


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
"""What a photo may be whatever its suffix says."""
ORIENTATION = 0x0112
"""EXIF's tag for how an image is turned."""
QUARTER_TURNS = (5, 6, 7, 8)
"""Its values by which width and height change places."""


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, or as RGBA where it has transparency, scaled from its mode's range.

    Raises:
        ValueError: The mode has no range by itself, and the values do not tell it.
    """
    mode = image.mode
    # Netpbm's format states its largest value, and Pillow scales it to 16 bits.
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        return _grey(np.asarray(image).astype(np.float64) / 65535)
    if mode == "I":
        raise ValueError("32-bit integers have no stated range; save it with 8 or 16 bits")
    if mode == "F":
        values = np.asarray(image).astype(np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("floats are read from 0 to 1, these go beyond; save it with 8 or 16 bits")
        return _grey(values)
    if mode in ("RGB", "RGBA") and "transparency" not in image.info:
        return image
    return image.convert("RGBA" if has_alpha(image) else "RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a colour that stands for nothing."""
    return "a" in image.mode.lower().removeprefix("lab") or "transparency" in image.info


def _grey(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")


def opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """An image over a background colour in bytes, RGB.

    Raises:
        ValueError: See `eight_bits`.
    """
    shown = eight_bits(image)
    if shown.mode == "RGB":
        return shown
    behind = Image.new("RGBA", shown.size, (*background, 255))
    return Image.alpha_composite(behind, shown).convert("RGB")


def coverage(image: Image.Image) -> Image.Image:
    """A mask: an image's brightness times its alpha, one channel of bytes; palettes count as the colours they hold.

    Raises:
        ValueError: See `eight_bits`.
    """
    return opaque(image, BLACK).convert("L")


def upright(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image as `size` (width, height, at any scale) states it: turned by its EXIF orientation where that fits."""
    return image if upright_size(image, size) == image.size else ImageOps.exif_transpose(image)


def upright_size(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of what `upright` gives."""
    turned = (image.height, image.width)
    # Pillow decodes a whole PNG to look for EXIF data behind the pixels, where nobody writes it.
    told = image.format != "PNG" or "exif" in image.info
    if not told or image.getexif().get(ORIENTATION) not in QUARTER_TURNS or same_shape(image.size, size):
        return image.size
    return turned if same_shape(turned, size) else image.size


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect ratio, up to rounding: two pixels of the smaller one, or two in a hundred."""
    (width, height), (other_width, other_height) = size, other
    difference = abs(width / height * other_height / other_width - 1)
    return difference <= max(0.02, 2 / min(*size, *other))


def load_images(paths: list[Path]) -> list[Tensor]:
    """Images in [0, 1], each [H, W, 3]."""
    return [load_bytes(path).float() / 255 for path in paths]


def load_bytes(path: Path) -> UInt8[Tensor, "H W 3"]:
    """An image in bytes."""
    with Image.open(path) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.reshape(image.height, image.width, 3)


def write_png(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """Write an image in [0, 1] whole or not at all."""
    with atomic_write(path) as temporary:
        Image.fromarray(to_bytes(image).cpu().numpy()).save(temporary, format="PNG")


def to_unit(images: UInt8[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch 3 H W"]:
    """Bytes to [0, 1], channels first."""
    return images.movedim(-1, -3).float() / 255


def to_bytes(images: Float[Tensor, "*batch C H W"]) -> UInt8[Tensor, "*batch H W C"]:
    """[0, 1] to bytes, channels last: the inverse of `to_unit`."""
    return (images.movedim(-3, -1) * 255).round().clamp(0, 255).byte()


def resample(image: Float[Tensor, "C H W"], size: tuple[int, int]) -> Float[Tensor, "C h w"]:
    """Resample with antialiasing; an image of the right size passes unchanged."""
    if image.shape[-2:] == torch.Size(size):
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


def dilate(masks: Bool[Tensor, "*batch H W"], reach: int) -> Bool[Tensor, "*batch H W"]:
    """Masks grown by `reach` pixels to all sides, by squares: along rows, then along columns."""
    grown = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    for window, padding in (((1, 2 * reach + 1), (0, reach)), ((2 * reach + 1, 1), (reach, 0))):
        grown = F.max_pool2d(grown, window, stride=1, padding=padding)
    return grown.reshape(masks.shape) > 0
