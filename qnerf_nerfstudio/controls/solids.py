"""Solid controls: meshes and boxes, ray cast through every view and drawn as depth or as normals."""

import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from torch import Tensor
from trimesh.resolvers import FilePathResolver

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.wording import error_text
from qnerf_nerfstudio.controls.gltf import gltf_parts, plain_gltf
from qnerf_nerfstudio.edit.schema import LARGEST

FARTHEST = 0.2
"""Shade of the farthest point of a solid in a depth image; the nearest is 1, the background 0."""
MESH_FORMATS = ("ply", "obj", "stl", "off", "glb", "gltf", "3mf", "dae")
"""Suffixes of the mesh files that are read; what else trimesh reads, such as archives of files, is not."""
MAX_FACES = 5_000_000
"""Meshes with more triangles than this are refused: a control is a proxy."""
MAX_MESH_BYTES = 500_000_000
"""Mesh files larger than this are refused before they are read."""
_LARGEST_VALUE = 64
"""Bytes of the largest value of a glTF file, a matrix."""


@dataclass(frozen=True)
class Surface:
    """What every pixel sees of a solid."""

    depth: Float[Tensor, "V H W"]
    """Distance along the optical axis to the nearest surface at the pixel's centre, infinite where there is none."""
    normals: Float[Tensor, "V H W 3"]
    """Unit normal of that surface in world coordinates, towards the camera; 0 where there is none."""


class _Buffers(FilePathResolver):
    """The files that a mesh file may refer to: the buffers of a glTF file in its folder. Materials are not needed."""

    left = MAX_MESH_BYTES

    def get(self, name: str) -> bytes:
        folder = Path(self.parent).resolve()
        # Exporters write spaces and the like as percent signs and digits.
        path = (folder / (name if (folder / name).is_file() else unquote(name))).resolve()
        if path.suffix != ".bin" or not path.is_relative_to(folder) or not path.is_file():
            raise FileNotFoundError(f"it refers to {name}, which is no .bin file in its folder")
        self.left -= path.stat().st_size
        if self.left < 0:
            raise ValueError(f"it refers to files of more than {MAX_MESH_BYTES} bytes")
        return path.read_bytes()


def _refuse_bombs(file: BinaryIO, kind: str) -> None:
    """Raise where a small file would fill the memory: a packed one, or glTF values that are stated but not there."""
    size = 0
    if kind == "3mf":
        size = sum(each.file_size for each in zipfile.ZipFile(file).infolist())
    elif kind in ("gltf", "glb"):
        stated = gltf_parts(file.read())[0].get("accessors", [])
        size = sum(each["count"] * _LARGEST_VALUE for each in stated if "bufferView" not in each)
    if size > MAX_MESH_BYTES:
        raise ValueError(f"it unpacks to {size} bytes, at most {MAX_MESH_BYTES} are read")
    file.seek(0)


def load_mesh(path: Path) -> trimesh.Trimesh:
    """Read a mesh file; all parts of a scene are joined. It need not be watertight.

    Raises:
        UserError: The file is missing, too large or not a mesh, has no triangles or too many, or a coordinate is not
            finite or too large.
    """
    if not os.path.isfile(path):
        raise UserError(f"mesh {path} does not exist; edit.json's control names it, relative to edit.json")
    if path.suffix.lower().removeprefix(".") not in MESH_FORMATS:
        raise UserError(
            f"mesh {path} is of no format that is read ({', '.join(MESH_FORMATS)}); export it as one of them"
        )
    status = path.stat()
    if status.st_size > MAX_MESH_BYTES:
        raise UserError(
            f"mesh {path} has {status.st_size} bytes, at most {MAX_MESH_BYTES} are read; simplify the proxy"
        )
    return _read_mesh(path, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_mesh(path: Path, changed: int) -> trimesh.Trimesh:
    """A mesh file as it was when last changed: `qnerf pose` asks for it at every move of a drag."""
    kind = path.suffix.lower().removeprefix(".")
    try:
        with path.open("rb") as file, np.errstate(all="ignore"):
            _refuse_bombs(file, kind)
            resolver, source = _Buffers(str(path)), file
            if kind in ("gltf", "glb") and (plain := plain_gltf(file.read(), resolver.get)) is not None:
                source, kind = BytesIO(plain), "gltf"
            source.seek(0)
            scene = trimesh.load_scene(
                source,
                file_type=kind,
                resolver=resolver,
                process=False,
                skip_materials=True,
            )
        parts = {name: len(getattr(part, "faces", ())) for name, part in scene.geometry.items()}
        # Counted before they are joined: a small file can place a mesh any number of times.
        faces = sum(parts[scene.graph[node][1]] for node in scene.graph.nodes_geometry)
        mesh = scene.to_mesh() if 0 < faces <= MAX_FACES else None
    except Exception as error:  # trimesh's readers raise whatever their parsers do
        raise UserError(
            f"mesh {path} cannot be read ({error_text(error)}); export it again ({', '.join(MESH_FORMATS)})"
        ) from error
    if faces > MAX_FACES:
        raise UserError(f"mesh {path} has {faces} triangles, at most {MAX_FACES} are read; simplify the proxy")
    if mesh is None or len(mesh.faces) == 0:
        raise UserError(f"mesh {path} has no triangles; export a surface, not points or lines")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices) or mesh.vertices.shape[1] != 3:
        raise UserError(f"mesh {path} has triangles between vertices that are not there; export it again")
    if not np.isfinite(mesh.vertices).all() or np.abs(mesh.vertices).max() > LARGEST:
        raise UserError(
            f"mesh {path} has vertices that are not finite or beyond {LARGEST:.0f}; export it again in other units"
        )
    return mesh


