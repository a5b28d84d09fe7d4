"""The files that a run depends on, so that it only goes on with those that it was begun with."""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.edit.reading import named_files
from qnerf_nerfstudio.edit.schema import Edit


def inputs(capture: Capture, edit: Edit, folder: Path, editor: EditorConfig | None) -> dict[str, str]:
    """Hashes of what a run reads beside photos and edit.json, by what it is.

    Args:
        capture: The capture; its cameras and masks count.
        edit: The edit; the meshes, control images and masks that it names count.
        folder: Folder of edit.json.
        editor: The diffusion models, of which local ones count; None: there are none.
    """
    found = {transforms_path(capture.data).name: _document(transforms_path(capture.data))}
    files = [*capture.masks, *_named_by(edit, folder, {Path(name).stem for name in capture.names})]
    found |= {f"{path.parent.name}/{path.name}": _hash(path) for path in files}
    for stated in () if editor is None else editor.stated_models:
        if Path(stated).exists():
            found |= _weights(Path(stated))
    return found


def contents(paths: Iterable[Path]) -> dict[str, str]:
    """Hashes of files' contents by their names."""
    return {path.name: _hash(path) for path in paths}


def _named_by(edit: Edit, folder: Path, stems: set[str]) -> Iterator[Path]:
    """Images of photos with these stems in the folders that an edit names, and its meshes with what belongs to them."""
    for _, stated in named_files(edit):
        path = folder / stated
        if path.is_dir():
            yield from sorted(each for each in path.iterdir() if each.stem in stems)
        else:
            yield from sorted(path.parent.glob(f"{path.stem}.*"))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _document(path: Path) -> str:
    """Hash of what a JSON file says, however it is laid out."""
    stated = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True)
    return hashlib.blake2b(stated.encode(), digest_size=16).hexdigest()


def _weights(model: Path) -> dict[str, str]:
    """What tells a local model, a folder or a file, from others without reading all of it: the sizes of its files, what
    those of JSON hold, and what the headers of those in safetensors say."""
    files = sorted(path for path in model.rglob("*") if path.is_file()) if model.is_dir() else [model]
    return {str(path.relative_to(model.parent)): _weights_of(path) for path in files}


def _weights_of(path: Path) -> str:
    if path.suffix == ".json":
        return _hash(path)
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return f"{size} bytes"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        header = hashlib.blake2b(file.read(min(length, size)), digest_size=16).hexdigest()
    return f"{size} bytes, header {header}"
