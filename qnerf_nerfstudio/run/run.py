"""One run of an edit: its plan, its files, and each training step's slice. Joins field and diffusion models."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nerfstudio.utils import comms
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio import __version__
from qnerf_nerfstudio.capture.cameras import invert_affine, transform_points
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.capture.edited_dataset import add_points, write_dataset
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.controls.influence import composite
from qnerf_nerfstudio.controls.projection import project_edit, restrict_field
from qnerf_nerfstudio.edit.schema import Edit, control_kind
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.field.grids import relative_errors, render_codes, render_grid, surface_points
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.run.artifacts import EditStore
from qnerf_nerfstudio.run.fingerprint import contents
from qnerf_nerfstudio.run.manifest import Attempt, Manifest, read_manifest, refuse_other
from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Revision, Slice, Stage, Task

if TYPE_CHECKING:
    from qnerf_nerfstudio.diffusion.editor import QueryTargets
    from qnerf_nerfstudio.run.slices import SliceRunner
    from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig


POINT_ROWS = 32
"""Rows of rays per view whose ends become the sparse points of the edited dataset."""


class EditRun:
    """Walks a plan slice by slice, from files to files.

    Args:
        config: Settings of the pipeline.
        edit: The edit.
        folder: Folder of edit.json.
        data: The capture.
        model: The field.
        store: The run's edit/ folder.
        settings: What the result depends on, by the name of its option; a run that goes on must not differ in it.
        resume: Whether the run goes on from a checkpoint.

    Raises:
        UserError: Settings are out of range, the edit does not fit the capture or the editor, or the folder holds
            another edit.
    """

    def __init__(
        self,
        config: "QNerfPipelineConfig",
        edit: Edit,
        folder: Path,
        data: QNerfDataManager,
        model: QNerfModel,
        store: EditStore,
        settings: dict[str, str],
        resume: bool,
    ) -> None:
        self.config, self.edit, self.data, self.model, self.store = config, edit, data, model, store
        views = data.views()
        self.rank, count = comms.get_rank(), comms.get_world_size()
        try:
            config.editor.validate()
            if not 0 <= config.feather <= 0.5:
                raise ValueError(f"feather is {config.feather}; expected 0 to 0.5")
            self.plan = Plan(
                PlanConfig(
                    views=len(views),
                    num_steps=config.editor.num_steps,
                    tau=config.tau,
                    # No process is to stay without views while another one has a whole chunk of them.
                    chunk=min(config.chunk, -(-len(views) // count)),
                    source_iterations=config.source_iterations,
                    fit_iterations=config.fit_iterations,
                    final_iterations=config.final_iterations,
                    consolidation=config.consolidation,
                    stop=config.stop,
                    ranks=count,
                )
            )
        except ValueError as error:
            raise UserError(f"--pipeline.{error}") from error
        self.attempts = [Attempt(edit.prompt, config.editor.guidance_scale)]
        self._manifest = store.root / "manifest.json"
        self._settings, self._photos = settings, contents(data.filenames)
        self._take_up(resume)
        self._runner: SliceRunner | None = None
        self._attempt: int | None = None
        editor = self._load_editor()
        layers = len(editor.layer_names)
        if config.model.query_width < layers:
            raise UserError(
                f"--pipeline.model.query-width is {config.model.query_width}; the editor has {layers} query layers, "
                f"expected at least one code channel for each"
            )
        from qnerf_nerfstudio.diffusion.memory import check_memory

        size = editor.image_size(*views.size)
        check_memory(editor, self.plan.config.chunk, size, guided=config.consolidation != "none")
        self.projected = project_edit(
            edit,
            folder,
            data,
            size,
            model.scene_box.aabb,
            restrict=config.region,
            lift=config.lift_controls,
        )
        self.views = self.projected.views
        # Where the control changes nothing, renders of a field could only blur what the views show already.
        self._draws = config.editor.render_weight > 0 and self.projected.changes
        influence = self.projected.influence
        restrict_field(influence, data, model)
        self._seams = influence.seams(views.size, config.feather) if config.composite else None
        self._make_runner(editor)
        self._share_folder()

    def _share_folder(self) -> None:
        """Write what the run begins with, and see that all processes find it."""
        # Every process has looked at the folder as it was before.
        ranks.wait()
        if self.rank == 0:
            for index, path in enumerate(self.data.filenames):
                write_png(self.store.root / "controls/source" / f"{path.stem}.png", self.projected.source[index])
                write_png(self.store.root / "controls/target" / f"{path.stem}.png", self.projected.target[index])
            self._write_manifest()
        ranks.wait()
        root = ranks.told(self.store.root.absolute(), self.model.device)
        if root != self.store.root.absolute() or not self._manifest.exists():
            raise UserError(
                f"--machine.num-machines: the run's folder {self.store.root} is not that of the first machine, {root}; "
                f"all of them need the same --output-dir on a shared file system, and the same --timestamp"
            )

    @property
    def edit_size(self) -> tuple[int, int]:
        """Height and width of the images that are edited."""
        return self.projected.source.shape[-2], self.projected.source.shape[-1]

    def __str__(self) -> str:
        """The run in words."""
        return (
            f"Edit of {len(self.views)} views ({self.data.num_train} for training) at {self.edit_size[1]}x"
            f'{self.edit_size[0]} pixels: "{self.edit.source_prompt}" becomes "{self.edit.prompt}" by '
            f"{self.edit.control.type}; {self.config.consolidation} consolidation, {self.plan.total} training steps."
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
        if self.rank != 0:
            return
        if attempt is not None:
            finished = self.store.root / "images"
            if finished.exists():
                # Nothing is lost: the views of the attempt before stay beside the run.
                finished.rename(self.store.root / f"images-{len(self.attempts) - 2}")
        self._write_manifest()

    def do(self, item: Slice) -> str | None:
        """Do the slice of a training step.

        Returns:
            The folder in edit/ that got new images of the slice's views, None where none did.
        """
        if item.task in (Task.SOURCE, Task.FIT, Task.FINAL) or item.chunk >= self.plan.chunks:
            return None
        runner = self._runner_of(item.attempt)
        if item.task == Task.INVERT:
            if item.index == self.plan.config.num_steps - 1:
                runner.begin_inversion(item.chunk, self.data.photos(self.plan.views_of(item.chunk), self.edit_size))
            runner.invert(item)
        elif item.task == Task.DENOISE:
            runner.denoise(item, self._targets(item))
        elif item.task == Task.LOOK_AHEAD:
            runner.look_ahead(item)
        elif item.task == Task.EXTRACT:
            previews = runner.extract(item)
            if previews is not None:
                return self._write_views(f"previews/{item.interval}", item.chunk, previews)
        elif item.task == Task.DECODE:
            return self._write_views("images", item.chunk, runner.decode(item))
        return None

    def finish(self, stage: Stage) -> None:
        """Do what is left when all chunks of a stage are done."""
        if stage.task == Task.EXTRACT:
            self._runner_of(stage.attempt).code(stage.interval)
        elif stage.task == Task.DECODE:
            source = Path(self.config.datamanager.dataparser.data)
            transforms = source if source.suffix == ".json" else source / "transforms.json"
            write_dataset(self.store.root, transforms, self.views.size)

    def hand_over(self) -> None:
        """Give the edited dataset sparse points from the final field, where the capture has none."""
        rows = POINT_ROWS
        columns = max(1, round(rows * self.views.size[1] / self.views.size[0]))
        points, colours = surface_points(self.model, self.views[: self.data.num_train], (rows, columns))
        source = Path(self.config.datamanager.dataparser.data)
        to_scene = dataset_to_scene(self.data.train_dataparser_outputs, source)
        stated = transform_points(points, invert_affine(to_scene))
        add_points(self.store.root, stated.numpy(), (colours * 255).round().byte().numpy())

    def unload(self) -> None:
        """Free the diffusion models; another attempt loads them again."""
        self._runner = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load_editor(self) -> Any:
        from qnerf_nerfstudio.diffusion.loading import load_editor

        return load_editor(self.config.editor, self.model.device, control_kind(self.edit.control))

    def _make_runner(self, editor: Any) -> "SliceRunner":
        from qnerf_nerfstudio.diffusion.editor import Prompts
        from qnerf_nerfstudio.run.slices import SliceRunner

        edit = self.edit
        self._runner = SliceRunner(
            editor=editor,
            plan=self.plan,
            store=self.store,
            prompts=Prompts(*map(editor.encode_prompt, (edit.source_prompt, edit.prompt, edit.negative_prompt))),
            source_controls=self.projected.source,
            target_controls=self.projected.target,
            names=self.projected.names,
            num_train=self.data.num_train,
            code_width=self.config.model.query_width // len(editor.layer_names),
            masks=self.projected.influence.latent_masks(editor.latent_stride),
        )
        self._attempt = None
        return self._runner

    def _runner_of(self, number: int) -> "SliceRunner":
        """The runner of slices, with the prompt and guidance scale of an attempt."""
        runner = self._runner or self._make_runner(self._load_editor())
        if number != self._attempt:
            attempt = self.attempts[number]
            runner.prompts = replace(runner.prompts, target=runner.editor.encode_prompt(attempt.prompt))
            runner.editor.config = replace(runner.editor.config, guidance_scale=attempt.guidance_scale)
            self._attempt = number
        return runner

    def _take_up(self, resume: bool) -> None:
        """Refuse to mix two edits in one folder; take up the revisions of a run that goes on."""
        if not self._manifest.exists():
            if resume:
                raise UserError(
                    f"--load-dir: {self.store.root} holds no edit to go on with; give the --output-dir, "
                    f"--experiment-name and --timestamp of the run that was stopped"
                )
            return
        begun = read_manifest(self._manifest)
        refuse_other(self.store.root, begun, self._settings, self._photos, self.edit)
        try:
            self.plan = Plan(self.plan.config, begun.revisions)
        except ValueError as error:
            raise UserError(
                f"{self._manifest}: revisions: {error}; edit the scene again under another --timestamp"
            ) from error
        self.attempts += begun.attempts[1:]

    def _write_manifest(self) -> None:
        Manifest(
            version=__version__,
            plan=self.plan.hash,
            settings=self._settings,
            photos=self._photos,
            edit=self.edit,
            views=self.projected.names,
            paths=[str(path.absolute()) for path in self.data.filenames],
            training_views=self.data.num_train,
            image_size=self.edit_size,
            revisions=self.plan.revisions,
            attempts=tuple(self.attempts),
        ).write(self._manifest)

    def _targets(self, item: Slice) -> "QueryTargets | None":
        """What the field renders for a chunk, computed once per fit; None before the first one."""
        from qnerf_nerfstudio.diffusion.editor import QueryTargets
        from qnerf_nerfstudio.run.slices import load_codec, load_codes

        if item.fitted is None:
            return None
        assert self._runner is not None
        codec = load_codec(self.store, item.fitted)
        key = f"queries/{item.fitted}/rendered-{item.chunk:03d}"
        if not self.store.has(key):
            views = self.plan.views_of(item.chunk)
            codes = render_codes(self.model, self.views, views, codec)
            rendered = {**codes, "errors": relative_errors(codes, load_codes(self.store, item.fitted, item.chunk))}
            if self._draws:
                # The render as it is: photos around the region would show its outline, which the next fit fills
                # with fog.
                images = render_grid(self.model, self.views, views, self.edit_size, "rgb")
                rendered["clean"] = self._runner.editor.encode(images.movedim(-1, 1)).cpu()
            self.store.save(key, rendered)
        device = self._runner.editor.device
        codes = {name: code.to(device) for name, code in self.store.load(key).items()}
        # The share of the variance of a view's own queries that the field explains.
        confidence = (1 - codes.pop("errors").square()).clamp_min(0)
        return QueryTargets(codec.to(device), confidence=confidence, clean=codes.pop("clean", None), codes=codes)

    def _write_views(self, folder: str, chunk: int, images: Float[Tensor, "V 3 h w"]) -> str:
        """Write a chunk of edited views as PNGs at the photos' resolution, composited with the photos."""
        views = self.plan.views_of(chunk)
        if images.shape[-2:] != torch.Size(self.views.size):
            images = F.interpolate(images, self.views.size, mode="bicubic", antialias=True).clamp(0, 1)
        if self._seams is not None:
            photos = self.data.photos(views, self.views.size)
            images = composite(images, photos, self._seams[views.start : views.stop])
        for view, image in zip(views, images, strict=True):
            write_png(self.store.root / folder / f"{self.data.filenames[view].stem}.png", image)
        return folder
