"""Reading edit.json, which may have come with someone else's capture: whatever is wrong is reported in one sentence."""

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import is_inside
from qnerf_nerfstudio.common.wording import LONGEST, did_you_mean, error_text, quoted
from qnerf_nerfstudio.edit.openpose import openpose_name
from qnerf_nerfstudio.edit.schema import (
    BoxControl,
    BoxPlacement,
    BoxRegion,
    ControlRegion,
    Edit,
    Everywhere,
    ImagesControl,
    MeshControl,
    MeshPlacement,
    PartsControl,
    RigControl,
    SkeletonControl,
    SphereRegion,
)

MAX_BYTES = 1 << 19
"""Size of the largest edit.json that is read; as many joints and bones as there may be take half of it."""

_PARTS: dict[str, Any] = {"skeleton": SkeletonControl, "mesh": MeshControl, "box": BoxControl}
_CONTROLS: dict[str, Any] = {**_PARTS, "rig": RigControl, "images": ImagesControl, "parts": PartsControl}
_REGIONS: dict[str, Any] = {
    "control": ControlRegion,
    "box": BoxRegion,
    "sphere": SphereRegion,
    "everywhere": Everywhere,
}
_PLACEMENTS: dict[Any, Any] = {MeshControl: MeshPlacement, BoxControl: BoxPlacement}
_OBJECT = "expected an object, { … }"
_PLAIN_WORDS = {
    "missing": "is missing",
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "dict_type": _OBJECT,
    "tuple_type": "expected a list, [ … ]",
}


def edit_path(data: Path, edit: Path | None) -> Path:
    """The edit.json to read: `edit` where it is given, else the one beside a dataset's transforms file."""
    return edit or transforms_path(data).parent / "edit.json"


def load_edit(path: Path, outside_paths: bool = False, tell: bool = True) -> Edit:
    """Read and check an edit.json.

    Args:
        path: The file.
        outside_paths: Let it name files outside of its own folder.
        tell: Say what became of joints that other conventions name.

    Raises:
        UserError: The file is missing, is not JSON, or a field is wrong, or it names files outside of its folder; the
            message names file and field.
    """
    document = _read(path)
    try:
        edit = Edit.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(document, error)}") from error
    for line in _renamings(document) if tell else ():
        CONSOLE.print(f"{path}: {line}.", soft_wrap=True, markup=False)
    if not outside_paths:
        for field, stated in named_files(edit):
            refuse_outside(path, field, stated)
    return edit


def _renamings(document: Any) -> Iterator[str]:
    """What became of the joints of skeletons that other conventions name, of a document that is an edit."""
    control = document["control"]
    for part in control.get("parts", [control]):
        if part["type"] != "skeleton" or part.get("bones") is not None:
            continue
        names = {name: openpose_name(name) for name in part["source"]}
        dropped = [quoted(name) for name, joint in names.items() if joint is None]
        if dropped:
            yield f"OpenPose's 18 joints have no {', '.join(dropped)}; left out"
        if "neck" not in names.values() and {"l_shoulder", "r_shoulder"} <= set(names.values()):
            yield "the neck is put between the shoulders, as OpenPose does"


