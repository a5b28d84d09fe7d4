"""ns-train that ends itself by a signal at a training step, as a power cut or a user would.

    python killed_train.py STEP PLACE METHOD [options of ns-train]

Places: "before" and "after" the step's slice of diffusion, half-way through a "write" into edit/ or through a
"checkpoint", the first one at or after the step; these end by SIGKILL. "interrupt" is Ctrl-C at the step.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nerfstudio.scripts.train import entrypoint

from qnerf_nerfstudio.common import files, images
from qnerf_nerfstudio.run import tensor_file
from qnerf_nerfstudio.run.run import EditRun
from qnerf_nerfstudio.studio.pipeline import QNerfPipeline
from qnerf_nerfstudio.studio.trainer import QNerfTrainer

PLACES = ("before", "after", "write", "checkpoint", "interrupt")


def die() -> None:
    """No handler, no flush, no goodbye."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear(path: Path) -> None:
    """Leave half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def arm(at: int, place: str) -> None:
    """Patch what the run passes through, so that it ends there."""
    reached = {"step": -1}
    run_slice, atomic_write, save = QNerfPipeline._run_slice, files.atomic_write, torch.save

    def watched_slice(pipeline: QNerfPipeline, run: EditRun, trainer: QNerfTrainer, step: int) -> None:
        reached["step"] = step
        if step == at and place == "before":
            die()
        if step == at and place == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        run_slice(pipeline, run, trainer, step)
        if step == at and place == "after":
            die()

    @contextmanager
    def torn_write(path: Path) -> Iterator[Path]:
        with atomic_write(path) as temporary:
            yield temporary
            if place == "write" and reached["step"] >= at:
                tear(temporary)
                die()

    def torn_save(document: Any, path: Any, *arguments: Any, **options: Any) -> None:
        save(document, path, *arguments, **options)
        if place == "checkpoint" and isinstance(path, Path) and reached["step"] >= at:
            tear(path)
            die()

    QNerfPipeline._run_slice, torch.save = watched_slice, torn_save
    files.atomic_write = images.atomic_write = tensor_file.atomic_write = torn_write


if __name__ == "__main__":
    arm(int(sys.argv[1]), sys.argv[2])
    sys.argv = ["ns-train", *sys.argv[3:]]
    entrypoint()
