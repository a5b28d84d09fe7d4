"""Training of the bundled editor, on models of 64 pixels with a few channels."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from helpers.models import TINY_BUILDERS
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.testing import CompileCounter

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.toy.training import denoiser as denoiser_training
from qnerf_nerfstudio.toy.training import model_set, pairs
from qnerf_nerfstudio.toy.training import vae as vae_training
from qnerf_nerfstudio.toy.training.card import Record
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.denoiser import Denoiser
from qnerf_nerfstudio.toy.training.model_set import load_set, new_set
from qnerf_nerfstudio.toy.training.models import build_control, build_denoiser
from qnerf_nerfstudio.toy.training.train import evaluate_editor, train_editor

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """New sets are tiny, and pairs are made two by two."""
    for name, build in TINY_BUILDERS.items():
        monkeypatch.setattr(model_set, name, build)
    for module in (pairs, vae_training):
        monkeypatch.setattr(module, "CPU_CHUNK", 2)
    monkeypatch.setattr(pairs, "FIRST_PAIRS", 2)


def settings(folder: Path, vae_steps: int, denoiser_steps: int, **others) -> TrainEditorConfig:
    """Settings of a little training."""
    defaults = {
        "out": folder / "out",
        "work": folder / "work",
        "vae_batch": 2,
        "denoiser_batch": 2,
        "bf16": False,
        "pool": 6,
        "report_every": 2,
        "device": "cpu",
    }
    return TrainEditorConfig(vae_steps=vae_steps, denoiser_steps=denoiser_steps, **{**defaults, **others})


def train(folder: Path, vae_steps: int, denoiser_steps: int, **others) -> None:
    """Train a little."""
    train_editor(settings(folder, vae_steps, denoiser_steps, **others), QUIET)
    assert torch.tensor(1e-310, dtype=torch.float64) * 1 > 0  # denormals are flushed in training only


def saved(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A checkpoint."""
    return load_file(folder / f"work/{name}.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """The same tensors."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, msg=name)


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    """A model set without a card."""
    new_set(tmp_path / "tokenizer", 5).save(tmp_path / "initial")
    return tmp_path / "initial"


def test_training_killed_between_two_steps_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", 3, 5)
    loss, calls = denoiser_training.training_loss, []

    def kill(*inputs) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 4:  # one step after the last checkpoint
            raise KeyboardInterrupt
        return loss(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser_training, "training_loss", kill)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", 3, 5)
    assert not (tmp_path / "killed/out").exists()
    train(tmp_path / "killed", 3, 5)
    for name in ("vae", "denoiser"):
        assert_same(saved(tmp_path / "whole", name), saved(tmp_path / "killed", name))
    curve = json.loads((tmp_path / "killed/work/denoiser-curve.json").read_text())
    assert [step for step, _ in curve] == [2, 4, 5]
    record = Record.load(tmp_path / "killed/work")
    assert record is not None
    assert (record.denoiser.earlier_steps, record.denoiser.steps) == (2, 3)
    assert (record.vae.earlier_steps, record.vae.steps) == (3, 0)


def test_the_vae_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "whole", 4, 0)
    killed = tmp_path / "killed"
    # A call that is killed after two of four steps, which the schedule knows.
    models = new_set(killed / "work/tokenizer", 0)
    with pytest.raises(KeyboardInterrupt):
        vae_training.train_vae(settings(killed, 4, 0), models, Interrupting())
    train(killed, 4, 0)
    assert_same(saved(tmp_path / "whole", "vae"), saved(killed, "vae"))


class Interrupting(Console):
    """A console whose first line ends the process."""

    def print(self, *objects, **settings) -> None:
        raise KeyboardInterrupt


def test_training_starts_from_half_precision_weights(tmp_path: Path, initial: Path) -> None:
    train(tmp_path, 0, 0, initial=initial)
    for path in initial.rglob("*.safetensors"):
        assert_same(load_file(path), load_file(tmp_path / "out" / path.relative_to(initial)))
    for path in initial.glob("*/config.json"):
        assert "_name_or_path" not in (tmp_path / "out" / path.relative_to(initial)).read_text()
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels
    assert load_set(tmp_path / "out").image_size == 64


CHANGED = {
    "all": {"controlnet": [""], "unet": [""], "text_encoder": [""]},
    "controlnet": {"controlnet": [""]},
    "decoder": {"unet": ["up_blocks.", "conv_norm_out.", "conv_out."]},
}
"""Beginnings of the names of weights by part."""


@pytest.mark.parametrize("trained", CHANGED)
def test_parts_that_are_not_trained_stay_as_they_are(tmp_path: Path, initial: Path, trained: str) -> None:
    train(tmp_path, 0, 2, initial=initial, trained=trained, followed=0.5)
    for path in initial.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / path.relative_to(initial)), load_file(path)
        beginnings = tuple(CHANGED[trained].get(path.parent.name, []))
        changes = {name for name, value in theirs.items() if not torch.equal(ours[name], value)}
        assert all(name.startswith(beginnings) for name in changes), path
        assert bool(changes) == bool(beginnings), path


