"""Checks everything that can be checked before long work, plans the run and loads its models."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from nerfstudio.utils import comms
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.capture import Capture
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.controls.projection import ProjectedEdit, project_edit
from qnerf_nerfstudio.deformation.motion import Motion, stated_motion
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.memory import MOST_ON_CPU, check_memory, checkpoint_if_needed, fitting_chunk
from qnerf_nerfstudio.edit.schema import Edit, control_kinds
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.inputs import contents, inputs
from qnerf_nerfstudio.run.manifest import Attempt, Manifest, read_manifest, refuse_other
from qnerf_nerfstudio.run.plan import Plan
from qnerf_nerfstudio.run.settings import RunSettings

if TYPE_CHECKING:  # diffusers stays out of ns-* start-up
    from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
    from qnerf_nerfstudio.run.costs import Costs


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
    motion: Motion | None
    """What the control moves; None: it states no motion."""
    latent_masks: Float[Tensor, "V 1 h w"] | None
    """1 for the latents that the edit may change; None: all of them."""
    blend_weights: Float[Tensor, "V 1 H W"] | None
    """Share of the edited view in every pixel of the photos; None: all of it."""
    code_width: int
    """Code channels per query layer."""
    plan: Plan
    """The plan, with the revisions of a run that goes on."""
    manifest: Manifest
    """What the run is of, with its revisions and attempts so far."""
    artifacts: EditArtifacts
    """The run's edit/ folder."""
    costs: "Costs | None"
    """What its diffusion will cost; None where it has none, and where the run goes on."""
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
        how = f"begun from {self.plan.config.start} views, {self.settings.consolidation} consolidation"
        if self.settings.editing == "carried":
            how = "carried along its motion, without diffusion models"
        return (
            f"Edit of {len(self.views)} views ({self.capture.num_train} for training) at {width}x{height} pixels: "
            f'"{self.edit.source_prompt}" becomes "{self.edit.prompt}" by {self.edit.control.type}; '
            f"{how}, {self.plan.total} training steps."
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
    # Whether the control states a motion shows only once it is drawn; all else about the plan can be checked now.
    draft = _plan(settings, len(views), moves=True, chunk=1 if settings.chunk == "auto" else settings.chunk)
    manifest = Manifest(
        version=__version__,
        plan=draft.hash,
        settings=options,
        photos=contents(capture.filenames),
        files=inputs(capture, edit, folder, settings.editor if settings.editing == "diffusion" else None),
        edit=edit,
        paths=[str(path.absolute()) for path in capture.filenames],
        num_train=capture.num_train,
        attempts=(Attempt(edit.prompt, settings.editor.guidance_scale),),
    )
    begun = _begun(manifest, artifacts, resume)
    load = partial(_load_editor, settings.editor, device, edit)
    editor, size, code_width = None, _carried_size(views.size, settings.editor.resolution), query_width
    if settings.editing == "diffusion":
        editor = _loaded(load, edit)
        size, code_width = editor.image_size(*views.size), _code_width(query_width, len(editor.layer_names))
    placed = (views, capture.names, capture.num_train, capture.to_scene)
    chunk = _chunk(settings, editor, len(views), size, begun)
    if editor is not None and editor.checkpointing:
        load = partial(_load_editor, replace(settings.editor, checkpointing=True), device, edit)
    projected = project_edit(edit, folder, *placed, size, scene_box, settings.region, settings.lift_controls)
    motion = _motion(settings, edit, folder, capture, projected)
    plan = _plan(settings, len(views), motion is not None, chunk)
    manifest = manifest.model_copy(update={"image_size": size, "plan": plan.hash, "chunk": chunk})
    if begun is not None:
        plan, manifest = _go_on(plan, manifest, begun, artifacts)
    influence = projected.influence
    return PreparedRun(
        settings=settings,
        edit=edit,
        capture=capture,
        views=views,
        projected=projected,
        motion=motion,
        latent_masks=None if editor is None else influence.latent_masks(editor.latent_stride),
        blend_weights=influence.blend_weights(views.size, settings.feather) if settings.composite else None,
        code_width=code_width,
        plan=plan,
        manifest=manifest,
        artifacts=artifacts,
        costs=_costs(editor, plan, size, views.size, code_width, settings, artifacts) if editor and not begun else None,
        load_editor=load,
        editor=editor,
    )


def _loaded(load: Callable[[], "ControlNetEditor"], edit: Edit) -> "ControlNetEditor":
    """The editor; what its text encoder does not read of the prompts is told."""
    editor = load()
    for name in ("prompt", "source_prompt", "negative_prompt"):
        if words := editor.prompts.dropped_words(getattr(edit, name)):
            CONSOLE.print(
                f"{name}: the text encoder reads {editor.prompts.longest} tokens, it drops: {words}",
                style="yellow",
                soft_wrap=True,
                markup=False,
            )
    return editor


def _begun(manifest: Manifest, artifacts: EditArtifacts, resume: bool) -> Manifest | None:
    """The manifest of the run that the folder holds, which must be this one; None where it holds none."""
    if artifacts.manifest.exists():
        begun = read_manifest(artifacts.manifest)
        refuse_other(artifacts.root, begun, manifest)
        return begun
    if resume:
        raise UserError(
            f"--load-dir: {artifacts.root} holds no edit to go on with; give the --output-dir, --experiment-name and "
            f"--timestamp of the run that was stopped"
        )
    return None


def _plan(settings: RunSettings, num_views: int, moves: bool, chunk: int) -> Plan:
    """The plan of a run whose control states a motion or not."""
    try:
        return Plan(settings.plan_config(num_views, comms.get_world_size(), moves, chunk))
    except ValueError as error:
        raise UserError(f"--pipeline.{error}") from error


def _chunk(
    settings: RunSettings, editor: "ControlNetEditor | None", views: int, size: tuple[int, int], begun: Manifest | None
) -> int:
    """Views that go through the diffusion models at once. A run that goes on has what it was begun with: its plan
    must not depend on the memory of the card that it goes on with."""
    guided = settings.consolidation != "none"
    asked = settings.chunk if begun is None else begun.chunk
    if editor is None:
        return MOST_ON_CPU if asked == "auto" else asked
    checkpoint_if_needed(editor, 1 if asked == "auto" else asked, size, guided=guided)
    chunk = asked
    if chunk == "auto":
        chunk = ranks.broadcast(fitting_chunk(editor, views, size, guided=guided), editor.device)
    check_memory(editor, chunk, size, guided=guided)
    return chunk


def _motion(
    settings: RunSettings, edit: Edit, folder: Path, capture: Capture, projected: ProjectedEdit
) -> Motion | None:
    """The motion that the edit states; None where edited views have to begin from the photos' noise."""
    motion: Motion | str = "the control changes nothing"
    if projected.has_changes:
        motion = stated_motion(edit, folder, capture.to_scene, projected.lifted)
    if not isinstance(motion, str):
        return motion
    if settings.editing == "carried":
        raise UserError(
            f"--pipeline.editing is carried, but {motion}; state the edit by a skeleton, boxes or one mesh in two "
            f"poses, or leave the option out to edit by diffusion models"
        )
    if settings.start == "carried":
        CONSOLE.print(f"Edited views begin from their photos' inverted noise: {motion}.", soft_wrap=True)
    return None


def _carried_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Height and width of carried views: the photos', their shorter side at most as long as edited images' is."""
    share = min(1.0, resolution / min(size))
    return round(size[0] * share), round(size[1] * share)


def _load_editor(config: EditorConfig, device: torch.device, edit: Edit) -> "ControlNetEditor":
    from qnerf_nerfstudio.diffusion.loading import load_editor  # noqa: PLC0415 - diffusers, out of ns-* start-up

    return load_editor(config, device, control_kinds(edit.control))


def _code_width(query_width: int, layers: int) -> int:
    """Code channels of each query layer."""
    if query_width < layers:
        raise UserError(
            f"--pipeline.model.query-width is {query_width}; the editor has {layers} query layers, expected at "
            f"least one code channel for each"
        )
    return query_width // layers


def _costs(
    editor: "ControlNetEditor",
    plan: Plan,
    size: tuple[int, int],
    photo_size: tuple[int, int],
    code_width: int,
    settings: RunSettings,
    artifacts: EditArtifacts,
) -> "Costs":
    """What a run will cost; a disk that is too small is refused."""
    from qnerf_nerfstudio.run.costs import check_disk, estimate  # noqa: PLC0415 - diffusers, out of ns-* start-up

    costs = estimate(editor, plan, size, photo_size, code_width, guided=settings.consolidation != "none")
    check_disk(artifacts.root, costs.disk)
    return costs


def _go_on(plan: Plan, manifest: Manifest, begun: Manifest, artifacts: EditArtifacts) -> tuple[Plan, Manifest]:
    """Plan and manifest of the run that the folder holds.

    Raises:
        UserError: Other images would be edited, or otherwise: the models or the code changed.
    """
    if (begun.plan, begun.image_size) != (manifest.plan, manifest.image_size):
        raise UserError(
            f"{artifacts.root} was begun with images of {begun.image_size[1]}x{begun.image_size[0]} pixels and another "
            f"plan, and now they have {manifest.image_size[1]}x{manifest.image_size[0]}: the models or the package "
            f"changed; edit the scene again under another --timestamp"
        )
    try:
        plan = Plan(plan.config, begun.revisions)
    except ValueError as error:
        raise UserError(
            f"{artifacts.manifest}: revisions: {error}; edit the scene again under another --timestamp"
        ) from error
    attempts = (*manifest.attempts, *begun.attempts[1:])
    return plan, manifest.model_copy(update={"revisions": begun.revisions, "attempts": attempts})
