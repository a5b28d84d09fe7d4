"""nerfstudio's own commands, run as a user runs them."""

import copy
import ctypes.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import trimesh
import yaml
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.scripts import train as train_script
from PIL import Image
from rich.console import Console

from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.pages.report import query_errors
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture
from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg
from qnerf_nerfstudio.toy.plain import train_plain
from qnerf_nerfstudio.toy.truth import load_truth, render_views, score_run

SCRIPTS = Path(sys.executable).parent
KILLED_TRAIN = Path(__file__).resolve().parents[1] / "benchmarks/killed_train.py"
SHORT = [
    *("--pipeline.editor.num-steps", "6"),
    *("--pipeline.editor.resolution", "64"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "256"),
    *("--pipeline.tau", "2"),
    *("--pipeline.source-iterations", "5"),
    *("--pipeline.fit-iterations", "6"),
    *("--pipeline.final-iterations", "12"),
    *("--viewer.quit-on-train-completion", "True"),
]


def command(name: str, *arguments: object, code: int = 0, **variables: object) -> str:
    """Run a command that ends with an exit code; its output. Nothing may reach for a model hub."""
    environment = {**os.environ, "COLUMNS": "300", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
    environment |= {key: str(value) for key, value in variables.items()}
    done = subprocess.run(
        [str(SCRIPTS / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output[-4000:]
    return output


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("capture") / "scene"
    write_capture(out, CaptureConfig(seed=0, views=10, size=64))
    return out


def train(capture: Path, out: Path, *options: str) -> Path:
    """A short edit; the run's folder."""
    where = ["--output-dir", out, "--experiment-name", "e", "--timestamp", "t"]
    command("ns-train", "qnerf-edit-tiny", "--data", capture, *where, *SHORT, *options)
    return out / "e/qnerf-edit-tiny/t"


@pytest.fixture(scope="module")
def run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = {path: path.read_bytes() for path in capture.rglob("*.*")}
    folder = train(capture, tmp_path_factory.mktemp("run"))
    assert before == {path: path.read_bytes() for path in capture.rglob("*.*")}, "the capture was written to"
    return folder


def test_run_leaves_an_edited_dataset_and_its_state(run: Path, capture: Path) -> None:
    edit = run / "edit"
    meta = json.loads((edit / "transforms.json").read_text())
    original = json.loads((capture / "transforms.json").read_text())
    assert len(meta["frames"]) == 10
    assert {key: meta[key] for key in ("fl_x", "cx", "w", "h")} == {
        key: original[key] for key in ("fl_x", "cx", "w", "h")
    }
    for frame, before in zip(meta["frames"], original["frames"], strict=True):
        assert frame["transform_matrix"] == before["transform_matrix"]
        assert (edit / frame["file_path"]).read_bytes() != (capture / before["file_path"]).read_bytes()
    assert (edit / "controls/target/frame_00001.png").exists()
    manifest = json.loads((edit / "manifest.json").read_text())
    assert manifest["training_views"] == 9
    errors = query_errors(edit)
    assert len(errors) == 2
    assert all(len(views) == 10 and all(0 < error < 10 for error in views) for views in errors.values())
    assert not list(edit.rglob("*.tmp"))


def test_config_states_the_length_of_the_plan(run: Path) -> None:
    config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
    # 10 views in chunks of 8 are 2 slices; 6 inversions, 6 edits and 2 + 1 look-aheads of them; 2 extractions, 2 fits.
    assert config.max_num_iterations == 2 * (6 + 6 + 3 + 2 + 1) + 5 + 2 * 6 + 12
    checkpoints = [path.name for path in (run / "nerfstudio_models").iterdir()]
    assert checkpoints == [f"step-{config.max_num_iterations - 1:09d}.ckpt"]


def test_stock_torch_load_reads_the_checkpoint(run: Path) -> None:
    path = next((run / "nerfstudio_models").iterdir())
    state = torch.load(path, weights_only=True)
    assert not [name for name in state["pipeline"] if "unet" in name or "lpips" in name]
    assert all(isinstance(rate, float) for each in state["schedulers"].values() for rate in each["_last_lr"])


def test_same_seed_gives_the_same_edited_views(run: Path, capture: Path, tmp_path: Path) -> None:
    again = train(capture, tmp_path)
    images = sorted((run / "edit/images").iterdir())
    assert len(images) == 10
    for path in images:
        assert path.read_bytes() == (again / "edit/images" / path.name).read_bytes()


def test_a_run_that_is_killed_and_interrupted_ends_as_one_that_is_not(run: Path, capture: Path, tmp_path: Path) -> None:
    """Killed half-way through a write before the first checkpoint, stopped by Ctrl-C, killed half-way through a
    checkpoint and after the last view is decoded; benchmarks/kill_resume.py does so in all stages."""
    folder = tmp_path / "e/qnerf-edit-tiny/t"
    length = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader).max_num_iterations
    where = ["--output-dir", tmp_path, "--experiment-name", "e", "--timestamp", "t", "--steps-per-save", "20"]
    begin = ["qnerf-edit-tiny", "--data", capture, *where, *SHORT]
    resume = [*begin, "--load-dir", folder / "nerfstudio_models"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "1000"}

    def killed(step: int, place: str, options: list) -> subprocess.CompletedProcess:
        words = [sys.executable, KILLED_TRAIN, step, place, *options]
        return subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)

    assert killed(3, "write", begin).returncode == -signal.SIGKILL
    assert list(folder.rglob("*.tmp")) and not (folder / "nerfstudio_models").exists()
    stopped = killed(25, "interrupt", resume)
    assert stopped.returncode == 130, stopped.stderr[-2000:]
    assert "Traceback" not in stopped.stdout + stopped.stderr
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000024.ckpt"]
    (told,) = (line for line in stopped.stdout.splitlines() if "everything is saved" in line)
    words = shlex.split(told.split("Go on with: ")[1])
    assert words[0] == "ns-train"
    # The checkpoint of step 40 is torn; that of step 24 is still there.
    assert killed(40, "checkpoint", words[1:]).returncode == -signal.SIGKILL
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000024.ckpt"]
    # All views are decoded by then; decoding them again must not take them for photos.
    assert killed(length - 13, "after", words[1:]).returncode == -signal.SIGKILL
    assert len(list((folder / "edit/images").iterdir())) == 10
    command("ns-train", *words[1:])
    names = sorted(path.name for path in (run / "edit/images").iterdir())
    assert sorted(path.name for path in (folder / "edit/images").iterdir()) == names
    for name in names:
        assert (folder / "edit/images" / name).read_bytes() == (run / "edit/images" / name).read_bytes()
    assert not list(folder.rglob("*.tmp"))
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == [f"step-{length - 1:09d}.ckpt"]
    assert yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader).max_num_iterations == length


NO_DIFFUSION = """
import sys, runpy
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("diffusers", "qnerf_nerfstudio.editor.editor"):
            raise ImportError(f"{name} must not be loaded here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_diffusion(name: str, *arguments: object) -> str:
    """Run a command in a process where diffusers cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", NO_DIFFUSION, str(SCRIPTS / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**environment_with_ffmpeg(Path(tempfile.mkdtemp())), "COLUMNS": "300"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def test_eval_compares_with_the_edited_views(run: Path, tmp_path: Path) -> None:
    without_diffusion("ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "eval.json")
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] > 5
    # The same checkpoint scores differently where the photos take the edited views' place.
    images = run / "edit/images"
    images.rename(run / "edit/hidden")
    try:
        without_diffusion("ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "photos.json")
    finally:
        (run / "edit/hidden").rename(images)
    photos = json.loads((tmp_path / "photos.json").read_text())["results"]
    assert abs(photos["psnr"] - results["psnr"]) > 1e-3


def test_render_makes_a_video(run: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    options = ["--output-path", video, "--rendered-output-names", "rgb", "queries"]
    options += ["--pose-source", "train", "--interpolation-steps", "1", "--order-poses", "True"]
    without_diffusion("ns-render", "interpolate", "--load-config", run / "config.yml", *options)
    assert video.stat().st_size > 500


@pytest.mark.skipif(
    ctypes.util.find_library("usb-1.0") is None,
    reason="Open3D, which ns-export imports, needs libusb-1.0 (Debian: apt-get install libusb-1.0-0)",
)
def test_export_makes_a_point_cloud(run: Path, tmp_path: Path) -> None:
    options = ["--num-points", "500", "--remove-outliers", "False", "--normal-method", "open3d"]
    options += ["--num-rays-per-batch", "1024"]
    without_diffusion(
        "ns-export", "pointcloud", "--load-config", run / "config.yml", "--output-dir", tmp_path, *options
    )
    assert (tmp_path / "point_cloud.ply").stat().st_size > 1000


def test_help_stays_light() -> None:
    """The plugin adds no heavy import to a `ns-*` command (nerfstudio itself may)."""
    script = (
        "import sys\n"
        "import nerfstudio.configs.method_configs\n"
        "names = nerfstudio.configs.method_configs.all_methods\n"
        "assert {'qnerf-edit', 'qnerf-edit-small', 'qnerf-edit-tiny'} <= set(names)\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_lists_the_settings() -> None:
    text = command("ns-train", "qnerf-edit-tiny", "--help")
    for option in ("--pipeline.tau", "--pipeline.editor.num-steps", "--pipeline.consolidation", "--pipeline.edit"):
        assert option in text


def no_mistake(_: Path) -> None:
    """Leave a capture as it is."""


def half_a_document(data: Path) -> None:
    (data / "edit.json").write_text((data / "edit.json").read_text()[:100])


def half_a_photo(data: Path) -> None:
    photo = data / "images/frame_00003.png"
    photo.write_bytes(photo.read_bytes()[:500])


@pytest.mark.parametrize(
    ("mistake", "options", "words"),
    [
        (no_mistake, ["--pipeline.editor.model", "nobody/nothing"], "--pipeline.editor.model: cannot load"),
        (no_mistake, ["--pipeline.tau", "99"], "--pipeline.tau is 99; expected 1 to num_steps (20)"),
        (half_a_document, [], "edit.json is not valid JSON"),
        (half_a_photo, [], "images/frame_00003.png"),
    ],
)
def test_mistakes_end_the_command_with_one_sentence(
    capture: Path, tmp_path: Path, mistake: Callable[[Path], None], options: list[str], words: str
) -> None:
    """As a user sees them; tests/test_bad_input.py has all of them."""
    shutil.copytree(capture, tmp_path / "scene")
    mistake(tmp_path / "scene")
    where = ["--data", tmp_path / "scene", "--output-dir", tmp_path / "out"]
    text = command("ns-train", "qnerf-edit-tiny", *where, *options, code=2)
    assert words in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.safetensors"))


def wrong_edits(folder: Path, capture: Path) -> dict[str, Path]:
    """Edits that cannot be made, by what is wrong with them."""
    document = json.loads((capture / "edit.json").read_text())
    target = document["control"]["target"]
    target["r_ellbow"] = target.pop("r_elbow")
    (folder / "joint.json").write_text(json.dumps(document))
    (folder / "empty").mkdir()
    document["control"] = {"type": "images", "source": "empty", "target": "empty"}
    (folder / "images.json").write_text(json.dumps(document))
    return {"none": folder / "nowhere.json", "joint": folder / "joint.json", "images": folder / "images.json"}


@pytest.mark.parametrize(
    ("edit", "settings", "words"),
    [
        ("none", {}, "nowhere.json does not exist"),
        ("joint", {}, "joint 'r_elbow' is missing in target (did you mean 'r_ellbow'?)"),
        ("images", {}, "has 0 images for 10 photos"),
        (None, {"prompt": " "}, "--prompt is empty"),
        (None, {"max_num_iterations": 7}, "--max-num-iterations is 7"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture, edit: str | None, settings: dict, words: str
) -> None:
    config = copy.deepcopy(qnerf_edit_tiny.config)
    config.data, config.output_dir, config.vis = capture, tmp_path / "out", "tensorboard"
    if edit is not None:
        config.pipeline.edit = wrong_edits(tmp_path, capture)[edit]  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(SystemExit) as stop:
        train_script.main(config)
    assert stop.value.code == 2
    assert words in capsys.readouterr().out.replace("\n", " ")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_score_compares_with_the_truth_and_an_unedited_field(
    run: Path, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnerf_edit_tiny.config.pipeline, "final_iterations", 3)
    plain, truth = train_plain(capture, tmp_path, qnerf_edit_tiny.config), load_truth(capture, "novel")
    for name, image in zip(truth.names, render_views(plain, capture, truth)[0], strict=True):
        write_png(tmp_path / "unedited" / name, image)
    sheet = tmp_path / "sheet.png"
    figures = score_run(run, capture, tmp_path / "unedited", sheet, Console(quiet=True))
    assert len(figures) == 4
    assert all(3 < value < 40 for value in figures.values()), figures
    assert json.loads((run / "score.json").read_text()) == figures
    with Image.open(sheet) as picture:
        assert picture.width > 6 * 64


def test_stock_nerfacto_trains_on_the_edited_views(run: Path, capture: Path, tmp_path: Path) -> None:
    # Nerfacto builds LPIPS, which downloads AlexNet; a stand-in of the same shape keeps this test off the network.
    weights = tmp_path / "torch/hub/checkpoints/alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), weights)
    options = [
        *("--max-num-iterations", "3", "--machine.device-type", "cpu", "--vis", "tensorboard"),
        *("--pipeline.model.implementation", "torch", "--pipeline.datamanager.train-num-rays-per-batch", "32"),
        *("--output-dir", tmp_path / "out", "--experiment-name", "e", "--timestamp", "t"),
    ]
    command("ns-train", "nerfacto", "--data", run / "edit", *options, TORCH_HOME=tmp_path / "torch")
    assert list((tmp_path / "out/e/nerfacto/t/nerfstudio_models").glob("*.ckpt"))
    # Splatfacto needs CUDA to train, but reads the points from this dataset: those of the final field, on its surfaces.
    data = NerfstudioDataParserConfig(data=run / "edit", load_3D_points=True).setup().get_dataparser_outputs("train")
    points, colours = data.metadata["points3D_xyz"], data.metadata["points3D_rgb"]
    assert len(points) == len(colours) > 100
    assert (points.abs() <= 1.01).all()
    # The figure stands within a metre of its capture's centre, on the floor; the points are in the same coordinates.
    cloud = trimesh.load(run / "edit/sparse_pc.ply")
    assert np.abs(np.median(cloud.vertices, axis=0)[:2]).max() < 2
