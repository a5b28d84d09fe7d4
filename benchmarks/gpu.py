"""What a run costs on a GPU, by one command: training steps of the field, parts of an edit, memory, and a whole run.

    python benchmarks/gpu.py                                 # Stable Diffusion's size with random weights, 4 minutes
    python benchmarks/gpu.py --size tiny --device cpu --rays 256 --chunks 2   # the same, small, on a CPU

Every line has both sides in one run: nerfstudio's hash encoding beside ours as it is and compiled, chunks of views
beside larger ones. Kernels are those that the profiler sees on a GPU, and torch's operations on a CPU.
"""

import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro
from edit_speed import Parts, build_editor, part_counts
from nerfstudio.cameras.rays import RayBundle
from qnerf_speed import build_model
from real_models import TRAIN, run
from rich.console import Console
from sd_models import save_sd_size
from torch.utils._python_dispatch import TorchDispatchMode

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.diffusion.memory import estimate_bytes, fitting_chunk
from qnerf_nerfstudio.field import model as field_model
from qnerf_nerfstudio.field.hash_encoding import gather_encodings
from qnerf_nerfstudio.methods import qnerf_edit
from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg

GIB = 2**30
ENCODINGS: dict[str, Callable[..., None]] = {
    "nerfstudio's": lambda module, compiled: None,
    "ours": lambda module, compiled: gather_encodings(module),
    "ours, compiled": lambda module, compiled: gather_encodings(module, True),
}
"""What a model does with its hash encodings."""
RUN = ("--vis", "tensorboard", "--experiment-name", "e", "--timestamp", "t")
BRIEF = (
    *("--pipeline.editor.num-steps", "10"),
    *("--pipeline.tau", "2"),
    *("--pipeline.stop", "0.3"),
    *("--pipeline.source-iterations", "200"),
    *("--pipeline.fit-iterations", "50"),
    *("--pipeline.final-iterations", "200"),
)
"""A whole run, with few steps of everything."""


@dataclass
class Benchmark:
    """Measure what a run costs."""

    size: Literal["sd", "tiny"] = "sd"
    """Models of Stable Diffusion's size with random weights, or the bundled editor."""
    device: str = "cuda"
    """Torch device."""
    rays: tuple[int, ...] = (4096, 8192, 16384)
    """Rays of a training step."""
    chunks: tuple[int, ...] = (1, 4)
    """Views at once; the chunk that a run would choose comes on top."""
    resolution: int | None = None
    """Side of the images in pixels; by default the method's."""
    views: int = 40
    """Views of the edit whose total is stated."""
    compile: bool = False
    """Compile the diffusion models, too, which takes minutes, and state from how many views on that pays."""
    run_views: int = 6
    """Views of the whole run; 0 leaves it out."""
    repeats: int = 5
    """Timed runs of everything; two more go before them."""
    out: Path = Path("gpu")
    """Folder for models, capture, run, and results.json."""
    options: tuple[str, ...] = ()
    """Further options of ns-train, as one word each."""


class Counter(TorchDispatchMode):
    """Counts torch's operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one that is no view of another tensor."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def synchronize(device: str) -> None:
    """Wait for a device."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(action: Callable[[], object], config: Benchmark) -> float:
    """Median time of an action."""
    times = []
    for _ in range(config.repeats + 2):
        synchronize(config.device)
        started = time.perf_counter()
        action()
        synchronize(config.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def peak(action: Callable[[], object], config: Benchmark) -> float | None:
    """Most GiB that are allocated on a GPU during an action, weights included; None on a CPU."""
    if config.device == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated() / GIB


def kernels(action: Callable[[], object], device: str) -> int:
    """Kernels that an action starts on a GPU; on a CPU torch's operations, where what is compiled counts as if it was
    not."""
    if device == "cpu":
        with Counter() as counter:
            action()
        return counter.count
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        action()
        synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events() or ())


