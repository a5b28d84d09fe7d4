"""glTF files as exporters write them, made plain for trimesh, which reads quantised positions as they are stored."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

SWITCHES = {
    "KHR_draco_mesh_compression": "without Draco compression (in Blender: Data, Compression, off)",
    "EXT_meshopt_compression": "without meshopt compression (gltfpack: without -c)",
}
"""Required extensions that hide the geometry, and the exporter's switch."""
HARMLESS = ("KHR_mesh_quantization", "KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "KHR_xmp")
"""Beginnings of the names of extensions without which the geometry can be read."""
FLOAT = 5126
NORMALISED = {5120: ("i1", 127), 5121: ("u1", 255), 5122: ("<i2", 32767), 5123: ("<u2", 65535)}
"""Component types that positions may be stored in by KHR_mesh_quantization, and what stands for 1."""


def plain_gltf(data: bytes, resolve: Callable[[str], bytes]) -> bytes | None:
    """A glTF file of the same triangles with positions in floats and nothing else; None where the file is so already.

    Args:
        data: A .gltf or .glb file.
        resolve: Gives the contents of a file that it refers to.

    Raises:
        ValueError: The file needs an extension that cannot be read.
    """
    document, binary = gltf_parts(data)
    for name in document.get("extensionsRequired", []):
        if not str(name).startswith(HARMLESS):
            raise ValueError(f"it needs {name}; export it {SWITCHES.get(str(name), 'without that extension')}")
    primitives = [each for mesh in document.get("meshes", []) for each in mesh.get("primitives", [])]
    stated = [each.get("attributes", {}).get("POSITION") for each in primitives]
    accessors = document.get("accessors", [])
    quantised = {index for index in stated if index is not None and accessors[index]["componentType"] != FLOAT}
    if not quantised and None not in stated:
        return None
    contents = [_contents(buffer, binary, resolve) for buffer in document.get("buffers", [])]
    for mesh in document["meshes"]:
        mesh["primitives"] = [
            {key: each[key] for key in ("indices", "mode") if key in each}
            | {"attributes": {"POSITION": each["attributes"]["POSITION"]}}
            for each in mesh["primitives"]
            if "POSITION" in each.get("attributes", {})
        ]
    empty = {number for number, mesh in enumerate(document["meshes"]) if not mesh["primitives"]}
    for node in document.get("nodes", []):
        if node.get("mesh") in empty:
            del node["mesh"]
    for index in sorted(quantised):
        positions = _positions(accessors[index], document["bufferViews"], contents)
        view = {"buffer": len(contents), "byteOffset": 0, "byteLength": positions.nbytes}
        contents.append(positions.tobytes())
        document["bufferViews"].append(view)
        accessors[index] = {
            "bufferView": len(document["bufferViews"]) - 1,
            "componentType": FLOAT,
            "count": len(positions),
            "type": "VEC3",
            "min": positions.min(0).tolist(),
            "max": positions.max(0).tolist(),
        }
    document["buffers"] = [
        {"byteLength": len(each), "uri": f"data:application/octet-stream;base64,{base64.b64encode(each).decode()}"}
        for each in contents
    ]
    for key in ("extensionsRequired", "extensionsUsed", "animations", "skins"):
        document.pop(key, None)
    return json.dumps(document).encode()


def gltf_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document of a file, and the binary chunk of a .glb."""
    if data[:4] != b"glTF":
        return json.loads(data), b""
    length = int.from_bytes(data[12:16], "little")
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def _contents(buffer: dict[str, Any], binary: bytes, resolve: Callable[[str], bytes]) -> bytes:
    uri = buffer.get("uri")
    if uri is None:
        return binary[: buffer["byteLength"]]
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition(",")[2])
    return resolve(uri)


def _positions(accessor: dict[str, Any], views: list[dict[str, Any]], contents: list[bytes]) -> Float[NDArray, "N 3"]:
    """Positions in floats of an accessor that stores integers, normalised or not (KHR_mesh_quantization)."""
    if "sparse" in accessor or "bufferView" not in accessor:
        raise ValueError("its quantised positions are sparse; export them as floats")
    kind, one = NORMALISED[accessor["componentType"]]
    view, size = views[accessor["bufferView"]], np.dtype(kind).itemsize
    stored = np.ndarray(
        (accessor["count"], 3),
        kind,
        contents[view["buffer"]],
        view.get("byteOffset", 0) + accessor.get("byteOffset", 0),
        (view.get("byteStride", 3 * size), size),
    )
    values = stored.astype(np.float32)
    return np.maximum(values / one, -1) if accessor.get("normalized", False) else values
