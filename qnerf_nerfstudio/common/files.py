"""Files that are written whole or not at all, and where paths lead."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qnerf_nerfstudio.common.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` at the end; a killed process leaves `path` as it was.

    Raises:
        UserError: It cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path} ({error}); earlier results are intact: free some space, or make the folder writable"
        ) from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def is_inside(folder: Path, name: str) -> bool:
    """Whether a path that starts from a folder stays in it, links followed."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        return False
