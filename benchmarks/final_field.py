"""How well the final field can do at best: trained on the *true* edited views of procedural captures.

An editor can make views no better than these, so a field that fails here hides what the editor does. Both sides of
every setting are measured in one run:

    python benchmarks/final_field.py --seeds 2 5
"""

import copy
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from qnerf_nerfstudio.config import qnerf_edit_tiny
from qnerf_nerfstudio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.plain import train_plain
from qnerf_nerfstudio.report import load_truth, render_views
from qnerf_nerfstudio.scenes import CaptureConfig, write_capture
from qnerf_nerfstudio.scoring import psnr

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no gradient scaling": {"use_gradient_scaling": False},
    "initial density 0.01 instead of 0.6": {"average_init_density": 0.01},
    "distortion loss 0.02 instead of 0.002": {"distortion_loss_mult": 0.02},
    "64 proposal samples instead of 32": {"num_proposal_samples_per_ray": (64,)},
}
"""Settings of the model of qnerf-edit-tiny, each changed alone."""


@dataclass
class Benchmark:
    """Train the final field of qnerf-edit-tiny on true edited views, under several settings."""

    seeds: tuple[int, ...] = (2,)
    """Seeds of the captures."""
    iterations: int = 1200
    """Training steps of each field."""


def true_capture(seed: int, folder: Path) -> Path:
    """A capture whose photos are the true edited views."""
    capture, edited = folder / f"capture-{seed}", folder / f"edited-{seed}"
    write_capture(capture, CaptureConfig(seed=seed))
    edited.mkdir()
    shutil.copytree(capture / "truth", edited / "truth")
    shutil.copytree(capture / "truth/images", edited / "images")
    shutil.copyfile(capture / "transforms.json", edited / "transforms.json")
    return edited


def measure(data: Path, out: Path, settings: dict[str, Any], iterations: int) -> tuple[float, float, float]:
    """PSNR in dB of novel views inside the union of silhouettes and over the whole image, and seconds."""
    edit = copy.deepcopy(qnerf_edit_tiny.config)
    assert isinstance(edit.pipeline, QNerfPipelineConfig)
    edit.pipeline.final_iterations = iterations
    for name, value in settings.items():
        setattr(edit.pipeline.model, name, value)
    started = time.monotonic()
    pipeline = train_plain(data, out, edit)
    truth = load_truth(data, "novel")
    images, _ = render_views(pipeline, data, truth)
    figures = [float(psnr(images, truth.images, mask).mean()) for mask in (truth.unions, None)]
    return figures[0], figures[1], time.monotonic() - started


def main(config: Benchmark) -> None:
    """Measure and print."""
    table = Table("setting", "seed", "novel views, union, dB", "whole, dB", "s", title="final field on the truth")
    with tempfile.TemporaryDirectory() as folder:
        for seed in config.seeds:
            data = true_capture(seed, Path(folder))
            for number, (name, settings) in enumerate(SETTINGS.items()):
                union, whole, seconds = measure(data, Path(folder) / f"{seed}-{number}", settings, config.iterations)
                table.add_row(name, str(seed), f"{union:.2f}", f"{whole:.2f}", f"{seconds:.0f}")
    console = Console()
    console.print(table)
    console.print(f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
