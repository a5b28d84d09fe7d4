"""QNerfDataManager: the capture's photos, their edited views, and rays with colour and query targets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.pixel_samplers import PixelSamplerConfig
from torch import Tensor

from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.capture.photos import EditedDataset
from qnerf_nerfstudio.capture.table import disjoint, with_frame_cameras
from qnerf_nerfstudio.field.losses import Objective
from qnerf_nerfstudio.field.no_views import NoCameras, NoViews
from qnerf_nerfstudio.field.pixels import RegionPixelSampler, RegionPixelSamplerConfig


@dataclass(frozen=True)
class Targets:
    """What the field trains on in a stage; by default the photos."""

    images: UInt8[Tensor, "N H W 3"] | None = None
    """Colours of the training views instead of the photos, in bytes."""
    edit_masks: Bool[Tensor, "N h w"] | None = None
    """Where training views see the region of influence; elsewhere `images` are the photos."""
    drawn_masks: Bool[Tensor, "N h w"] | None = None
    """Where a share of the rays is drawn, see `RegionPixelSamplerConfig`; None draws them everywhere."""
    codes: Float[Tensor, "N h w W"] | None = None
    """Query codes of the training views, all layers side by side at the finest layer's resolution."""
    code_widths: list[int] = field(default_factory=list)
    """Code channels of every layer."""
    objective: Objective = "rgb"
    """What shapes the density."""


@dataclass
class QNerfDataManagerConfig(VanillaDataManagerConfig):
    """Photos, edited views and query maps."""

    _target: type = field(default_factory=lambda: QNerfDataManager)
    pixel_sampler: PixelSamplerConfig = field(default_factory=RegionPixelSamplerConfig)
    """Specifies the pixel sampler."""
    edited_images: Path | None = None
    """Folder of edited views that replace the photos in ns-eval and ns-viewer; the run sets it."""


class QNerfDataManager(VanillaDataManager[EditedDataset]):
    """Hands out rays with the targets of the current stage."""

    config: QNerfDataManagerConfig

    def __init__(self, config: QNerfDataManagerConfig, *args: object, **kwargs: object) -> None:
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        self.targets = Targets()
        """What rays are handed out with."""
        self.use_edited_images(config.edited_images)
        if len(self.eval_dataset) == 0:
            self.eval_dataset.cameras = NoCameras()
            self.eval_dataloader = NoViews()

    def create_train_dataset(self) -> EditedDataset:
        """The training views, with the cameras of their frames."""
        self.train_dataparser_outputs, self._held_out = self._splits()
        return super().create_train_dataset()

    def create_eval_dataset(self) -> EditedDataset:
        """The held-out views, with the cameras of their frames."""
        scale = self.config.camera_res_scale_factor
        return self.dataset_type(dataparser_outputs=self._held_out, scale_factor=scale)

    def _splits(self) -> tuple[DataparserOutputs, DataparserOutputs]:
        training = self.train_dataparser_outputs
        splits = disjoint(training, self.dataparser.get_dataparser_outputs(split=self.test_split))
        data = Path(self.config.dataparser.data)
        training, held_out = (with_frame_cameras(split, data) for split in splits)
        return training, held_out

    def use_edited_images(self, folder: Path | None) -> None:
        """Let both datasets hand out the edited views in `folder` (None: the photos)."""
        self.config.edited_images = folder
        for dataset in (self.train_dataset, self.eval_dataset):
            dataset.edited_images = folder

    @property
    def capture(self) -> Capture:
        """What the photos are of."""
        data = Path(self.config.dataparser.data)
        to_scene = dataset_to_scene(self.train_dataparser_outputs, data)
        return Capture(data, self.train_dataset, self.eval_dataset, to_scene)

    def set_targets(self, targets: Targets) -> None:
        """Hand out these targets from now on."""
        self.targets = targets
        if isinstance(self.train_pixel_sampler, RegionPixelSampler):
            self.train_pixel_sampler.look_at(targets.drawn_masks)

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Rays of training views with the targets of the current stage."""
        self.train_count += 1
        cached: Any = next(self.iter_train_image_dataloader)
        assert self.train_pixel_sampler is not None
        batch = self.train_pixel_sampler.sample(dict(cached))
        indices, targets = batch["indices"], self.targets
        if targets.images is not None:
            view, row, column = indices.cpu().unbind(-1)
            batch["image"] = targets.images[view, row, column].float() / 255
        ray_bundle = self.train_ray_generator(indices)
        if targets.codes is not None:
            batch["queries"] = self._lookup(targets.codes, indices, interpolate=True)
            batch["query_widths"] = targets.code_widths
        if targets.edit_masks is not None:
            # Photos teach the field everywhere; only what edited views show is held to the region.
            sees_edit = self._lookup(targets.edit_masks[..., None], indices, interpolate=False)
            ray_bundle.metadata["sees_edit"] = sees_edit.to(ray_bundle.origins.device)
            batch["sees_edit"] = sees_edit.squeeze(-1)
        return ray_bundle, batch

    def _lookup(self, maps: Shaped[Tensor, "N h w C"], indices: Tensor, interpolate: bool) -> Shaped[Tensor, "R C"]:
        """Values of maps at pixels (view, row, column) of the photos, bilinear or nearest."""
        view, row, column = indices.cpu().unbind(-1)
        height, width = maps.shape[1:3]
        camera = self.train_dataset.cameras[0]
        y = (row + 0.5) * height / int(camera.height) - 0.5
        x = (column + 0.5) * width / int(camera.width) - 0.5
        if not interpolate:
            # The cell that a pixel lies in, as F.interpolate's "nearest-exact" finds it.
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
