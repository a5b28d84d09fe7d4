"""Seconds per view of every part of an edit, ours against the same editor driven naively, measured in one run.

    python benchmarks/edit_speed.py                      # the bundled editor on the CPU
    python benchmarks/edit_speed.py --size sd --device cuda --views 40 --chunk 4   # SD's size, random weights
    python benchmarks/edit_speed.py --size sd --resolution 256 --chunk 1 --repeats 1   # the same, small, on a CPU

Naive: one view at a time, source and target in separate passes, guidance through the whole UNet with gradients of its
weights. Ours: chunks of views, source and target in one batch, the forward pass of guidance ends at the last query
layer, and only the latents get gradients. Fits and the final field are the same for both; their times follow from that
of a training step.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from qnerf_speed import Benchmark as FieldBenchmark
from qnerf_speed import measure as measure_field
from rich.console import Console
from rich.table import Table
from sd_models import sd_size_editor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from qnerf_nerfstudio.diffusion.attention import AttentionState, KeysValues
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.queries import CodecFit
from qnerf_nerfstudio.diffusion.text import Prompts
from qnerf_nerfstudio.methods import qnerf_edit, qnerf_edit_tiny
from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Task
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.toy.training.evaluate import load_trained


@dataclass
class Benchmark:
    """Time the parts of an edit."""

    size: Literal["tiny", "sd"] = "tiny"
    """The bundled editor, or models of Stable Diffusion's size with random weights."""
    device: str = "cpu"
    """Torch device."""
    views: int = 24
    """Views of the edit whose total is stated."""
    chunk: int = 8
    """Views at once."""
    resolution: int | None = None
    """Side of the images in pixels; by default the method's."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of the diffusion models; by default the method's on CUDA, float32 on a CPU."""
    repeats: int = 3
    """Timed runs of each part; their median counts. One more goes before them."""


class Naive:
    """The same editor, one view and one branch at a time."""

    def __init__(self, editor: ControlNetEditor) -> None:
        self.editor = editor

    def denoise(self, inputs: "Inputs", step: int, targets: QueryTargets | None) -> Tensor:
        """A denoising step with appearance injection, guided where there are targets; view by view."""
        views = range(len(inputs.latents))
        return torch.cat(
            [self._one(inputs[view], step, None if targets is None else select(targets, view)) for view in views]
        )

    def _one(self, inputs: "Inputs", step: int, targets: QueryTargets | None) -> Tensor:
        latents, prompts, controls, source = inputs.latents, inputs.prompts, inputs.controls, inputs.source
        editor = self.editor
        recorded: KeysValues = {}
        with torch.no_grad():
            editor._predict(source.latents, step, prompts.source, source.controls, AttentionState(recorded=recorded))
        if targets is not None:
            editor.unet.requires_grad_(True)
            variable = latents.clone().requires_grad_(True)
            captured: dict[str, Tensor] = {}
            state = AttentionState(replayed=recorded, captured=captured)
            prediction = editor._predict(variable, step, prompts.target, controls, state)
            maps = editor._to_maps(captured, variable)
            distance = torch.stack(
                [
                    (layer.encode(maps[name]) - targets.codes[name]).square().mean().sqrt()
                    for name, layer in targets.codec.layers.items()
                ]
            ).sum()
            # The whole of the UNet takes part in the graph, as in a loss on its output.
            (distance + 0 * prediction.sum()).backward()
            assert variable.grad is not None
            latents = latents - 1e-3 * latents.norm() / variable.grad.norm() * variable.grad
            editor.unet.requires_grad_(False).zero_grad(set_to_none=True)
        with torch.no_grad():
            state = AttentionState(replayed=recorded)
            prediction = editor._predict(latents, step, prompts.target, controls, state)
            return editor.scheduler.step(prediction, int(editor.scheduler.timesteps[step]), latents).prev_sample


@dataclass(frozen=True)
class Inputs:
    """What a denoising step starts from."""

    latents: Tensor
    prompts: Prompts
    controls: Tensor

    @property
    def source(self) -> SourceBranch:
        """The source branch: the same latents, since only time is measured."""
        return SourceBranch(self.latents, self.controls)

    def __getitem__(self, view: int) -> "Inputs":
        return Inputs(self.latents[view : view + 1], self.prompts, self.controls[view : view + 1])


