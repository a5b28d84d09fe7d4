"""Whole runs on the second device: whatever a GPU's code path leaves on the other device ends them."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.captures import small_capture
from helpers.commands import KILLED_TRAIN, SCRIPTS, SECOND_DEVICE, SHORT, edited_by, on_second_device, script, where
from helpers.models import save_sd_set, save_xl_set
from helpers.preloaded import QUIET
from PIL import Image

from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg

CUDA = ("--machine.device-type", "cuda", "--vis", "tensorboard")
GUIDED = (
    *("--pipeline.editor.guidance-strength", "0.05"),
    *("--pipeline.editor.num-steps", "4"),
    *("--pipeline.tau", "1"),
    *("--pipeline.consolidation", "one-shot"),
)
SOLID = (
    *("--pipeline.source-iterations", "100"),
    *("--pipeline.model.space-annealing", "0"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "512"),
)
"""Enough for a field that shows what the bones move."""
SAMPLES = "--pipeline.model.num-proposal-samples-per-ray"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 views."""
    return small_capture(tmp_path_factory.mktemp("capture"), num_views=6)


def words(method: str, capture: Path, out: Path, *options: object) -> list[object]:
    """A short run of a method on the second device."""
    # The fields of the other methods have two proposal networks.
    samples = () if method == "qnerf-edit-tiny" else (SAMPLES, "16", "8")
    return [method, *CUDA, "--data", capture, *where(out), *SHORT, *samples, *options]