def free(device: str) -> None:
    """Give back what nothing uses."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def field_step(encoding: str, rays: int, config: Benchmark) -> Callable[[], object]:
    """A training step of the method's field in mixed precision, as the trainer does it."""
    method = "qnerf-edit" if config.size == "sd" else "qnerf-edit-tiny"
    with patch.object(field_model, "gather_encodings", ENCODINGS[encoding]):
        model = build_model(method, config.device)
    model.objective = "queries"
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=-1)
    bundle = RayBundle(
        origins=(0.1 * torch.randn(rays, 3, generator=generator)).to(config.device),
        directions=directions.to(config.device),
        pixel_area=torch.full((rays, 1), 1e-4, device=config.device),
        camera_indices=torch.zeros(rays, 1, dtype=torch.long, device=config.device),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-15)
    scaler = torch.amp.GradScaler(enabled=config.device != "cpu")

    def step() -> None:
        with torch.autocast(config.device, enabled=config.device != "cpu"):
            outputs = model(bundle)
            loss = outputs["queries"].square().mean() + outputs["rgb"].square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(each.isfinite().all() for each in model.parameters()), "a weight is not finite"

    return step


def measure_field(config: Benchmark) -> list[dict[str, Any]]:
    """Rows of training steps."""
    rows = []
    for rays in config.rays:
        for encoding in ENCODINGS:
            step = field_step(encoding, rays, config)
            took = seconds(step, config)
            rows.append(
                {
                    "rays": rays,
                    "encoding": encoding,
                    "ms a step": 1000 * took,
                    "million rays/s": rays / took / 1e6,
                    "kernels": kernels(step, config.device),
                    "peak, GiB": peak(step, config),
                }
            )
            del step
            free(config.device)
    return rows


def measure_editing(config: Benchmark) -> list[dict[str, Any]]:
    """Rows of the parts of an edit, in seconds per view, by chunk."""
    editor, base = build_editor(config.size, config.device, config.resolution, None)
    side, code_width = editor.config.resolution, base.model.query_width // len(editor.layer_names)
    own = fitting_chunk(editor, config.views, (side, side))
    rows = []
    for chunk in sorted({*config.chunks, own}):
        counts = part_counts(base, editor.config, config.views, chunk)
        row: dict[str, Any] = {"chunk": chunk, "chosen": chunk == own}
        total, most = 0.0, 0.0
        for name, part in Parts.of(editor, code_width, chunk).ours().items():
            row[name] = seconds(part, config) / chunk
            total += counts[name] * row[name]
            most = max(most, peak(part, config) or 0.0)
        row |= {
            "an edit of a view": total,
            f"{config.views} views, min": total * config.views / 60,
            "peak, GiB": most or None,
            "estimate beside weights, GiB": estimate_bytes(editor, chunk, (side, side)) / GIB,
        }
        rows.append(row)
        free(config.device)
    return rows


def measure_compiled(config: Benchmark) -> list[dict[str, Any]]:
    """Rows of the parts that --pipeline.editor.compile changes, in seconds per view, at the chunk of a run."""
    editor, base = build_editor(config.size, config.device, config.resolution, None)
    side, code_width = editor.config.resolution, base.model.query_width // len(editor.layer_names)
    chunk = fitting_chunk(editor, config.views, (side, side))
    counts, parts = part_counts(base, editor.config, config.views, chunk), Parts.of(editor, code_width, chunk).ours()
    rows = []
    for name in ("inversion step", "look-ahead step"):
        plain = seconds(parts[name], config) / chunk
        editor.config = replace(editor.config, compile=True)
        started = time.perf_counter()
        parts[name]()
        synchronize(config.device)
        compiling = time.perf_counter() - started
        compiled = seconds(parts[name], config) / chunk
        editor.config = replace(editor.config, compile=False)
        gain = counts[name] * (plain - compiled)
        rows.append(
            {
                "part": name,
                "times": counts[name],
                "s": plain,
                "compiled, s": compiled,
                "compiling, s": compiling,
                "pays from views": compiling / gain if gain > 0 else None,
            }
        )
    return rows


