"""A capture as it lies on the disk, checked before nerfstudio reads it: transforms.json, its cameras and its photos."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType
from numpy.typing import NDArray

from qnerf_nerfstudio.capture.capture_files import CaptureFiles, holders
from qnerf_nerfstudio.capture.colmap import find_model
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.capture.table import DISTORTION
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.wording import error_text, quoted

LIMIT = 1e9
"""Numbers beyond this are mistakes: single precision would turn them, or their products, into infinities."""
SKEW = 0.05
"""How much the axes of a camera may differ in length, as a share of the longest one."""
CAMERA_MODELS = tuple(name for name, kind in CAMERA_MODEL_TO_TYPE.items() if kind == CameraType.PERSPECTIVE)
ORIENTATIONS = ("pca", "up", "vertical", "none")


def check_capture(
    data: Path, outside_paths: bool = False, downscale: int | None = None, photos: Path | None = None
) -> None:
    """Check everything of a capture that nerfstudio's dataparser and datasets rely on.

    Every photo's header is read, and its data looked at without being kept: PNGs by their checksums, JPEGs by decoding
    them at an eighth of their size, other formats in full.

    Args:
        data: Folder with transforms.json, or such a file.
        outside_paths: Whether the files that it names may lie outside of its folder.
        downscale: The dataparser's downscale_factor; None lets it choose, as it does by default.
        photos: Another folder that these files may lie in.

    Raises:
        UserError: Anything is missing, unreadable, out of its range, or does not fit the rest.
    """
    if downscale is not None and downscale < 1:
        raise UserError(f"nerfstudio-data --downscale-factor is {downscale}; expected at least 1, or leave it out")
    transforms = transforms_path(data)
    if not data.exists():
        raise UserError(f"--data: {data} does not exist; name a capture's folder, as ns-process-data makes them")
    document = _read(transforms)
    frames = _frames(transforms, document)
    _check_camera(transforms, document, frames)
    _check_poses(transforms, frames)
    _check_placement(transforms, document)
    _check_splits(transforms, document, frames)
    CaptureFiles(transforms, outside_paths, downscale, photos).check(document, frames)


def _read(transforms: Path) -> dict[str, Any]:
    """The document in a transforms file."""
    if not os.path.isfile(transforms):
        if model := find_model(transforms.parent):
            raise UserError(
                f"{transforms} does not exist, but COLMAP's model in {model} does; add colmap --colmap-path {model} to "
                f"the command"
            )
        raise UserError(
            f"{transforms} does not exist; --data is a nerfstudio dataset, make one of photos or a video with "
            f"ns-process-data"
        )

    def refuse(literal: str) -> None:
        raise ValueError(f"{literal} is no number of JSON")

    try:
        document = json.loads(transforms.read_text(encoding="utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise UserError(f"{transforms} is nested too deep; expected the transforms.json of ns-process-data") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{transforms} is not valid JSON ({error_text(error)}); write it again, or make it anew with "
            f"ns-process-data"
        ) from error
    if not isinstance(document, dict):
        raise UserError(
            f"{transforms} holds no JSON object; expected cameras and frames as ns-process-data writes them"
        )
    return document


def _frames(transforms: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The frames, each with a file_path that no other one shares."""
    frames = document.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{transforms}: frames: expected a list of objects, one for each photo")
    if len(frames) < 2:
        raise UserError(f"{transforms}: frames: has {len(frames)}; an edit needs at least 2 photos of the scene")
    names: dict[str, str] = {}
    for number, frame in enumerate(frames):
        name = frame.get("file_path")
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"{transforms}: frames[{number}].file_path: expected the photo's path, from {transforms}")
        stem = Path(name).stem
        if stem in names:
            raise UserError(
                f"{transforms}: frames[{number}].file_path: {name} and {names[stem]} are both called {stem}; give each "
                f"photo its own name"
            )
        names[stem] = name
    return frames


