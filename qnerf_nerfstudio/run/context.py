"""What the stages of a run work with."""

import gc
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.controls.influence import composite
from qnerf_nerfstudio.diffusion.conditions import Prompts
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.prepare import PreparedRun
from qnerf_nerfstudio.run.slices import SliceRunner


class RunContext:
    """A prepared run, its field, and its diffusion models while they are loaded.

    Args:
        prepared: The run; its diffusion models are taken over.
        model: The field.
    """

    def __init__(self, prepared: PreparedRun, model: QNerfModel) -> None:
        self.prepared = replace(prepared, editor=None)
        self.model = model
        self.plan = prepared.plan
        """The plan with all revisions."""
        self.attempts = list(prepared.attempts)
        """What each attempt at the edit is sampled with."""
        self._editor = prepared.editor
        self._slices: SliceRunner | None = None
        self._attempt: int | None = None

    @property
    def artifacts(self) -> EditArtifacts:
        """The run's edit/ folder."""
        return self.prepared.artifacts

    @property
    def edit_size(self) -> tuple[int, int]:
        """Height and width of the images that are edited."""
        return self.prepared.projected.size

    def slices(self, attempt: int) -> SliceRunner:
        """The runner of slices, with the prompt and guidance scale of an attempt."""
        runner = self._slices or self._make_slices()
        if attempt != self._attempt:
            stated = self.attempts[attempt]
            runner.prompts = replace(runner.prompts, target=runner.editor.encode_prompt(stated.prompt))
            runner.editor.config = replace(runner.editor.config, guidance_scale=stated.guidance_scale)
            self._attempt = attempt
        return runner

    def unload(self) -> None:
        """Free the diffusion models; another attempt loads them again."""
        self._editor = self._slices = self._attempt = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def write_views(self, folder: Path, chunk: int, images: Float[Tensor, "V 3 h w"]) -> Path:
        """Write a chunk of edited views as PNGs at the photos' resolution, composited with the photos.

        Returns:
            The folder.
        """
        prepared, indices = self.prepared, self.plan.view_indices(chunk)
        size = prepared.views.size
        if images.shape[-2:] != torch.Size(size):
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        if prepared.blend_weights is not None:
            photos = prepared.capture.photos(indices, size)
            images = composite(images, photos, prepared.blend_weights[indices.start : indices.stop])
        for index, image in zip(indices, images, strict=True):
            write_png(self.artifacts.view(folder, prepared.capture.filenames[index]), image)
        return folder

    def _make_slices(self) -> SliceRunner:
        prepared = self.prepared
        editor, self._editor = self._editor or prepared.load_editor(), None
        edit = prepared.edit
        self._slices = SliceRunner(
            editor=editor,
            plan=self.plan,
            artifacts=prepared.artifacts,
            prompts=Prompts(*map(editor.encode_prompt, (edit.source_prompt, edit.prompt, edit.negative_prompt))),
            source_controls=prepared.projected.source,
            target_controls=prepared.projected.target,
            names=prepared.capture.names,
            num_train=prepared.capture.num_train,
            code_width=prepared.code_width,
            masks=prepared.latent_masks,
        )
        return self._slices
