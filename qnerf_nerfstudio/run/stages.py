"""The stages of a plan: what a slice of each does, what the field trains on meanwhile, and what its end does.

A new kind of stage is a Task in plan.py and an entry here.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.edited_dataset import write_dataset
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.diffusion.conditions import QueryTargets
from qnerf_nerfstudio.field.datamanager import Targets
from qnerf_nerfstudio.field.grids import relative_errors, render_codes, render_grid
from qnerf_nerfstudio.run.context import RunContext
from qnerf_nerfstudio.run.plan import Slice, Stage, Task


class StageWork:
    """What a stage does. These defaults are those of a stage that trains the field on what is at hand."""

    description = ""
    """The stage in words; {interval} stands for its interval, from 1."""

    def describe(self, stage: Stage) -> str:
        """The stage in words."""
        return self.description.format(interval=stage.interval + 1)

    def run_slice(self, context: RunContext, item: Slice) -> Path | None:
        """Do the slice of a training step.

        Returns:
            The folder that got new images of the slice's views, None where none did.
        """
        return None

    def targets(self, context: RunContext, stage: Stage) -> Targets:
        """What the field trains on: the last fit's previews and codes, before the first one the photos."""
        return fit_targets(context, stage.fitted)

    def end(self, context: RunContext, stage: Stage) -> None:
        """Do what is left when all chunks of the stage are done, in the main process."""


class Invert(StageWork):
    """Inverts the source views."""

    description = "inversion of the source views"

    def run_slice(self, context: RunContext, item: Slice) -> None:
        """Invert a chunk by one timestep; at the first one, encode its photos."""
        slices = context.slices(item.attempt)
        if item.index == context.plan.config.num_steps - 1:
            photos = context.prepared.capture.photos(context.plan.view_indices(item.chunk), context.edit_size)
            slices.begin_inversion(item.chunk, photos)
        slices.invert(item)


class TrainSource(StageWork):
    """Trains the field on the photos."""

    description = "field on the source photos"


class Denoise(StageWork):
    """Advances the edited views, drawn to what the last fit renders."""

    description = "editing, interval {interval}"

    def run_slice(self, context: RunContext, item: Slice) -> None:
        """Advance a chunk by one timestep."""
        slices = context.slices(item.attempt)
        slices.denoise(item, None if item.fitted is None else rendered_targets(context, item, item.fitted))


class LookAhead(StageWork):
    """Advances a copy of the edited views without guidance."""

    description = "look-ahead, interval {interval}"

    def run_slice(self, context: RunContext, item: Slice) -> None:
        """Advance a chunk by one timestep."""
        context.slices(item.attempt).look_ahead(item)


class Extract(StageWork):
    """Extracts the query maps of the edited views."""

    description = "extraction of queries, interval {interval}"

    def run_slice(self, context: RunContext, item: Slice) -> Path | None:
        """Extract the query maps of a chunk, and write its previews."""
        previews = context.slices(item.attempt).extract(item)
        if previews is None:
            return None
        return context.write_views(context.artifacts.previews(item.interval), item.chunk, previews)

    def end(self, context: RunContext, stage: Stage) -> None:
        """Code the queries of all views."""
        context.slices(stage.attempt).code(stage.interval)


class Fit(StageWork):
    """Fits the field to the query maps."""

    description = "QNeRF fit, interval {interval}"

    def targets(self, context: RunContext, stage: Stage) -> Targets:
        """The previews and codes of the stage's own interval."""
        return fit_targets(context, stage.interval)


class Decode(StageWork):
    """Decodes the edited views."""

    description = "decoding of the edited views"

    def run_slice(self, context: RunContext, item: Slice) -> Path:
        """Decode a chunk."""
        images = context.slices(item.attempt).decode(item)
        return context.write_views(context.artifacts.images, item.chunk, images)

    def end(self, context: RunContext, stage: Stage) -> None:
        """Make the edited views a dataset."""
        prepared = context.prepared
        write_dataset(context.artifacts.root, transforms_path(prepared.capture.data), prepared.views.size)