def measure_run(config: Benchmark) -> dict[str, Any]:
    """Seconds of a whole run, from inversion to a video, and its peak memory."""
    scripts, capture, trained = Path(sys.executable).parent, config.out / "capture", config.out / "runs"
    config.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(trained, ignore_errors=True)
    if not (capture / "transforms.json").exists():
        asked = [capture, "--views", config.run_views, "--novel-views", 1]
        run([scripts / "qnerf", "toy", "capture", *asked], config.out / "capture.log")
    method = "qnerf-edit-tiny" if config.size == "tiny" else "qnerf-edit"
    models = [] if config.size == "tiny" else model_options(config.out / "models")
    if config.resolution:
        models += ["--pipeline.editor.resolution", str(config.resolution)]
    words = [method, "--data", capture, "--output-dir", trained, *RUN, *models, *BRIEF]
    started = time.perf_counter()
    run([sys.executable, "-c", TRAIN, config.out / "peak", *words, *config.options], config.out / "train.log")
    took = time.perf_counter() - started
    folder = trained / "e" / method / "t"
    rendered = ["--load-config", folder / "config.yml", "--output-path", config.out / "edited"]
    started = time.perf_counter()
    frames = ["--pose-source", "train", "--output-format", "images", "--interpolation-steps", 2]
    with patch.dict(os.environ, environment_with_ffmpeg(config.out)):
        run([scripts / "ns-render", "interpolate", *rendered, *frames], config.out / "render.log")
    return {
        "whole run": took,
        "ns-render": time.perf_counter() - started,
        **json.loads((folder / "edit/seconds.json").read_text()),
        "peak, GiB": int((config.out / "peak").read_text()) / GIB,
    }


def model_options(folder: Path) -> list[str]:
    """Options that name a folder of models of Stable Diffusion's size, which are made where they are not there."""
    save_sd_size(folder)
    return ["--pipeline.editor.model", str(folder), "--pipeline.editor.controlnet", str(folder / "controlnet")]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (
            f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
            for value in row.values()
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def whole(fields: list[dict[str, Any]], edits: list[dict[str, Any]], config: Benchmark) -> str:
    """Time of an edit of many views in words, from its parts."""
    base: Any = qnerf_edit.config.pipeline
    step = min(row["ms a step"] for row in fields if row["rays"] == config.rays[0]) / 1000
    chosen = next(row for row in edits if row["chosen"])
    editing, fits = chosen[f"{config.views} views, min"], base.fit_iterations * step / 60
    counts = part_counts(base, base.editor, config.views, chosen["chunk"])["extraction"]
    colours = (base.source_iterations + base.final_iterations) * step / 60
    return (
        f"{config.views} views by qnerf-edit: editing {editing:.1f} min, {counts} fits {counts * fits:.1f} min, "
        f"fields of photos and of edited views {colours:.1f} min "
        f"({1000 * step:.1f} ms a training step of {config.rays[0]} rays)"
    )


def main(config: Benchmark) -> None:
    """Print the tables, and write them to results.json."""
    console = Console(width=200)
    gpu = torch.cuda.get_device_name() if config.device != "cpu" else f"{os.cpu_count()} CPU cores"
    results: dict[str, Any] = {"machine": f"{gpu}, torch {torch.__version__}", "size": config.size}
    results["field"] = measure_field(config)
    results["editing"] = measure_editing(config)
    if config.compile:
        results["compiled"] = measure_compiled(config)
    for name in [each for each in ("field", "editing", "compiled") if each in results]:
        console.print(markdown(results[name]) + "\n", soft_wrap=True, markup=False)
    if config.size == "sd":
        console.print(whole(results["field"], results["editing"], config) + "\n", soft_wrap=True)
    if config.run_views:
        results["run"] = measure_run(config)
        console.print(markdown([{"stage": name, "s": value} for name, value in results["run"].items()]), markup=False)
    write_json(config.out / "results.json", results)
    console.print(f"\n{results['machine']}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
