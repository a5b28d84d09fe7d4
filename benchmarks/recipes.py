"""Every recipe of the consistency benchmark: from a capture to its edited views."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from baselines import Scene, denoise_render, invert, reference_attention, shared_appearance, token_propagation
from nerfstudio.engine.trainer import TrainerConfig
from settings import views_of
from torch import Tensor

from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.studio.plain import train_plain
from qnerf_nerfstudio.toy.truth import load_truth, render_views

Method = Literal[
    "ceiling",
    "unedited",
    "per-view",
    "per-view, lifted",
    "carried",
    "carried start",
    "one-shot",
    "progressive",
    "progressive, guidance too",
    "progressive, guidance only",
    "progressive, blend",
    "progressive, replace",
    "progressive, mean of views",
    "progressive, not lifted",
    "progressive, mean of views, not lifted",
    "dataset update",
    "reference attention",
    "shared appearance",
    "token propagation",
]
PROGRESSIVE = ["--pipeline.consolidation", "progressive", "--pipeline.stop", "0.4"]
"""Two intervals; one, "one-shot", is the default of qnerf-edit-tiny."""
SHAPED = ["--pipeline.model.queries-shape-density", "True"]
"""Where queries guide, they shape the field, as in the paper."""
INVERTED = ["--pipeline.start", "inverted", "--pipeline.consolidation", "none"]
"""View by view from the photos' noise: no motion is used, nothing is consolidated."""
PRODUCT: dict[str, list[str]] = {
    "per-view": [*INVERTED, "--pipeline.lift-controls", "False"],
    "per-view, lifted": INVERTED,
    "carried": ["--pipeline.editing", "carried"],
    "carried start": ["--pipeline.consolidation", "none"],
    "one-shot": [],
    "progressive": PROGRESSIVE,
    "progressive, guidance too": [*PROGRESSIVE, *SHAPED, "--pipeline.editor.guidance-strength", "0.05"],
    "progressive, guidance only": [
        *PROGRESSIVE,
        *SHAPED,
        *("--pipeline.editor.guidance-strength", "0.05"),
        *("--pipeline.editor.render-weight", "0"),
    ],
    "progressive, blend": [
        *PROGRESSIVE,
        *SHAPED,
        "--pipeline.editor.mode",
        "blend",
        "--pipeline.editor.render-weight",
        "0",
    ],
    "progressive, mean of views": [*PROGRESSIVE, "--pipeline.model.robust", "False"],
    "progressive, not lifted": [*PROGRESSIVE, "--pipeline.lift-controls", "False"],
    "progressive, mean of views, not lifted": [
        *PROGRESSIVE,
        *("--pipeline.model.robust", "False"),
        *("--pipeline.lift-controls", "False"),
    ],
    "progressive, replace": [
        *PROGRESSIVE,
        *SHAPED,
        "--pipeline.editor.mode",
        "replace",
        "--pipeline.editor.render-weight",
        "0",
    ],
}
"""Recipes that are settings of the product, as options of ns-train."""
UPDATE_ROUNDS = 3
"""How often dataset update replaces every view."""
UPDATE_ITERATIONS = 10
"""Training steps between two of its replacements, as Instruct-NeRF2NeRF's."""


def read_views(folder: Path) -> Tensor:
    """All views in a folder in the order of their names, [V, 3, H, W]."""
    return torch.stack(load_images(sorted(folder.glob("*.png")))).movedim(-1, 1)


@dataclass
class Recipes:
    """Makes edited views of one capture."""

    capture: Path
    """The capture."""
    work: Path
    """Folder for what a recipe leaves behind."""
    field: TrainerConfig
    """Settings of the edit and of plain fields."""
    seed: int
    """Seed of what a recipe draws at random."""

    def edited_views(self, method: Method, *options: str) -> Tensor:
        """Views in [0, 1], in the order of the capture's frames, [V, 3, H, W]; options are for ns-train."""
        if method in PRODUCT:
            return self._product([*PRODUCT[method], *options])
        if method == "ceiling":
            return load_truth(self.capture, "train").images
        if method == "unedited":
            return read_views(self.capture / "images")
        if method == "dataset update":
            return self._dataset_update()
        if method == "token propagation":
            return token_propagation(self._scene(), torch.Generator().manual_seed(self.seed))
        return (reference_attention if method == "reference attention" else shared_appearance)(self._scene())

    def _product(self, options: list[str]) -> Tensor:
        """Edit with ns-train, as a user does."""
        self.work.mkdir(parents=True)
        where = ["--output-dir", self.work, "--experiment-name", "e", "--timestamp", "t", "--vis", "tensorboard"]
        command = [Path(sys.executable).parent / "ns-train", "qnerf-edit-tiny", "--data", self.capture, *where]
        with (self.work / "log.txt").open("w") as log:
            words = [str(word) for word in (*command, "--pipeline.final-iterations", "1", *options)]
            subprocess.run(words, check=True, stdout=log, stderr=log)
        return read_views(self.work / "e/qnerf-edit-tiny/t/edit/images")

    def _scene(self) -> Scene:
        """The capture as the baselines take it, inverted."""
        pipeline = self.field.pipeline
        assert isinstance(pipeline, QNerfPipelineConfig)
        editor = load_editor(pipeline.editor, "cpu")
        views = views_of(self.capture)
        frames = json.loads((self.capture / "transforms.json").read_text())["frames"]
        names = [Path(frame["file_path"]).name for frame in frames]
        edit = load_edit(self.capture / "edit.json")
        source, target = control_images(edit, self.capture, views, names, torch.eye(4)[:3], views.size)
        photos = read_views(self.capture / "images")
        prompts = editor.encode_prompts(edit.source_prompt, edit.prompt, edit.negative_prompt)
        return Scene(editor, prompts, photos, source, target, invert(editor, prompts, photos, source, pipeline.chunk))

    def _dataset_update(self) -> Tensor:
        """Instruct-NeRF2NeRF's recipe: a field of the photos trains on while its renders are edited, view by view."""
        scene = self._scene()
        pipeline = train_plain(self.capture, self.work, self.field)
        truth = load_truth(self.capture, "train")
        generator = torch.Generator().manual_seed(self.seed)
        manager = pipeline.datamanager
        cached = manager.train_image_dataloader.cached_collated_batch  # pyright: ignore[reportAttributeAccessIssue]
        training = [path.name for path in manager.train_dataset.image_filenames]  # pyright: ignore
        rows = {training[int(index)]: row for row, index in enumerate(cached["image_idx"])}
        optimizer = torch.optim.Adam(pipeline.parameters(), lr=3e-3, eps=1e-15)
        edited = scene.photos.clone()
        step = 0
        for _ in range(UPDATE_ROUNDS):
            for view in torch.randperm(len(truth.names), generator=generator).tolist():
                camera = replace(truth, c2w=truth.c2w[view : view + 1])
                start = int(torch.randint(1, scene.editor.num_steps - 1, (), generator=generator))
                image = render_views(pipeline, self.capture, camera)[0][0]
                edited[view] = denoise_render(scene, view, image, start, generator)
                if truth.names[view] in rows:
                    cached["image"][rows[truth.names[view]]] = edited[view].movedim(0, -1)
                pipeline.train()
                for _ in range(UPDATE_ITERATIONS):
                    losses = pipeline.get_train_loss_dict(step)[1]
                    torch.stack(list(losses.values())).sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    step += 1
        return edited
