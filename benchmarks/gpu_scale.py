"""How time and memory of a whole run grow with views and pixels, on one GPU and on several.

    python benchmarks/gpu_scale.py                              # Stable Diffusion's size with random weights
    python benchmarks/gpu_scale.py --splatfacto True            # nerfstudio's splatfacto on the edited views, too
    python benchmarks/gpu_scale.py --method qnerf-edit-tiny --views 4 --pixels 64   # small, on a CPU

Every cell is a run of ns-train of its own, with few timesteps and few training steps; how often a whole run does each
slice is known, so the time of a whole one follows. Cells that are done are read back.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from gpu import BRIEF, GIB, RUN, markdown, model_options
from real_models import TRAIN, run
from rich.console import Console

from qnerf_nerfstudio.common.files import write_json


@dataclass
class Benchmark:
    """Measure how a run grows."""

    method: str = "qnerf-edit"
    """The method; qnerf-edit gets models of Stable Diffusion's size with random weights."""
    views: tuple[int, ...] = (16, 64, 256)
    """Numbers of views."""
    pixels: tuple[int, ...] = (256, 512, 1024)
    """Shorter sides of the edited images."""
    devices: tuple[int, ...] = (1,)
    """Numbers of processes that share a run; each takes a GPU."""
    splatfacto: bool = False
    """Train splatfacto on the edited views of the first cell for some steps; gsplat compiles first."""
    out: Path = Path("gpu_scale")
    """Folder for models, captures, runs, and results.json."""
    options: tuple[str, ...] = ()
    """Further options of ns-train, as one word each."""


def capture_of(views: int, pixels: int, config: Benchmark) -> Path:
    """A procedural capture."""
    folder = config.out / f"capture-{views}-{pixels}"
    if not (folder / "transforms.json").exists():
        asked = [folder, "--views", views, "--novel-views", 1, "--size", pixels]
        run([Path(sys.executable).parent / "qnerf", "toy", "capture", *asked], config.out / "capture.log")
    return folder


def measure(views: int, pixels: int, devices: int, config: Benchmark) -> dict[str, Any]:
    """A cell."""
    folder = config.out / f"{views}-{pixels}-{devices}"
    done = folder / "figures.json"
    if done.exists():
        return json.loads(done.read_text())
    data = capture_of(views, pixels, config)
    folder.mkdir(parents=True, exist_ok=True)
    words = [config.method, "--data", data, "--output-dir", folder, *RUN, "--pipeline.editor.resolution", pixels]
    if config.method == "qnerf-edit":
        words += model_options(config.out / "models")
    if devices > 1:
        words += ["--machine.num-devices", devices]
    run([sys.executable, "-c", TRAIN, folder / "peak", *words, *BRIEF, *config.options], folder / "train.log")
    edit = folder / "e" / config.method / "t" / "edit"
    seconds = json.loads((edit / "seconds.json").read_text())
    fields = sum(value for stage, value in seconds.items() if "field" in stage or "fit" in stage)
    manifest = json.loads((edit / "manifest.json").read_text())
    figures = {
        "views": views,
        "pixels": pixels,
        "processes": devices,
        "chunk": manifest["chunk"],
        "editing, s a view": (sum(seconds.values()) - fields) / views,
        "fields and fits, s": fields,
        "peak of the first process, GiB": int((folder / "peak").read_text()) / GIB,
        "edit folder, GiB": sum(path.stat().st_size for path in edit.rglob("*") if path.is_file()) / GIB,
    }
    write_json(done, figures)
    return figures


def train_splats(config: Benchmark) -> None:
    """Train splatfacto on the edited views of the first cell."""
    folder = config.out / f"{config.views[0]}-{config.pixels[0]}-{config.devices[0]}"
    edited = folder / "e" / config.method / "t" / "edit"
    words = ["ns-train", "splatfacto", "--data", edited, "--output-dir", folder / "splats", "--vis", "tensorboard"]
    run([Path(sys.executable).parent / words[0], *words[1:], "--max-num-iterations", 500], folder / "splats.log")


def main(config: Benchmark) -> None:
    """Print the table, and write it to results.json."""
    console = Console(width=200)
    config.out.mkdir(parents=True, exist_ok=True)
    cells = [
        measure(views, pixels, devices, config)
        for views in config.views
        for pixels in config.pixels
        for devices in config.devices
    ]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    console.print(markdown(cells), soft_wrap=True, markup=False)
    console.print(f"\n{machine}, torch {torch.__version__}")
    write_json(config.out / "results.json", {"machine": machine, "cells": cells})
    if config.splatfacto:
        train_splats(config)
        console.print("splatfacto trained on the edited views.")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
