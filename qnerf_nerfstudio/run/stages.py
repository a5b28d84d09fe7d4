"""The stages of a plan: what a slice of each does, what the field trains on meanwhile, and what its end does.

A new kind of stage is a Task in plan.py and an entry in STAGES.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from nerfstudio.utils import comms
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.capture.edited_dataset import write_dataset
from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.images import dilate, to_bytes
from qnerf_nerfstudio.controls.influence import keep_unchanged
from qnerf_nerfstudio.diffusion.conditions import QueryTargets
from qnerf_nerfstudio.diffusion.queries import QueryCodec
from qnerf_nerfstudio.field.datamanager import Targets
from qnerf_nerfstudio.field.grids import fit_heads, relative_errors, render_carried, render_codes, render_over
from qnerf_nerfstudio.run.explained import summary
from qnerf_nerfstudio.run.plan import Revision, Slice, Stage, Task
from qnerf_nerfstudio.run.run import EditRun

SURROUNDINGS = 8
"""The surroundings of the region are as wide as this part of the image: as far as the VAE looks."""
JUDGED_VIEWS, JUDGED_PIXELS = 3, 1500
"""Views by which the field of the photos is judged, and pixels of each."""
JUDGED_EVERY, PATIENCE = 250, 500
"""Training steps between two judgements, and those in which the field has to gain WORTHWHILE."""
WORTHWHILE = 0.2
"""Gain in dB over any judgement of the last PATIENCE training steps that is worth further ones."""


def _invert(run: EditRun, item: Slice) -> None:
    slices, carried = run.slices(item.attempt), run.artifacts.carried(item.chunk)
    if item.index == run.plan.config.num_steps - 1:
        if carried.exists:
            images = carried.load()["images"]
        else:
            images = run.prepared.capture.photos(run.plan.view_indices(item.chunk), run.prepared.projected.size)
        slices.encode(item.chunk, images)
    slices.invert(item)


def _source(run: EditRun, item: Slice) -> None:
    """Judge the field of the photos now and then, and end its training where it gets no better and shows what moves.

    A few held-out photos may stand still while fog around the subject still clears."""
    offset = item.step - run.plan.starts[run.plan.stage_at(item.step)]
    if offset == 0 or offset % JUDGED_EVERY or item.last:
        return
    # It is the same field in all processes; one of them decides.
    enough = False
    if comms.is_main_process():
        history = run.artifacts.note_quality(item.step, photos_quality(run))
        enough = has_settled(history) and run.shows_what_moves()
    if ranks.broadcast(enough, run.model.device):
        run.revise(Revision(item.step + 1, "photos"))
        CONSOLE.print(f"The field of the photos gets no better: its training ends after {offset} steps.")


def has_settled(history: list[tuple[int, float]]) -> bool:
    """Whether the field of the photos gains nothing any more, by its PSNR at the training steps of all judgements.

    One that recovers from a dip gains, though it was better before."""
    now, quality = history[-1]
    recent = [before for step, before in history[:-1] if step >= now - PATIENCE]
    return now - history[0][0] >= PATIENCE and quality < min(recent) + WORTHWHILE


def _carry(run: EditRun, item: Slice) -> Path | None:
    if item.first:
        quality = photos_quality(run)
        CONSOLE.print(
            f"The field of the photos scores {quality:.1f} dB on photos, where the edit acts.", soft_wrap=True
        )
    if run.artifacts.carried(item.chunk).exists:
        return None
    images = carried_views(run, run.plan.view_indices(item.chunk))
    if images is None:
        return None
    run.artifacts.carried(item.chunk).save({"images": images})
    return run.write_views(run.artifacts.carried_views, item.chunk, images)


def _denoise(run: EditRun, item: Slice) -> None:
    targets = None if item.fitted is None else rendered_targets(run, item, item.fitted)
    run.slices(item.attempt).denoise(item, targets)


def _tell_explained(run: EditRun, stage: Stage) -> None:
    """Say how much of its queries the field that views were drawn to explains."""
    if stage.fitted is not None:
        run.explained = summary(run.artifacts, run.prepared.capture.num_train)
        if run.explained:
            CONSOLE.print(run.explained, soft_wrap=True)


def _fit_heads(run: EditRun, stage: Stage) -> None:
    """Fit the query heads to the codes of the training views, with the field as it is at the end of its fit."""
    kept = run.artifacts.heads(stage.interval)
    if kept.exists:
        return
    codec = QueryCodec.from_tensors(run.artifacts.codec(stage.interval).load())
    training = range(run.prepared.capture.num_train)
    chunks = (
        (indices, {name: code[: len(indices)] for name, code in _codes(run, stage.interval, chunk).items()})
        for chunk in range(run.plan.chunks)
        if (indices := training[run.plan.view_indices(chunk).start : run.plan.view_indices(chunk).stop])
    )
    kept.save({"weight": fit_heads(run.model, run.prepared.views, chunks, codec)})


def _extract(run: EditRun, item: Slice) -> Path | None:
    previews = run.slices(item.attempt).extract(item)
    if previews is None:
        return None
    return run.write_views(run.artifacts.previews(item.interval), item.chunk, previews)


def _decode(run: EditRun, item: Slice) -> Path:
    if run.plan.config.editing == "carried":
        images = run.artifacts.carried(item.chunk).load()["images"]
    else:
        images = with_unchanged(run, item, run.slices(item.attempt).decode(item))
    return run.write_views(run.artifacts.images, item.chunk, images)


def _write_dataset(run: EditRun, stage: Stage) -> None:
    write_dataset(run.artifacts.root, transforms_path(run.prepared.capture.data), run.prepared.views.size)


@dataclass(frozen=True)
class StageWork:
    """What a stage does; by default it trains the field on the last fit, before the first one on the carried views, if
    there are any, and before these on the photos."""

    description: str
    """The stage in words; {interval} stands for its interval, from 1."""
    run_slice: Callable[[EditRun, Slice], Path | None] = lambda run, item: None
    """Does the slice of a training step; gives the folder that got new images of the slice's views."""
    begin: Callable[[EditRun], None] = lambda run: None
    """Does what comes before the first slice, and again where a run goes on, in all processes."""
    end: Callable[[EditRun, Stage], None] = lambda run, stage: None
    """Does what is left when all chunks are done, in the main process."""
    targets: Callable[[EditRun, Stage], Targets] = lambda run, stage: fit_targets(run, stage.fitted)
    """What the field trains on."""


