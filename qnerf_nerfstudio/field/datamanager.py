"""QNerfDataManager: the capture's photos, their edited views, and rays with colour and query targets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.photos import EditedDataset
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import resample


@dataclass
class QNerfDataManagerConfig(VanillaDataManagerConfig):
    """Photos, edited views and query maps."""

    _target: type = field(default_factory=lambda: QNerfDataManager)
    edited_images: Path | None = None
    """Folder of edited views that replace the photos of the same name in the datasets. Set by the pipeline, so that
    ns-eval and ns-viewer see the edited scene."""


class QNerfDataManager(VanillaDataManager[EditedDataset]):
    """Hands out rays with the targets of the current stage.

    The capture's views are counted with the training views first and the held-out (eval) views after them.
    """

    config: QNerfDataManagerConfig

    def __init__(self, config: QNerfDataManagerConfig, *args: object, **kwargs: object) -> None:
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        self.codes: Float[Tensor, "N h w W"] | None = None
        """Query codes of the training views, all layers side by side at the finest layer's resolution."""
        self.code_widths: list[int] = []
        self.changed: Bool[Tensor, "N h w"] | None = None
        """Where training views see the region that the edit may change."""
        self.images: Float[Tensor, "N H W 3"] | None = None
        """Colour targets of the training views in the place of the photos."""
        self.use_edited_images(config.edited_images)

    def use_edited_images(self, folder: Path | None) -> None:
        """Let both datasets hand out the edited views in `folder` (None: the photos)."""
        self.config.edited_images = folder
        for dataset in (self.train_dataset, self.eval_dataset):
            dataset.edited_images = folder

    @property
    def filenames(self) -> list[Path]:
        """Photos of all views, training views first."""
        return [*self.train_dataset.image_filenames, *self.eval_dataset.image_filenames]

    @property
    def num_train(self) -> int:
        """Number of training views."""
        return len(self.train_dataset)

    def views(self) -> Views:
        """Cameras of all views in scene coordinates, on the CPU.

        Raises:
            UserError: Photos differ in size or share a name, or a camera is not a perspective one.
        """
        parts = [self.train_dataset.cameras, self.eval_dataset.cameras]
        heights = torch.cat([cameras.height.flatten() for cameras in parts])
        widths = torch.cat([cameras.width.flatten() for cameras in parts])
        if len(heights.unique()) > 1 or len(widths.unique()) > 1:
            raise UserError(
                f"{self.config.data}: the photos have different sizes ({int(widths.min())}x{int(heights.min())} to "
                f"{int(widths.max())}x{int(heights.max())}); qnerf-edit needs one size, rescale them first"
            )
        stems = [path.stem for path in self.filenames]
        if len(set(stems)) < len(stems):
            double = next(stem for stem in stems if stems.count(stem) > 1)
            raise UserError(f"{self.config.data}: several photos are called {double}; give each its own name")
        for cameras in parts:
            if (cameras.camera_type != CameraType.PERSPECTIVE.value).any():
                raise UserError(
                    f"{self.config.data}: camera_model is not a perspective one; undistort the photos to PINHOLE or "
                    f"OPENCV cameras first"
                )
        distortions = [
            torch.zeros(len(cameras), 6) if cameras.distortion_params is None else cameras.distortion_params
            for cameras in parts
        ]
        return Views(
            c2w=torch.cat([cameras.camera_to_worlds for cameras in parts]).cpu().float(),
            intrinsics=torch.cat(
                [torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=-1) for cameras in parts]
            )
            .cpu()
            .float(),
            distortion=torch.cat(distortions).cpu().float(),
            size=(int(heights[0]), int(widths[0])),
        )

    def photos(self, indices: range, size: tuple[int, int]) -> Float[Tensor, "V 3 h w"]:
        """Source photos of views in [0, 1], resampled to `size` (height, width)."""
        images = []
        for index in indices:
            held_out = index >= self.num_train
            dataset = self.eval_dataset if held_out else self.train_dataset
            image = dataset.photo(index - self.num_train if held_out else index)
            images.append(resample(image[..., :3].movedim(-1, 0), size))
        return torch.stack(images)

    def photos_outside(self, edited: Float[Tensor, "N H W 3"]) -> Float[Tensor, "N H W 3"]:
        """Edited training views with the photos' pixels where they do not see the region of the edit."""
        if self.changed is None:
            return edited
        size = (edited.shape[1], edited.shape[2])
        seen = F.interpolate(self.changed[:, None].float(), size, mode="nearest") > 0
        return torch.where(seen.movedim(1, -1), edited, self.photos(range(len(edited)), size).movedim(1, -1))

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Rays of training views with the targets of the current stage."""
        self.train_count += 1
        cached: Any = next(self.iter_train_image_dataloader)
        assert self.train_pixel_sampler is not None
        batch = self.train_pixel_sampler.sample(dict(cached))
        indices = batch["indices"]
        if self.images is not None:
            view, row, column = indices.cpu().unbind(-1)
            batch["image"] = self.images[view, row, column]
        ray_bundle = self.train_ray_generator(indices)
        if self.codes is not None:
            batch["queries"] = self._lookup(self.codes, indices, interpolate=True)
            batch["query_widths"] = self.code_widths
        if self.images is not None and self.changed is not None:
            # Photos teach the field everywhere; only what edited views show is held to the region.
            changed = self._lookup(self.changed[..., None], indices, interpolate=False)
            ray_bundle.metadata["changed"] = changed.to(ray_bundle.origins.device)
            batch["changed"] = changed.squeeze(-1)
        return ray_bundle, batch

    def _lookup(self, maps: Shaped[Tensor, "N h w C"], indices: Tensor, interpolate: bool) -> Shaped[Tensor, "R C"]:
        """Values of maps at pixels (view, row, column) of the photos, bilinear or nearest."""
        view, row, column = indices.cpu().unbind(-1)
        height, width = maps.shape[1:3]
        camera = self.train_dataset.cameras[0]
        y = (row + 0.5) * height / int(camera.height) - 0.5
        x = (column + 0.5) * width / int(camera.width) - 0.5
        if not interpolate:
            # The cell that a pixel lies in, as F.interpolate's "nearest" finds it.
            return maps[
                view, (y + 0.5).floor().long().clamp(0, height - 1), (x + 0.5).floor().long().clamp(0, width - 1)
            ]
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        top, left = y.floor().long().clamp(max=max(0, height - 2)), x.floor().long().clamp(max=max(0, width - 2))
        bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
        dy, dx = (y - top)[:, None], (x - left)[:, None]
        upper = torch.lerp(maps[view, top, left], maps[view, top, right], dx)
        lower = torch.lerp(maps[view, bottom, left], maps[view, bottom, right], dx)
        return torch.lerp(upper, lower, dy)
