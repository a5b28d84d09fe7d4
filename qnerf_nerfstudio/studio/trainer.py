"""Nerfstudio's trainer, made safe to stop: checkpoints are whole or absent, and Ctrl-C ends a run between two steps."""

import os
import shlex
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms

from qnerf_nerfstudio.capture.colmap import converted, write_transforms
from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError, exit_on_user_error
from qnerf_nerfstudio.common.files import atomic_write
from qnerf_nerfstudio.common.quiet import ignore_third_party_warnings
from qnerf_nerfstudio.edit.reading import edit_path
from qnerf_nerfstudio.field.datamanager import QNerfDataManagerConfig
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.settings import RunSettings
from qnerf_nerfstudio.studio.stated import take_stated_settings


@dataclass
class QNerfTrainerConfig(TrainerConfig):
    """nerfstudio's settings of a training run."""

    _target: type = field(default_factory=lambda: QNerfTrainer)

    def save_config(self) -> None:
        """Write config.yml, unless the folder holds a run: what goes on with it is checked before anything changes."""
        with exit_on_user_error():
            if self._edit_begun:
                self._refuse_another()
            else:
                self.write_config()

    def write_config(self) -> None:
        """Write config.yml whole or not at all; what this start of the run goes on from is none of its settings.

        Raises:
            UserError: It cannot be written.
        """
        kept = replace(self, load_dir=None, load_step=None, load_checkpoint=None, load_config=None)
        folder = self.get_base_dir()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / "config.yml") as temporary:
                temporary.write_text(yaml.dump(kept), "utf8")
        except OSError as error:
            raise UserError(
                f"--output-dir: cannot write to {self.get_base_dir()} ({error.strerror}); choose a folder that "
                f"you may write to, on a disk with free space"
            ) from error

    @property
    def goes_on_by_itself(self) -> bool:
        """Whether the folder's run goes on though no checkpoint is named: --load-config named its own config.yml, and
        nerfstudio then reads no other option."""
        named = self.load_dir is not None or self.load_checkpoint is not None
        path = self.get_base_dir() / "config.yml"
        if named or not self._edit_begun or not path.exists():
            return False
        try:
            return yaml.load(path.read_text("utf8"), yaml.Loader) == self
        except (yaml.YAMLError, AttributeError, TypeError, ValueError):  # a damaged one is not this one
            return False

    def place_absolutely(self) -> None:
        """Name files so that they are found from any folder: ns-render and ns-eval read config.yml from theirs."""
        pipeline = self.pipeline
        assert isinstance(pipeline, RunSettings) and isinstance(pipeline.datamanager, QNerfDataManagerConfig)
        owners = (self, pipeline, pipeline.datamanager, pipeline.datamanager.dataparser)
        for owner, name in product(owners, ("data", "output_dir", "load_dir", "load_checkpoint", "edit")):
            if isinstance(path := getattr(owner, name, None), Path):
                setattr(owner, name, path.absolute())

    @property
    def _edit_begun(self) -> bool:
        """Whether the run's folder holds an edit."""
        return EditArtifacts(self.get_base_dir() / "edit").manifest.exists()

    def _refuse_another(self) -> None:
        """Refuse to begin an edit where there is one.

        Raises:
            UserError: The folder's run has checkpoints, and is not to go on from them.
        """
        named = self.load_dir is not None or self.load_checkpoint is not None
        if not named and checkpoints(self.get_checkpoint_dir()) and not self.goes_on_by_itself:
            raise UserError(
                f"{self.get_base_dir()} already holds an edit; go on with it by --load-dir "
                f"{self.get_checkpoint_dir()}, or start another one under another --timestamp"
            )


