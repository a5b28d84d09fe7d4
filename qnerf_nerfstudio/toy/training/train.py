"""`qnerf toy train`: VAE, then UNet, ControlNet and text encoder, then export with a model card."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_KINDS
from qnerf_nerfstudio.toy.training.card import CARD, Record, Stage, write_card
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.denoiser import train_denoiser
from qnerf_nerfstudio.toy.training.evaluate import evaluate, load_trained
from qnerf_nerfstudio.toy.training.model_set import INDEX, load_set, new_set
from qnerf_nerfstudio.toy.training.pairs import pairs_after
from qnerf_nerfstudio.toy.training.schedule import move_weights
from qnerf_nerfstudio.toy.training.vae import train_vae


@contextmanager
def _fast_arithmetic() -> Iterator[None]:
    """Flush denormal numbers, which slow a CPU down many times, and let cuDNN choose its kernels by trial."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.backends.cudnn.benchmark = benchmark


def train_editor(config: TrainEditorConfig, console: Console) -> None:
    """Train or go on training, and export the model set to `config.out`.

    Raises:
        UserError: The device is not there, `config.out` holds something else than a model set, `config.initial` holds
            none, there is no time to train, or `config.kept` is no share of it.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no GPU; train with --device cpu")
    if config.out.exists() and any(config.out.iterdir()) and not (config.out / INDEX).exists():
        raise UserError(f"--out {config.out} is not empty and holds no model set; name another folder")
    if config.minutes is not None and config.minutes <= 0:
        raise UserError(f"--minutes is {config.minutes}; expected more than 0")
    if not 0 <= config.kept < 1:
        raise UserError(f"--kept is {config.kept}; expected at least 0 and less than 1")
    if config.kept and config.initial is None:
        raise UserError("--kept is a share of the weights of --initial; name that set, or leave --kept out")
    models = new_set(config.work / "tokenizer", config.seed) if config.initial is None else load_set(config.initial)
    config.work.mkdir(parents=True, exist_ok=True)
    with _fast_arithmetic():
        vae = Stage.between(*train_vae(config, models, console), config.vae_batch, config.vae_lr)
        progress = train_denoiser(config, models, console)
    denoiser = Stage.between(*progress, config.denoiser_batch, config.denoiser_lr)
    if config.initial is not None and config.kept:
        # Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
        move_weights(models.denoiser, load_set(config.initial).denoiser, config.kept)
    models.save(config.out)
    _plot_curve(config.work)
    steps = progress[1].steps
    pairs = pairs_after(steps, config.denoiser_batch, config.pool, torch.device(config.device)) if steps else 0
    Record(
        image_size=models.image_size,
        initial=None if config.initial is None else config.initial.resolve().name,
        before=_earlier_card(config),
        vae=vae,
        denoiser=denoiser,
        trained=config.trained,
        followed=config.followed,
        kept=config.kept,
        pairs=pairs,
        seed=config.seed,
        machine=_machine(config.device),
    ).save(config.work)
    console.print(f"model set in {config.out}, {denoiser.steps} steps of the denoiser in this call")


def evaluate_editor(config: TrainEditorConfig, console: Console) -> None:
    """Print the figures of the model set in `config.out`, and write them, sample sheets and its model card."""
    editor = load_trained(config.out, config.device)
    figures = {
        kind: evaluate(editor, console, config.evaluate_pairs, config.work / f"sheet-{kind}.png", kind)
        for kind in BUNDLED_KINDS
    }
    write_json(config.work / "figures.json", figures)
    record = Record.load(config.work)
    if record is None:
        console.print(f"{config.work} does not tell how the set was trained, its card stays as it is")
        return
    write_card(config.out, record, figures, config.evaluate_pairs, _machine(config.device))


def _earlier_card(config: TrainEditorConfig) -> str | None:
    """The card of --initial as it was before the first call: --out may be the same folder."""
    record = Record.load(config.work)
    if record is not None:
        return record.before
    if config.initial is None or not (config.initial / CARD).is_file():
        return None
    return (config.initial / CARD).read_text(encoding="utf-8")


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    return f"{name} ({platform.machine()}), torch {torch.__version__}"


def _plot_curve(work: Path) -> None:
    """Draw the denoiser's loss curve."""
    curve = json.loads((work / "denoiser-curve.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    axes.semilogy(*zip(*curve, strict=True))
    axes.set(xlabel="training step", ylabel="v-prediction loss", title="bundled editor")
    figure.savefig(work / "denoiser-curve.png", dpi=100, bbox_inches="tight")
