"""The model set that comes with the package: all that is known of it outside of toy/."""

from pathlib import Path
from typing import Literal

BUNDLED = "bundled"
"""The name by which options ask for it."""
BUNDLED_FOLDER = Path(__file__).parents[1] / "toy/weights"
BUNDLED_KINDS: tuple[Literal["openpose", "depth"], ...] = ("openpose", "depth")
"""What its ControlNet was trained to read."""
