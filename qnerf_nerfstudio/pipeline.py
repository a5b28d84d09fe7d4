"""QNerfPipeline: walks the plan. The only module that knows both the field and the diffusion models."""

import copy
import gc
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.controls import Edit, control_images, load_edit
from qnerf_nerfstudio.datamanager import QNerfDataManager, QNerfDataManagerConfig, dataset_to_scene
from qnerf_nerfstudio.dataset import write_dataset
from qnerf_nerfstudio.editor import EditorConfig
from qnerf_nerfstudio.errors import UserError
from qnerf_nerfstudio.grids import changed, relative_errors, render_codes, render_grid
from qnerf_nerfstudio.model import QNerfModel, QNerfModelConfig
from qnerf_nerfstudio.plan import Consolidation, Plan, PlanConfig, Slice, Stage, Task
from qnerf_nerfstudio.seeds import seed_everything
from qnerf_nerfstudio.store import EditStore, write_json, write_png
from qnerf_nerfstudio.targets import restrict_edit, set_targets

if TYPE_CHECKING:
    from qnerf_nerfstudio.editor.editor import QueryTargets
    from qnerf_nerfstudio.slices import SliceRunner


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
    consolidation: Consolidation = "progressive"
    """How views are made to agree: "progressive" (interval by interval), "one-shot" (one fit, early), or "none"."""
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
    """Training steps of each QNeRF fit."""
    final_iterations: int = 15000
    """Training steps of the final RGB field."""
    warm_start: bool = True
    """A fit starts from the field before it (first that of the source photos), the final field from that of the source
    photos; otherwise both start afresh. The final field gained 1 dB by it (benchmarks/README.md)."""
    region: bool = True
    """Edited views change the field only inside the visual hull of what their control images change; outside of it, and
    on the pixels that do not see it, the photos go on to teach it. Otherwise disagreeing views paint what they do not
    share onto the background: novel views gained 2.4 dB by it (benchmarks/README.md)."""


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show a user's error as one sentence in the place of a traceback."""
    try:
        yield
    except UserError as error:
        CONSOLE.print(f"[bold red]qnerf-edit:[/bold red] {error}", markup=True, soft_wrap=True)
        sys.exit(2)


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
        **kwargs: Any,
    ) -> None:
        self._edit: Edit | None = None
        self._edit_path = Path()
        if test_mode == "val":
            with _one_sentence():
                self._edit_path, self._edit = self._load_edit(config)
        super().__init__(config, device, test_mode, **kwargs)
        self._runner: SliceRunner | None = None
        self._trainer: Trainer | None = None
        self._plan: Plan | None = None
        self._stage_number: int | None = None

    @staticmethod
    def _load_edit(config: QNerfPipelineConfig) -> tuple[Path, Edit]:
        data = Path(config.datamanager.data or config.datamanager.dataparser.data)
        path = config.edit or (data.parent if data.suffix == ".json" else data) / "edit.json"
        edit = load_edit(path)
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
        assert trainer is not None and self._edit is not None, "qnerf-edit is trained by nerfstudio's Trainer"
        with _one_sentence():
            self._prepare(trainer, self._edit)
        callbacks = super().get_training_callbacks(training_callback_attributes)
        # The slice goes first: a change of stage resets what the model's own callbacks then schedule.
        walk = TrainingCallback(
            [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._before_iteration, update_every_num_iters=1
        )
        return [walk, *callbacks]

    def _prepare(self, trainer: Trainer, edit: Edit) -> None:
        """Check everything that can be checked before long work, load the editor, make the plan."""
        from qnerf_nerfstudio.editor.loading import load_editor
        from qnerf_nerfstudio.slices import Prompts, SliceRunner

        config = self.config
        # Threads sum the hash grid's gradients in any order otherwise; the same seed is to give the same run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        self._trainer = trainer
        self._store = EditStore(trainer.base_dir / "edit")
        views = self.datamanager.views()
        try:
            config.editor.validate()
            self._plan = Plan(
                PlanConfig(
                    views=len(views),
                    num_steps=config.editor.num_steps,
                    tau=config.tau,
                    chunk=config.chunk,
                    source_iterations=config.source_iterations,
                    fit_iterations=config.fit_iterations,
                    final_iterations=config.final_iterations,
                    consolidation=config.consolidation,
                    stop=config.stop,
                )
            )
        except ValueError as error:
            raise UserError(f"--pipeline.{error}") from error
        self._check_folder(trainer, self._plan)
        editor = load_editor(config.editor, self.device)
        layers = len(editor.layer_names)
        code_width = config.model.query_width // layers
        if code_width < 1:
            raise UserError(
                f"--pipeline.model.query-width is {config.model.query_width}; the editor has {layers} query layers, "
                f"expected at least one code channel for each"
            )
        source, target = control_images(
            edit,
            self._edit_path.parent,
            views,
            [path.name for path in self.datamanager.filenames],
            dataset_to_scene(self.datamanager.train_dataparser_outputs, Path(config.datamanager.dataparser.data)),
            editor.image_size(*views.size),
        )
        self._views = views
        different = changed(source, target)
        # Where the control changes nothing, renders of a field could only blur what the views show already.
        self._draws = config.editor.render_weight > 0 and bool(different.any())
        if config.region:
            restrict_edit(self._qnerf, self.datamanager, views, different)
        self._edit_size: tuple[int, int] = (source.shape[-2], source.shape[-1])
        self._runner = SliceRunner(
            editor=editor,
            plan=self._plan,
            store=self._store,
            prompts=Prompts(*map(editor.encode_prompt, (edit.source_prompt, edit.prompt, edit.negative_prompt))),
            source_controls=source,
            target_controls=target,
            num_train=self.datamanager.num_train,
            code_width=code_width,
        )
        self._set_length(trainer, self._plan)
        for index, path in enumerate(self.datamanager.filenames):
            write_png(self._store.root / "controls/source" / f"{path.stem}.png", source[index])
            write_png(self._store.root / "controls/target" / f"{path.stem}.png", target[index])
        write_json(
            self._store.root / "manifest.json",
            {
                "plan": self._plan.hash,
                "edit": edit.model_dump(mode="json"),
                "views": [path.name for path in self.datamanager.filenames],
                "training_views": self.datamanager.num_train,
                "image_size": list(source.shape[-2:]),
            },
        )
        CONSOLE.print(
            f"Edit of {len(views)} views ({self.datamanager.num_train} for training) at {source.shape[-1]}x"
            f'{source.shape[-2]} pixels: "{edit.source_prompt}" becomes "{edit.prompt}" by {edit.control.type}; '
            f"{config.consolidation} consolidation, {self._plan.total} training steps.",
            soft_wrap=True,
            markup=False,
        )

    def _check_folder(self, trainer: Trainer, plan: Plan) -> None:
        """Refuse to mix two edits in one folder."""
        path = self._store.root / "manifest.json"
        resumed = trainer._start_step > 0
        if path.exists() and not resumed:
            raise UserError(
                f"{self._store.root} already holds an edit; go on with it by --load-dir {trainer.checkpoint_dir}, or "
                f"start another one under another --timestamp"
            )
        if resumed and (not path.exists() or json.loads(path.read_text())["plan"] != plan.hash):
            raise UserError(
                f"--load-dir: {self._store.root} holds no edit with this plan ({plan.hash}); resume with the settings, "
                f"--output-dir, --experiment-name and --timestamp of the run that was stopped"
            )

    def _set_length(self, trainer: Trainer, plan: Plan) -> None:
        """Set the number of training steps from the plan, and write it and the edited views' folder into config.yml."""
        asked = trainer.config.max_num_iterations
        if asked not in (0, plan.total):
            raise UserError(
                f"--max-num-iterations is {asked}, but an edit's length follows from its plan ({plan.total} steps); "
                f"leave it out and use --pipeline.final-iterations or --pipeline.fit-iterations"
            )
        trainer.config.max_num_iterations = plan.total
        self.datamanager.use_edited_images(self._store.root / "images")
        trainer.config.save_config()
        if Version(importlib.metadata.version("nerfstudio")) <= Version("1.1.5"):
            # This trainer runs max_num_iterations *more* steps after a resume, later ones run up to it.
            trainer.config.max_num_iterations = plan.total - trainer._start_step

    def _before_iteration(self, step: int) -> None:
        """Do the slice of training step `step`."""
        assert self._plan is not None and self._trainer is not None
        # A step's random numbers follow from its number alone, so a run that resumes draws those of one that did not.
        seed_everything(self._trainer.config.machine.seed * 1_000_003 + step)
        item = self._plan.at(step)
        number = self._plan.stage_at(step)
        if number != self._stage_number:
            self._enter_stage(number, step)
        runner = self._runner
        if item.task in (Task.FIT, Task.FINAL):
            return
        assert runner is not None
        if item.task == Task.INVERT:
            if item.index == self._plan.config.num_steps - 1:
                photos = self.datamanager.photos(self._plan.views_of(item.chunk), self._edit_size)
                runner.begin_inversion(item.chunk, photos)
            runner.invert(item)
        elif item.task == Task.DENOISE:
            runner.denoise(item, self._targets(item))
        elif item.task == Task.LOOK_AHEAD:
            runner.look_ahead(item)
        elif item.task == Task.EXTRACT:
            previews = runner.extract(item)
            if previews is not None:
                self._write_views(f"previews/{item.interval}", item.chunk, previews)
        elif item.task == Task.DECODE:
            self._write_views("images", item.chunk, runner.decode(item))
            if item.last:
                data = Path(self.config.datamanager.dataparser.data)
                transforms = data if data.suffix == ".json" else data / "transforms.json"
                write_dataset(self._store.root, transforms, self._views.size)
                CONSOLE.print(f"Edited views: {self._store.root} (a dataset for any method's --data)", soft_wrap=True)

    def _enter_stage(self, number: int, step: int) -> None:
        """Hand the field what the stage trains on; fits and the final field start with fresh optimizers."""
        assert self._plan is not None and self._trainer is not None
        stage = self._plan.stages[number]
        span = self._plan.training_span(step)
        fresh = step == span.start
        # The first stage that a process enters, unless at its start, goes on with the state that the trainer loaded.
        resumed = self._stage_number is None and not fresh
        self._stage_number = number
        CONSOLE.log(f"Stage {number + 1} of {len(self._plan.stages)}: {stage.description} ({stage.length} steps)")
        fitted = stage.interval if stage.task == Task.FIT else stage.interval - 1
        final = stage.task == Task.FINAL
        if stage.task in (Task.FIT, Task.FINAL) and not self._store.has("source_field"):
            self._store.save("source_field", dict(self._qnerf.named_parameters()))
        set_targets(self.datamanager, self._store, self._plan.chunks, fitted, final)
        model = self._qnerf
        if fresh and number > 0:
            model.begin_stage(step, "rgb" if final else "queries", self._start(stage))
        else:
            model.objective = "queries" if fitted >= 0 and not final else "rgb"
            model.stage_start = span.start
        if fresh or resumed:
            self._trainer.optimizers = self._stage_optimizers(len(span), resumed)
        if final:
            self._runner = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(self.datamanager.eval_dataset) > 0:
                # The held-out photos were cached when the run began; now their edited views count.
                self.datamanager.setup_eval()

    def _start(self, stage: Stage) -> dict[str, Tensor]:
        """Weights that a fit or the final field starts from; none where it goes on with those that are there."""
        if not self.config.warm_start:
            return self._qnerf.initial_weights
        return {} if stage.task == Task.FIT else self._store.load("source_field")

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

    def _targets(self, item: Slice) -> "QueryTargets | None":
        """Query codes that the field renders for a chunk, computed once per interval; None before the first fit."""
        from qnerf_nerfstudio.editor.editor import QueryTargets
        from qnerf_nerfstudio.slices import load_codec, load_codes

        if item.interval == 0:
            return None
        assert self._plan is not None and self._runner is not None
        fitted = item.interval - 1
        codec = load_codec(self._store, fitted)
        key = f"queries/{fitted}/rendered-{item.chunk:03d}"
        if not self._store.has(key):
            codes = render_codes(self._qnerf, self._views, self._plan.views_of(item.chunk), codec)
            errors = relative_errors(codes, load_codes(self._store, fitted, item.chunk))
            self._note_errors(fitted, item.chunk, errors)
            # The share of the variance of a view's own queries that the field explains.
            rendered = {**codes, "confidence": (1 - errors.square()).clamp_min(0)}
            if self._draws:
                rendered["clean"] = self._render_clean(self._plan.views_of(item.chunk))
            self._store.save(key, rendered)
        device = self._runner.editor.device
        codes = {name: code.to(device) for name, code in self._store.load(key).items()}
        return QueryTargets(
            codec.to(device), confidence=codes.pop("confidence"), clean=codes.pop("clean", None), codes=codes
        )

    def _render_clean(self, views: range) -> Float[Tensor, "K C h w"]:
        """Clean latents of the field's render of views."""
        assert self._runner is not None
        # The render as it is: photos around the region would show its outline, which the next fit fills with fog.
        images = render_grid(self._qnerf, self._views, views, self._edit_size, "rgb")
        return self._runner.editor.encode(images.movedim(-1, 1)).cpu()

    def _note_errors(self, fitted: int, chunk: int, relative: Float[Tensor, "V"]) -> None:
        """Keep the relative errors of rendered codes in query_errors.json, by fit and view."""
        assert self._plan is not None
        path = self._store.root / "query_errors.json"
        errors: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        names = [self.datamanager.filenames[view].name for view in self._plan.views_of(chunk)]
        rounded = [round(value, 4) for value in relative.tolist()]
        errors.setdefault(str(fitted), {}).update(zip(names, rounded, strict=True))
        write_json(path, errors)

    def _write_views(self, folder: str, chunk: int, images: Float[Tensor, "V 3 h w"]) -> None:
        """Write a chunk of edited views as PNGs at the photos' resolution."""
        assert self._plan is not None
        if images.shape[-2:] != torch.Size(self._views.size):
            images = F.interpolate(images, self._views.size, mode="bicubic", antialias=True).clamp(0, 1)
        for view, image in zip(self._plan.views_of(chunk), images, strict=True):
            write_png(self._store.root / folder / f"{self.datamanager.filenames[view].stem}.png", image)
