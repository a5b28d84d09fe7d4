"""The diffusion side of a run: each method does one slice of the plan, from files to files.

Knows the editor and the store, not the field. A slice reads what earlier slices wrote and writes its own result, so
doing it again would give the same files: a run that goes on passes over those that are there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.diffusion.editor import ControlNetEditor, Extraction, Prompts, QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.queries import CodecFit, QueryCodec
from qnerf_nerfstudio.run.artifacts import EditStore
from qnerf_nerfstudio.run.plan import Plan, Slice

Result = TypeVar("Result", Tensor, Extraction)


@dataclass
class SliceRunner:
    """Does the diffusion slices of one run."""

    editor: ControlNetEditor
    """The diffusion models."""
    plan: Plan
    """The plan of the run."""
    store: EditStore
    """The run's edit/ folder."""
    prompts: Prompts
    """Encoded prompts."""
    source_controls: Float[Tensor, "V 3 H W"]
    """Control images of the captured scene."""
    target_controls: Float[Tensor, "V 3 H W"]
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
        views = self.plan.views_of(chunk)
        controls = self.target_controls if target else self.source_controls
        return controls[views.start : views.stop].to(self.editor.device)

    def _latents(self, trajectory: str, index: int, chunk: int) -> Tensor:
        return self.store.load_latents(trajectory, index, chunk).to(self.editor.device)

    def _source(self, index: int, chunk: int) -> SourceBranch:
        return SourceBranch(self._latents("source", index, chunk), self._controls(chunk, target=False))

    def _edited(self, item: Slice) -> Tensor:
        """Latents of the edited views before a slice; they start from the source views' inverted noise."""
        return self._latents("source" if item.index == 0 else f"edited-{item.attempt}", item.index, item.chunk)

    def begin_inversion(self, chunk: int, photos: Float[Tensor, "V 3 H W"]) -> None:
        """Encode the photos of a chunk: the clean end of its source trajectory."""
        self.store.save_latents("source", self.editor.num_steps, chunk, self.editor.encode(photos))

    def invert(self, item: Slice) -> None:
        """One inversion step of a chunk."""
        if self.store.has_latents("source", item.index, item.chunk):
            return
        cleaner = self._latents("source", item.index + 1, item.chunk)
        controls = self._controls(item.chunk, target=False)
        noisier = self._finite(
            lambda: self.editor.invert_step(cleaner, item.index, self.prompts.source, controls), "the latents", item
        )
        self.store.save_latents("source", item.index, item.chunk, noisier)

    def denoise(self, item: Slice, targets: QueryTargets | None) -> None:
        """One step of a chunk of edited views, towards `targets` where there are any."""
        self._advance(f"edited-{item.attempt}", item, self._edited(item), targets)

    def look_ahead(self, item: Slice) -> None:
        """One unguided step of a chunk on the interval's look-ahead trajectory."""
        self._advance(f"ahead-{item.interval}", item, self._ahead(item), None)

    def _advance(self, trajectory: str, item: Slice, latents: Tensor, targets: QueryTargets | None) -> None:
        """One step of a chunk on a trajectory, where it was not done before."""
        if self.store.has_latents(trajectory, item.index + 1, item.chunk):
            return
        stepped = self._finite(lambda: self._step(latents, item, targets), "the latents", item)
        self.store.save_latents(trajectory, item.index + 1, item.chunk, stepped)

    def _ahead(self, item: Slice) -> Tensor:
        """The look-ahead latents before a slice; the trajectory branches off the edited one."""
        trajectory = f"ahead-{item.interval}"
        if self.store.has_latents(trajectory, item.index, item.chunk):
            return self._latents(trajectory, item.index, item.chunk)
        return self._edited(item)

    def _step(self, latents: Tensor, item: Slice, targets: QueryTargets | None) -> Tensor:
        stepped = self.editor.denoise_step(
            latents,
            item.index,
            self.prompts,
            self._controls(item.chunk, target=True),
            self._source(item.index, item.chunk),
            targets,
        )
        if self.masks is None:
            return stepped
        views = self.plan.views_of(item.chunk)
        masks = self.masks[views.start : views.stop].to(stepped)
        return torch.lerp(self._latents("source", item.index + 1, item.chunk), stepped, masks)

    def extract(self, item: Slice) -> Float[Tensor, "V 3 H W"] | None:
        """Extract the raw query maps of a chunk; when all are extracted, `code` codes them.

        Returns:
            Previews of the edited views, None where a run that resumes finds the interval's codes done.
        """
        if self.store.has(f"queries/{item.interval}/codec"):
            return None
        extraction = self._look(self._ahead(item), item)
        half = {name: queries.half() for name, queries in extraction.queries.items()}
        self.store.save(f"queries/raw-{item.interval}/{item.chunk:03d}", half)
        return extraction.preview

    def code(self, interval: int) -> None:
        """Fit the interval's codec on the training views, code the query maps of all views, drop the raw ones."""
        if self.store.has(f"queries/{interval}/codec"):
            return
        fit = CodecFit(self.code_width)
        for chunk in range(self.plan.chunks):
            views = self.plan.views_of(chunk)
            training = max(0, min(self.num_train, views.stop) - views.start)
            raw = self.store.load(f"queries/raw-{interval}/{chunk:03d}")
            if training:
                fit.add({name: raw[name][:training].float() for name in self.editor.layer_names})
        codec = fit.codec()
        for chunk in range(self.plan.chunks):
            raw = self.store.load(f"queries/raw-{interval}/{chunk:03d}")
            maps = {name: queries.float() for name, queries in raw.items()}
            codes = {name: code.half() for name, code in codec.encode(maps).items()}
            self.store.save(f"queries/{interval}/codes-{chunk:03d}", codes)
        # The codec comes last: where it exists, the interval's codes are complete.
        self.store.save(f"queries/{interval}/codec", codec.tensors())
        self.store.discard(f"queries/raw-{interval}")

    def decode(self, item: Slice) -> Float[Tensor, "V 3 H W"]:
        """The edited views of a chunk; where they are finished early, what the editor takes them for so far."""
        latents = self._edited(item)
        if item.index < self.editor.num_steps:
            return self._look(latents, item).preview.cpu()
        return self._finite(lambda: self.editor.decode(latents), "the pixels", item).cpu()

    def _look(self, latents: Tensor, item: Slice) -> Extraction:
        controls, source = self._controls(item.chunk, target=True), self._source(item.index, item.chunk)
        return self._finite(
            lambda: self.editor.extract(latents, item.index, self.prompts, controls, source), "the queries", item
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
        return None if good.all() else self.plan.views_of(item.chunk)[int(good.logical_not().nonzero()[0])]


def load_codec(store: EditStore, interval: int) -> QueryCodec:
    """The codec of an interval."""
    return QueryCodec.from_tensors(store.load(f"queries/{interval}/codec"))


def load_codes(store: EditStore, interval: int, chunk: int) -> dict[str, Float[Tensor, "V H W K"]]:
    """Extracted query codes of a chunk by layer, in the order of the codec."""
    stored = store.load(f"queries/{interval}/codes-{chunk:03d}")
    return {name: stored[name].float() for name in sorted(stored)}


def load_joined_codes(store: EditStore, interval: int, chunks: int, codec: QueryCodec) -> Float[Tensor, "V h w W"]:
    """Extracted query codes of all views, all layers side by side at the finest layer's resolution."""
    finest = max(layer.size for layer in codec.layers.values())
    joined = []
    for chunk in range(chunks):
        layers = [
            F.interpolate(code.movedim(-1, 1), finest, mode="bilinear").movedim(1, -1)
            for code in load_codes(store, interval, chunk).values()
        ]
        joined.append(torch.cat(layers, dim=-1))
    return torch.cat(joined)
