"""What the final field makes of edited views, under several settings, all measured in one run.

It is trained on the *true* edited views of procedural captures, which no editor can better, and on views that the
bundled editor edited one by one, which differ a little from each other:

    python benchmarks/final_field.py --seeds 2 5
"""

import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from fields import Judge, depth_error
from recipes import Recipes
from rich.console import Console
from rich.table import Table
from settings import Setting, change, field_settings, write_scene

from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.truth import load_truth, render_views

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no region: edited views may change all of the scene": {"region": False},
    "afresh, not from the field of the photos": {"warm_start": False},
    "neither": {"region": False, "warm_start": False},
    "colours depend on the view direction": {"model.view_dependent": True},
    "near and far plane 0.05 and 1000 instead of 0.5 and 20": {"model.near_plane": 0.05, "model.far_plane": 1000.0},
    "all depths at once": {"model.space_annealing": 0},
    "no gradient scaling": {"model.use_gradient_scaling": False},
    "initial density 0.1 instead of 0.6": {"model.average_init_density": 0.1},
}
"""Settings of qnerf-edit-tiny's pipeline, each changed alone."""


@dataclass
class Benchmark:
    """Train the final field of qnerf-edit-tiny under several settings."""

    seeds: tuple[int, ...] = (2,)
    """Seeds of the captures."""
    iterations: int = qnerf_edit_tiny.config.pipeline.final_iterations  # pyright: ignore
    """Training steps of each field."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Settings to measure."""
    setting: Setting = "tight"
    """Setting of the captures' controls."""


def main(config: Benchmark) -> None:
    """Measure and print."""
    console = Console(width=150)
    table = Table("seed", "views", "setting", "novel views, union, dB", "whole, dB", "depth error", "s")
    with tempfile.TemporaryDirectory() as name:
        for seed in config.seeds:
            folder = Path(name) / str(seed)
            write_scene(folder / "capture", seed, 24, config.setting)
            truth = load_truth(folder / "capture", "novel")
            for method in ("ceiling", "per-view"):
                recipes = Recipes(folder / "capture", folder / "run", field_settings(config.iterations), seed)
                views = recipes.edited_views(method)
                for number, setting in enumerate(config.settings):
                    edit = field_settings(config.iterations)
                    change(edit, SETTINGS[setting])
                    started = time.monotonic()
                    judge = Judge(folder / "capture", folder / f"{method}-{number}", edit)
                    field, data = judge.train(views, every=1)
                    seconds = time.monotonic() - started
                    images, depths = render_views(field, data, truth)
                    figures = [float(psnr(images, truth.images, mask).mean()) for mask in (truth.unions, None)]
                    error = depth_error(depths, truth.depths, truth.masks)
                    row = (str(seed), "true" if method == "ceiling" else "edited one by one", setting)
                    row += (f"{figures[0]:.2f}", f"{figures[1]:.2f}", f"{error:.3f}", f"{seconds:.0f}")
                    table.add_row(*row)
                    console.print("  ".join(row))
    console.print(table)
    console.print(f"{os.cpu_count()} cores ({platform.machine()})")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
