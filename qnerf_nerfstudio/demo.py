"""`qnerf demo`: everything from a capture to a video and figures, with nerfstudio's own commands."""

import copy
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
from nerfstudio.configs.base_config import LoggingConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from rich.console import Console

from qnerf_nerfstudio.config import qnerf_edit_tiny
from qnerf_nerfstudio.errors import UserError
from qnerf_nerfstudio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.report import load_truth, render_views, score_run
from qnerf_nerfstudio.scenes import CaptureConfig, write_capture
from qnerf_nerfstudio.store import write_png

SCRIPTS = Path(sys.executable).parent


def run_demo(out: Path, seed: int, console: Console) -> None:
    """Make the capture, edit it, render a video, train a field on the unedited capture, and score both.

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
    console.rule("4. for comparison: the same field on the unedited capture")
    train_unedited(data, out)
    console.rule("5. figures")
    figures = score_run(run, data, out / "unedited", out / "sheet.png", console)
    gain = figures["novel views, edited NeRF"] - figures["novel views, unedited NeRF"]
    console.print(
        f"The edited NeRF is {gain:.2f} dB closer to the truth than the unedited one. "
        f"Took {(time.monotonic() - started) / 60:.1f} minutes.\n"
        f"Picture: {out / 'sheet.png'}   video: {video}\n"
        f"Edited views, a dataset of their own: {run / 'edit'}\n"
        f"Look around: ns-viewer --load-config {run / 'config.yml'}",
        soft_wrap=True,
    )


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
    """Run one of nerfstudio's commands as a user would."""
    subprocess.run([str(SCRIPTS / name), *map(str, arguments)], check=True, env=environment)


def train_unedited(data: Path, out: Path) -> None:
    """Train the final field's model on the photos themselves, and render the novel views of the truth."""
    edit = copy.deepcopy(qnerf_edit_tiny.config)
    assert isinstance(edit.pipeline, QNerfPipelineConfig)
    config = TrainerConfig(
        method_name="unedited",
        experiment_name="unedited",
        timestamp="demo",
        output_dir=out / "runs",
        data=data,
        machine=edit.machine,
        max_num_iterations=edit.pipeline.final_iterations,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        steps_per_save=0,
        logging=LoggingConfig(steps_per_log=100),
        mixed_precision=edit.mixed_precision,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                data=data,
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=edit.pipeline.datamanager.train_num_rays_per_batch,
            ),
            model=edit.pipeline.model,
        ),
        optimizers=edit.optimizers,
        vis="tensorboard",
    )
    for group in config.optimizers.values():
        group["scheduler"].max_steps = config.max_num_iterations
    trainer: Trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    pipeline = trainer.pipeline
    assert isinstance(pipeline, VanillaPipeline)
    truth = load_truth(data, "novel")
    for name, image in zip(truth.names, render_views(pipeline, data, truth), strict=True):
        write_png(out / "unedited" / name, image)
