"""A capture in its own coordinates, those of transforms.json: cameras, photos and points."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.io import load_from_json
from numpy.typing import NDArray
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views, invert_affine, transform_cameras
from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.field.datamanager import QNerfDataManager, QNerfDataManagerConfig

MAX_POINTS = 60_000
"""Of more sparse points, a random choice is shown."""


def read_capture(data: Path) -> QNerfDataManager:
    """The capture with all of its photos.

    Raises:
        UserError: The capture cannot be used.
    """
    check_capture(data)
    manager = QNerfDataManagerConfig(data=data, dataparser=NerfstudioDataParserConfig(data=data)).setup(
        device="cpu", test_mode="val"
    )
    assert isinstance(manager, QNerfDataManager)
    return manager


def in_dataset_coordinates(views: Views, to_scene: Tensor) -> Views:
    """Cameras in the coordinates of transforms.json."""
    return replace(views, c2w=transform_cameras(views.c2w, invert_affine(to_scene)))


def focus_of(views: Views) -> tuple[Tensor, float]:
    """The point closest to all optical axes, and the median distance of the cameras from it."""
    axes, eyes = -views.c2w[:, :, 2].double(), views.c2w[:, :, 3].double()
    across = torch.eye(3).double() - axes[:, :, None] * axes[:, None]
    focus = torch.linalg.lstsq(across.sum(0), (across @ eyes[..., None]).sum(0)).solution[:, 0]
    return focus.float(), float((eyes - focus).norm(dim=-1).median().clamp_min(1e-6))


def sparse_points(data: Path) -> tuple[Float[NDArray, "P 3"], NDArray[np.uint8]] | None:
    """Sparse points and their colours (bytes, [P, 3]), where transforms.json names some."""
    transforms = data if data.suffix == ".json" else data / "transforms.json"
    name = load_from_json(transforms).get("ply_file_path")
    if name is None or not (transforms.parent / name).exists():
        return None
    points = trimesh.load(transforms.parent / name, process=False)
    if not isinstance(points, trimesh.PointCloud) or len(points.vertices) == 0:
        return None
    chosen = np.random.default_rng(0).permutation(len(points.vertices))[:MAX_POINTS]
    colours = np.full((len(points.vertices), 3), 160, dtype=np.uint8)
    if len(points.colors) == len(colours):
        colours = np.asarray(points.colors)[:, :3].astype(np.uint8)
    return np.asarray(points.vertices)[chosen], colours[chosen]
