"""The processes of a run on several devices, on the CPU."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import comms

from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.run.slices import SliceRunner
from qnerf_nerfstudio.run.tensor_file import TensorFile
from qnerf_nerfstudio.studio.pipeline import QNerfPipeline

BROKEN = 4
"""Training step, from 1, whose loss is not finite."""


def worker(rank: int, ranks: int, config: TrainerConfig, notes: Path, failing: bool) -> None:
    """One process of a run, as ns-train starts it on CUDA devices; notes what it saves and where its field ends.

    The last one meets a loss that is not finite, once.
    """
    torch.set_num_threads(1)
    if ranks > 1:
        rendezvous = f"file://{notes.absolute()}/rendezvous"
        # A process that waits for one that does something else is to end, not to hang.
        patience = timedelta(minutes=3)
        dist.init_process_group("gloo", init_method=rendezvous, world_size=ranks, rank=rank, timeout=patience)
        comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(ranks)))
    saved: list[str] = []
    save, end, denoise = TensorFile.save, QNerfPipeline._after_train, SliceRunner.denoise
    loss_dict, calls = QNerfModel.get_loss_dict, []

    def broken_once(model: QNerfModel, *arguments: Any) -> dict[str, torch.Tensor]:
        losses = loss_dict(model, *arguments)
        calls.append(model.step)
        if rank == ranks - 1 and len(calls) == BROKEN:
            losses["rgb_loss"] = losses["rgb_loss"] * float("nan")
        return losses

    def note_file(file: TensorFile, tensors: dict[str, torch.Tensor]) -> None:
        saved.append(str(file.path.relative_to(config.get_base_dir() / "edit")))
        save(file, tensors)

    def note_end(pipeline: QNerfPipeline, step: int) -> None:
        end(pipeline, step)
        field = [float(each.double().sum()) for each in pipeline._qnerf.parameters()]
        errors = pipeline._qnerf.view_errors.tolist()
        state = {"saved": saved, "field": field, "errors": errors, "calls": len(calls)}
        (notes / f"{rank}.json").write_text(json.dumps(state))

    def fail(runner: SliceRunner, item: Any, targets: Any) -> None:
        if failing and rank == 1 and item.index == 3:
            raise RuntimeError("the second process fails")
        denoise(runner, item, targets)

    TensorFile.save, QNerfPipeline._after_train, SliceRunner.denoise = note_file, note_end, fail
    QNerfModel.get_loss_dict = broken_once
    train_loop(rank, ranks, config, rank)
    if ranks > 1:
        dist.destroy_process_group()
