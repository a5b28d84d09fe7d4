"""Documents of edit.json."""

import json
from pathlib import Path
from typing import Any

from helpers.fuzzing import VALID

GOOD: dict[str, Any] = {
    "prompt": "b",
    "source_prompt": "a",
    "control": {
        "type": "skeleton",
        "source": {"neck": [0, 0, 1.4], "nose": [0, 0, 1.6]},
        "target": {"neck": [0, 0, 1.4], "nose": [0, 0.1, 1.6]},
    },
}

BOX: dict[str, Any] = {"type": "box", "source": {"size": [1, 1, 1]}, "target": {"size": [1, 1, 2]}}


SKELETON_EDIT, BOX_EDIT, MESH_EDIT, IMAGES_EDIT = (VALID[index] for index in (0, 3, 5, 7))


def with_control(edit: dict[str, Any], **changes: object) -> dict[str, Any]:
    """A document with other fields in its control."""
    return {**edit, "control": {**edit["control"], **changes}}


def write_edit(folder: Path, document: object) -> Path:
    """Write edit.json: the text itself, or a document as JSON."""
    path = folder / "edit.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path
