"""`qnerf demo`: everything from a capture to a video and figures, with nerfstudio's own commands."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
from jaxtyping import Float
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils.eval_utils import eval_setup
from rich.console import Console
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.pages.report import write_report
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture
from qnerf_nerfstudio.toy.truth import Truth, load_truth, render_views, score_run

SCRIPTS = Path(sys.executable).parent


def run_demo(out: Path, seed: int, console: Console) -> None:
    """Make the capture, edit it, render a video, and score it beside the field of the photos that the edit began with.

    Raises:
        UserError: `out` exists and is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder or remove it, nothing is overwritten")
    started = time.monotonic()
    data, run = out / "capture", out / "runs/edit/qnerf-edit-tiny/demo"
    console.rule("1. the capture")
    write_capture(data, CaptureConfig(seed=seed))
    console.rule("2. the edit: ns-train qnerf-edit-tiny")
    where = ["--output-dir", out / "runs", "--experiment-name", "edit", "--timestamp", "demo"]
    _command("ns-train", "qnerf-edit-tiny", "--data", data, *where, "--viewer.quit-on-train-completion", "True")
    console.rule("3. a video: ns-render interpolate")
    video = out / "edited.mp4"
    config = ["--load-config", run / "config.yml", "--output-path", video]
    path = ["--pose-source", "train", "--interpolation-steps", "1", "--frame-rate", "8", "--order-poses", "True"]
    _command("ns-render", "interpolate", *config, *path, environment=environment_with_ffmpeg(out))
    console.rule("4. for comparison: novel views of the photos' field")
    truth = load_truth(data, "novel")
    for name, image in zip(truth.names, render_photos_field(run, data, truth), strict=True):
        write_png(out / "unedited" / name, image)
    console.rule("5. figures")
    figures = score_run(run, data, out / "unedited", out / "sheet.png", console)
    shutil.copyfile(video, run / "edited.mp4")
    report = write_report(run, out / "report.html")
    gain = figures["novel views, edited NeRF"] - figures["novel views, unedited NeRF"]
    console.print(
        f"The edited NeRF is {gain:.2f} dB closer to the truth than the unedited one. "
        f"Took {(time.monotonic() - started) / 60:.1f} minutes.\n"
        f"Picture: {out / 'sheet.png'}   video: {video}   report: {report}\n"
        f"Edited views, a dataset of their own: {run / 'edit'}\n"
        f"Look around: ns-viewer --load-config {run / 'config.yml'}",
        soft_wrap=True,
    )


def render_photos_field(run: Path, data: Path, truth: Truth) -> Float[Tensor, "V 3 H W"]:
    """Views of the field of the photos that a run keeps, in the cameras of `truth`."""
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="inference")
    assert isinstance(pipeline, VanillaPipeline) and isinstance(pipeline.model, QNerfModel)
    pipeline.model.begin_stage(0, "rgb", EditArtifacts(run / "edit").source_field.load())
    return render_views(pipeline, data, truth)[0]


def environment_with_ffmpeg(folder: Path) -> dict[str, str]:
    """The environment for ns-render: where no ffmpeg is installed, the one that comes with imageio-ffmpeg.

    Args:
        folder: Gets a link to that binary.
    """
    if shutil.which("ffmpeg") is not None:
        return dict(os.environ)
    link = folder.absolute() / "ffmpeg"
    if not link.exists():
        link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return {**os.environ, "PATH": f"{link.parent}{os.pathsep}{os.environ['PATH']}"}


def _command(name: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
    """Run one of nerfstudio's commands as a user would, without what its imports warn about."""
    environment = {**(environment or os.environ), "PYTHONWARNINGS": "ignore::FutureWarning"}
    code = subprocess.run([str(SCRIPTS / name), *map(str, arguments)], check=False, env=environment).returncode
    if code != 0:
        raise UserError(f"{name} ended with exit code {code}; its message is above")
