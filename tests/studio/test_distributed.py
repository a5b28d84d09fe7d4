"""Two processes against one: the same edit, each view edited once, and no hang where one of them fails."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from helpers.captures import small_capture
from helpers.edits import short_edit
from helpers.preloaded import ensure_server
from helpers.ranks import worker
from safetensors.torch import load_file

from qnerf_nerfstudio.common.images import load_images

VIEWS = 3


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_capture(tmp_path_factory.mktemp("capture"), num_views=VIEWS)


def edit(
    capture: Path,
    editor: Path,
    folder: Path,
    ranks: int,
    consolidation: str,
    failing: bool = False,
    boxes: bool = False,
) -> Path:
    """Run a short edit, by `boxes` from carried views; its edit/ folder."""
    notes = folder / "notes"
    notes.mkdir()
    config = short_edit(capture, folder / "out", 6, editor)
    config.pipeline.datamanager.data, config.pipeline.consolidation = capture, consolidation
    config.pipeline.source_iterations, config.pipeline.fit_iterations, config.pipeline.final_iterations = 5, 6, 12
    if boxes:
        config.pipeline.edit, config.pipeline.start = capture / "edit-boxes.json", "carried"
    config.save_config()
    ensure_server()
    mp.start_processes(worker, (ranks, config, notes, failing), nprocs=ranks, start_method="forkserver")
    return config.get_base_dir() / "edit"


def all_images(folder: Path) -> torch.Tensor:
    return torch.stack(load_images(sorted((folder / "images").glob("*.png"))))


def test_two_processes_make_the_views_of_one(capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    folders = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        folders.append(edit(capture, tiny_editor, tmp_path / str(ranks), ranks, "none"))
    one, two = map(all_images, folders)
    assert len(one) == VIEWS
    assert (one - two).abs().max() <= 1.01 / 255
    assert (folders[1] / "transforms.json").exists()


def test_two_processes_share_the_work_and_train_one_field(capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    folder = edit(capture, tiny_editor, tmp_path, 2, "progressive", boxes=True)
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
    # One of them met a loss that is not finite, and both tried again.
    length = yaml.load((folder.parent / "config.yml").read_text(), Loader=yaml.Loader).max_num_iterations
    assert first["calls"] == second["calls"] == length + 1
    # What the views' errors are is known from the rays of both, what moves is read off the field of one.
    assert first["errors"] == second["errors"] and not any(map(math.isnan, first["errors"]))
    assert "anatomy.safetensors" in first["saved"] and "anatomy.safetensors" not in second["saved"]


def test_a_process_that_fails_ends_the_run(capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    with pytest.raises(mp.ProcessRaisedException, match="the second process fails"):
        edit(capture, tiny_editor, tmp_path, 2, "none", failing=True)
