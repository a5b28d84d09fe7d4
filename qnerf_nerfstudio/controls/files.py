"""Opening what strangers' documents name: where a path leads, and images that are no larger than they say."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused by their header, before anything of them is decoded."""


def is_inside(folder: Path, name: str) -> bool:
    """Whether a path that starts from a folder stays in it, links followed."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


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
