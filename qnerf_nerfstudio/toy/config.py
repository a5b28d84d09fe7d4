"""Settings of a procedural capture."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass
class CaptureConfig:
    """A procedural capture: a figure in its source pose, with the truth for its target pose."""

    seed: int = 0
    """Seed of the figure, its poses and the cameras; the same seed gives the same files."""
    num_views: Annotated[int, tyro.conf.arg(aliases=("--views",))] = 24
    """Number of photos."""
    num_novel_views: Annotated[int, tyro.conf.arg(aliases=("--novel-views",))] = 8
    """Number of further cameras, whose true edited views are written but no photos."""
    size: int = 256
    """Width and height of every image in pixels."""
