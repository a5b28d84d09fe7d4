"""A capture as it lies on the disk, checked before nerfstudio reads it: transforms.json, its cameras and its photos."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType
from nerfstudio.data.dataparsers.nerfstudio_dataparser import MAX_AUTO_RESOLUTION
from numpy.typing import NDArray
from PIL import Image

from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import is_inside
from qnerf_nerfstudio.common.images import MAX_PIXELS, open_image
from qnerf_nerfstudio.common.wording import error_text, quoted

LIMIT = 1e9
"""Numbers beyond this are mistakes: single precision would turn them, or their products, into infinities."""
SKEW = 0.05
"""How much the axes of a camera may differ in length, as a share of the longest one."""
CAMERA_MODELS = tuple(name for name, kind in CAMERA_MODEL_TO_TYPE.items() if kind == CameraType.PERSPECTIVE)
ORIENTATIONS = ("pca", "up", "vertical", "none")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
"""What a file may be whatever its suffix says."""
PHOTO_MODES, MASK_MODES = ("L", "RGB", "RGBA"), ("1", "L", "P")
"""Pixel formats that nerfstudio's dataset reads as what they are."""


def check_capture(data: Path, outside_paths: bool = False, downscale: int | None = None) -> None:
    """Check everything of a capture that nerfstudio's dataparser and datasets rely on.

    Every photo's header is read, and its data looked at without being kept: PNGs by their checksums, JPEGs by decoding
    them at an eighth of their size, other formats in full.

    Args:
        data: Folder with transforms.json, or such a file.
        outside_paths: Whether the files that it names may lie outside of its folder.
        downscale: The dataparser's downscale_factor; None lets it choose, as it does by default.

    Raises:
        UserError: Anything is missing, unreadable, out of its range, or does not fit the rest.
    """
    if downscale is not None and downscale < 1:
        raise UserError(
            f"--pipeline.datamanager.dataparser.downscale-factor is {downscale}; expected at least 1, or leave it out"
        )
    transforms = transforms_path(data)
    if not data.exists():
        raise UserError(f"--data: {data} does not exist; name a capture's folder, as ns-process-data makes them")
    document = _read(transforms)
    frames = _frames(transforms, document)
    _check_camera(transforms, document, frames)
    _check_poses(transforms, frames)
    _check_placement(transforms, document)
    _check_splits(transforms, document, frames)
    _Files(transforms, outside_paths, downscale).check(document, frames)


def _read(transforms: Path) -> dict[str, Any]:
    """The document in a transforms file."""
    if not os.path.isfile(transforms):
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


