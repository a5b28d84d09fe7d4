"""The files that a run depends on, so that it only goes on with those that it was begun with."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.edit.reading import named_files
from qnerf_nerfstudio.edit.schema import Edit

WEIGHTS = (".json", ".txt", ".model", ".safetensors", ".bin", ".ckpt", ".pt")
"""What of a model folder is read."""
SAMPLE = 1 << 20
"""Bytes that are looked at at the beginning, in the middle and at the end of each file of a model."""


def inputs(capture: Capture, edit: Edit, folder: Path, editor: EditorConfig | None) -> dict[str, str]:
    """Hashes of what a run reads beside photos and edit.json, by what it is.

    Args:
        capture: The capture; its cameras and masks count.
        edit: The edit; the meshes, control images and masks that it names count.
        folder: Folder of edit.json.
        editor: The diffusion models, of which local ones count; None: there are none.
    """
    found = {transforms_path(capture.data).name: _cameras(transforms_path(capture.data))}
    found |= {f"mask of {name}": _hash(path) for name, path in zip(capture.names, capture.masks, strict=False)}
    found |= {
        path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path): _hash(path)
        for path in _named_by(edit, folder, {Path(name).stem for name in capture.names})
    }
    for stated in () if editor is None else editor.stated_models:
        if stated not in ("auto", BUNDLED) and Path(stated).exists():
            found |= _weights(Path(stated))
    return found


def contents(paths: Iterable[Path]) -> dict[str, str]:
    """Hashes of files' contents by their names."""
    return {path.name: _hash(path) for path in paths}


def _named_by(edit: Edit, folder: Path, stems: set[str]) -> Iterator[Path]:
    """Images of photos with these stems in the folders that an edit names, and its meshes with what belongs to them."""
    for _, stated in named_files(edit):
        path = folder / stated
        inside = path.iterdir() if path.is_dir() else ()
        named = [each for each in inside if each.stem in stems] or [path, *map(path.with_suffix, (".bin", ".mtl"))]
        yield from sorted(each for each in named if each.is_file())


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, _digest).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable") from error


def _digest(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)


def _cameras(path: Path) -> str:
    """Hash of what a transforms file says of cameras, however it is laid out and wherever the photos are."""
    stated = json.loads(path.read_text(encoding="utf-8"))
    for frame in stated["frames"]:
        frame["file_path"] = Path(frame["file_path"]).name
        frame.pop("mask_path", None)
    return _digest(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _weights(model: Path) -> dict[str, str]:
    """Hashes of samples of a local model's settings and weights, a folder's or a file's."""
    files = sorted(path for path in model.rglob("*") if path.suffix in WEIGHTS) if model.is_dir() else [model]
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(model.parent).parts)]
    return {str(path.relative_to(model.parent)): _sampled(path) for path in shown if path.is_file()}


def _sampled(path: Path) -> str:
    """Hash of a file's size and of its first, middle and last part: weights are gigabytes."""
    size = path.stat().st_size
    digest = _digest(str(size).encode())
    with path.open("rb") as file:
        for start in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
