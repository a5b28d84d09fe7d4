"""Two processes against one: the same edit, each view edited once, and no hang where one of them fails."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import comms
from safetensors.torch import load_file

from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.run.artifacts import EditStore
from qnerf_nerfstudio.run.slices import SliceRunner
from qnerf_nerfstudio.studio.pipeline import QNerfPipeline
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture

VIEWS = 7


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("capture") / "scene"
    write_capture(out, CaptureConfig(seed=0, views=VIEWS, size=64))
    return out


def short_edit(capture: Path, out: Path, consolidation: str) -> TrainerConfig:
    config: Any = copy.deepcopy(qnerf_edit_tiny.config)
    config.data = config.pipeline.datamanager.data = capture
    config.output_dir, config.experiment_name, config.timestamp, config.vis = out, "e", "t", "tensorboard"
    config.pipeline.consolidation = consolidation
    config.pipeline.tau, config.pipeline.source_iterations = 2, 5
    config.pipeline.fit_iterations, config.pipeline.final_iterations = 6, 12
    config.pipeline.editor.num_steps, config.pipeline.editor.resolution = 6, 64
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    return config


def worker(rank: int, ranks: int, config: TrainerConfig, notes: Path, failing: bool) -> None:
    """One process of a run, as ns-train starts it on CUDA devices; notes what it saves and where its field ends."""
    torch.set_num_threads(1)
    if ranks > 1:
        rendezvous = f"file://{notes.absolute()}/rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, world_size=ranks, rank=rank)
        comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(ranks)))
    saved: list[str] = []
    save, end, denoise = EditStore.save, QNerfPipeline._after_train, SliceRunner.denoise

    def note_key(store: EditStore, key: str, tensors: dict) -> None:
        saved.append(key)
        save(store, key, tensors)

    def note_end(pipeline: QNerfPipeline, step: int) -> None:
        end(pipeline, step)
        state = {"saved": saved, "field": [float(each.double().sum()) for each in pipeline._qnerf.parameters()]}
        (notes / f"{rank}.json").write_text(json.dumps(state))

    def fail(runner: SliceRunner, item: Any, targets: Any) -> None:
        if failing and rank == 1 and item.index == 3:
            raise RuntimeError("the second process fails")
        denoise(runner, item, targets)

    EditStore.save, QNerfPipeline._after_train, SliceRunner.denoise = note_key, note_end, fail
    train_loop(rank, ranks, config, rank)
    if ranks > 1:
        dist.destroy_process_group()


def edit(capture: Path, folder: Path, ranks: int, consolidation: str, failing: bool = False) -> Path:
    """Run a short edit; its edit/ folder."""
    notes = folder / "notes"
    notes.mkdir()
    config = short_edit(capture, folder / "out", consolidation)
    config.save_config()
    mp.spawn(worker, args=(ranks, config, notes, failing), nprocs=ranks)
    return config.get_base_dir() / "edit"


def all_images(folder: Path) -> torch.Tensor:
    return torch.stack(load_images(sorted((folder / "images").glob("*.png"))))


def test_two_processes_make_the_views_of_one(capture: Path, tmp_path: Path) -> None:
    folders = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        folders.append(edit(capture, tmp_path / str(ranks), ranks, "none"))
    one, two = map(all_images, folders)
    assert len(one) == VIEWS
    assert (one - two).abs().max() <= 1.01 / 255
    assert (folders[1] / "transforms.json").exists()


def test_two_processes_share_the_work_and_train_one_field(capture: Path, tmp_path: Path) -> None:
    folder = edit(capture, tmp_path, 2, "progressive")
    assert len(all_images(folder)) == VIEWS
    first, second = (json.loads((tmp_path / f"notes/{rank}.json").read_text()) for rank in (0, 1))
    # Each has its own chunk in every trajectory, neither does what the other one did.
    assert not set(first["saved"]) & set(second["saved"])
    latents = [key for key in first["saved"] + second["saved"] if key.startswith("latents/edited")]
    assert len(latents) == len(set(latents)) == 2 * 6
    for index in range(1, 7):
        chunks = [load_file(path)["latents"] for path in folder.glob(f"latents/edited-0/{index:04d}-*.safetensors")]
        assert sum(map(len, chunks)) == VIEWS
    codes = [load_file(path) for path in folder.glob("queries/0/codes-*.safetensors")]
    assert all(sum(len(each[name]) for each in codes) == VIEWS for name in codes[0])
    assert first["field"] == second["field"]


def test_a_process_that_fails_ends_the_run(capture: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(mp.ProcessRaisedException, match="the second process fails"):
        edit(capture, tmp_path, 2, "none", failing=True)
    assert time.monotonic() - started < 120
