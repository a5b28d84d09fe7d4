"""glTF files as exporters write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.solids import load_mesh

BALL = trimesh.creation.icosphere(radius=0.4).apply_translation((1.0, -2.0, 0.5))


def document(positions: NDArray, component: int, normalized: bool, uri: str, **more: Any) -> tuple[dict, bytes]:
    """A glTF document of the ball's triangles with stored positions, padded to four bytes, and its buffer."""
    size = positions.dtype.itemsize
    stride = -(-3 * size // 4) * 4
    rows = np.zeros((len(positions), stride // size), positions.dtype)
    rows[:, :3] = positions
    faces = BALL.faces.astype("<u4")
    stored = faces.tobytes() + rows.tobytes()
    position = {"bufferView": 1, "componentType": component, "count": len(rows), "type": "VEC3"}
    if normalized:
        position["normalized"] = True
    low, high = BALL.bounds
    node = {"mesh": 0, "translation": ((low + high) / 2).tolist(), "scale": [float((high - low).max() / 2)] * 3}
    return {
        "asset": {"version": "2.0"},
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1}, "indices": 0}]}],
        "buffers": [{"uri": uri, "byteLength": len(stored)}],
        "bufferViews": [
            {"buffer": 0, "byteLength": faces.nbytes},
            {"buffer": 0, "byteOffset": faces.nbytes, "byteLength": rows.nbytes, "byteStride": stride},
        ],
        "accessors": [{"bufferView": 0, "componentType": 5125, "count": faces.size, "type": "SCALAR"}, position],
        **more,
    }, stored


def write(folder: Path, written: dict, stored: bytes, name: str = "ball.bin") -> Path:
    (folder / name).write_bytes(stored)
    (folder / "ball.gltf").write_text(json.dumps(written))
    return folder / "ball.gltf"


def unit_vertices() -> NDArray:
    """The ball's vertices in [-1, 1]."""
    low, high = BALL.bounds
    return (BALL.vertices - (low + high) / 2) / ((high - low).max() / 2)


@pytest.mark.parametrize(("kind", "component", "one"), [("i1", 5120, 127), ("<i2", 5122, 32767)])
def test_normalised_positions_have_their_size(tmp_path: Path, kind: str, component: int, one: int) -> None:
    positions = (unit_vertices() * one).round().astype(kind)
    mesh = load_mesh(write(tmp_path, *document(positions, component, True, "ball.bin")))
    np.testing.assert_allclose(mesh.bounds, BALL.bounds, atol=0.4 / one)
    assert len(mesh.faces) == len(BALL.faces)


def test_integers_that_are_not_normalised_are_taken_as_they_are(tmp_path: Path) -> None:
    positions = (unit_vertices() * 100).round().astype("<i2")
    written, stored = document(positions, 5122, False, "ball.bin")
    written["nodes"][0]["scale"] = [0.004] * 3
    mesh = load_mesh(write(tmp_path, written, stored))
    np.testing.assert_allclose(mesh.bounds, BALL.bounds, atol=0.003)


def test_files_whose_names_are_percent_encoded_are_found(tmp_path: Path) -> None:
    positions = unit_vertices().astype("<f4")
    mesh = load_mesh(write(tmp_path, *document(positions, 5126, False, "my%20ball.bin"), name="my ball.bin"))
    np.testing.assert_allclose(mesh.bounds, BALL.bounds, atol=1e-5)


def test_primitives_without_positions_are_skipped(tmp_path: Path) -> None:
    written, stored = document(unit_vertices().astype("<f4"), 5126, False, "ball.bin")
    written["meshes"][0]["primitives"].append({"attributes": {}})
    written["meshes"].append({"primitives": [{"attributes": {}}]})
    written["nodes"].append({"mesh": 1})
    written["scenes"][0]["nodes"].append(1)
    mesh = load_mesh(write(tmp_path, written, stored))
    np.testing.assert_allclose(mesh.bounds, BALL.bounds, atol=1e-5)


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        ("KHR_draco_mesh_compression", "without Draco compression"),
        ("EXT_meshopt_compression", "gltfpack: without -c"),
        ("VENDOR_geometry", "without that extension"),
    ],
)
def test_extensions_that_hide_geometry_are_refused_by_name(tmp_path: Path, extension: str, words: str) -> None:
    positions = unit_vertices().astype("<f4")
    path = write(tmp_path, *document(positions, 5126, False, "ball.bin", extensionsRequired=[extension]))
    with pytest.raises(UserError, match=words) as caught:
        load_mesh(path)
    assert extension in str(caught.value)