def select(targets: QueryTargets, view: int) -> QueryTargets:
    """The targets of one view."""
    codes = {name: code[view : view + 1] for name, code in targets.codes.items()}
    return QueryTargets(targets.codec, codes, targets.confidence[view : view + 1])


def seconds(action: Callable[[], object], config: Benchmark) -> float:
    """Median time of an action per view."""
    times = []
    for _ in range(config.repeats + 1):
        if config.device != "cpu":
            torch.cuda.synchronize()
        started = time.monotonic()
        action()
        if config.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return statistics.median(times[1:]) / config.chunk


def peak_memory(config: Benchmark) -> int:
    """Most bytes that were allocated on a CUDA device since the last reset; 0 on a CPU, whose peak cannot be reset."""
    return 0 if config.device == "cpu" else torch.cuda.max_memory_allocated()


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second that a large matrix product reaches on this machine."""
    side = 2048 if device == "cpu" else 8192
    matrix = torch.randn(side, side).to(device, dtype)
    once = Benchmark(device=device, chunk=1)
    return 2 * side**3 / seconds(lambda: matrix @ matrix, once)


def operations(action: Callable[[], object]) -> float:
    """Floating point operations of an action's matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops())


def utilisation(name: str, action: Callable[[], object], dtype: torch.dtype, config: Benchmark) -> str:
    """What share of a matrix product's speed an action reaches, in words."""
    peak = matmul_rate(config.device, dtype)
    reached = operations(action) / config.chunk / seconds(action, config)
    return (
        f"{name}: {reached / 1e12:.3f} of the {peak / 1e12:.3f} TFLOP/s that a matrix product in {dtype} reaches here, "
        f"{100 * reached / peak:.0f} %"
    )


def rest_of_the_run(base: QNerfPipelineConfig, editing: float, fits: int, config: Benchmark) -> str:
    """Time of a whole run in words, from that of editing a view and that of a training step."""
    rays = base.datamanager.train_num_rays_per_batch
    method = "qnerf-edit-tiny" if config.size == "tiny" else "qnerf-edit"
    step = rays / measure_field(False, FieldBenchmark(rays=rays, field=method, device=config.device))["rays/s"]
    fields = base.source_iterations + base.final_iterations
    return (
        f"{config.views} views in all: editing {editing * config.views / 60:.1f} min, {fits} fits "
        f"{fits * base.fit_iterations * step / 60:.1f} min, fields of photos and of edited views "
        f"{fields * step / 60:.1f} min ({1000 * step:.0f} ms a training step of {rays} rays)"
    )


def by_view(action: Callable[[slice], object], count: int) -> Callable[[], object]:
    """An action for each view alone."""
    return lambda: [action(slice(view, view + 1)) for view in range(count)]


@dataclass(frozen=True)
class Parts:
    """The parts of an edit of one chunk of views."""

    editor: ControlNetEditor
    images: Tensor
    inputs: Inputs
    targets: QueryTargets

    @classmethod
    def of(cls, editor: ControlNetEditor, code_width: int, count: int) -> "Parts":
        """Parts for `count` views of random pixels, drawn to half of their own queries."""
        side, step = editor.config.resolution, editor.num_steps // 2
        generator = torch.Generator().manual_seed(0)
        images, controls = torch.rand(2, count, 3, side, side, generator=generator).to(editor.device)
        prompts = editor.encode_prompts("a figure", "a figure", "")
        inputs = Inputs(editor.encode(images), prompts, controls)
        queries = editor.extract(inputs.latents, step, prompts, controls, inputs.source).queries
        fit = CodecFit(code_width)
        fit.add(queries)
        codec = fit.codec().to(editor.device)
        codes = {name: 0.5 * code for name, code in codec.encode(queries).items()}
        return cls(editor, images, inputs, QueryTargets(codec, codes, torch.ones(count, device=editor.device)))

    def ours(self) -> dict[str, Callable[[], object]]:
        """What does each part."""
        editor, inputs, step = self.editor, self.inputs, self.editor.num_steps // 2
        start = inputs.latents, step, inputs.prompts, inputs.controls, inputs.source
        return {
            "encode": lambda: editor.encode(self.images),
            "inversion step": lambda: editor.invert_step(inputs.latents, step, inputs.prompts.target, inputs.controls),
            "look-ahead step": lambda: editor.denoise_step(*start),
            "guided step": lambda: editor.denoise_step(*start, self.targets),
            "extraction": lambda: editor.extract(*start),
            "decode": lambda: editor.decode(inputs.latents),
        }

    def naive(self) -> dict[str, Callable[[], object]]:
        """The same, driven naively."""
        editor, inputs, step = self.editor, self.inputs, self.editor.num_steps // 2
        latents, controls, naive = inputs.latents, inputs.controls, Naive(self.editor)
        count = len(latents)
        each = [inputs[view] for view in range(count)]
        return {
            "encode": by_view(lambda v: editor.encode(self.images[v]), count),
            "inversion step": by_view(
                lambda v: editor.invert_step(latents[v], step, inputs.prompts.target, controls[v]), count
            ),
            "look-ahead step": lambda: naive.denoise(inputs, step, None),
            "guided step": lambda: naive.denoise(inputs, step, self.targets),
            "extraction": lambda: [
                editor.extract(one.latents, step, one.prompts, one.controls, one.source) for one in each
            ],
            "decode": by_view(lambda v: editor.decode(latents[v]), count),
        }


