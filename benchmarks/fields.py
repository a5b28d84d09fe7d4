"""The final field of an edit, trained on edited views that any recipe made: what all recipes are judged by."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.projection import project_edit
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManager, Targets
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.run.stages import photos_outside
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.studio.plain import train_plain


def split_capture(capture: Path, folder: Path, every: int) -> Path:
    """A dataset of the capture's photos; one in `every` views, from the second on, is not trained on (1: all are)."""
    meta = json.loads((capture / "transforms.json").read_text())
    for frame in meta["frames"]:
        frame["file_path"] = os.path.relpath(capture / frame["file_path"], folder)
    names = [frame["file_path"] for frame in meta["frames"]]
    held_out = names[1::every] if every > 1 else []
    meta["train_filenames"] = [name for name in names if name not in held_out]
    meta["val_filenames"] = meta["test_filenames"] = held_out
    write_json(folder / "transforms.json", meta)
    return folder


@dataclass
class Judge:
    """Trains fields for one capture as the product trains its final field: from a field of the photos, inside the
    region of the edit."""

    capture: Path
    """The capture with its edit.json."""
    work: Path
    """Folder for datasets, runs and the photos' field; may be discarded afterwards."""
    edit: TrainerConfig
    """Settings of the fields."""

    def train(self, edited: Tensor, every: int) -> tuple[VanillaPipeline, Path]:
        """Train a field on edited views [V, 3, H, W] in the order of the capture's frames; one in `every` of them, from
        the second on, is left out.

        Returns:
            The trained pipeline, and its dataset.
        """
        data = split_capture(self.capture, self.work / f"split-{every}", every)
        settings = self.edit.pipeline
        assert isinstance(settings, QNerfPipelineConfig)
        weights = self._photo_weights(settings.source_iterations) if settings.warm_start else None

        def prepare(pipeline: VanillaPipeline) -> None:
            manager, model = _parts(pipeline)
            capture = manager.capture
            masks = self._restrict(capture, model) if settings.region else None
            order = sorted(capture.names)
            training = [order.index(name) for name in capture.names[: capture.num_train]]
            images = photos_outside(capture, to_bytes(edited[training]), masks)
            manager.set_targets(Targets(images=images, edit_masks=masks, drawn_masks=masks))
            model.begin_stage(0, "rgb", weights or model.initial_weights)

        return train_plain(data, self.work / "runs", self.edit, prepare, settings.final_iterations), data

    def _photo_weights(self, iterations: int) -> dict[str, Tensor]:
        """Weights of the field of all photos, trained once."""
        path = self.work / "photos.safetensors"
        if not path.exists():
            data = split_capture(self.capture, self.work / "split-1", 1)
            field = train_plain(data, self.work / "runs", self.edit, iterations=iterations)
            save_file({name: value.detach() for name, value in field.model.named_parameters()}, path)
        return load_file(path)

    def _restrict(self, capture: Capture, model: QNerfModel) -> Tensor | None:
        """Restrict the field to the region of the edit, as the product does; the masks of the training views."""
        edit, views = load_edit(self.capture / "edit.json"), capture.views()
        placed = (views, capture.names, capture.num_train, capture.to_scene)
        influence = project_edit(edit, self.capture, *placed, views.size, model.scene_box.aabb).influence
        model.restrict(influence.voxels)
        return None if influence.masks is None else influence.masks[: capture.num_train]


def depth_error(depths: Tensor, truth: Tensor, masks: Tensor) -> float:
    """Mean of |depth / truth - 1| inside masks, all [V, H, W]."""
    return float((depths / truth - 1).abs()[masks].mean())


def _parts(pipeline: VanillaPipeline) -> tuple[QNerfDataManager, QNerfModel]:
    manager, model = pipeline.datamanager, pipeline.model
    assert isinstance(manager, QNerfDataManager) and isinstance(model, QNerfModel)
    return manager, model
