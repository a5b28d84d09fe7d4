"""nerfstudio's own commands, run as a user runs them.

Tests that start ns-train are in this room, since studio/ is where nerfstudio enters the package.
"""

import ctypes.util
import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import trimesh
import yaml
from helpers.captures import small_capture
from helpers.commands import KILLED_TRAIN, RUN, SHORT, command, edited_by, script, train, where, without_diffusion
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from playwright.sync_api import Page
from rich.console import Console

from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.pages.report import query_errors
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.costs import disk_bytes
from qnerf_nerfstudio.run.plan import Plan, PlanConfig
from qnerf_nerfstudio.studio.plain import train_plain
from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg
from qnerf_nerfstudio.toy.truth import load_truth, render_views, score_run

needs_open3d = pytest.mark.skipif(
    ctypes.util.find_library("usb-1.0") is None,
    reason="Open3D, which ns-export and 3D points need, has no libusb-1.0 (Debian: apt-get install libusb-1.0-0)",
)


FIELD_FILES = ("source_field.safetensors", "heads.safetensors", "codec.safetensors")
"""Weights in edit/, whose size does not follow from the number of views."""


@pytest.fixture(scope="module")
def random_run(capture: Path, tiny_editor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a random editor."""
    return train(capture, tmp_path_factory.mktemp("random"), tiny_editor)


@pytest.fixture(scope="module")
def run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the bundled editor, whose views make a field with surfaces, as a user starts it: from the folder above
    the capture. What follows looks at it from elsewhere."""
    before = {path: path.read_bytes() for path in capture.rglob("*.*")}
    # Longer than SHORT's final field: a few more steps, and its surfaces are those of the capture.
    longer = ("--pipeline.final-iterations", "40")
    folder = train(capture, tmp_path_factory.mktemp("run"), BUNDLED_FOLDER, *longer, fresh=True)
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
    assert manifest["num_train"] == 9
    errors = query_errors(EditArtifacts(edit))
    assert len(errors) == 2
    assert all(len(views) == 10 and all(0 < error < 10 for error in views) for views in errors.values())
    assert not list(edit.rglob("*.tmp"))
    report = (run / "report.html").read_text()
    assert "interval 2, mean" in report and "in held-out views" in report
    assert "The run is not finished" not in report


def test_config_states_the_length_of_the_plan(run: Path) -> None:
    config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
    # 10 views in chunks of 8 are 2 slices; 6 inversions, 6 edits and 2 + 1 look-aheads of them; 2 extractions, 2 fits.
    assert config.max_num_iterations == 2 * (6 + 6 + 3 + 2 + 1) + 5 + 2 * 6 + 40
    checkpoints = [path.name for path in (run / "nerfstudio_models").iterdir()]
    assert checkpoints == [f"step-{config.max_num_iterations - 1:09d}.ckpt"]


def test_stock_torch_load_reads_the_checkpoint(run: Path) -> None:
    path = next((run / "nerfstudio_models").iterdir())
    state = torch.load(path, weights_only=True)
    assert not [name for name in state["pipeline"] if "unet" in name or "lpips" in name]
    assert all(isinstance(rate, float) for each in state["schedulers"].values() for rate in each["_last_lr"])


def test_a_run_that_is_killed_and_interrupted_ends_as_one_that_is_not(
    random_run: Path, capture: Path, tiny_editor: Path, tmp_path: Path
) -> None:
    """Killed half-way through a write before the first checkpoint, stopped by Ctrl-C, killed half-way through a
    checkpoint and after the last view is decoded; benchmarks/kill_resume.py does so in all stages. So the same seed
    gives the same views, too."""
    folder = tmp_path / RUN
    length = yaml.load((random_run / "config.yml").read_text(), Loader=yaml.Loader).max_num_iterations
    begin = ["qnerf-edit-tiny", "--data", capture, *where(tmp_path), "--steps-per-save", "20"]
    begin += [*edited_by(tiny_editor), *SHORT]
    resume = [*begin, "--load-dir", folder / "nerfstudio_models"]

    def killed(step: int, place: str, options: list) -> tuple[int | None, str]:
        return script(KILLED_TRAIN, [str(each) for each in (step, place, *options)])

    assert killed(3, "write", begin)[0] == -signal.SIGKILL
    assert list(folder.rglob("*.tmp")) and not (folder / "nerfstudio_models").exists()
    code, output = killed(25, "interrupt", resume)
    assert code == 130, output[-2000:]
    assert "Traceback" not in output
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000024.ckpt"]
    (message,) = (line for line in output.splitlines() if "everything is saved" in line)
    words = shlex.split(message.split("Go on with: ")[1])
    assert words[0] == "ns-train"
    # The checkpoint of step 40 is torn; that of step 24 is still there.
    assert killed(40, "checkpoint", words[1:])[0] == -signal.SIGKILL
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000024.ckpt"]
    # All views are decoded by then; decoding them again must not take them for photos.
    assert killed(length - 13, "after", words[1:])[0] == -signal.SIGKILL
    assert len(list((folder / "edit/images").iterdir())) == 10
    # Its own config.yml says all that there is to say; nerfstudio reads no other option then.
    command("ns-train", "qnerf-edit-tiny", "--load-config", folder / "config.yml")
    names = sorted(path.name for path in (random_run / "edit/images").iterdir())
    assert sorted(path.name for path in (folder / "edit/images").iterdir()) == names
    for name in names:
        assert (folder / "edit/images" / name).read_bytes() == (random_run / "edit/images" / name).read_bytes()
    assert not list(folder.rglob("*.tmp"))
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == [f"step-{length - 1:09d}.ckpt"]
    assert yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader).max_num_iterations == length


