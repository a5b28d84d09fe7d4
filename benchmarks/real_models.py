"""An edit of a real capture with real models: a sheet of pictures, and figures to paste.

    python benchmarks/real_models.py --data scene/ --method qnerf-edit
    python benchmarks/real_models.py --data scene/ --method qnerf-edit-xl --model model.safetensors --controlnet FOLDER

A few views are edited one by one (`qnerf preview`), then all of them twice by ns-train: as the method does by default,
and view by view from the photos' noise. How well views agree is told by ns-eval: a NeRF of edited views shows held-out
edited views the better, the better all of them agree. Runs that are finished are read back.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.explained import explained_by_fit, mean_row
from qnerf_nerfstudio.run.manifest import read_manifest

VIEW_BY_VIEW = ("--pipeline.start", "inverted", "--pipeline.consolidation", "none")
RECIPES: dict[str, tuple[str, ...]] = {"default": (), "view by view": VIEW_BY_VIEW}
TRAIN = """
import sys, resource, torch
from nerfstudio.scripts.train import entrypoint
sys.argv[0] = "ns-train"
out = sys.argv.pop(1)
entrypoint()
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
open(out, "w").write(str(peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""
"""ns-train that tells what memory it took: on a GPU if there is one, else of its process."""


@dataclass
class Benchmark:
    """Edit a capture with real models and measure it."""

    data: Path
    """The capture, with edit.json."""
    method: str = "qnerf-edit"
    """The method."""
    model: str | None = None
    """Model instead of the method's, as --pipeline.editor.model."""
    controlnet: tuple[str, ...] = ()
    """ControlNets instead of the method's."""
    views: int = 3
    """Views of the sheet."""
    out: Path = Path("real_models")
    """Folder for runs, sheet and table."""
    options: tuple[str, ...] = ()
    """Further options of ns-train, as one word each: --options=--pipeline.editor.lora --options=FILE."""


def models(config: Benchmark, prefix: str) -> list[str]:
    """Options that name the models."""
    named = [] if config.model is None else [f"--{prefix}model", config.model]
    return named + ([f"--{prefix}controlnet", *config.controlnet] if config.controlnet else [])


def run(words: Sequence[object], log: Path) -> None:
    """Run a command; its end is shown where it fails."""
    with log.open("w") as file:
        code = subprocess.run(list(map(str, words)), stdout=file, stderr=file, check=False).returncode
    if code != 0:
        raise SystemExit(f"{log}:\n{log.read_text()[-2000:]}")


def measure(name: str, config: Benchmark) -> dict[str, float]:
    """Figures of a recipe."""
    folder = config.out / name
    done = folder / "figures.json"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    where = ["--data", config.data, "--output-dir", folder, "--experiment-name", "e", "--timestamp", "t"]
    words = [config.method, *where, "--vis", "tensorboard", *models(config, "pipeline.editor.")]
    # What makes the recipe comes last: the last of two values counts.
    words += [*config.options, *RECIPES[name]]
    run([sys.executable, "-c", TRAIN, folder / "peak", *words], folder / "train.log")
    trained = folder / "e" / config.method / "t"
    scripts = Path(sys.executable).parent
    scores = folder / "eval.json"
    run([scripts / "ns-eval", "--load-config", trained / "config.yml", "--output-path", scores], folder / "eval.log")
    seconds = json.loads((trained / "edit/seconds.json").read_text())
    fields = sum(value for stage, value in seconds.items() if "field" in stage or "fit" in stage)
    results = json.loads(scores.read_text())["results"]
    figures = {
        "editing, min": (sum(seconds.values()) - fields) / 60,
        "fields and fits, min": fields / 60,
        "peak memory, GiB": int((folder / "peak").read_text()) / 2**30,
    }
    # LPIPS is there where its weights are.
    for score in ("psnr", "ssim", "lpips"):
        if score in results:
            figures[f"held-out edited views, {score.upper()}"] = results[score]
    artifacts = EditArtifacts(trained / "edit")
    fits = list(explained_by_fit(artifacts, read_manifest(artifacts.manifest).num_train))
    if fits:
        row = mean_row(fits[-1][1])
        figures["queries explained by the field"] = row.field
        figures["queries explained by the other views' mean"] = row.others
        if row.field_held_out is not None:
            figures["queries of held-out views explained by the field"] = row.field_held_out
    write_json(done, figures)
    return figures


def main(config: Benchmark) -> None:
    """Write the sheet and the table."""
    console = Console()
    config.out.mkdir(parents=True, exist_ok=True)
    sheet = config.out / "sheet.png"
    if not sheet.exists():
        asked = ["--data", config.data, "--views", config.views, "--method", config.method, "--out", sheet]
        run([Path(sys.executable).parent / "qnerf", "preview", *asked, *models(config, "")], config.out / "preview.log")
    console.print(f"sheet: {sheet}", soft_wrap=True)
    found = {name: measure(name, config) for name in RECIPES}
    lines = [f"| {config.method} | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for figure in dict.fromkeys(key for figures in found.values() for key in figures):
        cells = (f"{figures[figure]:.2f}" if figure in figures else "-" for figures in found.values())
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    lines += ["", f"{gpu} ({platform.machine()}), torch {torch.__version__}"]
    (config.out / "table.md").write_text("\n".join(lines) + "\n")
    console.print("\n".join(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
