"""QNerfPipeline: walks the plan, and trains the field on what its stages provide."""

import copy
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import comms
from packaging.version import Version
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.capture.colmap import photos_of
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError, exit_on_user_error
from qnerf_nerfstudio.common.quiet import ignore_third_party_warnings
from qnerf_nerfstudio.common.seeds import seed_everything
from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.edit.reading import edit_path, load_edit
from qnerf_nerfstudio.edit.schema import Edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManager, QNerfDataManagerConfig
from qnerf_nerfstudio.field.model import QNerfModel, QNerfModelConfig
from qnerf_nerfstudio.pages.report import write_report
from qnerf_nerfstudio.pages.viser_safety import plain
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.fingerprint import run_options
from qnerf_nerfstudio.run.manifest import Attempt
from qnerf_nerfstudio.run.plan import Revision, Stage, Task
from qnerf_nerfstudio.run.prepare import PreparedRun, prepare
from qnerf_nerfstudio.run.progress import Progress, finished_panel
from qnerf_nerfstudio.run.run import EditRun, Scene
from qnerf_nerfstudio.run.settings import RunSettings
from qnerf_nerfstudio.run.stages import STAGES, describe
from qnerf_nerfstudio.studio.options import check_compiler, check_options
from qnerf_nerfstudio.studio.panel import EditPanel
from qnerf_nerfstudio.studio.trainer import QNerfTrainer, resume_command


@dataclass
class QNerfPipelineConfig(RunSettings, VanillaPipelineConfig):
    """An edit of a captured scene."""

    _target: type = field(default_factory=lambda: QNerfPipeline)
    datamanager: QNerfDataManagerConfig = field(default_factory=QNerfDataManagerConfig)
    """specifies the datamanager config"""
    model: QNerfModelConfig = field(default_factory=QNerfModelConfig)
    """specifies the model config"""


