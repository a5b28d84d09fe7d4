"""Hostile edit.json files, and hostile files that they name: one sentence each, at once, and never a traceback."""

import json
import random
import re
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_controls import views

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls import images, solids
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.controls.images import load_control_images
from qnerf_nerfstudio.controls.solids import MESH_FORMATS, load_mesh
from qnerf_nerfstudio.edit.reading import MAX_BYTES, load_edit
from qnerf_nerfstudio.edit.schema import MAX_BONES, MAX_JOINTS, MAX_PARTS, MAX_PROMPT

SKELETON, BOX, MESH, IMAGES = (fuzzing.VALID[index] for index in (0, 3, 5, 7))
TEXT = json.dumps(SKELETON)
PLAIN = ("depth", "normal", "", "..", "a\0", "\ud800", "ball.ply", "neck")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hostile")
    fuzzing.prepare(made)
    return made


def refusal(document: object, folder: Path, **options: bool) -> str:
    """The sentence that a document is refused with."""
    path = folder / "edit.json"
    data = document if isinstance(document, bytes) else str(document).encode()
    path.write_bytes(json.dumps(document).encode() if isinstance(document, dict) else data)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_edit(path, **options)
    assert time.perf_counter() - start < 1
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message


def control(edit: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {**edit, "control": {**edit["control"], **changes}}


def test_what_the_fuzzing_starts_from_is_projected(folder: Path) -> None:
    for document in fuzzing.VALID:
        assert fuzzing.outcome(json.dumps(document), folder) == "projected"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(PLAIN),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(PLAIN) | st.text(), inner, max_size=4),
    max_leaves=8,
)
quickly = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quickly
@given(st.data())
def test_any_value_in_any_place_is_refused_or_projected(folder: Path, data: st.DataObject) -> None:
    document = json.loads(json.dumps(data.draw(st.sampled_from(fuzzing.VALID))))
    place: Any = document
    key: Any = data.draw(st.sampled_from(sorted(document)))
    while isinstance(place[key], dict | list) and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JSON)
    fuzzing.fuzz_one(json.dumps(document), folder)


@quickly
@given(st.integers(0, 2**32))
def test_mutated_documents_are_refused_or_projected(folder: Path, seed: int) -> None:
    fuzzing.fuzz_one(fuzzing.make_document(random.Random(seed)), folder)


@quickly
@given(st.binary(max_size=60), st.integers(0, len(TEXT)), st.integers(0, 60))
@example(b"[" * 100_000, 0, 0)
def test_any_bytes_in_a_document_are_refused_or_projected(folder: Path, data: bytes, at: int, removed: int) -> None:
    text = TEXT.encode()
    fuzzing.fuzz_one(data, folder)
    fuzzing.fuzz_one(text[:at] + data + text[at + removed :], folder)


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


ARMS = {**SKELETON["control"]["source"], "l_shoulder": [-0.2, 0, 1.4], "l_elbow": [-0.3, 0, 1.1]}
SIX_JOINTS = {"type": "skeleton", "source": ARMS, "target": ARMS}
JOINTS = {str(index): [index, 0, 0] for index in range(MAX_JOINTS + 1)}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({**SKELETON, "a\nb" * 50: 1}, r"unknown key"),
        ({**SKELETON, "prompt": "x" * (MAX_PROMPT + 1)}, r"prompt: .* at most 2000 characters"),
        ({**SKELETON, "region": {"type": "spere"}}, r"region.type: \"spere\" is unknown \(did you mean 'sphere'\?\)"),
        (control(SKELETON, type="skelton"), r"control.type: .*did you mean 'skeleton'\?\); expected one of 'skel"),
        (control(SKELETON, type={}), r"control.type: \{\} is unknown; expected one of"),
        ({**SKELETON, "control": {}}, r"control.type: is missing; expected one of 'skeleton'"),
        (control(SKELETON, source=JOINTS), r"control.source: has 501 entries, at most 500"),
        (control(SKELETON, bones=[["neck", "nose"]] * (MAX_BONES + 1)), r"control.bones: has 501 entries"),
        (control(SKELETON, bones=[0] * 100_000), r"control.bones: has 100000 entries"),
        (control(SKELETON, source={"x" * 200: [0, 0, 0]}), r"control.source.*at most 100 characters"),
        ({**BOX, "control": {"type": "parts", "parts": [BOX["control"]] * (MAX_PARTS + 1)}}, r"101 entries"),
        ({**BOX, "control": {"type": "parts", "parts": [SIX_JOINTS] * 100}}, r"600 joints and 500 bones"),
        ({**BOX, "control": {"type": "parts", "parts": [IMAGES["control"]]}}, r"control.parts.0.type: \"images\""),
        (control(BOX, source={"size": [1, 1, 1e-9]}), r"control.source.size.2: .*greater than or equal to 0.000001"),
        (control(MESH, source={"mesh": "ball.ply", "scale": [1, 1, 0]}), r"control.source.scale.2: .*greater"),
        (control(MESH, source={"mesh": "ball.ply", "scale": "big"}), r"control.source.scale: .*valid number"),
        (control(MESH, source={"mesh": ""}), r"control.source.mesh: .*at least 1 character"),
        (control(MESH, source={"mesh": "a\0b"}), r"control.source.mesh: .*cannot be printed"),
        ({**SKELETON, "masks": "x" * 1001}, r"masks: .*at most 1000 characters"),
    ],
)
def test_fields_out_of_bounds_are_named(folder: Path, document: dict, words: str) -> None:
    assert re.search(words, refusal(document, folder))