def placement_matrix(
    position: Sequence[float], rotation: Sequence[float], scale: Sequence[float]
) -> Float[Tensor, "4 4"]:
    """The affine map of a placement: scale, then rotate, then move.

    Args:
        position: Where the origin goes.
        rotation: Degrees about the fixed x, y and z axes, in this order.
        scale: Factors along x, y and z.
    """
    matrix = trimesh.transformations.euler_matrix(*map(math.radians, rotation), axes="sxyz")
    matrix = matrix @ np.diag([*scale, 1.0])
    matrix[:3, 3] = position
    return torch.from_numpy(matrix).float()


def transform_mesh(mesh: trimesh.Trimesh, matrix: Float[Tensor, "r 4"]) -> trimesh.Trimesh:
    """A copy of a mesh moved by an affine map [3 or 4, 4]."""
    square = np.eye(4)
    square[: len(matrix)] = matrix.double().numpy()
    moved = mesh.copy()
    moved.apply_transform(square)
    return moved


def box_mesh() -> trimesh.Trimesh:
    """The cube with sides of length 1 around the origin."""
    return trimesh.creation.box()


def raycast(views: Views, meshes: Sequence[trimesh.Trimesh]) -> Surface:
    """See meshes (in world coordinates) through every pixel of every view, lens distortion included."""
    height, width = views.size
    depth = torch.full((len(views), height * width), math.inf)
    normals = torch.zeros(len(views), height * width, 3)
    scene = trimesh.util.concatenate(list(meshes))
    assert isinstance(scene, trimesh.Trimesh)
    if len(views) == 0 or len(scene.faces) == 0:
        return Surface(depth.unflatten(1, views.size), normals.unflatten(1, views.size))
    # Embree is single precision: around the origin it is most exact.
    shift = scene.bounds.mean(0)
    scene.apply_translation(-shift)
    for index in range(len(views)):
        origins, directions = (each[0].double() for each in views[index : index + 1].rays())
        seen = directions.isfinite().all(-1).nonzero().squeeze(-1)
        faces = torch.from_numpy(
            scene.ray.intersects_first(
                (origins[seen].numpy() - shift), torch.nn.functional.normalize(directions[seen], dim=-1).numpy()
            )
        )
        hit = faces >= 0
        pixels, faces = seen[hit], faces[hit]
        corners = torch.from_numpy(np.array(scene.triangles)).double()[faces]
        normal = torch.from_numpy(np.array(scene.face_normals)).double()[faces]
        # The distance to the triangle's plane in double precision; the ray tracer says which triangle it is.
        start = corners[:, 0] - (origins[pixels] - torch.from_numpy(shift))
        along = (directions[pixels] * normal).sum(-1)
        distance = (start * normal).sum(-1) / torch.where(along.abs() < 1e-12, torch.full_like(along, 1e-12), along)
        depth[index, pixels] = distance.float()
        normals[index, pixels] = (-along.sign()[:, None] * normal).float()
    return Surface(depth.unflatten(1, views.size), normals.unflatten(1, views.size))


def depth_images(surfaces: Sequence[Surface]) -> list[Float[Tensor, "V 3 H W"]]:
    """Depth as ControlNet's depth models read it: bright is near, linear in inverse depth, black is nothing.

    All surfaces of a view share one range, so that a part which does not move keeps its shade.
    """
    nearness = torch.stack([torch.where(each.depth > 0, 1 / each.depth, 0) for each in surfaces])
    present = nearness > 0
    nearest = nearness.amax(dim=(0, 2, 3), keepdim=True)
    farthest = torch.where(present, nearness, torch.inf).amin(dim=(0, 2, 3), keepdim=True)
    share = (nearness - farthest) / (nearest - farthest).clamp_min(1e-9)
    shades = torch.where(present, FARTHEST + (1 - FARTHEST) * share.nan_to_num(1.0), 0.0)
    return [shade[:, None].expand(-1, 3, -1, -1).contiguous() for shade in shades]


def normal_images(views: Views, surfaces: Sequence[Surface]) -> list[Float[Tensor, "V 3 H W"]]:
    """Normals as ControlNet 1.1's normalbae reads them: red faces left, green up, blue the camera; black is nothing."""
    images = []
    for each in surfaces:
        local = torch.einsum("vhwi,vij->vhwj", each.normals, views.c2w[:, :, :3].cpu())
        local = (local * local.new_tensor([-1.0, 1.0, 1.0])).clamp(-1, 1)
        present = each.depth.isfinite()[..., None]
        images.append(torch.where(present, (local + 1) / 2, 0.0).movedim(-1, 1))
    return images