def _read(path: Path) -> Any:
    """The JSON document in a file."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not a file; name the edit.json in it with --pipeline.edit")
    if not os.path.isfile(path):
        raise UserError(
            f"{path} does not exist: qnerf-edit needs the edit stated there (prompt, source_prompt, control; see the "
            f"README), or name another file with --pipeline.edit"
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error_text(error)}); make it readable") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES} bytes, so it is no edit.json; name another file")
    if not data.strip():
        raise UserError(f"{path} is empty; state prompt, source_prompt and control there (see the README)")
    try:
        document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_int=float)
        # Half of a surrogate pair can be written in JSON, but no file name or prompt can hold it.
        json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be an edit.json; see the README for what it holds") from None
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} has a string with half of a surrogate pair (\\ud…); write the character itself"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error_text(error)}") from error
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key is stated twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} is stated twice in one object, keep one of them")
        found[key] = value
    return found


def _explain(document: Any, error: ValidationError) -> str:
    """The first thing that is wrong: where it is, and what was expected there."""
    errors = error.errors(include_url=False)
    # A misspelt key is also a missing one; it is the former that a user looks for. And where a number or a list may
    # stand, a list is first found to be no number.
    misspelt = (each for each in errors if each["type"] == "extra_forbidden")
    others = (each for each in errors if each["type"] != "float_type" or not isinstance(each["input"], list))
    first = next(chain(misspelt, others, errors))
    kind, value = first["type"], first["input"]
    keys, known = _tidy(document, first["loc"])
    if kind == "extra_forbidden":
        message = f"unknown key{did_you_mean(keys[-1], known)}"
    elif kind.startswith("union_tag"):
        choices = _REGIONS if keys[0] == "region" else _CONTROLS if len(keys) == 1 else _PARTS
        stated = value["type"] if isinstance(value, dict) and "type" in value else None
        problem = "is missing" if stated is None else f"{quoted(stated)} is unknown{did_you_mean(str(stated), choices)}"
        keys.append("type")
        message = f"{problem}; expected one of {', '.join(map(repr, choices))}"
    elif kind in _PLAIN_WORDS:
        message = _PLAIN_WORDS[kind]
    elif kind == "value_error":
        message = first["msg"].removeprefix("Value error, ")
    else:
        message = first["msg"]
        if isinstance(value, str | int | float | None):
            message = f"{message}, not {quoted(value)}"
    names = (key if key.isprintable() and len(key) <= LONGEST else quoted(key) for key in keys)
    return f"{'.'.join(names) or 'the document'}: {message}"


def _tidy(document: Any, location: tuple[str | int, ...]) -> tuple[list[str], list[str]]:
    """The keys that a user wrote on the way to an error, and the keys that are known beside the last of them.

    pydantic puts the value of "type" into an error's location, after the key whose object it belongs to, the type that
    it tried where there are several, and "[key]" after a key that is wrong itself.
    """
    keys: list[str] = []
    model: Any = Edit
    value: Any = document
    tagged = True
    for part in location:
        if not tagged and isinstance(value, dict) and value.get("type") == part:
            model, tagged = (_REGIONS if keys[0] == "region" else _CONTROLS)[str(part)], True
            continue
        if isinstance(part, str) and not isinstance(value, dict):
            continue
        keys.append(str(part))
        if part in ("source", "target") and model in _PLACEMENTS:
            model = _PLACEMENTS[model]
        try:
            value, tagged = value[part], part in ("source", "target")
        except (KeyError, IndexError, TypeError):
            value = None
    return keys, list(model.model_fields)


def named_files(edit: Edit) -> Iterator[tuple[str, str]]:
    """Every file or folder that an edit names, after the field that names it."""
    control = edit.control
    if edit.masks is not None:
        yield "masks", edit.masks
    if isinstance(control, ImagesControl):
        yield from (("control.source", control.source), ("control.target", control.target))
    if isinstance(control, RigControl):
        yield "control.mesh", control.mesh
    parts = control.parts if isinstance(control, PartsControl) else (control,)
    for index, part in enumerate(parts):
        if isinstance(part, MeshControl):
            field = f"control.parts.{index}" if isinstance(control, PartsControl) else "control"
            yield from ((f"{field}.source.mesh", part.source.mesh), (f"{field}.target.mesh", part.target.mesh))


def refuse_outside(path: Path, field: str, stated: str) -> None:
    """Refuse a path that leads out of edit.json's folder, be it by "..", by a link, or by starting elsewhere."""
    folder = path.parent.resolve()
    if Path(stated).is_absolute() or not is_inside(folder, stated):
        raise UserError(
            f"{path}: {field}: {quoted(stated)} leads out of edit.json's folder; copy it into {folder} and name it "
            f"relative to edit.json, or allow it with --pipeline.outside-paths True"
        )