def test_a_folder_or_nothing_in_the_place_of_edit_json(folder: Path) -> None:
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
        "masks": {**SKELETON, "masks": stated},
        "control.target": control(IMAGES, target=stated),
        "control.source.mesh": control(MESH, source={"mesh": stated}),
        "control.parts.1.target.mesh": {
            **BOX,
            "control": {"type": "parts", "parts": [BOX["control"], control(MESH, target={"mesh": stated})["control"]]},
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
        (folder / "edit.json").write_text(json.dumps({**SKELETON, "masks": stated}))
        assert load_edit(folder / "edit.json").masks == stated
    # A capture that is reached through a link is its own folder.
    (folder.parent / "elsewhere").symlink_to(folder)
    assert load_edit(folder.parent / "elsewhere/edit.json").masks == "not there"


def bomb(width: int, height: int) -> bytes:
    """A PNG file that says it has this size, and next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bomb(10_100, 10_000), "more than 100 megapixels"),
        (bomb(60_000, 60_000), "more than 100 megapixels"),
        (bomb(9_500, 9_500), "cannot be read as an image"),
        (bomb(0, 5), "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
    ],
)
def test_images_that_are_none_or_too_large_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "one.png").write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        load_control_images(tmp_path, ["one.jpg"], (8, 8), what="masks")
    assert "one.png" in str(caught.value) and str(caught.value).startswith("masks")


def test_images_of_any_damage_are_read_or_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in images.SUFFIXES:
        path = tmp_path / f"one{suffix}"
        Image.fromarray(generator.integers(0, 255, (20, 30, 3), np.uint8)).save(path)
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
            data[generator.integers(len(data))] = generator.integers(256)
            path.write_bytes(data)
            try:
                assert load_control_images(tmp_path, ["one.jpg"], (8, 8)).shape == (1, 8, 8, 3)
            except UserError as error:
                assert path.name in str(error)
        path.unlink()


def test_meshes_out_of_bounds_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    trimesh.Trimesh(ball.vertices * 1e7, ball.faces).export(tmp_path / "enormous.ply")
    header = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n"
    (tmp_path / "dangling.ply").write_text(header + faces)
    with zipfile.ZipFile(tmp_path / "bomb.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", bytes(20_000_000))
    (tmp_path / "mesh.pickle").write_bytes(b"")
    (tmp_path / "empty.ply").write_bytes(b"")
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "net.gltf").write_text(json.dumps({"buffers": [{"uri": "http://127.0.0.1:9/x.bin"}]}))
    (tmp_path / "away.gltf").write_text(json.dumps({"buffers": [{"uri": "../x.bin"}]}))
    (tmp_path / "void.gltf").write_text(json.dumps({"accessors": [{"count": 10**9}]}))
    monkeypatch.setattr(solids, "MAX_MESH_BYTES", 10_000_000)
    for name, words in {
        "enormous.ply": "beyond 1000000",
        "dangling.ply": "vertices that are not there",
        "bomb.3mf": "unpacks to 20000000 bytes",
        "void.gltf": "unpacks to 64000000000 bytes",
        "net.gltf": "no .bin file in its folder",
        "away.gltf": "no .bin file in its folder",
        "mesh.pickle": "ply, obj, stl, off, glb, gltf, 3mf, dae",
        "empty.ply": "cannot be read",
        "folder.ply": "does not exist",
        "x" * 300 + ".ply": "does not exist",
        "a\0.ply": "does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            load_mesh(tmp_path / name)
    monkeypatch.setattr(solids, "MAX_MESH_BYTES", 100)
    with pytest.raises(UserError, match="at most 100 are read"):
        load_mesh(folder / "ball.ply")


def test_triangles_are_counted_before_they_are_joined(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    scene = trimesh.Scene(ball)
    for index in range(9):
        scene.graph.update(f"copy {index}", geometry=next(iter(scene.geometry)))
    (tmp_path / "many.glb").write_bytes(scene.export(file_type="glb"))
    assert len(load_mesh(tmp_path / "many.glb").faces) == 800
    solids._read_mesh.cache_clear()
    monkeypatch.setattr(solids, "MAX_FACES", 700)
    with pytest.raises(UserError, match="has 800 triangles, at most 700"):
        load_mesh(tmp_path / "many.glb")


@pytest.mark.parametrize("kind", MESH_FORMATS)
def test_meshes_of_any_damage_are_read_or_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    try:
        exported: Any = (trimesh.Scene(ball) if kind == "gltf" else ball).export(file_type=kind)
    except ImportError:
        pytest.skip(f"a library that {kind} files need is not installed")
    if isinstance(exported, dict):
        for name, content in exported.items():
            (tmp_path / name).write_bytes(content)
        exported = exported["model.gltf"]
    whole = exported if isinstance(exported, bytes) else exported.encode()
    (tmp_path / f"whole.{kind}").write_bytes(whole)
    assert len(load_mesh(tmp_path / f"whole.{kind}").faces) == 80
    generator = np.random.default_rng(0)
    for index in range(40):
        data = bytearray(whole[: generator.integers(1, len(whole) + 1)] if index % 4 == 0 else whole)
        for at in generator.integers(len(data), size=generator.integers(1, 6)):
            data[at] = generator.choice(list(b"-.0e9 \0\xff"))
        path = tmp_path / f"{index}.{kind}"
        path.write_bytes(data)
        try:
            assert np.isfinite(load_mesh(path).triangles).all()
        except UserError as error:
            assert path.name in str(error)


def test_an_open_surface_is_drawn_and_all_meshes_together_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    trimesh.Trimesh(ball.vertices, ball.faces[:40]).export(folder / "open.ply")
    half = {"mesh": "open.ply", "position": [0, 0, 1], "scale": 0.5}
    part = {"type": "mesh", "source": half, "target": half}
    document = {**MESH, "control": {"type": "parts", "parts": [part, part, BOX["control"]]}}
    assert fuzzing.outcome(json.dumps(document), folder) == "projected"
    monkeypatch.setattr("qnerf_nerfstudio.controls.draw.MAX_FACES", 90)
    (folder / "edit.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="have 92 triangles in all, at most 90"):
        control_images(load_edit(folder / "edit.json"), folder, views(), list("abc"), torch.eye(3, 4), (12, 16))


@pytest.mark.parametrize("draw", ["depth", "normal"])
@pytest.mark.parametrize(
    ("place", "seen"),
    [
        ({"size": [1e6, 1e6, 1e6]}, True),
        ({"size": [1e6, 1e6, 1e-6], "rotation": [12, 34, 56]}, True),
        ({"size": [1e-6, 1e-6, 1e-6], "position": [0, 0, 1]}, False),
        ({"size": [1, 1, 1], "position": [1e6, -1e6, 1e6]}, False),
        ({"size": [1, 1, 1], "position": [0, 0, 500]}, False),
        ({"size": [10, 10, 10], "rotation": [1e6, -1e6, 1e6]}, True),
    ],
)
def test_solids_of_any_size_and_place_are_drawn_or_refused(folder: Path, draw: str, place: dict, seen: bool) -> None:
    document = control(BOX, source=place, target={"size": [1, 1, 1], "position": [0, 0, 1]}, draw=draw)
    (folder / "edit.json").write_text(json.dumps({**document, "region": {"type": "everywhere"}}))
    edit = load_edit(folder / "edit.json")
    arguments = (edit, folder, views(), list("abc"), torch.eye(3, 4), (24, 32))
    if not seen:
        with pytest.raises(UserError, match=r"control.source: the box is outside every view"):
            control_images(*arguments)
        return
    source, target = control_images(*arguments)
    for drawn in (source, target):
        assert drawn.isfinite().all() and drawn.min() >= 0 and 0 < drawn.max() <= 1
