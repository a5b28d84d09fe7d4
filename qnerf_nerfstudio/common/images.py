"""Images between files, bytes and tensors: bounded reading, atomic writing, resampling."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
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


def load_images(paths: list[Path]) -> list[Tensor]:
    """Images in [0, 1], each [H, W, 3]."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            images.append(pixels.reshape(image.height, image.width, 3).float() / 255)
    return images


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
