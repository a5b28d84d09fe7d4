"""The examples, run as their docstrings say, with a few options that make them short."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers.captures import small_capture
from helpers.commands import script
from helpers.documented import ROOT, commands_of
from PIL import Image

from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import SkeletonControl

VIEWS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the capture that the docstrings name."""
    return small_capture(tmp_path_factory.mktemp("examples"), VIEWS).parent


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(name: str, *options: object, stated: str = "", **variables: str) -> None:
    """Run an example by the first of its docstring's commands that holds the words `stated`, with further options."""
    words = next(
        words
        for words in map(shlex.split, commands_of(ROOT / "examples" / name))
        if words[0] == "python" and stated in " ".join(words)
    )
    code, output = script(ROOT / words[1], [*words[2:], *map(str, options)], variables)
    assert code == 0, output[-4000:]


def pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image if size is None else image.resize(size), dtype=float) / 255


def test_one_photo_is_edited_where_the_figure_is(folder: Path) -> None:
    run("1_edit_one_image.py", "--num-steps", 6)
    edited = pixels(folder / "scene/frame_00004-edited.png")
    assert edited.shape == (256, 256, 3)
    difference = np.abs(edited - pixels(folder / "scene/images/frame_00004.png", (256, 256))).mean(-1)
    truth = folder / "scene/truth"
    before, after = (pixels(truth / part / "frame_00004.png", (256, 256)) > 0 for part in ("source_masks", "masks"))
    assert difference[before ^ after].mean() > 3 * difference[~(before | after)].mean()


def test_an_arm_is_raised(folder: Path) -> None:
    run("2_pose_a_skeleton.py")
    control, before = (load_edit(folder / "scene" / name).control for name in ("edit-arm.json", "edit.json"))
    assert isinstance(control, SkeletonControl) and isinstance(before, SkeletonControl)
    assert control.source == before.source
    moved = {name for name, at in control.source.items() if not np.allclose(at, control.target[name], atol=1e-4)}
    assert moved == {"l_elbow", "l_wrist"}
    assert control.target["l_wrist"][2] > control.source["l_shoulder"][2] > control.source["l_wrist"][2]
    for first, second in control.all_bones:
        lengths = [np.linalg.norm(np.subtract(pose[first], pose[second])) for pose in (control.source, control.target)]
        assert lengths[0] == pytest.approx(lengths[1], abs=1e-4)


@pytest.fixture(scope="module")
def edited_run(folder: Path) -> Path:
    """The run of the third example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("3_edit_from_python.py", "--resolution", 64, "--num-steps", 4, "--iterations", 3)
    (made,) = (folder / "outputs/scene/qnerf-edit-tiny").iterdir()
    return made


def test_an_edit_is_made_from_python(edited_run: Path, folder: Path) -> None:
    frames = json.loads((edited_run / "edit/transforms.json").read_text())["frames"]
    assert len(frames) == VIEWS
    for frame in frames:
        edited, photo = (pixels(place / frame["file_path"]) for place in (edited_run / "edit", folder / "scene"))
        assert edited.shape == photo.shape and not np.array_equal(edited, photo)
    assert list((edited_run / "nerfstudio_models").glob("*.ckpt"))


def test_queries_of_every_layer_are_shown(folder: Path) -> None:
    run("4_query_maps.py", "--index", 17)
    # The photo and six layers, with a border of two pixels around each.
    tiles = pixels(folder / "queries.png")[2:-2, 2:].reshape(256, 7, 258, 3)[:, :, :256]
    spread = tiles.std(axis=(0, 2))
    assert (spread > 0.02).all(), spread
    assert all(np.abs(tiles[:, k] - tiles[:, k + 1]).mean() > 0.02 for k in range(6))


@pytest.mark.release
def test_stock_nerfacto_trains_on_the_edited_views(edited_run: Path, folder: Path) -> None:
    # Nerfacto builds LPIPS, which downloads AlexNet; a stand-in of the same shape keeps this test off the network.
    weights = folder / "torch/hub/checkpoints/alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), weights)
    short = ("--run", edited_run, "--iterations", 2)
    run("5_splatfacto.py", *short, stated="nerfacto", TORCH_HOME=str(folder / "torch"))
    assert list((folder / "outputs/edit/nerfacto").glob("*/nerfstudio_models/*.ckpt"))