@pytest.fixture(scope="module")
def edited(capture: Path, tiny_editor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default method with random models: float16, mixed precision, carried by boxes, guided by queries."""
    out = tmp_path_factory.mktemp("edited")
    options = [*edited_by(tiny_editor), *GUIDED, "--pipeline.edit", capture / "edit-boxes.json"]
    options += ["--pipeline.start", "carried", "nerfstudio-data", "--train-split-fraction", "0.8"]
    output = on_second_device(SCRIPTS / "ns-train", *words("qnerf-edit", capture, out, *options))
    assert "Traceback" not in output
    return out / "e/qnerf-edit/t"


def test_views_are_edited_in_half_precision(edited: Path) -> None:
    images = load_images(sorted((edited / "edit/images").glob("*.png")))
    assert len(images) == 6 and all(float(image.std()) > 0.01 for image in images)
    assert list((edited / "edit/queries").glob("*/heads.safetensors"))
    assert (edited / "report.html").exists()


def test_the_result_is_rendered(edited: Path, tmp_path: Path) -> None:
    options = ["--pose-source", "train", "--interpolation-steps", "1", "--rendered-output-names", "rgb", "queries"]
    on_second_device(
        *(SCRIPTS / "ns-render", "interpolate", "--load-config", edited / "config.yml", *options),
        *("--output-path", tmp_path / "video.mp4"),
        PATH=environment_with_ffmpeg(tmp_path)["PATH"],
    )
    assert (tmp_path / "video.mp4").stat().st_size > 500


def test_a_skeleton_carries_the_capture_and_a_killed_run_goes_on(capture: Path, tmp_path: Path) -> None:
    options = ["--pipeline.editing", "carried", *SOLID, "--steps-per-save", "101"]
    begin = words("qnerf-edit-tiny", capture, tmp_path, *options)
    killed = [str(each) for each in (KILLED_TRAIN, 104, "after", *begin)]
    code, output = script(SECOND_DEVICE, killed)
    assert code == -signal.SIGKILL, output[-2000:]
    folder = tmp_path / "e/qnerf-edit-tiny/t"
    output = on_second_device(SCRIPTS / "ns-train", *begin, "--load-dir", folder / "nerfstudio_models")
    assert "Traceback" not in output
    assert len(list((folder / "edit/images").glob("*.png"))) == 6
    assert json.loads((folder / "edit/manifest.json").read_text())["finished"]


def run_of(method: str, capture: Path, out: Path, *options: object) -> Path:
    """The folder of a short run."""
    output = on_second_device(SCRIPTS / "ns-train", *words(method, capture, out, *options))
    assert "Traceback" not in output
    folder = out / f"e/{method}/t"
    assert len(list((folder / "edit/images").glob("*.png"))) == 6
    return folder


STEPS = ("--pipeline.editor.num-steps", "4", "--pipeline.tau", "1")


@pytest.mark.release
@pytest.mark.parametrize(
    "options",
    [
        ("--pipeline.consolidation", "progressive", "--pipeline.editor.mode", "blend"),
        ("--pipeline.consolidation", "one-shot", "--pipeline.editor.mode", "replace"),
        ("--pipeline.consolidation", "none", "--pipeline.region", "False"),
        ("--pipeline.consolidation", "one-shot", "--pipeline.model.background-color", "random"),
        ("--pipeline.consolidation", "one-shot", "--pipeline.warm-start", "False", "--pipeline.composite", "False"),
    ],
    ids=["progressive blend", "replace", "everywhere, one by one", "random background", "afresh"],
)
def test_views_are_edited_from_the_photos(
    capture: Path, tiny_editor: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    run_of("qnerf-edit-tiny", capture, tmp_path, *edited_by(tiny_editor), *STEPS, *options)


@pytest.mark.release
@pytest.mark.parametrize(("editing", "region"), [("carried", False), ("diffusion", True)])
def test_a_mesh_carries_the_capture(
    capture: Path, tiny_editor: Path, tmp_path: Path, editing: str, region: bool
) -> None:
    options = ["--pipeline.edit", capture / "edit-mesh.json", "--pipeline.editing", editing]
    options += ["--pipeline.region", str(region)]
    options += [*edited_by(tiny_editor), *STEPS, "--pipeline.start", "carried"]
    run_of("qnerf-edit-tiny", capture, tmp_path, *options)


@pytest.mark.release
def test_masks_leave_parts_of_photos_out(capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    scene = tmp_path / "masked"
    shutil.copytree(capture, scene)
    meta = json.loads((scene / "transforms.json").read_text())
    (scene / "masks").mkdir()
    for frame in meta["frames"]:
        frame["mask_path"] = f"masks/{Path(frame['file_path']).name}"
        Image.fromarray(np.full((64, 64), 255, np.uint8) * (np.arange(64) > 8)).save(scene / frame["mask_path"])
    (scene / "transforms.json").write_text(json.dumps(meta))
    region_share = ("--pipeline.datamanager.pixel-sampler.region-share", "0.5")
    options = [*edited_by(tiny_editor), *STEPS, "--pipeline.consolidation", "one-shot", *region_share]
    run_of("qnerf-edit-tiny", scene, tmp_path, *options)


@pytest.mark.release
def test_a_skeleton_begins_views_that_diffusion_edits(capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    options = [*edited_by(tiny_editor), *STEPS, *SOLID, "--pipeline.start", "carried"]
    folder = run_of("qnerf-edit-tiny", capture, tmp_path, *options)
    assert list((folder / "edit/carried").glob("*.png"))


@pytest.mark.release
def test_stable_diffusion_xl_edits_views(capture: Path, tmp_path: Path) -> None:
    models = save_xl_set(tmp_path / "models")
    options = [*edited_by(models), "--pipeline.editor.variant", "None", *GUIDED]
    run_of("qnerf-edit-xl", capture, tmp_path, *options, "--pipeline.editor.checkpointing", "True")


@pytest.mark.release
def test_runs_are_scored_exported_and_looked_at(edited: Path, capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    config = ("--load-config", edited / "config.yml")
    on_second_device(SCRIPTS / "ns-eval", *config, "--output-path", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 1
    options = ("--num-points", "200", "--remove-outliers", "False", "--normal-method", "open3d")
    on_second_device(SCRIPTS / "ns-export", "pointcloud", *config, "--output-dir", tmp_path, *options)
    assert (tmp_path / "point_cloud.ply").stat().st_size > 1000
    models = ("--method", "qnerf-edit-tiny", "--model", tiny_editor, "--controlnet", tiny_editor / "controlnet")
    sheet = tmp_path / "sheet.png"
    on_second_device(
        SCRIPTS / "qnerf", "preview", "--data", capture, *models, "--views", "1", "--seed", "0", "--out", sheet
    )
    assert sheet.stat().st_size > 1000
    mesh = tmp_path / "mesh.ply"
    box = ("--box", "0", "0", "1", "2", "2", "2")
    on_second_device(
        *(SCRIPTS / "qnerf", "proxy", "--data", capture, *box, "--iterations", "300", "--faces", "500", "--out", mesh)
    )
    assert mesh.stat().st_size > 1000


@pytest.mark.release
def test_fields_run_in_tiny_cuda_nn(capture: Path, tiny_editor: Path, tmp_path: Path) -> None:
    """In a stand-in for it, which has its types; it is imported before everything else, by a process of its own."""
    options = [*edited_by(tiny_editor), *GUIDED, "--pipeline.edit", capture / "edit-boxes.json"]
    options += ["--pipeline.start", "carried", "--pipeline.model.implementation", "tcnn"]
    stand_ins = SECOND_DEVICE.parent / "stand_ins"
    arguments = [SECOND_DEVICE, SCRIPTS / "ns-train", *words("qnerf-edit", capture, tmp_path, *options)]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **QUIET, "PYTHONPATH": f"{stand_ins}{os.pathsep}{SECOND_DEVICE.parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    folder = tmp_path / "e/qnerf-edit/t"
    state = torch.load(next((folder / "nerfstudio_models").iterdir()), "cpu", weights_only=True)["pipeline"]
    assert any(name.endswith("tcnn_encoding.params") for name in state), "it ran in torch"


@pytest.mark.release
def test_a_run_of_the_real_size(capture: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5's architecture with random weights, 512 pixels, the method's own options but for time."""
    models = save_sd_set(tmp_path / "models")
    short = ("--pipeline.editor.num-steps", "2", "--pipeline.tau", "1", "--pipeline.source-iterations", "20")
    short += ("--pipeline.fit-iterations", "20", "--pipeline.final-iterations", "20")
    scene = small_capture(tmp_path, num_views=3, size=512)
    # A fist that moves aside: few pixels change, so that the method's field is rendered in minutes.
    edit = json.loads((scene / "edit.json").read_text())
    wrist = edit["control"]["source"]["r_wrist"]
    before, after = ({"position": [wrist[0], wrist[1], wrist[2] + up], "size": [0.12] * 3} for up in (0.0, 0.1))
    edit["control"] = {"type": "box", "source": before, "target": after}
    (scene / "edit-fist.json").write_text(json.dumps(edit))
    options = [*edited_by(models), *short, "--pipeline.edit", scene / "edit-fist.json"]
    arguments = [SCRIPTS / "ns-train", "qnerf-edit", *CUDA, "--data", scene, *where(tmp_path), *options]
    on_second_device(*arguments)
    images = load_images(sorted((tmp_path / "e/qnerf-edit/t/edit/images").glob("*.png")))
    assert len(images) == 3 and images[0].shape == (512, 512, 3)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak memory of the process: {peak / 2**20:.1f} GiB, which says nothing of a GPU's")
