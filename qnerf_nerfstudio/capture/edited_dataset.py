"""The edited views as a dataset of their own, which any other method can train on."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float
from numpy.typing import NDArray

from qnerf_nerfstudio.capture.table import INTRINSICS, SIZES, common_fields, frame_camera
from qnerf_nerfstudio.common.files import write_json


def write_dataset(root: Path, transforms: Path, size: tuple[int, int]) -> None:
    """Write transforms.json beside the edited views in `root`/images, and carry the capture's sparse points along.

    Args:
        root: The run's edit/ folder.
        transforms: The capture's transforms.json.
        size: Height and width of the edited views.
    """
    meta = json.loads(transforms.read_text(encoding="utf-8"))
    points = meta.get("ply_file_path")
    if points is not None and (transforms.parent / points).is_file():
        shutil.copyfile(transforms.parent / points, root / "sparse_pc.ply")
    else:
        meta.pop("ply_file_path", None)
    write_json(root / "transforms.json", edited_transforms(meta, size))


def add_points(root: Path, points: Float[NDArray, "P 3"], colours: NDArray[np.uint8]) -> None:
    """Give the dataset sparse points, which splatfacto starts from, where it has none.

    Args:
        root: The run's edit/ folder.
        points: In the coordinates of transforms.json.
        colours: Bytes, [P, 3].
    """
    meta = json.loads((root / "transforms.json").read_text(encoding="utf-8"))
    if "ply_file_path" in meta or len(points) == 0:
        return
    trimesh.PointCloud(points, colors=colours).export(root / "sparse_pc.ply")
    write_json(root / "transforms.json", {**meta, "ply_file_path": "sparse_pc.ply"})


def edited_transforms(meta: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The capture's transforms.json for its edited views, whose cameras may have been rescaled to `size`."""
    edited = {key: value for key, value in meta.items() if key != "frames"}
    if "ply_file_path" in meta:
        edited["ply_file_path"] = "sparse_pc.ply"

    def rename(path: str) -> str:
        return f"images/{Path(path).stem}.png"

    for key in ("train_filenames", "val_filenames", "test_filenames"):
        if key in meta:
            edited[key] = [rename(path) for path in meta[key]]
    # Depths and masks of the photos say nothing about the edited scene.
    dropped = ("depth_file_path", "mask_path")
    frames = [{**_without(frame, dropped), "file_path": rename(frame["file_path"])} for frame in meta["frames"]]
    # The cameras at the size of the edited views: what all frames share stays stated once.
    cameras = [frame_camera(meta, frame).resized((size[1], size[0])) for frame in meta["frames"]]
    rows = [{key: getattr(camera, key) for key in (*INTRINSICS, *SIZES)} for camera in cameras]
    once = {key: value for key, value in common_fields(rows).items() if key in meta or key in SIZES}
    frames = [{**_without(frame, row), **_without(row, once)} for frame, row in zip(frames, rows, strict=True)]
    return {**_without(edited, rows[0]), **once, "frames": frames}


def _without(row: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}