class QNerfTrainer(Trainer):
    """Nerfstudio's trainer for runs that are stopped and go on."""

    config: QNerfTrainerConfig
    interrupted: bool = False
    """Whether somebody asked the run to stop after the training step at hand."""
    before_checkpoint: Callable[[], None] = staticmethod(lambda: None)
    """Sees that what a checkpoint relies on is written."""
    weights_lock: AbstractContextManager[Any] = nullcontext()
    """Held while the weights are the field's own."""

    def __init__(self, config: TrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        ignore_third_party_warnings()
        assert isinstance(config, QNerfTrainerConfig)
        config.place_absolutely()
        super().__init__(config, local_rank, world_size)
        self._lock = FileLock(self.base_dir / "in_use.lock")

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up the run; one that was killed before its first checkpoint begins again."""
        with exit_on_user_error():
            self._lock_folder()
        try:
            with exit_on_user_error():
                self._choose_checkpoint()
                self._convert_capture()
            take_stated_settings(self.config)
            super().setup(test_mode)
        except BaseException:
            self._lock.release(force=True)
            raise

    def _lock_folder(self) -> None:
        """Keep other processes out of the run's folder as long as this one lives, however it ends.

        Raises:
            UserError: Another one is in it.
        """
        if not comms.is_main_process():
            return
        self.base_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another ns-train edits in {self.base_dir}; wait for its end, or start this one under another "
                f"--timestamp"
            ) from error
        except (OSError, NotImplementedError) as error:
            CONSOLE.print(f"{self.base_dir} cannot be locked ({error}): see that one run at a time works in it.")

    def _choose_checkpoint(self) -> None:
        """See which checkpoint the run goes on with, if any, and that it is whole.

        Raises:
            UserError: There is none where one is asked for, or it is damaged.
        """
        config = self.config
        if config.goes_on_by_itself:
            config.load_dir = self.checkpoint_dir
        path, folder = config.load_checkpoint, config.load_dir
        own = folder is not None and folder.absolute() == self.checkpoint_dir.absolute()
        if folder is not None and not own and checkpoints(folder):
            raise UserError(
                f"--load-dir: {folder} is of another run than {self.base_dir}; give the --output-dir, "
                f"--experiment-name and --timestamp of the run that was stopped"
            )
        if folder is not None and config.load_step is not None:
            path = folder / f"step-{config.load_step:09d}.ckpt"
        elif folder is not None and checkpoints(folder):
            path = checkpoints(folder)[-1]
        elif own:
            CONSOLE.print(f"{folder} holds no checkpoint yet: the run begins with its first step.", soft_wrap=True)
            config.load_dir = None
        elif folder is not None:
            raise UserError(
                f"--load-dir: {folder} holds no checkpoint; give the nerfstudio_models folder of the run that was "
                f"stopped"
            )
        if path is not None and not path.exists():
            raise UserError(
                f"{path} does not exist; leave --load-step and --load-checkpoint out to go on from the newest"
            )
        if path is not None and not zipfile.is_zipfile(path):
            raise UserError(
                f"{path} is damaged, the file ends early; remove it, and the run goes on from the checkpoint before, "
                f"or from its first step with what its edit/ folder holds: {resume_command(config)}"
            )

    def _convert_capture(self) -> None:
        """Let a capture that holds COLMAP's model be read as one that holds a transforms.json."""
        pipeline = self.config.pipeline
        assert isinstance(pipeline, RunSettings) and isinstance(pipeline.datamanager, QNerfDataManagerConfig)
        manager = pipeline.datamanager
        parser = manager.dataparser
        if not isinstance(parser, ColmapDataParserConfig):
            return
        parser.data = Path(manager.data or parser.data)
        folder = self.base_dir / "capture"
        if comms.is_main_process():
            write_transforms(parser, folder)
        ranks.barrier()
        pipeline.edit = edit_path(parser.data, pipeline.edit)
        manager.dataparser = converted(parser, folder)
        manager.data = manager.dataparser.data

    def train(self) -> None:
        """Train; Ctrl-C stops after the training step at hand, a second one at once."""
        try:
            with self._interruptible():
                super().train()
        finally:
            self._lock.release(force=True)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            # Python delivers signals to the main thread alone.
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted or self.training_state == "completed":
            raise KeyboardInterrupt
        self.interrupted = True
        # A paused loop would not come to its next step.
        self.training_state = "training"
        CONSOLE.print("Stopping after this training step; once more stops at once, from the last checkpoint.")

    def stop_if_interrupted(self, step: int, total: int) -> None:
        """End the program before training step `step` of `total` if somebody asked for it, with all of it saved."""
        if not ranks.broadcast(self.interrupted, self.pipeline.device):
            return
        if step > 0:
            self.save_checkpoint(step - 1)
        CONSOLE.print(
            f"Stopped before training step {step} of {total}, everything is saved. Go on with: "
            f"{resume_command(self.config)}",
            soft_wrap=True,
            markup=False,
        )
        sys.exit(130)

    @contextmanager
    def exit_with_resume_command(self, step: int) -> Iterator[None]:
        """End the program with one sentence where training step `step` cannot be done; those before it are saved."""
        try:
            yield
        except FloatingPointError as error:
            if step > 0:
                self.save_checkpoint(step - 1)
            reason = f"{error}; what was done before is saved"
        except (OSError, UserError) as error:
            reason = str(error)
        else:
            return
        with exit_on_user_error(1):
            raise UserError(f"{reason}; go on with: {resume_command(self.config)}")

    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint whole or not at all; only then older ones go.

        Args:
            step: The last training step that it holds.
        """
        if not comms.is_main_process():
            return
        name = f"step-{step:09d}.ckpt"
        kept, self.checkpoint_dir = self.checkpoint_dir, self.base_dir / "unfinished"
        try:
            self.before_checkpoint()
            with self.weights_lock:
                super().save_checkpoint(step)
            kept.mkdir(parents=True, exist_ok=True)
            os.replace(self.checkpoint_dir / name, kept / name)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError.
            with exit_on_user_error(1):
                raise UserError(
                    f"cannot write a checkpoint to {kept} ({str(error).splitlines()[0]}); earlier results are intact: "
                    f"free some space, then go on with: {resume_command(self.config)}"
                ) from error
        except UserError as error:
            with exit_on_user_error(1):
                raise UserError(f"{error}; go on with: {resume_command(self.config)}") from error
        finally:
            shutil.rmtree(self.checkpoint_dir, ignore_errors=True)
            self.checkpoint_dir = kept
        if self.config.save_only_latest_checkpoint:
            for each in checkpoints(kept):
                if each.name != name:
                    each.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, none where there is no such folder."""
    return sorted(folder.glob("step-*.ckpt"))


def resume_command(config: TrainerConfig) -> str:
    """The command that a run goes on with: the one that it was begun with, and where its files are."""
    where = {
        "--output-dir": config.output_dir,
        "--experiment-name": config.experiment_name,
        "--timestamp": config.timestamp,
        "--load-dir": config.get_checkpoint_dir(),
    }
    words = sys.argv if Path(sys.argv[0]).name == "ns-train" else ["", config.method_name, "--data", str(config.data)]
    kept: list[str] = []
    skip = False
    for word in words[2:]:
        name = word.split("=")[0].replace("_", "-")
        if name in (*where, "--load-step", "--load-checkpoint", "--load-config"):
            skip = "=" not in word
        elif skip:
            skip = False
        else:
            kept.append(word)
    # Options of the run come before those of a dataparser that may be named at the end.
    options = [str(word) for pair in where.items() for word in pair]
    return shlex.join(["ns-train", words[1], *options, *kept])
