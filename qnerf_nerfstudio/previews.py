"""`qnerf preview`: a few views edited one by one, before a run is paid for."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from qnerf_nerfstudio.capture.capture import Capture, read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import atomic_write
from qnerf_nerfstudio.common.spread import evenly_spread
from qnerf_nerfstudio.controls.draw import overlaid
from qnerf_nerfstudio.controls.influence import composite
from qnerf_nerfstudio.controls.projection import ProjectedEdit, project_edit
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editing import InvertedImages, edit_images, invert_images
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.edit.reading import edit_path, load_edit
from qnerf_nerfstudio.edit.schema import Edit, control_kinds
from qnerf_nerfstudio.methods import qnerf_edit, qnerf_edit_small, qnerf_edit_tiny, qnerf_edit_xl
from qnerf_nerfstudio.pages.sheet import write_sheet
from qnerf_nerfstudio.run.settings import RunSettings

CELL = 256
"""Height of a picture in pixels."""
METHODS = {
    each.config.method_name: each.config for each in (qnerf_edit, qnerf_edit_small, qnerf_edit_xl, qnerf_edit_tiny)
}


@dataclass(frozen=True)
class Trial:
    """Settings of one row of pictures."""

    guidance_scale: float
    """Classifier-free guidance scale."""
    controlnet_scale: tuple[float, ...]
    """Weight of each ControlNet, or one for all."""
    seed: int | None
    """Seed of the noise that views begin from; None: their photos' inverted noise."""

    def of(self, config: EditorConfig) -> EditorConfig:
        """An editor's settings with those of the trial."""
        return replace(config, guidance_scale=self.guidance_scale, controlnet_scale=self.controlnet_scale)

    def __str__(self) -> str:
        """The settings in words."""
        start = "" if self.seed is None else f", seed {self.seed}"
        weights = " and ".join(f"{weight:g}" for weight in self.controlnet_scale)
        return f"guidance {self.guidance_scale:g}, control {weights}{start}"


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    data: Path
    """The capture."""
    edit: Path | None
    """The edit; None: edit.json in the data folder."""
    views: int
    """Number of views, evenly spread."""
    method: str
    """The method whose settings are used."""
    model: str | None
    """Model set instead of the method's."""
    controlnet: tuple[str, ...]
    """ControlNet instead of the method's."""
    guidance_scales: Sequence[float]
    """Guidance scales to try; empty: what edit.json or the method says."""
    controlnet_scales: Sequence[float]
    """Weights of the ControlNet to try; empty: likewise."""
    seeds: Sequence[int]
    """Seeds of fresh noise to begin from; empty: the photos' inverted noise."""


def preview(asked: Request, out: Path, console: Console) -> None:
    """Edit a few views without consolidation and write a sheet: photos, control images, and a row for every trial.

    Args:
        asked: What is asked for.
        out: The picture.
        console: Where progress is printed.

    Raises:
        UserError: The capture, the edit or the models cannot be used, or the picture is there already.
    """
    if out.exists():
        raise UserError(f"{out} is there already; name another file with --out, nothing is overwritten")
    if asked.views < 1:
        raise UserError(f"--views is {asked.views}; expected at least 1")
    capture, path = read_capture(asked.data), edit_path(asked.data, asked.edit)
    edit, settings = load_edit(path), copy.deepcopy(METHODS[asked.method].pipeline)
    assert isinstance(settings, RunSettings)
    for name in ("model", "controlnet"):
        if getattr(asked, name):
            setattr(settings.editor, name, getattr(asked, name))
    trials = _trials(edit, settings, asked)
    for trial in trials:
        trial.of(settings.editor).validate()
    editor = load_editor(settings.editor, "cuda" if torch.cuda.is_available() else "cpu", control_kinds(edit.control))
    views = capture.views()
    chosen = evenly_spread(asked.views, len(views))
    projected = _projected(edit, path.parent, capture, editor, settings)
    photos = torch.cat([capture.photos(range(index, index + 1), projected.size) for index in chosen])
    weights = projected.influence.blend_weights(projected.size, settings.feather) if settings.composite else None
    rows: dict[str, Tensor] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("editing", total=len(trials) * editor.num_steps)
        for trial, images in _edited(editor, edit, projected, chosen, photos, trials, lambda: progress.advance(task)):
            rows[str(trial)] = composite(images, photos, None if weights is None else weights[chosen])
    shown = {"photo": photos, "control": overlaid(projected.target[chosen])}
    with atomic_write(out) as temporary:
        write_sheet(temporary, shown, rows, columns=len(chosen), cell=CELL)
    console.print(
        f"preview: {out}, {len(chosen)} views, {len(trials)} trials. Each view is edited by itself and from its photo; "
        f"a run begins from carried views where the control states a motion, and makes views agree.",
        soft_wrap=True,
    )


def _trials(edit: Edit, settings: RunSettings, asked: Request) -> list[Trial]:
    """All combinations, those of a ControlNet's weight beside each other: they share the inversion."""
    stated, usual = edit.settings, settings.editor
    guidance = usual.guidance_scale if stated.guidance_scale is None else stated.guidance_scale
    weight = usual.controlnet_scale if stated.controlnet_scale is None else stated.controlnet_scale
    weights = [(scale,) for scale in asked.controlnet_scales] or [weight]
    choices = (weights, asked.guidance_scales or [guidance], asked.seeds or [None])
    return [Trial(scale, control, seed) for control, scale, seed in product(*choices)]


def _projected(
    edit: Edit, folder: Path, capture: Capture, editor: ControlNetEditor, settings: RunSettings
) -> ProjectedEdit:
    views = capture.views()
    # The dataparser scales captures so that their cameras lie within this box.
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    placed = (views, capture.names, capture.num_train, capture.to_scene)
    size = editor.image_size(*views.size)
    return project_edit(edit, folder, *placed, size, box, settings.region, settings.lift_controls)


def _edited(
    editor: ControlNetEditor,
    edit: Edit,
    projected: ProjectedEdit,
    chosen: list[int],
    photos: Float[Tensor, "V 3 H W"],
    trials: Sequence[Trial],
    progress: Callable[[], None],
) -> Iterator[tuple[Trial, Float[Tensor, "V 3 H W"]]]:
    """The edited views of every trial."""
    prompts = editor.encode_prompts(edit.source_prompt, edit.prompt, edit.negative_prompt)
    source, target = projected.source[chosen].to(editor.device), projected.target[chosen].to(editor.device)
    inverted: dict[tuple[float, ...], InvertedImages] = {}
    for trial in trials:
        editor.config = trial.of(editor.config)
        if trial.controlnet_scale not in inverted:
            inverted = {trial.controlnet_scale: invert_images(editor, photos, source, prompts)}
        generator = None if trial.seed is None else torch.Generator().manual_seed(trial.seed)
        yield trial, edit_images(editor, inverted[trial.controlnet_scale], target, prompts, generator, progress).cpu()
