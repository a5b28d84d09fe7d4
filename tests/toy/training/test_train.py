"""Training of the bundled editor."""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionControlNetPipeline
from rich.console import Console
from safetensors.torch import load_file

from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.train import train_editor


def train(
    folder: Path, vae_steps: int, denoiser_steps: int, initial: Path | None = None, control_only: bool = False
) -> None:
    """Train a little."""
    config = TrainEditorConfig(
        control_only=control_only,
        out=folder / "out",
        work=folder / "work",
        initial=initial,
        vae_steps=vae_steps,
        vae_batch=2,
        denoiser_steps=denoiser_steps,
        denoiser_batch=2,
        bf16=False,
        pool=4,
        report_every=1,
        device="cpu",
    )
    train_editor(config, Console(quiet=True))
    assert torch.tensor(1e-310, dtype=torch.float64) * 1 > 0  # denormals are flushed in training only


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    train(tmp_path / "whole", 2, 2)
    train(tmp_path / "resumed", 1, 0)
    train(tmp_path / "resumed", 2, 1)
    train(tmp_path / "resumed", 2, 2)
    whole, resumed = (load_file(tmp_path / name / "work/denoiser.safetensors") for name in ("whole", "resumed"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)
    curve = json.loads((tmp_path / "resumed/work/denoiser-curve.json").read_text())
    assert [step for step, _ in curve] == [1, 2]
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "resumed/out", use_safetensors=True)
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels


def test_training_starts_from_a_model_set(tmp_path: Path) -> None:
    train(tmp_path, 0, 0, initial=BUNDLED_FOLDER)
    for path in BUNDLED_FOLDER.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / path.relative_to(BUNDLED_FOLDER)), load_file(path)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for path in BUNDLED_FOLDER.glob("*/config.json"):
        assert (tmp_path / "out" / path.relative_to(BUNDLED_FOLDER)).read_text().count("_name_or_path") == 0


def test_the_controlnet_can_be_trained_alone(tmp_path: Path) -> None:
    train(tmp_path, 0, 2, initial=BUNDLED_FOLDER, control_only=True)
    for path in BUNDLED_FOLDER.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / path.relative_to(BUNDLED_FOLDER)), load_file(path)
        same = all(torch.equal(ours[name], value) for name, value in theirs.items())
        assert same == (path.parent.name != "controlnet"), path
