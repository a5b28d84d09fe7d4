"""One run of an edit: its plan as it is now, its files, its field, and its diffusion models while they are loaded."""

import gc
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from nerfstudio.utils import comms
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.edited_dataset import add_points
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.controls.influence import composite
from qnerf_nerfstudio.controls.region import VoxelRegion
from qnerf_nerfstudio.deformation.deformation import Deformation
from qnerf_nerfstudio.deformation.motion import Motion
from qnerf_nerfstudio.field.carried import brought_matter
from qnerf_nerfstudio.field.grids import stated_points, translucency
from qnerf_nerfstudio.field.look import Look
from qnerf_nerfstudio.field.model import EXPECTED_DEPTH, QNerfModel
from qnerf_nerfstudio.run.explained import summary
from qnerf_nerfstudio.run.manifest import Attempt
from qnerf_nerfstudio.run.plan import Revision, Stage, Task
from qnerf_nerfstudio.run.prepare import PreparedRun
from qnerf_nerfstudio.run.slices import SliceRunner

Scene = Literal["captured", "carried", "edited"]
"""What there is to see of a run: the field of the photos, that field through the motion, or the field as it is now."""

FOGGY = 0.13
"""What moves is fog where this share of the light behind it comes through: a carried view of it is worth nothing.
Trained fields have 0.02 to 0.08."""
PLACES, BROUGHT = 1 << 19, 4096
"""Random places of the region at which matter is looked for that the motion brings, and those kept at most."""
POINT_ROWS = 32
"""Rows of rays per view whose ends become the sparse points of the edited dataset."""


