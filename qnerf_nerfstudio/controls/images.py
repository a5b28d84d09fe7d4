"""Ready-made control images: one per photo, in two folders."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from qnerf_nerfstudio.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
        UserError: The folder or an image is missing or unreadable, or the number of images is not that of the photos.
    """
    if not folder.is_dir():
        raise UserError(f"{what}: {folder} is not a folder; edit.json names it")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    missing = [name for name in names if Path(name).stem not in found]
    if missing or len(found) != len(names):
        detail = f", none for {missing[0]}" if missing else ""
        raise UserError(
            f"{what}: {folder} has {len(found)} images for {len(names)} photos{detail}; "
            f"put one image per photo there, named as the photo"
        )
    images = []
    for name in names:
        path = found[Path(name).stem]
        try:
            with Image.open(path) as image:
                resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{what}: {path} cannot be read as an image ({error})") from error
        images.append(torch.from_numpy(np.array(resized)))
    return torch.stack(images)
