"""Reading edit.json: mistakes and hostile files end with one sentence each, at once, and never a traceback."""

import json
import re
from pathlib import Path

import pytest
from helpers.documents import BOX, BOX_EDIT, GOOD, IMAGES_EDIT, MESH_EDIT, SKELETON_EDIT, with_control, write_edit

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.edit.reading import MAX_BYTES, load_edit
from qnerf_nerfstudio.edit.schema import MAX_BONES, MAX_JOINTS, MAX_PARTS, MAX_PROMPT


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", ["not valid JSON"]),
        ({}, ["prompt", "missing"]),
        ({**GOOD, "promt": "x"}, ["promt", "unknown key", "'prompt'"]),
        (with_control(GOOD, bonez=[]), ["bonez", "unknown key", "'bones'"]),
        (with_control(GOOD, type="meshes"), ["control", "'mesh'"]),
        (with_control(GOOD, type="mesh"), ["control.source", "unknown key"]),
        ({**GOOD, "prompt": " "}, ["prompt", "empty"]),
        ({**GOOD, "region": {"type": "sphere", "position": [0, 0, 0], "radius": -1}}, ["region.radius", "greater"]),
        ({**GOOD, "region": {"type": "box", "position": [0, 0, 0], "sise": [1, 1, 1]}}, ["region.sise", "'size'"]),
        ({**GOOD, "control": {**BOX, "target": {"size": [1, 1, 0]}}}, ["control.target.size.2", "greater"]),
        ({**GOOD, "control": {"type": "parts", "parts": [BOX, GOOD["control"]]}}, ["part 1", "openpose", "depth"]),
        ({**GOOD, "control": {"type": "parts", "parts": [{**BOX, "drow": "depth"}]}}, ["parts.0.drow", "'draw'"]),
        (with_control(GOOD, target={"neck": [0, 0, 1], "nos": [0, 0, 2]}), ["nos", "did you mean"]),
        (with_control(GOOD, bones=[["neck", "nosee"]]), ["nosee", "'nose'"]),
        (with_control(GOOD, target={"neck": [0, 0, 1], "nose": [0, 0, "NaN"]}), ["target.nose", "finite"]),
        (with_control(GOOD, target={"neck": [0, 0, 1], "nose": [0, 0]}), ["target.nose"]),
        (with_control(GOOD, source={"neck": [0, 0, 1], "nose": [0, 0, 1]}, bones=[["neck", "nose"]]), ["no length"]),
        (with_control(GOOD, source={"x": [0, 0, 1]}, target={"x": [0, 0, 1]}), ["bones"]),
    ],
)
def test_mistakes_in_edit_json_are_named(tmp_path: Path, document: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_edit(write_edit(tmp_path, document))
    message = str(caught.value)
    assert "edit.json" in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_missing_edit_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"edit\.json does not exist"):
        load_edit(tmp_path / "edit.json")


TEXT = json.dumps(SKELETON_EDIT)