def _holders(document: dict[str, Any], frames: list[dict[str, Any]], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a field of the camera is stated, and what to call it: once for all photos, or in every frame."""
    if key in document:
        yield key, document
        return
    for number, frame in enumerate(frames):
        yield f"frames[{number}].{key}", frame


def _check_camera(transforms: Path, document: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    """Check the camera model, focal lengths, centres, sizes and distortion."""
    model = document.get("camera_model", "OPENCV")
    if model not in CAMERA_MODELS:
        raise UserError(
            f"{transforms}: camera_model is {quoted(model)}, not a perspective one ({', '.join(CAMERA_MODELS)}); "
            f"undistort the photos to PINHOLE cameras first, for example with colmap image_undistorter"
        )
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        positive = key not in ("cx", "cy")
        for where, holder in _holders(document, frames, key):
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
            raise UserError(f"{transforms}: {key}: {unknown[0]} is the file_path of no frame; write it as there")
    if not document["train_filenames"]:
        raise UserError(f"{transforms}: train_filenames is empty; list the photos to train on, or leave all lists out")


class _Files:
    """The files that a transforms file names.

    Args:
        transforms: The transforms file; paths start from its folder.
        outside: Whether they may lie outside of this folder.
        downscale: The dataparser's downscale_factor.
    """

    def __init__(self, transforms: Path, outside: bool, downscale: int | None) -> None:
        self.transforms, self.folder, self.outside = transforms, transforms.parent, outside
        self.downscale = downscale

    def check(self, document: dict[str, Any], frames: list[dict[str, Any]]) -> None:
        """Check photos, masks and sparse points."""
        points = document.get("ply_file_path")
        if points is not None:
            self._check_names("ply_file_path", [points])
        names = [frame["file_path"] for frame in frames]
        photos = self._located("file_path", names, "images_")
        self._check_there("photos", photos)
        size, alpha = self._inspect(photos[0], PHOTO_MODES)
        for photo in photos[1:]:
            other, other_alpha = self._inspect(photo, PHOTO_MODES)
            if other != size:
                raise UserError(
                    f"{self.transforms}: the photos have different sizes ({photos[0]} is {_size(size)}, {photo} "
                    f"{_size(other)}); qnerf-edit needs one size, rescale them first"
                )
            if other_alpha != alpha:
                raise UserError(
                    f"{self.transforms}: of {photos[0]} and {photo} only one has an alpha channel; save all as RGB"
                )
        if self.downscale == 1:
            self._check_stated(document, frames, size)
        self._check_masks(frames, size)

    def _check_stated(self, document: dict[str, Any], frames: list[dict[str, Any]], size: tuple[int, int]) -> None:
        """Check that w and h are those of the photos."""
        for key, length in zip(("w", "h"), size, strict=True):
            for where, holder in _holders(document, frames, key):
                if int(holder[key]) != length:
                    raise UserError(
                        f"{self.transforms}: {where} is {quoted(holder[key])}, but the photos are {_size(size)} "
                        f"pixels; state their size, and fl_x, fl_y, cx and cy for it"
                    )

    def _check_masks(self, frames: list[dict[str, Any]], size: tuple[int, int]) -> None:
        """Check that every photo has a mask of its size, or none has one; nerfstudio wants the same of depth maps."""
        for key in ("mask_path", "depth_file_path"):
            names = [frame[key] for frame in frames if key in frame]
            if names and len(names) != len(frames):
                raise UserError(
                    f"{self.transforms}: {key} is in {len(names)} of {len(frames)} frames; state it in all of them, or "
                    f"in none"
                )
            if key == "depth_file_path":
                # Only their names are: no depth map is read.
                self._check_names(key, names)
                continue
            masks = self._located(key, names, "masks_")
            self._check_there("masks", masks)
            for mask in masks:
                found = self._inspect(mask, MASK_MODES)[0]
                if found != size:
                    raise UserError(
                        f"{self.transforms}: mask_path: {mask} is {_size(found)} pixels, the photos are {_size(size)}; "
                        f"make masks of their size"
                    )

    def _check_names(self, key: str, names: list[Any]) -> None:
        """Check that file names are names, and stay in the capture's folder."""
        for name in names:
            if not isinstance(name, str) or not name.isprintable():
                raise UserError(f"{self.transforms}: {key}: {quoted(name)} is no path; expected one from {self.folder}")
            if not (self.outside or is_inside(self.folder, name)):
                raise UserError(
                    f"{self.transforms}: {key}: {name} leads out of the capture's folder; put the file there, or allow "
                    f"it by --pipeline.outside-paths True"
                )

    def _located(self, key: str, names: list[Any], prefix: str) -> list[Path]:
        """The files that nerfstudio reads: where photos are large, those of a folder of smaller ones."""
        self._check_names(key, names)
        if names and self.downscale is None:
            self.downscale = self._automatic_downscale(names, prefix)
        if self.downscale not in (None, 1):
            names = [f"{prefix}{self.downscale}/{Path(name).name}" for name in names]
            self._check_names(key, names)
        return [self.folder / name for name in names]

    def _automatic_downscale(self, names: list[str], prefix: str) -> int:
        """The factor that nerfstudio chooses by the first photo and by which folders there are."""
        name = names[0]
        if not os.path.isfile(self.folder / name):
            self._check_there("photos", [self.folder / each for each in names])
        longest = max(self._inspect(self.folder / name, PHOTO_MODES)[0])
        power = 0
        while longest / 2**power > MAX_AUTO_RESOLUTION:
            if not (self.folder / f"{prefix}{2 ** (power + 1)}" / Path(name).name).exists():
                break
            power += 1
        return 2**power

    def _check_there(self, what: str, paths: list[Path]) -> None:
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"{self.transforms}: {len(missing)} of {len(paths)} {what} are missing, the first is {missing[0]}; put "
                f"them there, or take their frames out"
            )

    @staticmethod
    def _inspect(path: Path, modes: tuple[str, ...]) -> tuple[tuple[int, int], bool]:
        """Width and height of an image that can be decoded, and whether it has an alpha channel."""
        try:
            with open_image(path, FORMATS) as image:
                size, mode = image.size, image.mode
                if image.format == "PNG":
                    image.verify()
                else:
                    image.draft("RGB", (1, 1))
                    image.load()
        except Image.DecompressionBombError as error:
            raise UserError(
                f"{path} has more than {MAX_PIXELS // 10**6} megapixels; save it smaller, edits are made at a fraction"
            ) from error
        except Exception as error:  # Pillow's readers raise whatever broken files make them
            raise UserError(
                f"{path} cannot be read as an image ({error_text(error)}); copy or export it again, as PNG or JPEG"
            ) from error
        if mode not in modes:
            raise UserError(
                f"{path} has pixels of the kind {mode!r}; expected {', '.join(modes)}, convert it to 8 bits"
            )
        return size, mode == "RGBA"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