def test_a_share_of_the_initial_weights_is_kept(tmp_path: Path, initial: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    train(tmp_path, 0, 2, initial=initial)
    trained = load_file(tmp_path / "out" / name)
    train(tmp_path, 0, 2, initial=initial, kept=0.25)
    exported, start = load_file(tmp_path / "out" / name), load_file(initial / name)
    assert any(not torch.equal(trained[key], start[key]) for key in start)
    for key, value in exported.items():
        expected = 0.75 * trained[key].float() + 0.25 * start[key].float()
        torch.testing.assert_close(value.float(), expected, atol=1e-3, rtol=1e-3, msg=key)
    record = Record.load(tmp_path / "work")
    assert record is not None
    assert record.kept == 0.25


def test_a_time_budget_counts_over_all_calls(tmp_path: Path, initial: Path) -> None:
    train(tmp_path, 0, 0, initial=initial, minutes=2 / 60)
    first = Record.load(tmp_path / "work")
    assert first is not None
    assert first.denoiser.steps >= 1
    assert 2 / 60 <= first.denoiser.minutes < 1
    train(tmp_path, 0, 0, initial=initial, minutes=2 / 60)
    second = Record.load(tmp_path / "work")
    assert second is not None
    assert (second.denoiser.earlier_steps, second.denoiser.steps) == (first.denoiser.steps, 0)


def test_sheets_curve_figures_and_card_are_written(tmp_path: Path, initial: Path) -> None:
    (initial / "README.md").write_text("---\nlicense: mit\n---\n# An earlier set\n\nIts story.\n")
    config = settings(tmp_path, 0, 2, initial=initial, evaluate_pairs=2)
    train_editor(config, QUIET)
    evaluate_editor(config, QUIET)
    names = {"sheet-openpose.png", "sheet-depth.png", "denoiser-curve.png", "figures.json"}
    assert names <= {path.name for path in (tmp_path / "work").iterdir()}
    figures = json.loads((tmp_path / "work/figures.json").read_text())
    assert set(figures) == {"openpose", "depth"}
    written = (tmp_path / "out/README.md").read_text()
    assert max(map(len, written.splitlines())) <= 120
    card = written.replace("\n  ", " ")
    assert "64-pixel images" in card
    assert "**Start**: the weights of another model set, `initial`" in card
    assert "together**: 2 steps of 2 pairs, learning rate" in card
    assert "**Training of the VAE**: not trained" in card
    assert "## Before" in card
    assert "> # An earlier set\n>\n> Its story." in card
    assert "license: mit" not in card
    # Nothing is known of a set that another --work has trained: its card stays.
    evaluate_editor(settings(tmp_path, 0, 0, evaluate_pairs=2, work=tmp_path / "elsewhere"), QUIET)
    assert (tmp_path / "out/README.md").read_text() == written


def test_unet_and_controlnet_are_one_graph() -> None:
    unet = build_denoiser(8, (16, 32), 4, 32)
    control = build_control(unet, (16, 16, 16, 16))
    parts = nn.ModuleDict({"unet": unet, "controlnet": control}).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in parts.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    shapes = ((4, 4, 8, 8), (4, 6, 32), (4, 3, 64, 64))
    noisy, text, controls = (torch.randn(shape, generator=generator) for shape in shapes)
    inputs = (noisy, torch.tensor([3, 500, 3, 500]), text, controls)
    plain = {injected: Denoiser(parts).predict(*inputs, injected=injected) for injected in (False, True)}
    assert not torch.allclose(plain[False], plain[True], atol=1e-4)
    counter = CompileCounter()
    compiled = Denoiser(parts, counter)
    for injected in (False, True, False, True):
        torch.testing.assert_close(compiled.predict(*inputs, injected=injected), plain[injected])
    assert counter.frame_count == 2  # with injection and without
    queries = compiled.queries(*inputs)
    assert all(len(tokens) == 2 for tokens in queries.values())
    other = {name: tokens.flip(1) for name, tokens in queries.items()}
    torch.testing.assert_close(compiled.predict(*inputs, injected=True, queries=queries), plain[True])
    followed = compiled.predict(*inputs, injected=True, queries=other)
    torch.testing.assert_close(followed[:2], plain[True][:2])  # sources keep their own
    assert not torch.allclose(followed[2:], plain[True][2:], atol=1e-4)
    assert counter.frame_count == 2


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no model set"):
        train(tmp_path, 0, 0, initial=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--minutes is 0"):
        train(tmp_path, 0, 0, minutes=0)
    with pytest.raises(UserError, match=r"--kept is 1.5; expected at least 0 and less than 1"):
        train(tmp_path, 0, 0, kept=1.5)
    with pytest.raises(UserError, match=r"name that set, or leave --kept out"):
        train(tmp_path, 0, 0, kept=0.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").touch()
    with pytest.raises(UserError, match=r"is not empty and holds no model set"):
        train(tmp_path, 0, 0)