def _is_number(value: Any, low: float = -LIMIT) -> bool:
    """Whether a value is a number between `low` and LIMIT, both excluded; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < LIMIT


def _is_matrix(value: Any, rows: int) -> bool:
    """Whether a value is a list of `rows` lists of 4 numbers."""
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, list) and len(row) == 4 and all(map(_is_number, row)) for row in value)
    )


def _check_camera(transforms: Path, document: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    """Check the camera model, focal lengths, centres, sizes and distortion."""
    for where, holder in [("", document), *((f"frames[{number}].", frame) for number, frame in enumerate(frames))]:
        model = holder.get("camera_model", "OPENCV")
        fisheye = holder.get("is_fisheye", False) is not False
        if model not in CAMERA_MODELS or fisheye:
            key, value = ("is_fisheye", holder["is_fisheye"]) if fisheye else ("camera_model", model)
            raise UserError(
                f"{transforms}: {where}{key} is {quoted(value)}, not a perspective camera "
                f"({', '.join(CAMERA_MODELS)}); undistort the photos to PINHOLE cameras first, for example with colmap "
                f"image_undistorter"
            )
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        positive = key not in ("cx", "cy")
        for where, holder in holders(document, frames, key):
            if key not in holder:
                angle = document.get("camera_angle_x")
                hint = "; state it there, or once for all frames"
                if key.startswith("fl") and angle is not None:
                    hint += ": nerfstudio does not read camera_angle_x; they are w / (2 tan(camera_angle_x / 2))"
                raise UserError(f"{transforms}: {where} is missing{hint}")
            if not _is_number(holder[key], 1e-6 if positive else -LIMIT):
                kind = "positive number of pixels" if positive else "number of pixels"
                raise UserError(f"{transforms}: {where} is {quoted(holder[key])}; expected a {kind}")
    for where, holder in [("", document), *((f"frames[{number}].", frame) for number, frame in enumerate(frames))]:
        for key in DISTORTION:
            if key in holder and not _is_number(holder[key]):
                raise UserError(f"{transforms}: {where}{key} is {quoted(holder[key])}; expected a number")
        parameters = holder.get("distortion_params", [0] * 6)
        if not isinstance(parameters, list) or len(parameters) != 6 or not all(map(_is_number, parameters)):
            raise UserError(
                f"{transforms}: {where}distortion_params: expected 6 numbers, {', '.join(DISTORTION)}; or leave it out"
            )


def _check_poses(transforms: Path, frames: list[dict[str, Any]]) -> None:
    """Check that every camera is rotated and moved, and that they do not all stand in one place."""
    poses = []
    for number, frame in enumerate(frames):
        where = f"{transforms}: frames[{number}].transform_matrix ({frame['file_path']})"
        stated = frame.get("transform_matrix")
        if not _is_matrix(stated, 4):
            found = "is missing" if stated is None else "is wrong"
            raise UserError(f"{where} {found}; expected 4 rows of 4 finite numbers, camera to world")
        pose = np.array(stated, dtype=np.float64)
        if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-3):
            raise UserError(f"{where}: the last row is {pose[3].tolist()}; expected 0, 0, 0, 1 (a row is a list)")
        if not _is_rotation(pose[:3, :3]):
            raise UserError(
                f"{where}: its left upper 3x3 block is no rotation (the camera's axes are not at right angles, not of "
                f"one length, or mirrored); export the cameras again"
            )
        poses.append(pose)
    centres = np.stack(poses)[:, :3, 3]
    middle = centres.mean(axis=0)
    if np.abs(centres - middle).max() <= 1e-5 * max(np.abs(middle).max(), 1e-3):
        raise UserError(
            f"{transforms}: transform_matrix: the cameras of all frames stand in one place, or so far from the origin "
            f"that single precision cannot tell them apart; an edit needs several viewpoints, around the origin"
        )


def _is_rotation(block: NDArray[np.float64]) -> bool:
    """Whether a 3x3 block is a rotation, scaled or not, up to SKEW."""
    lengths = np.linalg.svd(block, compute_uv=False)
    return bool(lengths[2] > max(1e-6, (1 - SKEW) * lengths[0]) and np.linalg.det(block) > 0)


def _check_placement(transforms: Path, document: dict[str, Any]) -> None:
    """Check what says how the dataset's coordinates came about."""
    orientation = document.get("orientation_override", "up")
    if orientation not in ORIENTATIONS:
        raise UserError(
            f"{transforms}: orientation_override is {quoted(orientation)}; expected one of {', '.join(ORIENTATIONS)}"
        )
    if "applied_transform" in document:
        applied = document["applied_transform"]
        if not _is_matrix(applied, 3) or abs(np.linalg.det(np.array(applied, dtype=np.float64)[:, :3])) < 1e-9:
            raise UserError(
                f"{transforms}: applied_transform: expected 3 rows of 4 finite numbers that can be inverted; or leave "
                f"it out"
            )
    if not _is_number(document.get("applied_scale", 1), 1e-9):
        raise UserError(
            f"{transforms}: applied_scale is {quoted(document['applied_scale'])}; expected a positive number"
        )


def _check_splits(transforms: Path, document: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    """Check the lists of photos for training and for evaluation, where there are any."""
    keys = ("train_filenames", "val_filenames", "test_filenames")
    if not any(key in document for key in keys):
        return
    known = {Path(frame["file_path"]) for frame in frames}
    for key in keys:
        names = document.get(key, [])
        if key not in document and key != "test_filenames":
            raise UserError(f"{transforms}: {key} is missing; list the photos of every split, or of none")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{transforms}: {key}: expected a list of file paths, as the frames have them")
        unknown = [name for name in names if Path(name) not in known]
        if unknown:
            raise UserError(f"{transforms}: {key}: {quoted(unknown[0])} is no frame's file_path; write it as there")
    if not document["train_filenames"]:
        raise UserError(f"{transforms}: train_filenames is empty; list the photos to train on, or leave all lists out")