class EditRun:
    """A run of an edit; stages.py says what its stages do with it.

    Args:
        prepared: What the run is of; its diffusion models are taken over.
        model: The field.
    """

    def __init__(self, prepared: PreparedRun, model: QNerfModel) -> None:
        self.prepared = replace(prepared, editor=None)
        self.model, self.artifacts = model, prepared.artifacts
        self.plan, self.attempts = prepared.plan, list(prepared.manifest.attempts)
        self.explained = summary(self.artifacts, prepared.capture.num_train)
        """What the latest fitted field explains of its queries, in a sentence; None before the first."""
        self._editor = prepared.editor
        self._slices: SliceRunner | None = None
        self._attempt: int | None = None

    def open(self) -> None:
        """Write what the run begins with, and see that all processes find it.

        Raises:
            UserError: The run's folder is not that of the main process.
        """
        # Every process has looked at the folder as it was before.
        ranks.barrier()
        if comms.is_main_process():
            self.artifacts.write_controls("source", self.prepared.capture.filenames, self.prepared.projected.source)
            self.artifacts.write_controls("target", self.prepared.capture.filenames, self.prepared.projected.target)
            self._write_manifest()
        ranks.barrier()
        own = self.artifacts.root.absolute()
        root = ranks.broadcast(own, self.model.device)
        if root != own or not self.artifacts.manifest.exists():
            raise UserError(
                f"--machine.num-machines: the run's folder {self.artifacts.root} is not that of the first machine, "
                f"{root}; all of them need the same --output-dir on a shared file system, and the same --timestamp"
            )

    def revise(self, revision: Revision, attempt: Attempt | None = None) -> None:
        """Change what is still to be done.

        Args:
            revision: What, and from which step on.
            attempt: What another attempt is sampled with.

        Raises:
            ValueError: It cannot be done at this step.
        """
        self.plan = self.plan.revised(revision)
        if attempt is not None:
            self.attempts.append(attempt)
        if not comms.is_main_process():
            return
        if attempt is not None:
            self.artifacts.set_aside_images(len(self.attempts) - 2)
        self._write_manifest()

    def slices(self, attempt: int) -> SliceRunner:
        """The runner of slices, with the prompt and guidance scale of an attempt."""
        runner = self._slices or self._make_slices()
        if attempt != self._attempt:
            stated = self.attempts[attempt]
            runner.prompts = replace(runner.prompts, target=runner.editor.prompts.encode(stated.prompt))
            runner.editor.config = replace(runner.editor.config, guidance_scale=stated.guidance_scale)
            self._attempt = attempt
        return runner

    def read_motion(self) -> None:
        """Read off the field, which is that of the photos, what the control's motion takes along, and keep it.

        The main process reads: what others read off their fields could differ by rounding.

        Raises:
            UserError: The field does not show it, and nothing but the motion edits the views.
        """
        motion, kept = self.prepared.motion, self.artifacts.anatomy
        if motion is not None and comms.is_main_process() and not kept.exists:
            kept.save(self._taken_along(motion))
        ranks.barrier()

    @cached_property
    def deformation(self) -> Deformation | None:
        """The motion of the control, with what it takes along as `read_motion` kept it; None where the field of the
        photos does not show it."""
        motion, tensors = self.prepared.motion, self.artifacts.anatomy.load()
        assert motion is not None, "nothing moves"
        return motion.deformation(tensors).to(str(self.model.device)) if tensors["read"] else None

    @property
    def begins_carried(self) -> bool:
        """Whether edited views begin from carried ones."""
        return self.plan.config.start == "carried" and self.deformation is not None

    def keep_brought(self) -> None:
        """Keep where the motion brings matter of the field, which is that of the photos now."""
        kept, deformation = self.artifacts.brought, self.deformation
        if kept.exists or deformation is None:
            return
        everywhere = VoxelRegion(self.model.scene_box.aabb, torch.ones(1, 1, 1, dtype=torch.bool))
        region = self.prepared.projected.influence.voxels or everywhere
        places = region.sample(PLACES, torch.Generator().manual_seed(0))
        with torch.no_grad():
            points = brought_matter(self.model.density, deformation, places.to(self.model.device), 1 / EXPECTED_DEPTH)
        kept.save({"points": points[:BROUGHT]})

    def expected(self, stage: Stage) -> Float[Tensor, "N 3"] | None:
        """Points that lie inside of matter in what a stage trains on, as far as the control's motion tells.

        These are along bones for the photos, and what the motion brings for carried views, until a first fit."""
        motion = self.carried_motion
        if motion is None or stage.task == Task.SOURCE:
            return None if motion is None else motion.inside()
        if stage.task in (Task.CARRY, Task.FIT) or stage.fitted is not None or not self.artifacts.brought.exists:
            return None
        points = self.artifacts.brought.load()["points"]
        return points if len(points) else None

    @property
    def carried_motion(self) -> Motion | None:
        """The motion that the field of the photos is carried along, if it is."""
        return self.prepared.motion if self.plan.config.carries else None

    def shows_what_moves(self) -> bool:
        """Whether the field, as it is now, shows as solid matter what the control moves, if any is carried."""
        motion = self.carried_motion
        if motion is None:
            return True
        try:
            return self._fog(motion, self._read(motion, lit=False)) < FOGGY
        except UserError:
            return False

    def _read(self, motion: Motion, lit: bool) -> dict[str, Tensor]:
        """What a motion takes along, and the light on it if that is asked for, read off the field as it is now.

        Raises:
            UserError: The field does not show it.
        """
        region = self.prepared.projected.influence.voxels
        photos = self.prepared.views[: self.prepared.capture.num_train]
        stated = self.prepared.edit.region.type in ("box", "sphere")
        with torch.no_grad():
            colour = self.model.colour if lit else None
            allowed = region.contains if stated and region else None
            return motion.read(self.model.density, colour, allowed, photos)

    def _fog(self, motion: Motion, tensors: dict[str, Tensor]) -> float:
        """Share of the light behind what moves that comes through it."""
        alone = motion.alone(tensors)
        if alone is None:
            return 0.0
        return translucency(self.model, self.prepared.views, alone.to(str(self.model.device)))

    def _taken_along(self, motion: Motion) -> dict[str, Tensor]:
        """What a motion takes along, and whether it could be read off the field ("read")."""
        try:
            tensors = self._read(motion, lit=self.prepared.settings.relight)
        except UserError as error:
            if self.plan.config.editing == "carried":
                raise
            CONSOLE.print(f"{error}. Edited views begin from their photos' inverted noise.", style="yellow")
            return {"read": torch.tensor(False)}
        if "explained" in tensors:
            lit = "what turns is shaded by it" if "harmonics" in tensors else "too little: what turns keeps its shading"
            share = f"{float(tensors['explained'].clamp_min(0)):.0%}"
            CONSOLE.print(f"Light explains {share} of how colours vary along bones; {lit}.", soft_wrap=True)
        return {"read": torch.tensor(self._is_solid(motion, tensors)), **tensors}

    def _is_solid(self, motion: Motion, tensors: dict[str, Tensor]) -> bool:
        """Whether what moves is matter and no fog; without diffusion models, fog is carried all the same."""
        fog = self._fog(motion, tensors)
        if fog < FOGGY:
            return True
        carried = self.plan.config.editing == "carried"
        CONSOLE.print(
            f"The field of the photos shows what moves as fog: {fog:.0%} of the light behind it comes through, solid "
            f"matter lets less than {FOGGY:.0%} through; more photos, masks or --pipeline.source-iterations help. "
            + ("The carried views will be foggy." if carried else "Views begin from their photos' inverted noise."),
            style="yellow",
            soft_wrap=True,
        )
        return carried

    def look(self, scene: Scene) -> Look | None:
        """What shows a scene; None: the field as it is now.

        Raises:
            ValueError: The run has no such scene at this step.
        """
        if scene == "edited":
            return None
        # The field is that of the photos until the first fit, which keeps it.
        kept = self.artifacts.source_field
        weights = kept.load() if kept.exists else {}
        weights = {name: value.to(self.model.device) for name, value in weights.items()}
        if scene == "captured":
            return Look(weights)
        if self.carried_motion is None:
            raise ValueError("no view is carried: the run begins from the photos")
        if not self.artifacts.anatomy.exists:
            raise ValueError("what moves is read off the field of the photos when that is trained")
        if self.deformation is None:
            raise ValueError("the field of the photos does not show what moves")
        return Look(weights, self.deformation)

    def take_up_heads(self, ended: Stage) -> None:
        """Give the field the query heads that were fitted at the end of a stage, where that was a fit."""
        if ended.task == Task.FIT:
            weight = self.artifacts.heads(ended.interval).load()["weight"]
            self.model.field.query_head.weight.data[: len(weight)] = weight

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

    def write_sparse_points(self) -> None:
        """Give the edited dataset sparse points from the final field, where the capture has none."""
        prepared = self.prepared
        capture = prepared.capture
        training = prepared.views[: capture.num_train]
        with self.model.weights_lock:
            points = stated_points(self.model, training, capture.to_scene, POINT_ROWS)
        add_points(self.artifacts.root, *points)

    def _make_slices(self) -> SliceRunner:
        prepared = self.prepared
        editor, self._editor = self._editor or prepared.load_editor(), None
        edit = prepared.edit
        prompts = editor.encode_prompts(edit.source_prompt, edit.prompt, edit.negative_prompt)
        self._slices = SliceRunner(
            editor=editor,
            plan=self.plan,
            artifacts=prepared.artifacts,
            prompts=prompts,
            carried_prompt=prompts.target,
            source_controls=prepared.projected.source,
            target_controls=prepared.projected.target,
            names=prepared.capture.names,
            num_train=prepared.capture.num_train,
            code_width=prepared.code_width,
            masks=prepared.latent_masks,
        )
        return self._slices

    def finish(self) -> None:
        """Note that the run needs what it kept for going on no more."""
        self.artifacts.writer.flush()
        self._write_manifest(finished=True)

    def _write_manifest(self, finished: bool = False) -> None:
        changes = {"revisions": self.plan.revisions, "attempts": tuple(self.attempts), "finished": finished}
        manifest = self.prepared.manifest.model_copy(update=changes)
        write_json(self.artifacts.manifest, manifest.model_dump(mode="json"))
