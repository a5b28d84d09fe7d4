"""A QNeRF training step at Stable Diffusion's size: the paper's literal form against ours; and what the code costs.

    python benchmarks/qnerf_speed.py [--device cuda]

Literal: a linear head with all 6720 query channels at every sample, composited, compared with raw queries. Ours: base
features composited first, one head per ray with 16 code channels per layer, compared with coded queries. Raw queries
lie in the code's space here and the literal head is the coded one times the basis, so both have the same losses.
"""

import copy
import gc
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import tyro
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import SceneBox
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.diffusion.conditions import QueryTargets
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.queries import CodecFit, QueryMaps
from qnerf_nerfstudio.diffusion.text import Prompts, TextStates
from qnerf_nerfstudio.field.field import QNerfField, QNerfHeadNames
from qnerf_nerfstudio.field.losses import query_loss
from qnerf_nerfstudio.field.model import QNerfModel, QNerfModelConfig
from qnerf_nerfstudio.methods import qnerf_edit, qnerf_edit_tiny
from qnerf_nerfstudio.toy.training.data import HELD_OUT, render_pair
from qnerf_nerfstudio.toy.training.evaluate import load_trained, trained_size

CHANNELS = (1280,) * 3 + (640,) * 3 + (320,) * 3
"""Query channels of Stable Diffusion 1.x's nine decoder self-attention layers."""
CODE_WIDTH = 16
"""Code channels per layer, as qnerf-edit's."""
BUNDLED = Path(__file__).resolve().parents[1] / "qnerf_nerfstudio/editor/tiny"


@dataclass
class Benchmark:
    """Compare QNeRF training steps, and codes of several widths."""

    rays: int = 1024
    """Rays in a training step."""
    steps: int = 5
    """Timed training steps; one more goes before them."""
    views: int = 8
    """Held-out figures whose queries are coded."""
    widths: tuple[int, ...] = (4, 8, 12, 16, 24, 32)
    """Code channels per layer."""
    field: Literal["qnerf-edit", "qnerf-edit-tiny"] = "qnerf-edit-tiny"
    """The method whose field is trained: that of the CPU, or nerfacto's whole size."""
    device: str = "cpu"
    """Torch device of the training steps."""


class LiteralField(QNerfField):
    """The paper's literal form: all query channels at every sample."""

    literal_head: nn.Linear

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict[Any, Tensor]:
        """Raw queries instead of base features."""
        outputs = super().get_outputs(ray_samples, density_embedding)
        outputs[QNerfHeadNames.FEATURES] = self.literal_head(outputs[QNerfHeadNames.FEATURES])
        return outputs

    def query_features(self, features: Tensor, places: Tensor, accumulation: Tensor) -> Tensor:
        """What was composited are the queries; where rays end does not count."""
        return features

    def codes(self, features: Tensor) -> Tensor:
        """The queries."""
        return features


def build_model(method: str, device: str) -> QNerfModel:
    """QNerfModel with a method's settings."""
    method_config = {"qnerf-edit": qnerf_edit, "qnerf-edit-tiny": qnerf_edit_tiny}[method].config
    config = copy.deepcopy(method_config.pipeline.model)
    assert isinstance(config, QNerfModelConfig)
    config.query_width, config.implementation = CODE_WIDTH * len(CHANNELS), "torch"
    torch.manual_seed(0)
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = config.setup(scene_box=box, num_train_data=4, metadata={})
    with torch.no_grad():
        # The literal form knows no places.
        model.field.query_head.weight[:, config.feature_dim :] = 0
    return model.to(device).train()


def make_literal(model: QNerfModel, bases: list[Tensor]) -> None:
    """Turn a model into the literal form, with heads that say the same of base features."""
    field = model.field
    field.__class__ = LiteralField
    literal = cast(LiteralField, field)
    literal.literal_head = nn.Linear(model.config.feature_dim, sum(CHANNELS), bias=False)
    parts = field.query_head.weight.detach()[:, : model.config.feature_dim].split(CODE_WIDTH)
    heads = [basis.to(part) @ part for basis, part in zip(bases, parts, strict=True)]
    literal.literal_head.weight.data = torch.cat(heads)


def train(model: QNerfModel, targets: Tensor, widths: list[int], scales: Tensor, config: Benchmark) -> list[float]:
    """Train on query targets alone; the loss before every step."""
    model.objective = "queries"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(config.steps + 1):
        generator = torch.Generator().manual_seed(step)
        origins = 0.1 * torch.randn(config.rays, 3, generator=generator)
        directions = torch.nn.functional.normalize(torch.randn(config.rays, 3, generator=generator), dim=-1)
        bundle = RayBundle(
            origins=origins.to(config.device),
            directions=directions.to(config.device),
            pixel_area=torch.full((config.rays, 1), 1e-4, device=config.device),
            camera_indices=torch.zeros(config.rays, 1, dtype=torch.long, device=config.device),
        )
        torch.manual_seed(step)
        if step == 1:
            started = time.monotonic()
        outputs = model(bundle)
        # The loss is a mean over channels: the literal form has more of them for the same distance.
        loss = query_loss(outputs["queries"] * scales, targets * scales, widths)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if config.device != "cpu":
        torch.cuda.synchronize()
    return [*losses, (time.monotonic() - started) / config.steps]