class QNerfPipeline(VanillaPipeline):
    """Edits the views of a capture step by step while its field is trained.

    Training step s begins with one slice of the plan (before the train iteration, outside the trainer's autocast), then
    trains the field on what the stage at hand provides: source photos, query maps, or edited views.
    """

    config: QNerfPipelineConfig
    datamanager: QNerfDataManager

    def __init__(
        self,
        config: QNerfPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        ignore_third_party_warnings()
        self._edit: Edit | None = None
        self._edit_path = Path()
        if test_mode == "val":
            with exit_on_user_error():
                self._edit_path, self._edit = self._read_inputs(config)
        super().__init__(config, device, test_mode, grad_scaler=grad_scaler)
        if world_size > 1:
            # Nerfstudio's pipeline wraps models on CUDA devices only; the processes of a test run on the CPU.
            self.world_size = world_size
            devices = [local_rank] if self.device.type == "cuda" else None
            self._model = cast(
                Model, DistributedDataParallel(self._model, device_ids=devices, find_unused_parameters=True)
            )
            # They are those of the main process now.
            self._qnerf.keep_initial_weights()
        self._run: EditRun | None = None
        self._trainer: QNerfTrainer | None = None
        self._stage_number: int | None = None
        self._progress = Progress()
        if self._edit is not None:
            self.editing = EditPanel(self._edit.prompt, config.editor.guidance_scale)

    @staticmethod
    def _read_inputs(config: QNerfPipelineConfig) -> tuple[Path, Edit]:
        check_options(config.datamanager, config.model)
        check_compiler(config.editor, config.model)
        parser = config.datamanager.dataparser
        data = Path(config.datamanager.data or parser.data)
        check_capture(data, config.outside_paths, getattr(parser, "downscale_factor", None), photos_of(parser))
        path = edit_path(data, config.edit)
        edit = load_edit(path, config.outside_paths)
        prompt = config.model.prompt
        if prompt is not None:
            if not prompt.strip():
                raise UserError(f"--prompt is empty; give the target prompt, or leave it out to use the one in {path}")
            edit = edit.model_copy(update={"prompt": prompt})
        return path, edit

    @property
    def _qnerf(self) -> QNerfModel:
        model = self.model
        assert isinstance(model, QNerfModel)
        return model

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Prepare the run (models, controls, plan), and hook its slices in before every train iteration."""
        trainer = training_callback_attributes.trainer
        assert isinstance(trainer, QNerfTrainer) and self._edit is not None, "qnerf-edit is trained by QNerfTrainer"
        with exit_on_user_error():
            self._begin(trainer, self._prepare(trainer, self._edit))
        callbacks = super().get_training_callbacks(training_callback_attributes)
        # The slice goes first: a change of stage resets what the model's own callbacks then schedule.
        before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN
        walk = TrainingCallback([before], self._before_iteration, update_every_num_iters=1)
        return [walk, *callbacks, TrainingCallback([after], self._after_train)]

    def _prepare(self, trainer: QNerfTrainer, edit: Edit) -> PreparedRun:
        """Check everything that can be checked before long work, load the editor, make the plan."""
        # Threads sum the hash grid's gradients in any order otherwise. On a GPU it takes a sort of every sum.
        deterministic = self.config.deterministic or self.device.type == "cpu"
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        prepared = prepare(
            self.config,
            edit,
            self._edit_path.parent,
            self.datamanager.capture,
            self._qnerf.scene_box.aabb,
            self.config.model.query_width,
            self._qnerf.device,
            EditArtifacts(trainer.base_dir / "edit"),
            run_options(trainer.config, comms.get_world_size()),
            resume=trainer._start_step > 0,
        )
        if trainer._start_step >= prepared.plan.total:
            raise UserError(
                f"--load-dir: the edit in {prepared.artifacts.root} is finished; look at it with ns-viewer "
                f"--load-config {trainer.base_dir / 'config.yml'}, or start another one under another --timestamp"
            )
        return prepared

    def _begin(self, trainer: QNerfTrainer, prepared: PreparedRun) -> None:
        """Open the run's folder, and set up what follows from the plan."""
        self._trainer, self._run = trainer, EditRun(prepared, self._qnerf)
        self._run.open()
        trainer.before_checkpoint, trainer.weights_lock = prepared.artifacts.writer.flush, self._qnerf.weights_lock
        self._qnerf.restrict(prepared.projected.influence.voxels)
        self._progress.load(prepared.artifacts, trainer._start_step)
        self._set_length(trainer, prepared)
        photos = prepared.capture.filenames[: prepared.capture.num_train]
        self.editing.connect(trainer, prepared.artifacts, photos, self._choose_scene)
        if comms.is_main_process():
            CONSOLE.print(str(prepared), soft_wrap=True, markup=False)
            if prepared.costs is not None:
                CONSOLE.print(str(prepared.costs), soft_wrap=True, markup=False)
            CONSOLE.print(f"If it stops, go on with: {resume_command(trainer.config)}", soft_wrap=True, markup=False)

    def _set_length(self, trainer: QNerfTrainer, prepared: PreparedRun) -> None:
        """Set the number of training steps from the plan, and write it and the edited views' folder into config.yml."""
        asked, total = trainer.config.max_num_iterations, prepared.plan.total
        if asked not in (0, *prepared.plan.totals):
            raise UserError(
                f"--max-num-iterations is {asked}, but an edit's length follows from its plan ({total} steps); leave "
                f"it out and use --pipeline.final-iterations or --pipeline.fit-iterations"
            )
        trainer.config.max_num_iterations = total
        self.datamanager.use_edited_images(prepared.artifacts.images)
        if comms.is_main_process():
            trainer.config.write_config()
        self._set_loop(trainer, trainer._start_step, total)

    @staticmethod
    def _set_loop(trainer: QNerfTrainer, start: int, total: int) -> None:
        """Let the trainer's next loop go from step `start` to the end of the plan."""
        trainer._start_step = start
        trainer.config.max_num_iterations = total
        if Version(importlib.metadata.version("nerfstudio")) <= Version("1.1.5"):
            # This trainer runs max_num_iterations *more* steps after a resume, later ones run up to it.
            trainer.config.max_num_iterations -= start

    def _before_iteration(self, step: int) -> None:
        """Do the slice of training step `step`."""
        run, trainer = self._run, self._trainer
        assert run is not None and trainer is not None
        with trainer.exit_with_resume_command(step):
            self._run_slice(run, trainer, step)

    def _run_slice(self, run: EditRun, trainer: QNerfTrainer, step: int) -> None:
        trainer.stop_if_interrupted(step, run.plan.total)
        self._apply_request(run, step)
        if step >= run.plan.total - 1:
            # A plan that was finished early ends before the trainer's loop does.
            trainer.stop_training = True
        # A step's random numbers follow from its number alone, so a run that resumes draws those of one that did not.
        # Every process draws rays of its own.
        seed = trainer.config.machine.seed * 1_000_003 + step + comms.get_rank() * 500_000_003
        seed_everything(seed)
        number = run.plan.stage_at(step)
        if number != self._stage_number:
            self._enter_stage(run, trainer, number, step)
        status = self._progress.step(run.plan, step)
        self.editing.show(status)
        if comms.is_main_process():
            self._progress.show(status)
        item = run.plan.at(step, comms.get_rank())
        folder = None
        if item.chunk < run.plan.chunks:
            folder = STAGES[item.task].run_slice(run, item)
        # A slice that was done before a kill is passed over; the training that follows must not depend on it.
        seed_everything(seed)
        if folder is not None:
            self.editing.add_edited(run.plan.view_indices(item.chunk), folder)
        if item.last and comms.is_main_process():
            self._progress.save(run.artifacts)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Losses of a training step; some of them are kept for the report."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        if self._run is None:
            return outputs, losses, metrics
        assert self._trainer is not None
        with self._trainer.exit_with_resume_command(step):
            # All processes try again together: they meet in the forward pass.
            if ranks.anywhere(_not_finite(losses) is not None, self.device):
                with torch.autocast(self.device.type, enabled=False):
                    outputs, losses, metrics = super().get_train_loss_dict(step)
            name = _not_finite(losses)
            if ranks.anywhere(name is not None, self.device):
                name = name or "loss in another process"
                stage = describe(self._run.plan.stages[self._run.plan.stage_at(step)])
                raise FloatingPointError(
                    f"the field's {name} is not finite at training step {step} ({stage}), in float32 neither; try a "
                    f"smaller --optimizers.fields.optimizer.lr"
                )
        self._progress.note_losses(self._run.plan, step, losses)
        return outputs, losses, metrics

    def get_average_eval_image_metrics(self, *args: Any, **settings: Any) -> dict[str, Any]:
        """Nerfstudio's metrics over the held-out views, against their edited views."""
        with exit_on_user_error():
            self._check_held_out()
        return super().get_average_eval_image_metrics(*args, **settings)

    def _check_held_out(self) -> None:
        """See that there are edited views to evaluate against."""
        dataset = self.datamanager.eval_dataset
        if len(dataset) == 0:
            raise UserError(
                "the run held no views out, so there is nothing to evaluate; edit again with nerfstudio-data "
                "--train-split-fraction 0.9, or render it with ns-render"
            )
        folder = dataset.edited_images
        gone = [path.stem for path in dataset.image_filenames if folder and not (folder / f"{path.stem}.png").exists()]
        if gone:
            raise UserError(
                f"{folder}: {gone[0]}.png and {len(gone) - 1} other edited views are gone, and the photos are no "
                f"measure; put them back"
            )

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint; one that another version made is refused in a sentence where it does not fit."""
        made = loaded_state.get("_model._extra_state", {}).get("version", "0.1.0")
        with exit_on_user_error():
            try:
                super().load_pipeline(loaded_state, step)
            except RuntimeError as error:
                raise UserError(
                    f"the checkpoint was made by qnerf-nerfstudio {made} and does not fit this version, {__version__}, "
                    f"or its config.yml was changed ({str(error).splitlines()[-1].strip()}); use pip install "
                    f"qnerf-nerfstudio=={made}, or edit the scene again"
                ) from error

    def _apply_request(self, run: EditRun, step: int) -> None:
        """Revise the plan where somebody at the viewer asked for it."""
        request = ranks.broadcast(self.editing.take_request(), self.device)
        if request is None:
            return
        attempt = Attempt(request.prompt, request.guidance_scale) if request.kind == "again" else None
        try:
            run.revise(Revision(step, request.kind), attempt)
        except ValueError as error:
            self.editing.say(plain(str(error)))
            CONSOLE.print(f"Not done: {error}.", style="yellow", soft_wrap=True)
            return
        CONSOLE.print(f"The plan was revised at the viewer: it ends at training step {run.plan.total} now.")

    def _after_train(self, step: int) -> None:
        """Go on where the plan grew while it was walked; at its end, sum up."""
        run, trainer = self._run, self._trainer
        assert run is not None and trainer is not None
        if step + 1 < run.plan.total and not trainer.stop_training:
            self._progress.skip_pause()
            self._set_loop(trainer, step + 1, run.plan.total)
            trainer.training_state = "training"
            trainer.train()
            return
        if not comms.is_main_process():
            return
        self._progress.finish()
        self._progress.save(run.artifacts)
        run.write_sparse_points()
        run.finish()
        write_report(trainer.base_dir)
        if not self.config.keep_latents:
            run.artifacts.discard_work()
        self.editing.say("**Finished.** The final NeRF is what you see.")
        CONSOLE.print(finished_panel(trainer.base_dir, run.artifacts, self._progress.seconds))

    def _enter_stage(self, run: EditRun, trainer: QNerfTrainer, number: int, step: int) -> None:
        """Give the field what the stage trains on; fits and the final field start with fresh optimizers."""
        stage, span = run.plan.stages[number], run.plan.training_span(step)
        fresh = step == span.start
        # The first stage that a process enters, unless at its start, goes on with the state that the trainer loaded.
        resumed = self._stage_number is None and not fresh
        self._stage_number = number
        model = self._qnerf
        STAGES[stage.task].begin(run)
        ranks.barrier()
        if comms.is_main_process() and number > 0:
            ended = run.plan.stages[number - 1]
            STAGES[ended.task].end(run, ended)
            if fresh and not run.artifacts.source_field.exists:
                run.artifacts.source_field.save(dict(model.named_parameters()))
        ranks.barrier()
        if number > 0 and step == run.plan.starts[number]:
            run.take_up_heads(run.plan.stages[number - 1])
        targets = STAGES[stage.task].targets(run, stage)
        self.datamanager.set_targets(targets)
        model.expected = run.expected(stage)
        if fresh and number > 0:
            model.begin_stage(step, targets.objective, self._initial_weights(run, stage))
        else:
            model.objective, model.stage_start = targets.objective, span.start
        if fresh or resumed:
            trainer.optimizers = self._stage_optimizers(trainer, run.plan.decay_steps(step), resumed)
        if stage.task == Task.FINAL:
            run.unload()
            if len(self.datamanager.eval_dataset) > 0:
                # The held-out photos were cached when the run began; now their edited views count.
                self.datamanager.setup_eval()
        self.editing.explained = run.explained
        self.editing.show_scene()

    def _choose_scene(self, scene: Scene) -> None:
        """Let the viewer render a scene of the run."""
        assert self._run is not None
        self._qnerf.look = None
        self._qnerf.look = self._run.look(scene)

    def _initial_weights(self, run: EditRun, stage: Stage) -> dict[str, Tensor]:
        """Weights that a stage with fresh optimizers starts from; none where it goes on with those that are there."""
        if not self.config.warm_start:
            return self._qnerf.initial_weights
        # A field that learned carried views knows the new pose; one that learned other edited views is blurred by them.
        carried = stage.task == Task.FINAL and run.begins_carried
        goes_on = carried or stage.task in (Task.INVERT, Task.FIT)
        return {} if goes_on else run.artifacts.source_field.load()

    def _stage_optimizers(self, trainer: QNerfTrainer, length: int, resumed: bool) -> Optimizers:
        """Fresh optimizers whose learning rates decay over `length` steps; after a resume with the loaded state."""
        configs = copy.deepcopy(trainer.config.optimizers)
        for group in configs.values():
            if group["scheduler"] is not None:
                group["scheduler"].max_steps = length
        optimizers = Optimizers(configs, self.get_param_groups())
        if resumed:
            loaded = trainer.optimizers
            optimizers.load_optimizers({name: each.state_dict() for name, each in loaded.optimizers.items()})
            optimizers.load_schedulers({name: each.state_dict() for name, each in loaded.schedulers.items()})
        return optimizers


def _not_finite(losses: dict[str, Tensor]) -> str | None:
    """The name of a loss that is NaN or infinite, None where all are finite."""
    # One question of the device for all of them.
    if torch.stack([loss.detach().isfinite().all() for loss in losses.values()]).all():
        return None
    return next(name for name, loss in losses.items() if not loss.detach().isfinite().all())
