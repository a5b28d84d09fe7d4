"""What the field of the photos makes of a capture, under several settings, all measured in one run.

Edits begin with this field, so that what it gets wrong stays wrong. It is scored on novel views of the unedited scene:

    python benchmarks/photos_field.py --seeds 0 2 3
"""

import os
import platform
import tempfile
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import tyro
from fields import depth_error
from rich.console import Console
from rich.table import Table
from settings import change, field_settings

from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.studio.plain import train_plain
from qnerf_nerfstudio.toy.capture import sample_edit, write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.render import render
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.truth import load_truth, render_views


def default(name: str) -> int:
    """A setting of qnerf-edit-tiny's pipeline by its dotted name."""
    return attrgetter(name)(field_settings(1).pipeline)


def larger_batches(times: int) -> dict[str, Any]:
    """As many rays in so many times fewer steps, annealing schedules included."""
    rays = "datamanager.train_num_rays_per_batch"
    counts = (
        "source_iterations",
        "model.space_annealing",
        "model.proposal_warmup",
        "model.proposal_weights_anneal_max_num_iters",
    )
    return {rays: default(rays) * times, **{name: default(name) // times for name in counts}}


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "all depths at once": {"model.space_annealing": 0},
    "half of the steps": {"source_iterations": default("source_iterations") // 2},
    "both, and near plane 0.3": {
        "source_iterations": default("source_iterations") // 2,
        "model.space_annealing": 0,
        "model.near_plane": 0.3,
    },
    "half of the steps, twice the rays": larger_batches(2),
    "a quarter of the steps, four times the rays": larger_batches(4),
}
"""Settings of qnerf-edit-tiny's pipeline or field, each changed alone unless said otherwise."""


@dataclass
class Benchmark:
    """Train the field of the photos of qnerf-edit-tiny under several settings."""

    seeds: tuple[int, ...] = (0, 2, 3)
    """Seeds of the captures."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Settings to measure."""


def main(config: Benchmark) -> None:
    """Measure and print."""
    console = Console(width=150)
    table = Table("seed", "setting", "union, dB", "whole, dB", "depth error", "s")
    with tempfile.TemporaryDirectory() as name:
        for seed in config.seeds:
            capture = Path(name) / str(seed)
            write_capture(capture, CaptureConfig(seed=seed))
            novel = load_truth(capture, "novel")
            body, pose, _ = sample_edit(seed)
            size = (novel.meta["h"], novel.meta["w"])
            frames = [render(body, pose, c2w, novel.meta["fl_x"], size) for c2w in novel.c2w]
            truth = torch.stack([frame.rgb for frame in frames]).movedim(-1, 1)
            masks = torch.stack([frame.mask for frame in frames])
            true_depths = torch.stack([frame.depth for frame in frames])
            for label in config.settings:
                edit = field_settings(1)
                pipeline = edit.pipeline
                assert isinstance(pipeline, QNerfPipelineConfig)
                change(edit, SETTINGS[label])
                started = time.monotonic()
                field = train_plain(capture, Path(name) / "runs", edit, iterations=pipeline.source_iterations)
                seconds = time.monotonic() - started
                images, depths = render_views(field, capture, novel)
                figures = (psnr(images, truth, novel.unions).mean(), psnr(images, truth, None).mean())
                error = depth_error(depths, true_depths, masks)
                table.add_row(str(seed), label, *(f"{x:.2f}" for x in figures), f"{error:.3f}", f"{seconds:.0f}")
                console.print(f"seed {seed}, {label}: done")
    console.print(table)
    console.print(f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