STAGES = {
    Task.INVERT: StageWork("inversion of the views", _invert),
    Task.SOURCE: StageWork("field on the source photos", _source, targets=lambda run, stage: photo_targets(run)),
    Task.CARRY: StageWork(
        "carried views",
        _carry,
        begin=lambda run: run.read_motion(),
        end=lambda run, stage: run.keep_brought(),
        targets=lambda run, stage: photo_targets(run),
    ),
    Task.DENOISE: StageWork("editing, interval {interval}", _denoise, end=_tell_explained),
    Task.LOOK_AHEAD: StageWork(
        "look-ahead, interval {interval}", lambda run, item: run.slices(item.attempt).look_ahead(item)
    ),
    Task.EXTRACT: StageWork(
        "extraction of queries, interval {interval}",
        _extract,
        end=lambda run, stage: run.slices(stage.attempt).code(stage.interval),
    ),
    Task.FIT: StageWork(
        "QNeRF fit, interval {interval}",
        end=_fit_heads,
        targets=lambda run, stage: fit_targets(run, stage.interval),
    ),
    Task.DECODE: StageWork("decoding of the edited views", _decode, end=_write_dataset),
    Task.FINAL: StageWork(
        "final field on the edited views",
        targets=lambda run, stage: fit_targets(run, stage.fitted, run.artifacts.images),
    ),
}


def describe(stage: Stage) -> str:
    """A stage in words."""
    return STAGES[stage.task].description.format(interval=stage.interval + 1)


def fit_targets(run: EditRun, fitted: int | None, final_images: Path | None = None) -> Targets:
    """Targets from the files of a fit.

    Args:
        run: The run.
        fitted: The interval of the fit; None before the first one.
        final_images: Folder of the edited views, by which colours shape the density and queries follow; None trains on
            the fit's previews, on the carried views, or on the photos.
    """
    artifacts, capture = run.artifacts, run.prepared.capture
    folder = final_images or _shown(run, fitted)
    if folder is None:
        return photo_targets(run)
    masks = training_masks(run)
    images = artifacts.load_views(folder, capture.filenames[: capture.num_train])
    targets = Targets(images=photos_outside(capture, images, masks), edit_masks=masks, drawn_masks=masks)
    if fitted is None:
        return targets
    codec = QueryCodec.from_tensors(artifacts.codec(fitted).load())
    return replace(
        targets,
        codes=torch.cat([codec.join(_codes(run, fitted, chunk)) for chunk in range(run.plan.chunks)])[: len(images)],
        code_widths=[layer.width for layer in codec.layers.values()],
        objective="rgb" if final_images else "queries",
    )


def photo_targets(run: EditRun) -> Targets:
    """The photos, whatever carried views a run that goes on after a kill finds already."""
    return Targets(drawn_masks=training_masks(run))


def training_masks(run: EditRun) -> Bool[Tensor, "N h w"] | None:
    """Where training views see the region of influence; None: everywhere."""
    masks = run.prepared.projected.influence.masks
    return None if masks is None else masks[: run.prepared.capture.num_train]


def _shown(run: EditRun, fitted: int | None) -> Path | None:
    """Folder of what edited views look like so far; None where there is nothing but the photos."""
    if fitted is not None:
        return run.artifacts.previews(fitted)
    every = all(run.artifacts.carried(chunk).exists for chunk in range(run.plan.chunks))
    return run.artifacts.carried_views if every else None


