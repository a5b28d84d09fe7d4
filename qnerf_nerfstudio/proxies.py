"""`qnerf proxy`: a mesh of the subject of a capture, for controls of the types rig and mesh."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import trimesh
from jaxtyping import Bool, Float, UInt8
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.eval_utils import eval_setup
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import focus_of, invert_affine
from qnerf_nerfstudio.capture.capture import Capture, read_capture
from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import atomic_write
from qnerf_nerfstudio.controls.draw import placed_skeletons
from qnerf_nerfstudio.controls.images import load_masks
from qnerf_nerfstudio.controls.region import VoxelRegion, shape_region, visual_hull
from qnerf_nerfstudio.controls.solids import MESH_FORMATS, transform_mesh
from qnerf_nerfstudio.edit.reading import edit_path, load_edit
from qnerf_nerfstudio.edit.schema import BoxRegion, Edit, skeleton_parts
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.field.grids import stated_points
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.field.proxy import extract_mesh
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.rigs.matter import read_anatomy, read_matter
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.studio.plain import train_plain

CLEAR = 0.4
"""Nothing is before the cameras up to this share of the distance between the nearest one and what they look at."""
POINT_ROWS = 40
"""Rays along the height of each view that points are looked for with."""
MASK_SIZE = 256
"""Shorter side in pixels of the masks that a hull is made of."""


@dataclass(frozen=True)
class Subject:
    """Where the subject is, in the coordinates of transforms.json."""

    box: tuple[float, float, float, float, float, float] | None
    """Centre and side lengths of a box around it."""
    masks: Path | None
    """Folder of masks, one for each photo, white where it is."""
    edit: Path | None
    """An edit.json whose skeleton stands in it."""


def make_proxy(
    data: Path | None,
    run: Path | None,
    subject: Subject,
    out: Path | None,
    faces: int,
    iterations: int,
    console: Console,
) -> Path:
    """Write a mesh of the subject, in the coordinates of transforms.json.

    Args:
        data: The capture, which a field is trained of first.
        run: A run that keeps its field of the photos, instead of a capture.
        subject: Where the subject is.
        out: The mesh file; its suffix says the format. None: proxies/subject.ply in the data folder.
        faces: Number of triangles.
        iterations: Training steps of the field of a capture.
        console: Where progress is printed.

    Returns:
        The mesh file.

    Raises:
        UserError: There is nothing to make a mesh of, or the file is there already.
    """
    if (data is None) == (run is None):
        raise UserError("name the capture with --data, or a run that has its field with --run, and not both")
    if data is not None:
        out = _free(out, data)
        check_capture(data)
        edit = _skeleton_edit(subject, data)
        model, capture = quick_field(data, iterations)
    else:
        assert run is not None
        model, capture = _of_run(run)
        out = _free(out, capture.data)
        edit = _skeleton_edit(subject, capture.data)
    with torch.no_grad():
        box, belongs = _place(subject, edit, capture, model)
        mesh = extract_mesh(model.density, box, belongs, faces)
    mesh = transform_mesh(mesh, invert_affine(capture.to_scene))
    with atomic_write(out) as temporary:
        temporary.write_bytes(_exported(mesh, out.suffix.removeprefix(".").lower()))
    size = " x ".join(f"{side:.3g}" for side in mesh.extents)
    console.print(f"proxy: {out}, {len(mesh.faces)} triangles, {size} in units of transforms.json", soft_wrap=True)
    return out


def _free(out: Path | None, data: Path) -> Path:
    """The file to write, which is not there yet."""
    out = out or transforms_path(data).parent / "proxies/subject.ply"
    if out.suffix.lower().removeprefix(".") not in MESH_FORMATS:
        raise UserError(f"--out {out} has no suffix of a mesh file ({', '.join(MESH_FORMATS)}); name it proxy.ply")
    if out.exists():
        raise UserError(f"{out} is there already; name another file with --out, nothing is overwritten")
    return out


def _exported(mesh: trimesh.Trimesh, kind: str) -> bytes:
    written = mesh.export(file_type=kind)
    return written.encode() if isinstance(written, str) else bytes(written)


def quick_field(data: Path, iterations: int) -> tuple[QNerfModel, Capture]:
    """A field of a capture's photos after a few training steps, which leave nothing on disk.

    Raises:
        UserError: The capture cannot be read.
    """
    settings = copy.deepcopy(qnerf_edit_tiny.config)
    views = read_capture(data).views()
    focus, _ = focus_of(views)
    nearest = float((views.c2w[:, :, 3] - focus).norm(dim=-1).min())
    # What a field may not put before its cameras is no fog there.
    settings.pipeline.model.near_plane = CLEAR * nearest  # pyright: ignore[reportAttributeAccessIssue]
    with tempfile.TemporaryDirectory() as folder:
        return _ready(train_plain(data, Path(folder), settings, iterations=iterations))


def _of_run(run: Path) -> tuple[QNerfModel, Capture]:
    """The field of the photos that a run keeps."""
    kept = EditArtifacts(run / "edit").source_field
    if not kept.path.exists():
        raise UserError(f"--run {run} keeps no field of its photos yet; let it go on to its first fit, or use --data")
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="inference")
    model, capture = _ready(pipeline)
    model.begin_stage(0, "rgb", kept.load())
    return model, capture


def field_points(
    data: Path, run: Path | None, iterations: int
) -> tuple[Float[NDArray, "P 3"], UInt8[NDArray, "P 3"]] | None:
    """Points on the surfaces of a field of the photos, in the coordinates of transforms.json, and their colours.

    Args:
        data: The capture.
        run: A run that keeps its field.
        iterations: Training steps of a quick field instead; without these and a run there are no points.

    Raises:
        UserError: The run keeps none, or both are named.
    """
    if iterations < 0 or (iterations and run is not None):
        raise UserError("--field-iterations trains a field where no --run has one; leave one of them out")
    if run is None and not iterations:
        return None
    if run is None:
        check_capture(data)
    model, capture = quick_field(data, iterations) if run is None else _of_run(run)
    return stated_points(model, capture.views(), capture.to_scene, POINT_ROWS)


def _ready(pipeline: Pipeline) -> tuple[QNerfModel, Capture]:
    """The field of a pipeline, ready to be asked, and the capture that it is of."""
    model, manager = pipeline.model, pipeline.datamanager
    assert isinstance(model, QNerfModel) and isinstance(manager, QNerfDataManager)
    return model.eval(), manager.capture


Belongs = Callable[[Float[Tensor, "P 3"]], Bool[Tensor, "P"]]


def _place(
    subject: Subject, edit: Edit | None, capture: Capture, model: QNerfModel
) -> tuple[Float[Tensor, "2 3"], Belongs | None]:
    """The box that a mesh is looked for in, in scene coordinates, and what in it belongs to the subject."""
    if subject.box is not None:
        if min(subject.box[3:]) <= 0:
            raise UserError(f"--box: the sides {subject.box[3:]} must be longer than 0; state centre and side lengths")
        stated = BoxRegion(type="box", position=subject.box[:3], size=subject.box[3:])
        region = shape_region(stated, capture.to_scene, None)
        return region.box, region.contains
    if subject.masks is not None:
        region = _hull(subject.masks, capture, model)
        return region.box, region.contains
    assert edit is not None
    before, _ = placed_skeletons(skeleton_parts(edit.control), capture.to_scene)
    skeleton = Skeleton.joined([Skeleton.named(*each) for each in before])
    owners = read_anatomy(read_matter(model.density, skeleton), skeleton).owners
    return owners.box, lambda points: owners(points) >= 0


def _skeleton_edit(subject: Subject, data: Path) -> Edit | None:
    """The edit whose skeleton says where the subject is; None where a box or masks do."""
    if subject.box is not None or subject.masks is not None:
        return None
    path = edit_path(data, subject.edit)
    edit = load_edit(path) if path.exists() else None
    if edit is None or not skeleton_parts(edit.control):
        raise UserError(
            f"where is the subject? State --box with centre and side lengths, --masks, or a skeleton in {path} (qnerf "
            f"pose makes one)"
        )
    return edit


def _hull(folder: Path, capture: Capture, model: QNerfModel) -> VoxelRegion:
    views = capture.views()
    scale = MASK_SIZE / min(views.size)
    size = (round(views.size[0] * scale), round(views.size[1] * scale))
    masks = load_masks(folder, capture.names, views.size, size)
    hull = visual_hull(views, masks, model.scene_box.aabb.cpu())
    if hull is None:
        raise UserError(f"--masks {folder}: no part of the scene is white in the masks of most photos that see it")
    # A cell of space around what the masks show, so that they do not cut its surface.
    grown = F.max_pool3d(hull.cells[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    return VoxelRegion(hull.box, grown)
