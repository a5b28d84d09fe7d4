"""The camera of every frame of a transforms.json, and which views are held out: what all readers of a capture go by.

Fields may be stated once or in every frame; photos may be smaller than stated, in folders that nerfstudio looks for."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.utils.io import load_from_json

from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common.images import FORMATS, open_image, upright_size

DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""In the order of nerfstudio's distortion parameters."""
SIZES = ("w", "h")
INTRINSICS = ("fl_x", "fl_y", "cx", "cy")


@dataclass(frozen=True)
class FrameCamera:
    """The intrinsics of one frame, in pixels."""

    fl_x: float
    fl_y: float
    cx: float
    cy: float
    w: int
    h: int
    distortion: tuple[float, ...]
    """k1, k2, k3, k4, p1, p2."""

    def resized(self, size: tuple[int, int]) -> "FrameCamera":
        """The same camera with pictures of another size (width, height)."""
        x, y = size[0] / self.w, size[1] / self.h
        scaled = {"fl_x": self.fl_x * x, "cx": self.cx * x, "fl_y": self.fl_y * y, "cy": self.cy * y}
        return replace(self, **scaled, w=size[0], h=size[1])


def frame_camera(document: dict[str, Any], frame: dict[str, Any]) -> FrameCamera:
    """The camera of a frame: what the document states for all frames counts before what the frame states, as
    nerfstudio reads it.

    Raises:
        KeyError: A field is stated in neither.
    """
    stated = {**frame, **document}
    parameters = stated.get("distortion_params") or [stated.get(key, 0.0) for key in DISTORTION]
    return FrameCamera(
        **{key: float(stated[key]) for key in INTRINSICS},
        **{key: int(stated[key]) for key in SIZES},
        distortion=tuple(map(float, parameters)),
    )


def with_frame_cameras(outputs: DataparserOutputs, data: Path) -> DataparserOutputs:
    """What the nerfstudio dataparser made of a dataset, with the cameras of its frames at the size of its photos.

    Nerfstudio scales cameras by the downscale factor, whatever the size of the smaller photos is, and reads some fields
    only where all are stated in one place.
    """
    if len(outputs.image_filenames) == 0:
        return outputs
    document = load_from_json(transforms_path(data))
    frames = {Path(frame["file_path"]).stem: frame for frame in document["frames"]}
    rows = [at_photo_size(frame_camera(document, frames[path.stem]), path) for path in outputs.image_filenames]
    old = outputs.cameras

    def column(key: str) -> torch.Tensor:
        return torch.tensor([[getattr(row, key)] for row in rows])

    cameras = Cameras(
        camera_to_worlds=old.camera_to_worlds,
        fx=column("fl_x"),
        fy=column("fl_y"),
        cx=column("cx"),
        cy=column("cy"),
        width=column("w"),
        height=column("h"),
        distortion_params=torch.tensor([row.distortion for row in rows]),
        camera_type=CameraType.PERSPECTIVE,
        times=old.times,
        metadata=old.metadata,
    )
    return replace(outputs, cameras=cameras)


def disjoint(training: DataparserOutputs, held_out: DataparserOutputs) -> tuple[DataparserOutputs, DataparserOutputs]:
    """The splits with every photo in one of them: in both, it is held out, unless nothing would be left to train on."""
    trained, kept = set(training.image_filenames), set(held_out.image_filenames)
    if not trained & kept:
        return training, held_out
    if trained - kept:
        return _without(training, kept), held_out
    return training, _without(held_out, trained)


def _without(outputs: DataparserOutputs, photos: set[Path]) -> DataparserOutputs:
    """A split without some photos."""
    rows = [row for row, path in enumerate(outputs.image_filenames) if path not in photos]

    def chosen(files: list[Path] | None) -> list[Path] | None:
        return None if files is None else [files[row] for row in rows]

    depths = {"depth_filenames": chosen(outputs.metadata.get("depth_filenames"))}
    return replace(
        outputs,
        image_filenames=[outputs.image_filenames[row] for row in rows],
        mask_filenames=chosen(outputs.mask_filenames),
        cameras=outputs.cameras[torch.tensor(rows, dtype=torch.long)],
        metadata={**outputs.metadata, **depths},
    )


def at_photo_size(camera: FrameCamera, photo: Path) -> FrameCamera:
    """The camera with pictures of the size of a photo's file, turned upright where the camera says so."""
    with open_image(photo, FORMATS) as image:
        return camera.resized(upright_size(image, (camera.w, camera.h)))


def common_fields(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all rows have in common."""
    first, *others = rows
    return {key: value for key, value in first.items() if all(row.get(key) == value for row in others)}