def refusal(document: object, folder: Path, **options: bool) -> str:
    """The sentence that a document is refused with."""
    path = folder / "edit.json"
    data = document if isinstance(document, bytes) else str(document).encode()
    path.write_bytes(json.dumps(document).encode() if isinstance(document, dict) else data)
    with pytest.raises(UserError) as caught:
        load_edit(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe{", "not valid JSON"),
        (b"[1, 2]", "expected an object"),
        (b"NaN", "expected an object"),
        (TEXT.replace("1.4", "NaN").encode(), "control.source.neck.2: Input should be a finite number, not NaN"),
        (TEXT.replace("1.4", "-1e400").encode(), "finite number, not -Infinity"),
        (TEXT.replace("1.4", "9" * 5000).encode(), "control.source.neck.2: Input should be a finite number"),
        (TEXT.replace("1.4", "1e7").encode(), "control.source.neck.2: Input should be less than or equal to 1000000"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply|larger than"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (TEXT.replace('"nose"', '"neck"').encode(), 'the key "neck" is stated twice'),
        (TEXT.replace("a person", "\\ud800").encode(), "surrogate"),
    ],
)
def test_texts_that_are_no_edit_are_refused(folder: Path, text: bytes, words: str) -> None:
    assert any(word in refusal(text, folder) for word in words.split("|"))


ARMS = {**SKELETON_EDIT["control"]["source"], "l_shoulder": [-0.2, 0, 1.4], "l_elbow": [-0.3, 0, 1.1]}

SIX_JOINTS = {"type": "skeleton", "source": ARMS, "target": ARMS}

JOINTS = {str(index): [index, 0, 0] for index in range(MAX_JOINTS + 1)}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({**SKELETON_EDIT, "a\nb" * 50: 1}, r"unknown key"),
        ({**SKELETON_EDIT, "prompt": "x" * (MAX_PROMPT + 1)}, r"prompt: .* at most 2000 characters"),
        (
            {**SKELETON_EDIT, "region": {"type": "spere"}},
            r"region.type: \"spere\" is unknown \(did you mean 'sphere'\?\)",
        ),
        (
            with_control(SKELETON_EDIT, type="skelton"),
            r"control.type: .*did you mean 'skeleton'\?\); expected one of 'skel",
        ),
        (with_control(SKELETON_EDIT, type={}), r"control.type: \{\} is unknown; expected one of"),
        ({**SKELETON_EDIT, "control": {}}, r"control.type: is missing; expected one of 'skeleton'"),
        (with_control(SKELETON_EDIT, source=JOINTS), r"control.source: has 501 entries, at most 500"),
        (with_control(SKELETON_EDIT, bones=[["neck", "nose"]] * (MAX_BONES + 1)), r"control.bones: has 501 entries"),
        (with_control(SKELETON_EDIT, bones=[0] * 100_000), r"control.bones: has 100000 entries"),
        (with_control(SKELETON_EDIT, source={"x" * 200: [0, 0, 0]}), r"control.source.*at most 100 characters"),
        ({**BOX_EDIT, "control": {"type": "parts", "parts": [BOX_EDIT["control"]] * (MAX_PARTS + 1)}}, r"101 entries"),
        ({**BOX_EDIT, "control": {"type": "parts", "parts": [SIX_JOINTS] * 100}}, r"600 joints and 500 bones"),
        (
            {**BOX_EDIT, "control": {"type": "parts", "parts": [IMAGES_EDIT["control"]]}},
            r"control.parts.0.type: \"images\"",
        ),
        (
            with_control(BOX_EDIT, source={"size": [1, 1, 1e-9]}),
            r"control.source.size.2: .*greater than or equal to 0.000001",
        ),
        (
            with_control(MESH_EDIT, source={"mesh": "ball.ply", "scale": [1, 1, 0]}),
            r"control.source.scale.2: .*greater",
        ),
        (with_control(MESH_EDIT, source={"mesh": "ball.ply", "scale": "big"}), r"control.source.scale: .*valid number"),
        (with_control(MESH_EDIT, source={"mesh": ""}), r"control.source.mesh: .*at least 1 character"),
        (with_control(MESH_EDIT, source={"mesh": "a\0b"}), r"control.source.mesh: .*cannot be printed"),
        ({**SKELETON_EDIT, "masks": "x" * 1001}, r"masks: .*at most 1000 characters"),
    ],
)
def test_fields_out_of_bounds_are_named(folder: Path, document: dict, words: str) -> None:
    assert re.search(words, refusal(document, folder))


def test_a_folder_or_nothing_instead_of_edit_json(folder: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        load_edit(folder)
    for name in ("none.json", "x" * 300, "a\0b", "loop"):
        with pytest.raises(UserError, match="does not exist"):
            load_edit(folder / name)


@pytest.mark.parametrize("stated", ["/etc", "..", "masks/../..", "link", "link/etc", "loop", "masks/out"])
def test_paths_that_leave_the_folder_are_refused_unless_allowed(folder: Path, stated: str) -> None:
    if not (folder / "masks/out").is_symlink():
        (folder / "masks/out").symlink_to("../..")
    documents = {
        "masks": {**SKELETON_EDIT, "masks": stated},
        "control.target": with_control(IMAGES_EDIT, target=stated),
        "control.source.mesh": with_control(MESH_EDIT, source={"mesh": stated}),
        "control.parts.1.target.mesh": {
            **BOX_EDIT,
            "control": {
                "type": "parts",
                "parts": [BOX_EDIT["control"], with_control(MESH_EDIT, target={"mesh": stated})["control"]],
            },
        },
    }
    for field, document in documents.items():
        message = refusal(document, folder)
        assert f"{field}: {json.dumps(stated)} leads out" in message and "--pipeline.outside-paths True" in message
        load_edit(folder / "edit.json", outside_paths=True)


def test_paths_within_the_folder_are_accepted_by_any_way(folder: Path) -> None:
    if not (folder / "inner").is_symlink():
        (folder / "inner").symlink_to("masks")
    for stated in ("masks", "./masks", "poses/../masks", "inner", "not there"):
        (folder / "edit.json").write_text(json.dumps({**SKELETON_EDIT, "masks": stated}))
        assert load_edit(folder / "edit.json").masks == stated
    # A capture that is reached through a link is its own folder.
    (folder.parent / "elsewhere").symlink_to(folder)
    assert load_edit(folder.parent / "elsewhere/edit.json").masks == "not there"