def carried_views(run: EditRun, indices: range) -> Float[Tensor, "V 3 h w"] | None:
    """Photos of views, with what the control's motion changes in the region of influence rendered by the field of the
    photos; None where that field does not show what moves."""
    deformation = run.deformation
    if deformation is None:
        return None
    prepared = run.prepared
    photos, masks = prepared.capture.photos(indices, prepared.projected.size), prepared.projected.influence.masks
    masks = None if masks is None else masks[indices.start : indices.stop]
    return render_carried(run.model, deformation, prepared.views, indices, photos, masks)


def with_unchanged(run: EditRun, item: Slice, images: Float[Tensor, "V 3 h w"]) -> Float[Tensor, "V 3 h w"]:
    """What the editor makes of a chunk, with the pixels of carried views, if there are any, where it changes nothing.

    What the VAE alone does to them is no change."""
    carried, change = run.artifacts.carried(item.chunk), run.prepared.settings.keep_unchanged
    if change == 0 or not carried.exists:
        return images
    return keep_unchanged(images, carried.load()["images"], run.slices(item.attempt).coded(item), change)


def photos_quality(run: EditRun) -> float:
    """PSNR in dB of the field of the photos inside the region of influence, at pixels of a few held-out views, where
    there are any, else of the last ones."""
    prepared, count = run.prepared, len(run.prepared.views)
    held_out = count - prepared.capture.num_train
    indices, size = range(count - min(held_out or count, JUDGED_VIEWS), count), prepared.projected.size
    photos, masks = prepared.capture.photos(indices, size), prepared.projected.influence.masks
    inside = torch.ones(len(photos), *size, dtype=torch.bool) if masks is None else masks[indices.start :]
    if not inside.any():
        inside = torch.ones_like(inside)
    # Always the same pixels, so that judgements can be compared.
    order = torch.rand(inside.shape, generator=torch.Generator().manual_seed(0)).where(inside, 2.0).flatten(1)
    last = order.kthvalue(min(JUDGED_PIXELS, order.shape[1]), dim=1, keepdim=True).values
    chosen = (order <= last).unflatten(1, size) & inside
    squared = (render_over(run.model, prepared.views, indices, photos, chosen) - photos).square().mean(1)
    return -10 * math.log10(float(squared[chosen].mean()) + 1e-10)


def photos_outside(
    capture: Capture, images: UInt8[Tensor, "N H W 3"], masks: Bool[Tensor, "N h w"] | None
) -> UInt8[Tensor, "N H W 3"]:
    """Edited training views with the photos' pixels where they do not see the region of influence."""
    if masks is None:
        return images
    size = (images.shape[1], images.shape[2])
    shown = []
    for index, image in enumerate(images):  # of large photos, floats of all of them fill the memory
        seen = F.interpolate(masks[index, None, None].float(), size, mode="nearest-exact")[0, 0] > 0
        photo = to_bytes(capture.photos(range(index, index + 1), size)[0])
        shown.append(torch.where(seen[..., None], image, photo))
    return torch.stack(shown)


def rendered_targets(run: EditRun, item: Slice, fitted: int) -> QueryTargets:
    """What the field renders for a slice's chunk, computed once per fit."""
    editor, rendered = run.slices(item.attempt).editor, run.artifacts.rendered(fitted, item.chunk)
    codec = QueryCodec.from_tensors(run.artifacts.codec(fitted).load())
    if not rendered.exists:
        views, indices = run.prepared.views, run.plan.view_indices(item.chunk)
        codes = render_codes(run.model, views, indices, codec)
        tensors = {**codes, "errors": relative_errors(codes, _codes(run, fitted, item.chunk))}
        if run.prepared.draws_to_renders:
            tensors["clean"] = editor.encode(_rendered_views(run, indices))
        rendered.save(tensors)
    codes = {name: tensor.to(editor.device) for name, tensor in rendered.load().items()}
    # The share of the variance of a view's own queries that the field explains.
    confidence = (1 - codes.pop("errors").square()).clamp_min(0)
    return QueryTargets(codec.to(editor.device), confidence=confidence, clean=codes.pop("clean", None), codes=codes)


def _rendered_views(run: EditRun, indices: range) -> Float[Tensor, "V 3 h w"]:
    """Renders of the field, in photos where they see nothing of the region or its surroundings.

    Photos right around the region would show its outline, which the next fit fills with fog.
    """
    size, masks = run.prepared.projected.size, run.prepared.projected.influence.masks
    if masks is not None:
        masks = dilate(masks[indices.start : indices.stop], min(size) // SURROUNDINGS)
    photos = run.prepared.capture.photos(indices, size)
    return render_over(run.model, run.prepared.views, indices, photos, masks)


def _codes(run: EditRun, interval: int, chunk: int) -> dict[str, Float[Tensor, "V H W K"]]:
    """Extracted query codes of a chunk by layer, in the order of the codec."""
    stored = run.artifacts.codes(interval, chunk).load()
    return {name: stored[name].float() for name in sorted(stored)}
