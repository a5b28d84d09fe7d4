"""Random model sets in the architecture of Stable Diffusion."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel

from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.toy.training.models import build_text_encoder, build_tokenizer


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
    for name, parameter in controlnet.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
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
