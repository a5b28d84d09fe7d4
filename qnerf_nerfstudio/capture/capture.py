"""A capture: its photos, its cameras and its sparse points."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.utils.io import load_from_json
from numpy.typing import NDArray
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views, invert_affine, transform_cameras
from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.capture.colmap import parser_of, photos_of
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.capture.photos import EditedDataset
from qnerf_nerfstudio.capture.table import disjoint, with_frame_cameras
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import resample

MAX_POINTS = 60_000
"""Of more sparse points, a random choice is read."""


@dataclass(frozen=True)
class Capture:
    """A captured dataset as nerfstudio reads it. Training views come first, held-out (eval) views after them."""

    data: Path
    """Its folder, or its transforms file."""
    training: EditedDataset
    """The training views."""
    held_out: EditedDataset
    """The views that nothing is trained on."""
    to_scene: Float[Tensor, "3 4"]
    """Takes points in the coordinates of transforms.json to the coordinates of the scene."""

    @property
    def filenames(self) -> list[Path]:
        """Photos of all views."""
        return [*self.training.image_filenames, *self.held_out.image_filenames]

    @property
    def names(self) -> list[str]:
        """File names of all photos."""
        return [path.name for path in self.filenames]

    @property
    def masks(self) -> list[Path]:
        """Masks of all views that have one."""
        return [*self.training.masks, *self.held_out.masks]

    @property
    def num_train(self) -> int:
        """Number of training views."""
        return len(self.training)

    def views(self) -> Views:
        """Cameras of all views in scene coordinates, on the CPU.

        Raises:
            UserError: Photos differ in size or share a name, or a camera is not a perspective one.
        """
        parts = [split.cameras for split in (self.training, self.held_out) if len(split) > 0]
        heights = torch.cat([cameras.height.flatten() for cameras in parts])
        widths = torch.cat([cameras.width.flatten() for cameras in parts])
        if len(heights.unique()) > 1 or len(widths.unique()) > 1:
            raise UserError(
                f"{self.data}: the photos have different sizes ({int(widths.min())}x{int(heights.min())} to "
                f"{int(widths.max())}x{int(heights.max())}); qnerf-edit needs one size, rescale them first"
            )
        stems = [path.stem for path in self.filenames]
        if len(set(stems)) < len(stems):
            double = next(stem for stem in stems if stems.count(stem) > 1)
            raise UserError(f"{self.data}: several photos are called {double}; give each its own name")
        if any((cameras.camera_type != CameraType.PERSPECTIVE.value).any() for cameras in parts):
            raise UserError(
                f"{self.data}: camera_model is not a perspective one; undistort the photos to PINHOLE or OPENCV "
                f"cameras first"
            )
        return Views(
            c2w=torch.cat([cameras.camera_to_worlds for cameras in parts]).cpu().float(),
            intrinsics=torch.cat([_intrinsics(cameras) for cameras in parts]).cpu().float(),
            distortion=torch.cat([_distortion(cameras) for cameras in parts]).cpu().float(),
            size=(int(heights[0]), int(widths[0])),
        )

    def dataset_views(self) -> Views:
        """The cameras of `views` in the coordinates of transforms.json."""
        views = self.views()
        return replace(views, c2w=transform_cameras(views.c2w, invert_affine(self.to_scene)))

    def photos(self, view_indices: range, size: tuple[int, int]) -> Float[Tensor, "V 3 h w"]:
        """Photos of views in [0, 1], resampled to `size` (height, width)."""
        images = []
        for index in view_indices:
            held_out = index >= self.num_train
            dataset = self.held_out if held_out else self.training
            image = dataset.photo(index - self.num_train if held_out else index)
            images.append(resample(image[..., :3].movedim(-1, 0), size))
        return torch.stack(images)


def read_capture(data: Path) -> Capture:
    """The capture in a folder, or of a transforms file, checked before anything is read.

    A folder without transforms.json may hold COLMAP's model.

    Raises:
        UserError: The capture cannot be used.
    """
    with parser_of(data) as parser:
        check_capture(parser.data, photos=photos_of(parser))
        splits = disjoint(*(parser.setup().get_dataparser_outputs(split) for split in ("train", "val")))
        training, held_out = (with_frame_cameras(split, parser.data) for split in splits)
        to_scene = dataset_to_scene(training, parser.data)
    return Capture(data, EditedDataset(training), EditedDataset(held_out), to_scene)


def _intrinsics(cameras: Cameras) -> Float[Tensor, "V 4"]:
    return torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=-1)


def _distortion(cameras: Cameras) -> Float[Tensor, "V 6"]:
    stated = cameras.distortion_params
    return torch.zeros(len(cameras), 6) if stated is None else stated


def sparse_points(data: Path) -> tuple[Float[NDArray, "P 3"], NDArray[np.uint8]] | None:
    """Sparse points in the coordinates of transforms.json and their colours (bytes, [P, 3]), where it names some."""
    with parser_of(data) as parser:
        transforms = transforms_path(parser.data)
        name = load_from_json(transforms).get("ply_file_path")
        if name is None or not (transforms.parent / name).is_file():
            return None
        points = trimesh.load(transforms.parent / name, process=False)
    if not isinstance(points, trimesh.PointCloud) or len(points.vertices) == 0:
        return None
    chosen = np.random.default_rng(0).permutation(len(points.vertices))[:MAX_POINTS]
    colours = np.full((len(points.vertices), 3), 160, dtype=np.uint8)
    if len(points.colors) == len(colours):
        colours = np.asarray(points.colors)[:, :3].astype(np.uint8)
    return np.asarray(points.vertices)[chosen], colours[chosen]
