"""Ready-made control images: one per photo, in two folders."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import MAX_PIXELS, open_image
from qnerf_nerfstudio.common.wording import error_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
"""What a file may be whatever its suffix says."""


def load_control_images(
    folder: Path, names: list[str], size: tuple[int, int], what: str = "control images"
) -> UInt8[Tensor, "V H W 3"]:
    """Load the control images (or masks) of all views, resampled to `size` (height, width).

    Args:
        folder: Holds one image for each photo, with the photo's name; the suffix may differ.
        names: File names of the photos, in the order of the views.
        size: Height and width in pixels.
        what: What they are, for messages.

    Raises:
        UserError: The folder or an image is missing, unreadable or too large, or the number of images is not that of
            the photos.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{what}: {folder} is not a folder; edit.json names it")
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise UserError(f"{what}: {folder} cannot be read ({error_text(error)}); make it readable") from error
    found = {path.stem: path for path in files}
    missing = [name for name in names if Path(name).stem not in found]
    if missing or len(found) != len(names):
        detail = f", none for {missing[0]}" if missing else ""
        raise UserError(
            f"{what}: {folder} has {len(found)} images for {len(names)} photos{detail}; "
            f"put one image per photo there, named as the photo"
        )
    return torch.stack([_read(found[Path(name).stem], size, what) for name in names])


def _read(path: Path, size: tuple[int, int], what: str) -> UInt8[Tensor, "H W 3"]:
    """One image, resampled."""
    try:
        with open_image(path, FORMATS) as image:
            resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(resized))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{what}: {path} has more than {MAX_PIXELS // 10**6} megapixels; scale it down to the photo's size"
        ) from error
    except Exception as error:  # Pillow's readers raise whatever their parsers do
        raise UserError(f"{what}: {path} cannot be read as an image ({error_text(error)}); export it again") from error