class TrainFinal(StageWork):
    """Trains the final field on the edited views."""

    description = "final field on the edited views"

    def targets(self, context: RunContext, stage: Stage) -> Targets:
        """The edited views, and the codes of the last fit, which follow without shaping the density."""
        return fit_targets(context, stage.fitted, context.artifacts.images)


STAGES: dict[Task, StageWork] = {
    Task.INVERT: Invert(),
    Task.SOURCE: TrainSource(),
    Task.DENOISE: Denoise(),
    Task.LOOK_AHEAD: LookAhead(),
    Task.EXTRACT: Extract(),
    Task.FIT: Fit(),
    Task.DECODE: Decode(),
    Task.FINAL: TrainFinal(),
}


def describe(stage: Stage) -> str:
    """A stage in words."""
    return STAGES[stage.task].describe(stage)


def fit_targets(context: RunContext, fitted: int | None, final_images: Path | None = None) -> Targets:
    """Targets from the files of a fit.

    Args:
        context: The run.
        fitted: The interval of the fit; None before the first one.
        final_images: Folder of the edited views; None trains on the fit's previews, or on the photos.
    """
    artifacts, capture = context.artifacts, context.prepared.capture
    folder = final_images or (None if fitted is None else artifacts.previews(fitted))
    if folder is None:
        return Targets()
    images = artifacts.load_views(folder, capture.filenames[: capture.num_train])
    masks = context.prepared.projected.influence.masks
    masks = None if masks is None else masks[: capture.num_train]
    targets = Targets(images=_with_photos_outside(context, images, masks), edit_masks=masks)
    if fitted is None:
        return targets
    codec = artifacts.load_codec(fitted)
    return Targets(
        images=targets.images,
        edit_masks=masks,
        codes=artifacts.load_joined_codes(fitted, context.plan.chunks)[: capture.num_train],
        code_widths=[layer.width for layer in codec.layers.values()],
        objective="rgb" if final_images else "queries",
    )


def _with_photos_outside(
    context: RunContext, images: Float[Tensor, "N H W 3"], masks: Tensor | None
) -> Float[Tensor, "N H W 3"]:
    """Edited training views with the photos' pixels where they do not see the region of influence."""
    if masks is None:
        return images
    size = (images.shape[1], images.shape[2])
    seen = F.interpolate(masks[:, None].float(), size, mode="nearest") > 0
    photos = context.prepared.capture.photos(range(len(images)), size)
    return torch.where(seen.movedim(1, -1), images, photos.movedim(1, -1))


def rendered_targets(context: RunContext, item: Slice, fitted: int) -> QueryTargets:
    """What the field renders for a slice's chunk, computed once per fit."""
    artifacts, editor = context.artifacts, context.slices(item.attempt).editor
    codec = artifacts.load_codec(fitted)
    if not artifacts.has_rendered(fitted, item.chunk):
        views, indices = context.prepared.views, context.plan.view_indices(item.chunk)
        codes = render_codes(context.model, views, indices, codec)
        rendered = {**codes, "errors": relative_errors(codes, artifacts.load_codes(fitted, item.chunk))}
        if context.prepared.draws_to_renders:
            # The render as it is: photos around the region would show its outline, which the next fit fills with fog.
            images = render_grid(context.model, views, indices, context.edit_size, "rgb")
            rendered["clean"] = editor.encode(images.movedim(-1, 1)).cpu()
        artifacts.save_rendered(fitted, item.chunk, rendered)
    codes = {name: code.to(editor.device) for name, code in artifacts.load_rendered(fitted, item.chunk).items()}
    # The share of the variance of a view's own queries that the field explains.
    confidence = (1 - codes.pop("errors").square()).clamp_min(0)
    return QueryTargets(codec.to(editor.device), confidence=confidence, clean=codes.pop("clean", None), codes=codes)
