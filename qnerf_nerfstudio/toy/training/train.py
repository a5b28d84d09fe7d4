"""`qnerf toy train`: VAE, then UNet, ControlNet and text encoder, then export with a model card."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_KINDS
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.denoiser import export, train_denoiser
from qnerf_nerfstudio.toy.training.evaluate import evaluate, load_trained
from qnerf_nerfstudio.toy.training.models import build_scheduler, build_tokenizer
from qnerf_nerfstudio.toy.training.vae import train_vae


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Untrained activations pass through denormal numbers, which slow a CPU down many times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def train_editor(config: TrainEditorConfig, console: Console) -> None:
    """Train or go on training, and export the model set to `config.out`.

    Raises:
        UserError: The device is not there, or `config.out` holds something else than a model set.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no GPU; train with --device cpu")
    if config.out.exists() and any(config.out.iterdir()) and not (config.out / "model_index.json").exists():
        raise UserError(f"--out {config.out} is not empty and holds no model set; name another folder")
    config.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _flushed_denormals():
        vae = train_vae(config, console)
        parts = train_denoiser(config, vae, console)
    export(config.out, vae, parts, build_tokenizer(config.work / "tokenizer"), build_scheduler())
    _plot_curve(config.work)
    console.print(f"model set in {config.out}, {(time.monotonic() - started) / 60:.0f} minutes in this call")


def evaluate_editor(config: TrainEditorConfig, console: Console) -> None:
    """Print the figures of the model set in `config.out` and write its model card."""
    editor = load_trained(config.out, config.device)
    figures = {
        kind: evaluate(editor, console, config.evaluate_pairs, config.work / f"held-out-{kind}.png", kind)
        for kind in BUNDLED_KINDS
    }
    rows = "\n".join(
        f"| {name} | {' | '.join(f'{each[name]:.3f}' for each in figures.values())} |" for name in figures["openpose"]
    )
    device = torch.cuda.get_device_name() if config.device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    size = sum(path.stat().st_size for path in config.out.rglob("*.safetensors")) / 2**20
    (config.out / "README.md").write_text(
        CARD.format(
            size=size,
            start="" if config.initial is None else ", from the weights of an earlier model set",
            vae_steps=config.vae_steps,
            vae_batch=config.vae_batch,
            denoiser_steps=config.denoiser_steps,
            denoiser_batch=config.denoiser_batch,
            pool=config.pool,
            machine=f"{device} ({platform.machine()}), torch {torch.__version__}",
            pairs=config.evaluate_pairs,
            kinds=" | ".join(figures),
            rule="---|" * len(figures),
            rows=rows,
        )
    )


def _plot_curve(work: Path) -> None:
    """Draw the denoiser's loss curve."""
    curve = json.loads((work / "denoiser-curve.json").read_text())
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    axes.semilogy(*zip(*curve, strict=True))
    axes.set(xlabel="training step", ylabel="v-prediction loss", title="bundled editor")
    figure.savefig(work / "denoiser-curve.png", dpi=100, bbox_inches="tight")


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
---
# The bundled editor of qnerf-nerfstudio

A small Stable-Diffusion-shaped model set (AutoencoderKL, CLIP text model, UNet with three decoder levels of
self-attention, one ControlNet that reads OpenPose skeletons and depths of proxies) for 128-pixel images of the
procedural articulated figure. It exists so that qnerf-edit runs end to end on a CPU without downloads: for the demo,
the tests and the benchmarks. It knows nothing of real photos.

- **Data**: rendered pairs (one body, one camera, two poses) of `qnerf_nerfstudio.toy`, up to {pool} pairs; captions
  name the colours of the figure and its room.
- **Training**: `qnerf toy train`{start}; VAE {vae_steps} steps of {vae_batch} crops, then UNet, ControlNet and
  text encoder together {denoiser_steps} steps of {denoiser_batch} pairs, v-prediction, moving average of the weights;
  in part of the steps the pair's own keys and values are injected into the decoder's self-attention, as the method
  does.
- **Evaluated on**: {machine}.
- **Size**: {size:.1f} MiB of half-precision safetensors.

Figures over {pairs} pairs with bodies, poses and cameras that training never saw (20 DDIM timesteps, one view at a
time, source inverted and its appearance injected, control in the target pose):

| figure | {kinds} |
|---|{rule}
{rows}
"""
