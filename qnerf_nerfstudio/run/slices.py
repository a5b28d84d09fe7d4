"""The diffusion side of a run: each method does one slice of the plan, from files to files.

Knows the editor and the files, not the field. A slice reads what earlier slices wrote and writes its own result, so
doing it again would give the same files: a run that goes on passes over those that are there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.queries import CodecFit, Extraction
from qnerf_nerfstudio.diffusion.text import Prompts, TextStates
from qnerf_nerfstudio.run.artifacts import SOURCE, EditArtifacts, edited_trajectory, look_ahead_trajectory
from qnerf_nerfstudio.run.plan import Plan, Slice

if TYPE_CHECKING:  # diffusers stays out of ns-* start-up
    from qnerf_nerfstudio.diffusion.editor import ControlNetEditor

Result = TypeVar("Result", Tensor, Extraction)


@dataclass
class SliceRunner:
    """Does the diffusion slices of one run."""

    editor: "ControlNetEditor"
    """The diffusion models."""
    plan: Plan
    """The plan of the run."""
    artifacts: EditArtifacts
    """The run's edit/ folder."""
    prompts: Prompts
    """Encoded prompts."""
    carried_prompt: TextStates
    """Encoded prompt that describes carried views: the edit's target prompt, whatever further attempts ask for."""
    source_controls: Float[Tensor, "V K H W"]
    """Control images of the captured scene."""
    target_controls: Float[Tensor, "V K H W"]
    """Control images of the edited scene."""
    names: list[str]
    """File name of every view's photo."""
    num_train: int
    """Number of views whose queries the field may learn; the views after them are held out."""
    code_width: int
    """Code channels per query layer."""
    masks: Float[Tensor, "V 1 h w"] | None
    """1 for the latents that the edit may change; the others follow the source trajectory. None: all may change."""

    def _controls(self, chunk: int, target: bool) -> Tensor:
        indices = self.plan.view_indices(chunk)
        controls = self.target_controls if target else self.source_controls
        return controls[indices.start : indices.stop]

    def _latents(self, trajectory: str, index: int, chunk: int) -> Tensor:
        return self.artifacts.latents(trajectory, index, chunk).load()["latents"].to(self.editor.device)

    def _begins_carried(self, chunk: int) -> bool:
        """Whether editing begins from carried views, which show the edited scene."""
        return self.artifacts.carried(chunk).exists

    def _source(self, index: int, chunk: int) -> SourceBranch:
        controls = self._controls(chunk, target=self._begins_carried(chunk))
        return SourceBranch(self._latents(SOURCE, index, chunk), controls)

    def _prompts(self, chunk: int) -> Prompts:
        """The prompts, with what describes the views that editing begins from as that of the source branch."""
        return replace(self.prompts, source=self.carried_prompt) if self._begins_carried(chunk) else self.prompts

    def _edited(self, item: Slice) -> Tensor:
        """Latents of the edited views before a slice; they start from inverted noise."""
        trajectory = edited_trajectory(item.attempt) if item.index > 0 else SOURCE
        return self._latents(trajectory, item.index, item.chunk)

    def encode(self, chunk: int, images: Float[Tensor, "V 3 H W"]) -> None:
        """Encode source or carried views of a chunk: the clean end of their trajectory."""
        self.artifacts.latents(SOURCE, self.editor.num_steps, chunk).save({"latents": self.editor.encode(images)})

    def invert(self, item: Slice) -> None:
        """One inversion step of a chunk of source or carried views."""
        noisier = self.artifacts.latents(SOURCE, item.index, item.chunk)
        if noisier.exists:
            return
        cleaner = self._source(item.index + 1, item.chunk)
        prompt = self._prompts(item.chunk).source
        stepped = self._finite(
            lambda: self.editor.invert_step(cleaner.latents, item.index, prompt, cleaner.controls), "the latents", item
        )
        noisier.save({"latents": stepped})

    def denoise(self, item: Slice, targets: QueryTargets | None) -> None:
        """One step of a chunk of edited views, towards `targets` where there are any."""
        self._advance(edited_trajectory(item.attempt), item, self._edited(item), targets)

    def look_ahead(self, item: Slice) -> None:
        """One unguided step of a chunk on the interval's look-ahead trajectory."""
        self._advance(look_ahead_trajectory(item.interval), item, self._ahead(item), None)

    def _advance(self, trajectory: str, item: Slice, latents: Tensor, targets: QueryTargets | None) -> None:
        """One step of a chunk on a trajectory, where it was not done before."""
        if self.artifacts.latents(trajectory, item.index + 1, item.chunk).exists:
            return
        stepped = self._finite(lambda: self._step(latents, item, targets), "the latents", item)
        self.artifacts.latents(trajectory, item.index + 1, item.chunk).save({"latents": stepped})

    def _ahead(self, item: Slice) -> Tensor:
        """The look-ahead latents before a slice; the trajectory branches off the edited one."""
        trajectory = look_ahead_trajectory(item.interval)
        if self.artifacts.latents(trajectory, item.index, item.chunk).exists:
            return self._latents(trajectory, item.index, item.chunk)
        return self._edited(item)

    def _step(self, latents: Tensor, item: Slice, targets: QueryTargets | None) -> Tensor:
        stepped = self.editor.denoise_step(
            latents,
            item.index,
            self._prompts(item.chunk),
            self._controls(item.chunk, target=True),
            self._source(item.index, item.chunk),
            targets,
        )
        if self.masks is None:
            return stepped
        indices = self.plan.view_indices(item.chunk)
        masks = self.masks[indices.start : indices.stop].to(stepped)
        return torch.lerp(self._latents(SOURCE, item.index + 1, item.chunk), stepped, masks)

    def extract(self, item: Slice) -> Float[Tensor, "V 3 H W"] | None:
        """Extract the raw query maps of a chunk; when all are extracted, `code` codes them.

        Returns:
            Previews of the edited views, None where a run that resumes finds the interval's codes done.
        """
        if self.artifacts.codec(item.interval).exists:
            return None
        extraction = self._extract(self._ahead(item), item)
        half = {name: queries.half() for name, queries in extraction.queries.items()}
        self.artifacts.raw_queries(item.interval, item.chunk).save(half)
        return extraction.preview.cpu()

    def code(self, interval: int) -> None:
        """Fit the interval's codec on the training views, code the query maps of all views, drop the raw ones."""
        if self.artifacts.codec(interval).exists:
            return
        fit = CodecFit(self.code_width)
        for chunk in range(self.plan.chunks):
            indices = self.plan.view_indices(chunk)
            training = max(0, min(self.num_train, indices.stop) - indices.start)
            if training:
                raw = self.artifacts.raw_queries(interval, chunk).load()
                fit.add({name: raw[name][:training].float() for name in self.editor.layer_names})
        codec = fit.codec()
        for chunk in range(self.plan.chunks):
            raw = self.artifacts.raw_queries(interval, chunk).load()
            codes = codec.encode({name: queries.float() for name, queries in raw.items()})
            self.artifacts.codes(interval, chunk).save({name: code.half() for name, code in codes.items()})
        # The codec comes last: where it exists, the interval's codes are complete.
        self.artifacts.codec(interval).save(codec.tensors())
        self.artifacts.discard_raw_queries(interval)

    def decode(self, item: Slice) -> Float[Tensor, "V 3 H W"]:
        """The edited views of a chunk; where they are finished early, what the editor takes them for so far."""
        latents = self._edited(item)
        if item.index < self.editor.num_steps:
            return self._extract(latents, item).preview.cpu()
        return self._finite(lambda: self.editor.decode(latents), "the pixels", item).cpu()

    def coded(self, item: Slice) -> Float[Tensor, "V 3 H W"]:
        """What the VAE makes of the views of a chunk that editing begins from."""
        clean = self._latents(SOURCE, self.editor.num_steps, item.chunk)
        return self._finite(lambda: self.editor.decode(clean), "the pixels", item).cpu()

    def _extract(self, latents: Tensor, item: Slice) -> Extraction:
        controls, source = self._controls(item.chunk, target=True), self._source(item.index, item.chunk)
        return self._finite(
            lambda: self.editor.extract(latents, item.index, self._prompts(item.chunk), controls, source),
            "the queries",
            item,
        )

    def _finite(self, compute: Callable[[], Result], what: str, item: Slice) -> Result:
        """What `compute` gives, computed once more in float32 where numbers go wrong.

        Raises:
            FloatingPointError: They go wrong in float32, too; the message names view and timestep.
        """
        result = compute()
        view = self._broken_view(result, item)
        if view is None:
            return result
        where = f"{what} of {self.names[view]} are not finite at timestep {item.index + 1} of {self.editor.num_steps}"
        if self.editor.dtype != torch.float32:
            CONSOLE.print(f"{where}; once more in float32.", style="yellow", soft_wrap=True, markup=False)
            with self.editor.in_float32():
                result = compute()
            view = self._broken_view(result, item)
        if view is None:
            return result
        raise FloatingPointError(
            f"{where}, in float32 neither; try a smaller --pipeline.editor.guidance-strength or "
            f"--pipeline.editor.guidance-scale, and see that the models' files are whole"
        )

    def _broken_view(self, result: Tensor | Extraction, item: Slice) -> int | None:
        """The first view whose numbers are not finite."""
        parts = [result] if isinstance(result, Tensor) else [result.preview, *result.queries.values()]
        good = torch.stack([part.flatten(1).isfinite().all(dim=1) for part in parts]).all(dim=0)
        return None if good.all() else self.plan.view_indices(item.chunk)[int(good.logical_not().nonzero()[0])]
