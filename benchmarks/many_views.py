"""What a view costs as an edit gets more of them: seconds, peak memory and disk, from 8 to 128 views.

    python benchmarks/many_views.py

Every row is an edit by ns-train in a process of its own, with the bundled editor and its own number of views; fits and
fields are cut short, since their length does not depend on the number of views.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from qnerf_nerfstudio.toy.capture import write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig

SHORT = [
    *("--pipeline.source-iterations", "20", "--pipeline.fit-iterations", "20", "--pipeline.final-iterations", "20"),
    *("--steps-per-save", "100000", "--vis", "tensorboard"),
]
FIELD_STAGES = ("QNeRF fit", "field on", "final field")
"""Stages that train a field and do nothing else, by how their descriptions begin."""


@dataclass
class Benchmark:
    """Measure edits of growing numbers of views."""

    views: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers of views."""
    num_steps: int = 10
    """Diffusion timesteps; half of the product's, to save time."""
    work: Path | None = None
    """Folder for captures and runs, removed at the end; by default a temporary one."""


@dataclass(frozen=True)
class Row:
    """What an edit cost."""

    views: int
    seconds: float
    """Seconds of its editing stages, each slice's training step included."""
    memory: int
    """Peak memory of its process in bytes."""
    disk: int
    """Bytes of its edit/ folder."""


def measure(views: int, config: Benchmark, work: Path) -> Row:
    """Edit a capture with this number of views."""
    capture, out = work / f"capture-{views}", work / f"run-{views}"
    write_capture(capture, CaptureConfig(seed=7, num_views=views))
    where = ["--data", capture, "--output-dir", out, "--experiment-name", "e", "--timestamp", "t"]
    steps = ["--pipeline.editor.num-steps", config.num_steps]
    command = [Path(sys.executable).parent / "ns-train", "qnerf-edit-tiny", *where, *SHORT, *steps]
    with (work / f"{views}.log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit((work / f"{views}.log").read_text()[-2000:])
    edit = out / "e/qnerf-edit-tiny/t/edit"
    stages = json.loads((edit / "seconds.json").read_text())
    seconds = sum(each for name, each in stages.items() if not name.startswith(FIELD_STAGES))
    return Row(views, seconds, usage.ru_maxrss * 1024, sum(each.stat().st_size for each in edit.rglob("*.*")))


def main(config: Benchmark) -> None:
    """Print the table."""
    console = Console()
    work = config.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for views in config.views:
        rows.append(measure(views, config, work))
        console.print(f"{views} views: {rows[-1].seconds:.1f} s")
    title = f"qnerf-edit-tiny, {config.num_steps} timesteps, {os.cpu_count()} CPU cores, torch {torch.__version__}"
    table = Table("views", "editing, s a view", "peak memory, MB", "edit/ folder, MB a view", title=title)
    for row in rows:
        cells = (row.seconds / row.views, row.memory / 2**20, row.disk / row.views / 2**20)
        table.add_row(str(row.views), *(f"{each:.3f}" if each < 10 else f"{each:.0f}" for each in cells))
    console.print(table)
    first, last = rows[0], rows[-1]
    growth = (last.memory - first.memory) / max(1, last.views - first.views) / 2**20
    console.print(f"peak memory grows by {growth:.2f} MB a view from {first.views} to {last.views} views")
    if config.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
