"""Where the files of a dataset lie."""

from pathlib import Path


def transforms_path(data: Path) -> Path:
    """The transforms file of a dataset that is named by its folder or by that file."""
    return data if data.suffix == ".json" else data / "transforms.json"
