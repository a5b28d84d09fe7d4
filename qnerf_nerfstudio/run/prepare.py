"""Checks everything that can be checked before long work, plans the run and loads its models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.projection import ProjectedEdit, project_edit
from qnerf_nerfstudio.diffusion.memory import check_memory
from qnerf_nerfstudio.edit.schema import Edit, control_kind
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.fingerprint import contents
from qnerf_nerfstudio.run.manifest import Attempt, read_manifest, refuse_other
from qnerf_nerfstudio.run.plan import Plan
from qnerf_nerfstudio.run.settings import RunSettings

if TYPE_CHECKING:  # diffusers stays out of ns-* start-up
    from qnerf_nerfstudio.diffusion.editor import ControlNetEditor


@dataclass(frozen=True)
class PreparedRun:
    """A run that can begin."""

    settings: RunSettings
    """What is asked for."""
    edit: Edit
    """The edit."""
    capture: Capture
    """What is edited."""
    views: Views
    """Cameras of all views in scene coordinates, training views first."""
    projected: ProjectedEdit
    """The edit as every view sees it."""
    latent_masks: Float[Tensor, "V 1 h w"] | None
    """1 for the latents that the edit may change; None: all of them."""
    blend_weights: Float[Tensor, "V 1 H W"] | None
    """Share of the edited view in every pixel of the photos; None: all of it."""
    code_width: int
    """Code channels per query layer."""
    plan: Plan
    """The plan, with the revisions of a run that goes on."""
    attempts: tuple[Attempt, ...]
    """What each attempt at the edit is sampled with."""
    artifacts: EditArtifacts
    """The run's edit/ folder."""
    options: dict[str, str]
    """What the result depends on, by the name of its option."""
    photo_hashes: dict[str, str]
    """Hashes of the photos' contents by their names."""
    load_editor: Callable[[], "ControlNetEditor"]
    """Loads the diffusion models again, for another attempt after they were freed."""
    editor: "ControlNetEditor | None"
    """The diffusion models; None once a run has taken them over."""

    @property
    def draws_to_renders(self) -> bool:
        """Whether views are drawn to renders: where the control changes nothing, these could only blur them."""
        return self.settings.editor.render_weight > 0 and self.projected.has_changes

    def __str__(self) -> str:
        """The run in words."""
        height, width = self.projected.size
        return (
            f"Edit of {len(self.views)} views ({self.capture.num_train} for training) at {width}x{height} pixels: "
            f'"{self.edit.source_prompt}" becomes "{self.edit.prompt}" by {self.edit.control.type}; '
            f"{self.settings.consolidation} consolidation, {self.plan.total} training steps."
        )


def prepare(
    settings: RunSettings,
    edit: Edit,
    folder: Path,
    capture: Capture,
    scene_box: Float[Tensor, "2 3"],
    query_width: int,
    device: torch.device,
    artifacts: EditArtifacts,
    options: dict[str, str],
    resume: bool,
) -> PreparedRun:
    """Check a run, plan it, and load its diffusion models. Writes nothing.

    Args:
        settings: What is asked for.
        edit: The edit.
        folder: Folder of edit.json.
        capture: The capture.
        scene_box: Lower and upper corner of the scene box.
        query_width: Code channels of all query layers together.
        device: Where the field is, and by default the diffusion models.
        artifacts: The run's edit/ folder.
        options: What the result depends on, by the name of its option; a run that goes on must not differ in it.
        resume: Whether the run goes on from a checkpoint.

    Raises:
        UserError: Settings are out of range, the edit does not fit the capture or the editor, or the folder holds
            another edit.
    """
    views = capture.views()
    try:
        plan = Plan(settings.plan_config(len(views), ranks.count()))
    except ValueError as error:
        raise UserError(f"--pipeline.{error}") from error
    attempts = (Attempt(edit.prompt, settings.editor.guidance_scale),)
    hashes = contents(capture.filenames)
    if artifacts.manifest.exists():
        plan, attempts = _go_on(plan, attempts, artifacts, options, hashes, edit)
    elif resume:
        raise UserError(
            f"--load-dir: {artifacts.root} holds no edit to go on with; give the --output-dir, --experiment-name and "
            f"--timestamp of the run that was stopped"
        )

    def load() -> "ControlNetEditor":
        from qnerf_nerfstudio.diffusion.loading import load_editor

        return load_editor(settings.editor, device, control_kind(edit.control))

    editor = load()
    layers = len(editor.layer_names)
    if query_width < layers:
        raise UserError(
            f"--pipeline.model.query-width is {query_width}; the editor has {layers} query layers, expected at least "
            f"one code channel for each"
        )
    size = editor.image_size(*views.size)
    check_memory(editor, plan.config.chunk, size, guided=settings.consolidation != "none")
    projected = project_edit(
        edit,
        folder,
        views,
        capture.names,
        capture.num_train,
        capture.to_scene,
        size,
        scene_box,
        restrict=settings.region,
        lift=settings.lift_controls,
    )
    influence = projected.influence
    return PreparedRun(
        settings=settings,
        edit=edit,
        capture=capture,
        views=views,
        projected=projected,
        latent_masks=influence.latent_masks(editor.latent_stride),
        blend_weights=influence.blend_weights(views.size, settings.feather) if settings.composite else None,
        code_width=query_width // layers,
        plan=plan,
        attempts=attempts,
        artifacts=artifacts,
        options=options,
        photo_hashes=hashes,
        load_editor=load,
        editor=editor,
    )


def _go_on(
    plan: Plan,
    attempts: tuple[Attempt, ...],
    artifacts: EditArtifacts,
    options: dict[str, str],
    hashes: dict[str, str],
    edit: Edit,
) -> tuple[Plan, tuple[Attempt, ...]]:
    """The plan and the attempts of the run that the folder holds, which must be this one."""
    begun = read_manifest(artifacts.manifest)
    refuse_other(artifacts.root, begun, options, hashes, edit)
    try:
        plan = Plan(plan.config, begun.revisions)
    except ValueError as error:
        raise UserError(
            f"{artifacts.manifest}: revisions: {error}; edit the scene again under another --timestamp"
        ) from error
    return plan, (*attempts, *begun.attempts[1:])
