"""Whole runs on the second device: whatever a GPU's code path leaves on the other device ends them."""

import json
import signal
from pathlib import Path

import pytest
from helpers.captures import small_capture
from helpers.commands import KILLED_TRAIN, SCRIPTS, SECOND_DEVICE, SHORT, edited_by, on_second_device, script, where

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
    output = on_second_device(
        SCRIPTS / "ns-train", *words("qnerf-edit", capture, out, *options, "--pipeline.start", "carried")
    )
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