def test_eval_compares_with_the_edited_views(run: Path, tmp_path: Path) -> None:
    without_diffusion("ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "eval.json")
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] > 5
    # The photos are no measure of an edit: where its views are gone, it is not scored.
    images = run / "edit/images"
    images.rename(run / "edit/hidden")
    try:
        output = command("ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "no.json", code=2)
    finally:
        (run / "edit/hidden").rename(images)
    assert "frame_00009.png and 0 other edited views are gone" in output.replace("\n", " ")
    assert not (tmp_path / "no.json").exists()


def test_a_report_calls_a_run_finished_when_its_final_field_is(random_run: Path, tmp_path: Path) -> None:
    for finished in (True, False):
        shutil.copytree(random_run / "edit", tmp_path / str(finished) / "edit")
        path = tmp_path / str(finished) / "edit/manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "finished": finished}))
        assert (path.parent / "transforms.json").exists(), "all views are edited"
        command("qnerf", "report", tmp_path / str(finished))
        page = (tmp_path / str(finished) / "report.html").read_text()
        assert ("The run is not finished" in page) != finished


def test_render_makes_a_video(run: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    options = ["--output-path", video, "--rendered-output-names", "rgb", "queries"]
    options += ["--pose-source", "train", "--interpolation-steps", "1", "--order-poses", "True"]
    without_diffusion("ns-render", "interpolate", "--load-config", run / "config.yml", *options)
    assert video.stat().st_size > 500


@needs_open3d
def test_export_makes_a_point_cloud(run: Path, tmp_path: Path) -> None:
    options = ["--num-points", "500", "--remove-outliers", "False", "--normal-method", "open3d"]
    options += ["--num-rays-per-batch", "1024"]
    without_diffusion(
        "ns-export", "pointcloud", "--load-config", run / "config.yml", "--output-dir", tmp_path, *options
    )
    assert (tmp_path / "point_cloud.ply").stat().st_size > 1000


def test_commands_that_need_held_out_views_say_so(tmp_path: Path, tiny_editor: Path) -> None:
    options = ("--pipeline.consolidation", "none", "nerfstudio-data", "--train-split-fraction", "1.0")
    folder = train(small_capture(tmp_path, 4), tmp_path, tiny_editor, *options)
    asked = ("ns-eval", "ns-render interpolate", "ns-render dataset --split test", "ns-render spiral")
    for words in asked:
        output = command(
            *(*words.split(), "--load-config", folder / "config.yml"),
            *("--output-path", tmp_path / ("out.json" if words == "ns-eval" else "out.mp4")),
            code=2,
            PATH=environment_with_ffmpeg(tmp_path)["PATH"],
        )
        assert "qnerf-edit: the run held no views out" in output.splitlines()[-1], words


def test_score_compares_with_the_truth_and_an_unedited_field(
    run: Path, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("source_iterations", "final_iterations"):
        monkeypatch.setattr(qnerf_edit_tiny.config.pipeline, stage, 3)
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


@pytest.mark.release
def test_stock_nerfacto_trains_on_the_edited_views(run: Path, tmp_path: Path) -> None:
    # Nerfacto builds LPIPS, which downloads AlexNet; a stand-in of the same shape keeps this test off the network.
    weights = tmp_path / "torch/hub/checkpoints/alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), weights)
    options = [
        *("--max-num-iterations", "3", "--machine.device-type", "cpu", "--vis", "tensorboard"),
        *("--pipeline.model.implementation", "torch", "--pipeline.datamanager.train-num-rays-per-batch", "32"),
        *where(tmp_path / "out"),
    ]
    command("ns-train", "nerfacto", "--data", run / "edit", *options, TORCH_HOME=tmp_path / "torch")
    assert list((tmp_path / "out/e/nerfacto/t/nerfstudio_models").glob("*.ckpt"))


def test_the_points_of_the_edited_views_lie_where_the_capture_is(run: Path) -> None:
    # The figure stands within a metre of its capture's centre, on the floor; the points are in the same coordinates.
    cloud = trimesh.load(run / "edit/sparse_pc.ply")
    assert len(cloud.vertices) > 100
    assert np.abs(np.median(cloud.vertices, axis=0)[:2]).max() < 2


@needs_open3d
def test_splatfacto_reads_the_points_of_the_edited_views(run: Path) -> None:
    # Splatfacto needs CUDA to train, but reads the points from this dataset: those of the final field, on its surfaces.
    data = NerfstudioDataParserConfig(data=run / "edit", load_3D_points=True).setup().get_dataparser_outputs("train")
    points, colours = data.metadata["points3D_xyz"], data.metadata["points3D_rgb"]
    assert len(points) == len(colours) > 100
    assert (points.abs() <= 1.01).all()


def test_the_report_opens_without_network(page: Page, random_run: Path, tmp_path: Path) -> None:
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.context.set_offline(True)
    page.goto((random_run / "report.html").as_uri())
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.locator(".sheet img").count() == 3 * 10
    assert page.locator(".row img").count() >= 2
    assert page.locator(".curves svg").count() == 1
    before = page.locator("#after").get_attribute("src")
    page.locator("#view").select_option(index=3)
    assert page.locator("#after").get_attribute("src") != before
    page.locator("#share").fill("20")
    assert "20%" in page.locator("#after").evaluate("(image) => image.style.clipPath")
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert errors == []
    assert [url for url in requests if not url.startswith(("data:", "file:", "blob:"))] == []


def test_a_finished_run_is_cleaned(random_run: Path, tiny_editor: Path, tmp_path: Path) -> None:
    def size() -> int:
        """Bytes of what grows with the views."""
        kept = (path for path in (run / "edit").rglob("*") if path.is_file() and path.name not in FIELD_FILES)
        return sum(path.stat().st_size for path in kept)

    run = tmp_path / "run"
    shutil.copytree(random_run, run)
    before, manifest = size(), json.loads((run / "edit/manifest.json").read_text())
    settings = {"num_views": 10, "num_steps": 6, "tau": 2, "chunk": 8, "stop": 0.4}
    editor = load_editor(EditorConfig(str(tiny_editor), (str(tiny_editor / "controlnet"),), dtype="float32"), "cpu")
    # At its largest it holds queries that are not coded yet.
    assert 0.8 * before < disk_bytes(editor, Plan(PlanConfig(**settings)), (64, 64), (64, 64), 12) < 3 * before
    assert re.search(r"[1-9]\d* MiB freed", command("qnerf", "clean", run))
    assert not (run / "edit/latents").exists() and not (run / "edit/queries").exists()
    assert size() < 0.5 * before
    command("qnerf", "report", run, "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    (run / "edit/manifest.json").write_text(json.dumps({**manifest, "finished": False}))
    assert "is not finished, and needs all of its files" in command("qnerf", "clean", run, code=2)
    assert "has no edit/manifest.json" in command("qnerf", "clean", tmp_path, code=2)
