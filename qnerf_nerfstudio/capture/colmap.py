"""Captures that hold COLMAP's sparse model instead of a transforms.json, made into ones that hold both."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import MAX_AUTO_RESOLUTION, NerfstudioDataParserConfig
from nerfstudio.data.utils.colmap_parsing_utils import Camera, Image, qvec2rotmat, read_model
from nerfstudio.process_data.colmap_utils import parse_colmap_camera_params
from numpy.typing import NDArray

from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.capture.table import INTRINSICS, SIZES, common_fields, frame_camera
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import FORMATS, open_image
from qnerf_nerfstudio.common.wording import error_text

MODELS = ("colmap/sparse/0", "sparse/0", "sparse")
"""Where a capture's model is looked for."""
UPRIGHT = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
"""COLMAP's y points down; nerfstudio's z points up. ns-process-data applies the same."""


@dataclass
class ConvertedDataParserConfig(NerfstudioDataParserConfig):
    """Nerfstudio's dataparser of a transforms.json that was made from COLMAP's model."""

    photos: Path = Path()
    """The capture's own folder, in which photos and masks lie."""


def photos_of(parser: DataParserConfig) -> Path | None:
    """The folder, besides that of transforms.json, in which a capture's files lie."""
    return parser.photos if isinstance(parser, ConvertedDataParserConfig) else None


def find_model(data: Path) -> Path | None:
    """Where a capture without transforms.json holds COLMAP's model, from its folder on; None where it holds none."""
    return next((Path(name) for name in MODELS if _is_model(data / name)), None)


@contextlib.contextmanager
def parser_of(data: Path) -> Iterator[NerfstudioDataParserConfig]:
    """How nerfstudio reads a capture; of one that holds COLMAP's model alone, a transforms.json is there for a while.

    Raises:
        UserError: COLMAP's model cannot be read.
    """
    model = None if transforms_path(data).exists() else find_model(data)
    if model is None:
        yield NerfstudioDataParserConfig(data=data)
        return
    with tempfile.TemporaryDirectory() as folder:
        parser = ColmapDataParserConfig(data=data, colmap_path=model)
        write_transforms(parser, Path(folder))
        yield converted(parser, Path(folder))


def converted(parser: ColmapDataParserConfig, folder: Path) -> ConvertedDataParserConfig:
    """Settings that read what `write_transforms` wrote as `parser` would read the model."""
    given = {each.name for each in fields(NerfstudioDataParserConfig)} - {"_target", "data", "downscale_factor"}
    same = {each.name: getattr(parser, each.name) for each in fields(parser) if each.name in given}
    return ConvertedDataParserConfig(data=folder / "transforms.json", photos=parser.data, downscale_factor=1, **same)


def write_transforms(parser: ColmapDataParserConfig, folder: Path) -> None:
    """Write a COLMAP model as transforms.json and sparse points, as ns-process-data does.

    Args:
        parser: How the model is to be read.
        folder: Where to write.

    Raises:
        UserError: There is no model, or it cannot be read.
    """
    path = parser.data / parser.colmap_path
    cameras, images, points = _read(path)
    upright = UPRIGHT if parser.assume_colmap_world_coordinate_convention else np.eye(4)[:3]
    factor = parser.downscale_factor or _automatic_downscale(parser, images)
    frames = [_frame(parser, path, cameras, image, upright, factor) for image in images]
    own = ("file_path", "mask_path", "transform_matrix")
    once = common_fields([{key: each for key, each in frame.items() if key not in own} for frame in frames])
    document: dict[str, Any] = {**once, "applied_transform": upright.tolist()}
    document["frames"] = [{key: each for key, each in frame.items() if key not in once} for frame in frames]
    folder.mkdir(parents=True, exist_ok=True)
    if parser.load_3D_points and points:
        positions = np.array([point.xyz for point in points]) @ upright[:, :3].T
        colours = np.array([point.rgb for point in points], dtype=np.uint8)
        trimesh.PointCloud(positions, colors=colours).export(folder / "sparse_pc.ply")
        document["ply_file_path"] = "sparse_pc.ply"
    write_json(folder / "transforms.json", document)


def _is_model(path: Path) -> bool:
    return any((path / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))


def _read(path: Path) -> tuple[dict[int, Camera], list[Image], list[Any]]:
    """Cameras, images by their names and points of a model."""
    if not _is_model(path):
        raise UserError(
            f"{path} holds no COLMAP model (cameras, images and points3D as .bin or .txt); name its folder by colmap "
            f"--colmap-path, from --data on"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read = read_model(path)
    except Exception as error:  # struct, ValueError, KeyError, …: whatever broken files make the reader raise
        raise UserError(f"{path} cannot be read as a COLMAP model ({error_text(error)}); write it anew") from error
    if read is None:
        raise UserError(f"{path} lacks images or points3D beside its cameras; copy the whole model there")
    cameras, images, points = read
    if not images:
        raise UserError(f"{path} holds no image: COLMAP placed no photo; take more photos that overlap")
    return cameras, sorted(images.values(), key=lambda image: image.name), list(points.values())


def _frame(
    parser: ColmapDataParserConfig,
    path: Path,
    cameras: dict[int, Camera],
    image: Image,
    upright: NDArray[np.float64],
    factor: int,
) -> dict[str, Any]:
    """An image of the model as a frame of transforms.json."""
    try:
        camera = parse_colmap_camera_params(cameras[image.camera_id])
    except (KeyError, NotImplementedError) as error:  # no such camera, or a kind that nerfstudio refuses so
        raise UserError(
            f"{path}: the camera of {image.name} is of no kind that nerfstudio reads ({error_text(error)}); undistort "
            f"the photos to PINHOLE cameras first, for example with colmap image_undistorter"
        ) from error
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = qvec2rotmat(image.qvec), image.tvec
    c2w = np.concatenate([upright @ np.linalg.inv(w2c), [[0, 0, 0, 1]]])
    # COLMAP's cameras look along z with y down, nerfstudio's along -z with y up.
    c2w[:3, 1:3] *= -1
    photo = _scaled(parser.data / parser.images_path, image.name, factor)
    if factor != 1 and (size := _size(photo)) is not None:
        resized = frame_camera(camera, {}).resized(size)
        camera |= {key: getattr(resized, key) for key in (*INTRINSICS, *SIZES)}
    frame = {"file_path": photo.absolute().as_posix(), "transform_matrix": c2w.tolist(), **camera}
    if parser.masks_path is not None:
        mask = _scaled(parser.data / parser.masks_path, image.name, factor).with_suffix(".png")
        frame["mask_path"] = mask.absolute().as_posix()
    return frame


def _scaled(folder: Path, name: str, factor: int) -> Path:
    """A photo, or its smaller version."""
    return (folder if factor == 1 else folder.with_name(f"{folder.name}_{factor}")) / name


def _size(photo: Path) -> tuple[int, int] | None:
    """Width and height of a photo; None where it cannot be read, which its check tells."""
    try:
        with open_image(photo, FORMATS) as image:
            return image.size
    except Exception:  # Pillow's readers raise whatever broken files make them
        return None


def _automatic_downscale(parser: ColmapDataParserConfig, images: list[Image]) -> int:
    """The factor that nerfstudio would choose by the first photo and by which folders there are."""
    folder, name = parser.data / parser.images_path, images[0].name
    longest, factor = max(_size(folder / name) or (0,)), 1
    while longest / factor > MAX_AUTO_RESOLUTION and _scaled(folder, name, 2 * factor).is_file():
        factor *= 2
    return factor
