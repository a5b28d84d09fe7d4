"""Small procedural captures."""

from pathlib import Path

from qnerf_nerfstudio.toy.capture import write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig


def small_capture(folder: Path, num_views: int = 10, num_novel_views: int = 0, size: int = 64, seed: int = 0) -> Path:
    """Write a capture into a folder of that folder; its own folder."""
    out = folder / "scene"
    write_capture(out, CaptureConfig(seed=seed, num_views=num_views, num_novel_views=num_novel_views, size=size))
    return out