def measure(literal: bool, config: Benchmark) -> dict[str, float]:
    """Loss, rays per second and memory of one form, in a process of its own."""
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(channels, CODE_WIDTH, generator=generator))[0] for channels in CHANNELS]
    codes = torch.randn(config.rays, CODE_WIDTH * len(CHANNELS), generator=generator)
    model = build_model(config.field, config.device)
    widths, targets, scales = [CODE_WIDTH] * len(CHANNELS), codes, torch.ones(codes.shape[1])
    if literal:
        make_literal(model, bases)
        parts = [code @ basis.T for code, basis in zip(codes.split(CODE_WIDTH, -1), bases, strict=True)]
        targets, widths = torch.cat(parts, -1), list(CHANNELS)
        scales = torch.cat([torch.full((channels,), (channels / CODE_WIDTH) ** 0.5) for channels in CHANNELS])
    targets, scales, model = targets.to(config.device), scales.to(config.device), model.to(config.device)
    gc.collect()
    before = memory(config.device)
    *losses, seconds = train(model, targets, widths, scales, config)
    return {
        "first loss": losses[0],
        "rays/s": config.rays / seconds,
        "peak MB over the model's": (memory(config.device) - before) / 2**20,
    }


def memory(device: str) -> int:
    """Peak memory of this process, or of the GPU, in bytes."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def gradients(editor: ControlNetEditor, config: Benchmark) -> list[tuple[int, float, float, float]]:
    """Code channels per layer, bytes of a view's code in fp16, their share of the raw queries' bytes, and the cosine
    between guidance's gradients with the code and with raw queries, on the bundled editor's own queries.

    Views are drawn to the queries of another pose of theirs, half-way through the timesteps.
    """
    pairs = [render_pair(HELD_OUT + index, trained_size(editor)) for index in range(config.views)]
    images, controls = (to_unit(torch.stack([getattr(pair, key) for pair in pairs])) for key in ("images", "controls"))
    text = TextStates.joined([editor.prompts.encode(pair.caption) for pair in pairs])
    prompts, step = Prompts(text, text, editor.prompts.encode("")), editor.num_steps // 2
    maps: list[QueryMaps] = []
    for pose in (0, 1):
        latents = editor.invert(editor.encode(images[:, pose]), text, controls[:, pose])[step]
        maps.append(editor.extract(latents, step, prompts, controls[:, pose]).queries)
    variable = editor.invert(editor.encode(images[:, 0]), text, controls[:, 0])[step]
    raw = sum(queries[0].numel() for queries in maps[0].values()) * 2

    def gradient(width: int) -> tuple[Tensor, int]:
        fit = CodecFit(width)
        for each in maps:
            fit.add(each)
        codec = fit.codec()
        codes = codec.encode(maps[1])
        targets = QueryTargets(codec, codes, torch.ones(len(pairs)))
        leaf = variable.clone().requires_grad_(True)
        # The distance is a mean over code channels; only the direction of its gradient is compared.
        distance = editor.query_distance(leaf, step, prompts, controls[:, 0], None, targets)
        (found,) = torch.autograd.grad(distance.sum(), leaf)
        return found, sum(code[0].numel() for code in codes.values()) * 2

    whole, _ = gradient(100_000)
    rows = []
    for width in config.widths:
        coded, size = gradient(width)
        cosine = torch.nn.functional.cosine_similarity(coded.flatten(1), whole.flatten(1)).mean()
        rows.append((width, size, size / raw, float(cosine)))
    return rows


def main(config: Benchmark) -> None:
    """Print both tables."""
    console = Console()
    machine = torch.cuda.get_device_name() if config.device != "cpu" else f"{os.cpu_count()} CPU cores"
    forms = {}
    for name, literal in (("literal", True), ("ours", False)):
        # Peak memory is a process's: each form has its own.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            forms[name] = pool.submit(measure, literal, config).result()
    difference = abs(forms["literal"]["first loss"] / forms["ours"]["first loss"] - 1)
    title = (
        f"QNeRF training step, nine layers of 6720 channels: field of {config.field}, {config.rays} rays, {machine}, "
        f"torch {torch.__version__}"
    )
    table = Table("", *forms, "ratio", title=title)
    for key in ("first loss", "rays/s", "peak MB over the model's"):
        first, second = forms["literal"][key], forms["ours"][key]
        table.add_row(key, f"{first:.5g}", f"{second:.5g}", f"{max(first, second) / min(first, second):.2f}")
    console.print(table)
    if difference > 1e-3:
        raise SystemExit(f"the two forms do not have the same loss: they differ by {difference:.1e}")
    editor = load_trained(BUNDLED, "cpu")
    table = Table("channels per layer", "bytes a view", "share of raw fp16", "cosine of guidance's gradients")
    for width, size, share, cosine in gradients(editor, config):
        table.add_row(str(width), str(size), f"{share:.3f}", f"{cosine:.4f}")
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
