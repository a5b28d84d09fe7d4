"""Ready-made control images and masks: one per photo, in a folder."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import BLACK, MAX_PIXELS, coverage, opaque, open_image, same_shape, upright
from qnerf_nerfstudio.common.wording import error_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
"""What a file may be whatever its suffix says."""
LARGEST_DRAWING = 1024
"""Drawings whose shorter side is twice this or more are reduced before skeletons are looked for."""


def load_control_images(
    folder: Path, names: list[str], photo_size: tuple[int, int], size: tuple[int, int]
) -> UInt8[Tensor, "V H W 3"]:
    """Load the control images of all views over black, resampled to `size`.

    Args:
        folder: Holds one image for each photo, with the photo's name; the suffix may differ.
        names: File names of the photos, in the order of the views.
        photo_size: Height and width of the photos, whose aspect ratio the images need.
        size: Height and width in pixels.

    Raises:
        UserError: The folder or an image is missing, unreadable, too large or of another aspect ratio, or the images
            are not those of the photos.
    """
    images = _load(folder, names, photo_size, "control images", lambda image: _resized(opaque(image, BLACK), size))
    return torch.stack(images)


def load_drawings(folder: Path, names: list[str], photo_size: tuple[int, int]) -> list[UInt8[Tensor, "_ _ 3"]]:
    """Load control images at their own size, those of many megapixels reduced; see `load_control_images`."""

    def reduced(image: Image.Image) -> Image.Image:
        return opaque(image, BLACK).reduce(max(1, min(image.size) // LARGEST_DRAWING))

    return _load(folder, names, photo_size, "control images", reduced)


def load_masks(
    folder: Path, names: list[str], photo_size: tuple[int, int], size: tuple[int, int]
) -> Bool[Tensor, "V H W"]:
    """Load the masks of all views, resampled to `size`; see `load_control_images`. True where an image is bright and
    opaque."""
    return torch.stack(_load(folder, names, photo_size, "masks", lambda image: _resized(coverage(image), size))) > 127


def _load(
    folder: Path,
    names: list[str],
    photo_size: tuple[int, int],
    what: str,
    convert: Callable[[Image.Image], Image.Image],
) -> list[UInt8[Tensor, "_ _ *channels"]]:
    """The images of all views as `convert` returns them."""
    if not os.path.isdir(folder):
        raise UserError(f"{what}: {folder} is not a folder; edit.json names it")
    try:
        files = sorted(path for path in folder.iterdir() if _is_image(path))
    except OSError as error:
        raise UserError(f"{what}: {folder} cannot be read ({error_text(error)}); make it readable") from error
    stems = [Path(name).stem for name in names]
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise UserError(f"{what}: {found[path.stem]} and {path.name} are of one photo; keep one of them")
        found[path.stem] = path
    missing = [name for name, stem in zip(names, stems, strict=True) if stem not in found]
    strays = [path.name for stem, path in found.items() if stem not in stems]
    if missing or strays:
        detail = f", none for {missing[0]}" if missing else ""
        detail += f", {strays[0]} is of no photo" if strays else ""
        raise UserError(
            f"{what}: {folder} has {len(found)} images for {len(names)} photos{detail}; "
            f"put one image per photo there, named as the photo"
        )
    return [_read(found[stem], photo_size, what, convert) for stem in stems]


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image at a height and width."""
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _is_image(path: Path) -> bool:
    """Whether a file is meant as an image; those whose name begins with a dot are a system's own."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read(
    path: Path,
    photo_size: tuple[int, int],
    what: str,
    convert: Callable[[Image.Image], Image.Image],
) -> UInt8[Tensor, "_ _ *channels"]:
    """One image as `convert` returns it."""
    expected = (photo_size[1], photo_size[0])
    try:
        with open_image(path, FORMATS) as image:
            turned = upright(image, expected)
            found = turned.size
            if same_shape(found, expected):
                return torch.from_numpy(np.array(convert(turned)))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{what}: {path} has more than {MAX_PIXELS // 10**6} megapixels; scale it down to the photo's size"
        ) from error
    except Exception as error:  # Pillow's readers raise whatever their parsers do
        raise UserError(f"{what}: {path} cannot be read as an image ({error_text(error)}); export it again") from error
    raise UserError(
        f"{what}: {path} is {found[0]}x{found[1]} pixels, the photos are {expected[0]}x{expected[1]}; make it of their "
        f"aspect ratio"
    )
