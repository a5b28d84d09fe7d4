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
from nerfstudio.utils.rich_utils import CONSOLE
from packaging.version import Version
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from qnerf_nerfstudio import __version__
from qnerf_nerfstudio.capture.check import check_capture
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.errors import UserError, one_sentence
from qnerf_nerfstudio.common.seeds import seed_everything
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import Edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManager, QNerfDataManagerConfig
from qnerf_nerfstudio.field.model import QNerfModel, QNerfModelConfig
from qnerf_nerfstudio.pages.viser_safety import plain
from qnerf_nerfstudio.run.artifacts import EditStore
from qnerf_nerfstudio.run.fingerprint import settings
from qnerf_nerfstudio.run.manifest import Attempt
from qnerf_nerfstudio.run.plan import Consolidation, Plan, Revision, Stage, Task
from qnerf_nerfstudio.run.progress import Progress, summary
from qnerf_nerfstudio.run.run import EditRun
from qnerf_nerfstudio.run.targets import set_targets
from qnerf_nerfstudio.studio.panel import EditPanel
from qnerf_nerfstudio.studio.trainer import QNerfTrainer, resume_command


@dataclass
class QNerfPipelineConfig(VanillaPipelineConfig):
    """An edit of a captured scene."""

    _target: type = field(default_factory=lambda: QNerfPipeline)
    datamanager: QNerfDataManagerConfig = field(default_factory=QNerfDataManagerConfig)
    """specifies the datamanager config"""
    model: QNerfModelConfig = field(default_factory=QNerfModelConfig)
    """specifies the model config"""
    editor: EditorConfig = field(default_factory=EditorConfig)
    """The diffusion models and how they are sampled."""
    edit: Path | None = None
    """The edit; by default edit.json in the data folder."""
    outside_paths: bool = False
    """Let edit.json and transforms.json name files outside of their own folders."""
    consolidation: Consolidation = "progressive"
    """How views are made to agree: "progressive" (interval by interval, the paper's), "one-shot" (one fit, early: as
    close to the truth with the bundled editor, a fifth faster), or "none"."""
    tau: int = 5
    """Timesteps of an interval's guided part and of its look-ahead. The paper does not publish its value."""
    stop: float = 0.8
    """No interval starts after this share of the timesteps: the last steps add detail that a field blurs."""
    chunk: int = 4
    """Views that go through the diffusion models at once. Memory grows with it; so does the viewer's waiting time."""
    source_iterations: int = 2000
    """Training steps on the source photos after the inversion, whose slices train on them too. What the edit leaves as
    it is comes from this field, and fits start from its geometry."""
    fit_iterations: int = 500
    """Training steps of each QNeRF fit. With the bundled editor, 800 in the place of 300 gained 1.0 dB in edited and
    1.4 dB in novel views of one capture, more than 800 nothing (benchmarks/README.md)."""
    final_iterations: int = 15000
    """Training steps of the final RGB field."""
    lift_controls: bool = True
    """Redraw ready-made control images of kind "openpose" from the one skeleton in 3D that most views agree on, found
    by robust triangulation, so that limbs which some of them leave out or get wrong are stated in every view."""
    warm_start: bool = True
    """A fit starts from the field before it (first that of the source photos), the final field from that of the source
    photos; otherwise both start afresh. The final field gained 1 dB by it (benchmarks/README.md)."""
    region: bool = True
    """Heed edit.json's region and masks; by default the region is the visual hull of what the control images change.
    Edited views change the field only inside of it; outside, and on the pixels that do not see it, the photos go on to
    teach it. Otherwise disagreeing views paint what they do not share onto the background: novel views gained 2.4 dB
    by it (benchmarks/README.md)."""
    composite: bool = True
    """Edited views keep the photos' own pixels outside the region; otherwise what the VAE makes of them."""
    feather: float = 0.04
    """Width of the seam between edited view and photo, inside the region, as a share of the image's shorter side."""


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
        self._edit: Edit | None = None
        self._edit_path = Path()
        if test_mode == "val":
            with one_sentence():
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
        data = Path(config.datamanager.data or config.datamanager.dataparser.data)
        check_capture(data, config.outside_paths, getattr(config.datamanager.dataparser, "downscale_factor", None))
        path = config.edit or (data.parent if data.suffix == ".json" else data) / "edit.json"
        edit = load_edit(path, config.outside_paths)
        prompt = config.model.prompt
        if prompt is not None:
            if not prompt.strip():
                raise UserError(f"--prompt is empty; give the target prompt, or leave it out to use the one in {path}")
            edit = edit.model_copy(update={"prompt": prompt})
        return path, edit

    @property
    def _main(self) -> bool:
        """Whether this process prints and writes for all of them."""
        return comms.is_main_process()

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
        with one_sentence():
            self._prepare(trainer, self._edit)
        callbacks = super().get_training_callbacks(training_callback_attributes)
        # The slice goes first: a change of stage resets what the model's own callbacks then schedule.
        before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN
        walk = TrainingCallback([before], self._before_iteration, update_every_num_iters=1)
        return [walk, *callbacks, TrainingCallback([after], self._after_train)]

    def _prepare(self, trainer: QNerfTrainer, edit: Edit) -> None:
        """Check everything that can be checked before long work, load the editor, make the plan."""
        # Threads sum the hash grid's gradients in any order otherwise; the same seed is to give the same run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        self._trainer = trainer
        store = EditStore(trainer.base_dir / "edit")
        run = EditRun(
            self.config,
            edit,
            self._edit_path.parent,
            self.datamanager,
            self._qnerf,
            store,
            settings=settings(trainer.config, comms.get_world_size()),
            resume=trainer._start_step > 0,
        )
        if trainer._start_step >= run.plan.total:
            raise UserError(
                f"--load-dir: the edit in {store.root} is finished; look at it with ns-viewer --load-config "
                f"{trainer.base_dir / 'config.yml'}, or start another one under another --timestamp"
            )
        self._run = run
        self._progress.load(store.root, trainer._start_step)
        self._set_length(trainer, run.plan)
        self.editing.connect(trainer, store.root, self.datamanager.filenames[: self.datamanager.num_train])
        if self._main:
            CONSOLE.print(str(run), soft_wrap=True, markup=False)
            CONSOLE.print(f"If it stops, go on with: {resume_command(trainer.config)}", soft_wrap=True, markup=False)

    def _set_length(self, trainer: QNerfTrainer, plan: Plan) -> None:
        """Set the number of training steps from the plan, and write it and the edited views' folder into config.yml."""
        asked = trainer.config.max_num_iterations
        if asked not in (0, plan.total):
            raise UserError(
                f"--max-num-iterations is {asked}, but an edit's length follows from its plan ({plan.total} steps); "
                f"leave it out and use --pipeline.final-iterations or --pipeline.fit-iterations"
            )
        trainer.config.max_num_iterations = plan.total
        self.datamanager.use_edited_images(trainer.base_dir / "edit/images")
        if self._main:
            trainer.config.save_config()
        self._set_loop(trainer, trainer._start_step)

    def _set_loop(self, trainer: QNerfTrainer, start: int) -> None:
        """Let the trainer's next loop go from step `start` to the end of the plan."""
        assert self._run is not None
        trainer._start_step = start
        trainer.config.max_num_iterations = self._run.plan.total
        if Version(importlib.metadata.version("nerfstudio")) <= Version("1.1.5"):
            # This trainer runs max_num_iterations *more* steps after a resume, later ones run up to it.
            trainer.config.max_num_iterations -= start

    def _before_iteration(self, step: int) -> None:
        """Do the slice of training step `step`."""
        assert self._trainer is not None
        with self._trainer.told_where_it_ends(step):
            self._do_slice(step)

    def _do_slice(self, step: int) -> None:
        run, trainer = self._run, self._trainer
        assert run is not None and trainer is not None
        trainer.heed_interrupt(step, run.plan.total)
        self._heed_request(run, step)
        if step >= run.plan.total - 1:
            # A plan that was finished early ends before the trainer's loop does.
            trainer.stop_training = True
        # A step's random numbers follow from its number alone, so a run that resumes draws those of one that did not.
        # Every process draws rays of its own.
        seed = trainer.config.machine.seed * 1_000_003 + step + comms.get_rank() * 500_000_003
        seed_everything(seed)
        number = run.plan.stage_at(step)
        if number != self._stage_number:
            self._enter_stage(run, number, step)
        status = self._progress.step(run.plan, step)
        self.editing.show(status)
        if self._main:
            self._progress.show(status)
        item = run.plan.at(step, comms.get_rank())
        folder = run.do(item)
        # A slice that was done before a kill is passed over; the training that follows must not depend on it.
        seed_everything(seed)
        if folder is not None:
            self.editing.add_edited(run.plan.views_of(item.chunk), folder)
        if item.last and self._main:
            self._progress.save(run.store.root)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Losses of a training step; some of them are kept for the report."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        if self._run is None:
            return outputs, losses, metrics
        assert self._trainer is not None
        with self._trainer.told_where_it_ends(step):
            if _not_finite(losses):
                with torch.autocast(self.device.type, enabled=False):
                    outputs, losses, metrics = super().get_train_loss_dict(step)
            if name := _not_finite(losses):
                stage = self._run.plan.stages[self._run.plan.stage_at(step)].description
                raise FloatingPointError(
                    f"the field's {name} is not finite at training step {step} ({stage}), in float32 neither; try a "
                    f"smaller --optimizers.fields.optimizer.lr"
                )
        self._progress.note_losses(self._run.plan, step, losses)
        return outputs, losses, metrics

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint; one that another version made is refused in a sentence where it does not fit."""
        made = loaded_state.get("_model._extra_state", {}).get("version", "0.1.0")
        with one_sentence():
            try:
                super().load_pipeline(loaded_state, step)
            except RuntimeError as error:
                raise UserError(
                    f"the checkpoint was made by qnerf-nerfstudio {made} and does not fit this version, {__version__}, "
                    f"or its config.yml was changed ({str(error).splitlines()[-1].strip()}); use pip install "
                    f"qnerf-nerfstudio=={made}, or edit the scene again"
                ) from error

    def _heed_request(self, run: EditRun, step: int) -> None:
        """Revise the plan where somebody at the viewer asked for it."""
        request = ranks.told(self.editing.take_request(), self.device)
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
        from qnerf_nerfstudio.pages.report import write_report

        assert run is not None and trainer is not None
        if step + 1 < run.plan.total and not trainer.stop_training:
            self._progress.interrupted()
            self._set_loop(trainer, step + 1)
            trainer.training_state = "training"
            trainer.train()
            return
        if not self._main:
            return
        self._progress.finish()
        self._progress.save(run.store.root)
        run.hand_over()
        write_report(trainer.base_dir)
        self.editing.say("**Finished.** The final NeRF is what you see.")
        CONSOLE.print(summary(trainer.base_dir, self._progress.seconds))

    def _enter_stage(self, run: EditRun, number: int, step: int) -> None:
        """Hand the field what the stage trains on; fits and the final field start with fresh optimizers."""
        assert self._trainer is not None
        stage, span = run.plan.stages[number], run.plan.training_span(step)
        fresh = step == span.start
        # The first stage that a process enters, unless at its start, goes on with the state that the trainer loaded.
        resumed = self._stage_number is None and not fresh
        self._stage_number = number
        fitted = stage.interval if stage.task == Task.FIT else stage.fitted
        final = stage.task == Task.FINAL
        ranks.wait()
        if self._main:
            if number > 0:
                run.finish(run.plan.stages[number - 1])
            if (stage.task in (Task.FIT, Task.FINAL) or stage.attempt > 0) and not run.store.has("source_field"):
                run.store.save("source_field", dict(self._qnerf.named_parameters()))
        ranks.wait()
        set_targets(self.datamanager, run.store, run.plan.chunks, fitted, final)
        model = self._qnerf
        objective = "rgb" if fitted is None or final else "queries"
        if fresh and number > 0:
            model.begin_stage(step, objective, self._start(run, stage))
        else:
            model.objective = objective
            model.stage_start = span.start
        if fresh or resumed:
            self._trainer.optimizers = self._stage_optimizers(len(span), resumed)
        if final:
            run.unload()
            if len(self.datamanager.eval_dataset) > 0:
                # The held-out photos were cached when the run began; now their edited views count.
                self.datamanager.setup_eval()

    def _start(self, run: EditRun, stage: Stage) -> dict[str, Tensor]:
        """Weights that a fit, the final field or another attempt starts from; none where it goes on with those that are
        there."""
        if not self.config.warm_start:
            return self._qnerf.initial_weights
        return {} if stage.task == Task.FIT else run.store.load("source_field")

    def _stage_optimizers(self, length: int, resumed: bool) -> Optimizers:
        """Fresh optimizers whose learning rates decay over `length` steps; after a resume with the loaded state."""
        assert self._trainer is not None
        configs = copy.deepcopy(self._trainer.config.optimizers)
        for group in configs.values():
            if group["scheduler"] is not None:
                group["scheduler"].max_steps = length
        optimizers = Optimizers(configs, self.get_param_groups())
        if resumed:
            loaded = self._trainer.optimizers
            optimizers.load_optimizers({name: each.state_dict() for name, each in loaded.optimizers.items()})
            optimizers.load_schedulers({name: each.state_dict() for name, each in loaded.schedulers.items()})
        return optimizers


def _not_finite(losses: dict[str, Tensor]) -> str | None:
    """The name of a loss that is NaN or infinite, None where all are finite."""
    return next((name for name, loss in losses.items() if not loss.detach().isfinite().all()), None)
