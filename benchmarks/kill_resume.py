"""Kill one run of an edit again and again, in every stage, and compare its end with that of an unkilled run.

    python benchmarks/kill_resume.py

Steps and places are drawn at random: before or after a slice of diffusion, half-way through a write into edit/ or
through a checkpoint. After every kill the run goes on with --load-dir; its edited views have to be byte-identical.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
import yaml
from rich.console import Console
from rich.table import Table

from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Task
from qnerf_nerfstudio.toy.capture import write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig

LONE = (Task.SOURCE, Task.FIT, Task.FINAL)
"""Stages that write nothing into edit/ while they run."""


@dataclass
class Benchmark:
    """Kill a run at random places, and resume it."""

    kills: int = 3
    """Kills in every kind of stage."""
    seed: int = 0
    """Seed of the places."""
    views: int = 10
    """Views of the capture."""
    work: Path | None = None
    """Folder for capture and runs, removed at the end; by default a temporary one."""


def plan_of(views: int) -> Plan:
    """The plan of the run; OPTIONS are its settings."""
    trained = {"source_iterations": 8, "fit_iterations": 9, "final_iterations": 15}
    return Plan(PlanConfig(views, 6, 2, 4, **trained, start="carried", stop=0.4))


OPTIONS = [
    *("--pipeline.editor.num-steps", "6", "--pipeline.tau", "2", "--pipeline.chunk", "4"),
    *("--pipeline.editor.resolution", "64", "--pipeline.datamanager.train-num-rays-per-batch", "256"),
    *("--pipeline.source-iterations", "8", "--pipeline.fit-iterations", "9", "--pipeline.final-iterations", "15"),
    *("--pipeline.consolidation", "progressive", "--pipeline.stop", "0.4"),
    *("--steps-per-save", "7", "--vis", "tensorboard"),
]


def draw_kills(plan: Plan, config: Benchmark) -> list[tuple[int, str, Task]]:
    """Training steps and places of all kills in their order."""
    chance = random.Random(config.seed)
    steps: dict[Task, list[int]] = {}
    for step in range(plan.total):
        steps.setdefault(plan.at(step).task, []).append(step)
    kills = []
    for task, within in steps.items():
        places = ["before", "after", "checkpoint"] if task in LONE else ["before", "after", "write"]
        drawn = sorted(chance.sample(within, min(config.kills, len(within))))
        kills += [(step, place, task) for step, place in zip(drawn, chance.sample(places, len(places)), strict=False)]
    return sorted(kills)


def ns_train(capture: Path, out: Path, log: Path, *options: str, kill: tuple[int, str] | None = None) -> int:
    """Run or resume the edit; its exit code."""
    where = ["--data", capture, "--output-dir", out, "--experiment-name", "e", "--timestamp", "t"]
    # Boxes state a motion whatever the field of the photos looks like after a few steps.
    words = ["qnerf-edit-tiny", *where, "--pipeline.edit", capture / "edit-boxes.json", *OPTIONS, *options]
    command = [Path(sys.executable).parent / "ns-train", *words]
    if kill is not None:
        command = [sys.executable, Path(__file__).with_name("killed_train.py"), *kill, *words]
    with log.open("w") as file:
        return subprocess.run(list(map(str, command)), stdout=file, stderr=file, check=False).returncode


def main(config: Benchmark) -> None:
    """Kill, resume, compare."""
    console = Console()
    work = config.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    capture, plan, log = work / "capture", plan_of(config.views), work / "log.txt"
    write_capture(capture, CaptureConfig(seed=0, num_views=config.views, size=64))
    folder = Path("e/qnerf-edit-tiny/t")
    started = time.monotonic()
    if ns_train(capture, work / "whole", log) != 0:
        raise SystemExit(log.read_text()[-3000:])
    length = yaml.load((work / "whole" / folder / "config.yml").read_text(), Loader=yaml.Loader).max_num_iterations
    assert length == plan.total, f"the run has {length} steps, its plan here {plan.total}"
    resume = ["--load-dir", str(work / "killed" / folder / "nerfstudio_models")]
    done: Counter[str] = Counter()
    kills = draw_kills(plan, config)
    for number, (step, place, task) in enumerate(kills):
        code = ns_train(capture, work / "killed", log, *(resume if number else []), kill=(step, place))
        if code != -signal.SIGKILL:
            raise SystemExit(f"kill {number} at step {step} ({place}): exit code {code}\n{log.read_text()[-3000:]}")
        done[task.value] += 1
        console.print(f"{number + 1}/{len(kills)} killed at step {step} of {plan.total} ({task.value}, {place})")
    if ns_train(capture, work / "killed", log, *resume) != 0:
        raise SystemExit(log.read_text()[-3000:])
    whole, killed = (sorted((work / name / folder / "edit/images").glob("*.png")) for name in ("whole", "killed"))
    same = sum(a.read_bytes() == b.read_bytes() for a, b in zip(whole, killed, strict=True))
    table = Table("stage", "kills", title=f"{os.cpu_count()} CPU cores, torch {torch.__version__}")
    for name, count in done.items():
        table.add_row(name, str(count))
    console.print(table)
    console.print(
        f"{done.total()} kills in {(time.monotonic() - started) / 60:.1f} min: {same} of {len(whole)} edited views are "
        f"byte-identical to those of the run that was not killed"
    )
    if config.work is None:
        shutil.rmtree(work)
    if same < len(whole):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
