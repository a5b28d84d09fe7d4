"""Random model sets in the architecture of Stable Diffusion."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import nn

from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.toy.training import model_set
from qnerf_nerfstudio.toy.training.models import (
    build_control,
    build_denoiser,
    build_text_encoder,
    build_tokenizer,
    build_vae,
)

TINY_BUILDERS = {
    "build_vae": partial(build_vae, 64, (8, 8, 16, 16)),
    "build_denoiser": partial(build_denoiser, 8, (16, 16, 32)),
    "build_control": partial(build_control, embedding_widths=(16, 16, 16, 16)),
}
"""Stand-ins for the builders that `model_set` uses: images of 64 pixels and few channels, else the bundled editor."""


def save_tiny_set(folder: Path) -> Path:
    """Write a random model set for 64 pixels into a folder of that folder; its own folder."""
    with patch.multiple(model_set, **TINY_BUILDERS):
        tiny = model_set.new_set(folder / "tokenizer", 0)
    fill_zero_convolutions(tiny.denoiser["controlnet"])
    tiny.save(folder / "editor")
    return folder / "editor"


def fill_zero_convolutions(controlnet: nn.Module) -> None:
    """Give a new ControlNet random weights where it has zeros, so that its controls matter."""
    for name, parameter in controlnet.named_parameters():
        if "controlnet_" in name:
            nn.init.normal_(parameter, std=0.05)


def random_parts(folder: Path, prediction_type: str = "epsilon") -> dict:
    """Untrained models; every weight random, ControlNet's zero convolutions too, so that nothing cancels out."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=96,
        norm_num_groups=4,
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    fill_zero_convolutions(controlnet)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    tokenizer = build_tokenizer(folder)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return {
        "vae": vae,
        "text_encoder": build_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": unet,
        "controlnet": controlnet,
        "scheduler": scheduler,
    }


def make_editor(folder: Path, prediction_type: str = "epsilon", **settings) -> ControlNetEditor:
    """An editor of random parts, float32 on the CPU."""
    defaults = {"resolution": 64, "dtype": "float32", "num_steps": 8, "guidance_scale": 1.0, "injection_start": 0.0}
    return ControlNetEditor(
        **random_parts(folder, prediction_type), config=EditorConfig(**{**defaults, **settings}), device="cpu"
    )
