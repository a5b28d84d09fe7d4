"""Training of the bundled editor, and the bundled editor itself."""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionControlNetPipeline
from rich.console import Console
from safetensors.torch import load_file

from qnerf_nerfstudio.editor.config import BUNDLED_FOLDER
from qnerf_nerfstudio.scenes import Body
from qnerf_nerfstudio.training.codec import round_trip_psnr, start_linear
from qnerf_nerfstudio.training.config import TrainEditorConfig
from qnerf_nerfstudio.training.data import HELD_OUT, render_pair, to_unit
from qnerf_nerfstudio.training.models import IMAGE_SIZE, build_codec, build_tokenizer
from qnerf_nerfstudio.training.train import train_editor


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    caption = Body(hat="red", sleeves="short").caption()
    assert len(tokenizer.tokenize(caption)) == len(caption.replace(",", " ,").split())
    assert tokenizer.unk_token_id not in tokenizer("zebra crossing?").input_ids[1:-1]


def test_codec_starts_near_a_block_average() -> None:
    torch.manual_seed(0)
    codec = build_codec()
    start_linear(codec, to_unit(torch.cat([render_pair(i, IMAGE_SIZE).images for i in range(12)])) * 2 - 1)
    assert round_trip_psnr(codec, 8) > 19


def test_pairs_are_reproducible_and_held_out_ones_differ() -> None:
    first, again, held = render_pair(3, 64), render_pair(3, 64), render_pair(HELD_OUT + 3, 64)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.controls, again.controls)
    assert not torch.equal(first.images, held.images)
    assert first.caption.startswith("a figure with")


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    def train(name: str, steps: tuple[int, ...]) -> dict[str, torch.Tensor]:
        for done in steps:
            config = TrainEditorConfig(
                out=tmp_path / name / "out",
                work=tmp_path / name / "work",
                codec_steps=2,
                codec_batch=2,
                denoiser_steps=done,
                denoiser_batch=2,
                denoiser_lr=1e-4,
                pool=34,
                report_every=1,
                device="cpu",
            )
            train_editor(config, Console(quiet=True))
        curve = json.loads((tmp_path / name / "work/denoiser-curve.json").read_text())
        assert [step for step, _ in curve] == list(range(1, steps[-1] + 1))
        return load_file(tmp_path / name / "work/denoiser.safetensors")

    whole, resumed = train("whole", (2,)), train("resumed", (1, 2))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "whole/out", use_safetensors=True)
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels


def test_bundled_editor_fits_its_size() -> None:
    size = sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*") if path.is_file())
    assert size <= 40e6
    assert not [path for path in BUNDLED_FOLDER.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert (BUNDLED_FOLDER / "README.md").exists()