def part_counts(base: QNerfPipelineConfig, settings: EditorConfig, views: int, chunk: int) -> dict[str, int]:
    """How often a run does each part of an edit, per view."""
    plan = Plan(
        PlanConfig(views, settings.num_steps, base.tau, chunk, consolidation=base.consolidation, stop=base.stop)
    )
    guided = sum(len(each.indices) for each in plan.stages if each.task == Task.DENOISE and each.fitted is not None)
    free = sum(len(each.indices) for each in plan.stages if each.task in (Task.DENOISE, Task.LOOK_AHEAD)) - guided
    return {
        "encode": 1,
        "inversion step": settings.num_steps,
        "look-ahead step": free,
        "guided step": guided,
        "extraction": sum(stage.task == Task.EXTRACT for stage in plan.stages),
        "decode": 1,
    }


def build_editor(
    size: Literal["tiny", "sd"], device: str, resolution: int | None, dtype: str | None
) -> tuple[ControlNetEditor, QNerfPipelineConfig]:
    """The editor of a size, and the settings of the method that it stands for."""
    base = (qnerf_edit_tiny if size == "tiny" else qnerf_edit).config.pipeline
    assert isinstance(base, QNerfPipelineConfig)
    settings = replace(
        base.editor,
        guidance_strength=0.05,
        dtype=dtype or (base.editor.dtype if device != "cpu" else "float32"),
        resolution=resolution or base.editor.resolution,
    )
    editor = load_trained(BUNDLED_FOLDER, device) if size == "tiny" else sd_size_editor(settings, device)
    editor.config = settings
    return editor, base


def main(config: Benchmark) -> None:
    """Print the table."""
    editor, base = build_editor(config.size, config.device, config.resolution, config.dtype)
    settings, count = editor.config, config.chunk
    parts = Parts.of(editor, base.model.query_width // len(editor.layer_names), count)
    counts, naive = part_counts(base, settings, config.views, count), parts.naive()
    machine = torch.cuda.get_device_name() if config.device != "cpu" else f"{os.cpu_count()} CPU cores"
    table = Table(
        "per view",
        "times",
        "ours, s",
        "naive, s",
        "ratio",
        title=(
            f"{config.size} editor, {settings.resolution} pixels, chunks of {count}, {machine}, "
            f"torch {torch.__version__}"
        ),
    )
    totals, peak = [0.0, 0.0], 0
    for name, ours in parts.ours().items():
        timed_ours = seconds(ours, config)
        peak = max(peak, peak_memory(config))
        timed = timed_ours, seconds(naive[name], config)
        if config.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        totals = [total + counts[name] * each for total, each in zip(totals, timed, strict=True)]
        table.add_row(name, str(counts[name]), *(f"{each:.4f}" for each in timed), f"{timed[1] / timed[0]:.2f}")
    table.add_row("an edit, a view", "", *(f"{total:.2f}" for total in totals), f"{totals[1] / totals[0]:.2f}")
    table.add_row(f"{config.views} views, min", "", *(f"{total * config.views / 60:.2f}" for total in totals), "")
    console = Console()
    console.print(table)
    for name in ("inversion step", "look-ahead step"):
        console.print(utilisation(name, parts.ours()[name], editor.dtype, config))
    console.print(rest_of_the_run(base, totals[0], counts["extraction"], config))
    if config.device != "cpu":
        console.print(f"our peak memory {peak / 2**30:.1f} GiB, the models' weights included")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
