"""Random model sets in the architecture of Stable Diffusion."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.models import Models
from qnerf_nerfstudio.diffusion.text import PromptEncoder
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
    # Stable Diffusion 2.x predicts v, has linear projections, and heads by level.
    second = prediction_type == "v_prediction"
    unet = UNet2DConditionModel(
        sample_size=8,
        use_linear_projection=second,
        attention_head_dim=(2, 4) if second else 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
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


def random_xl_parts(folder: Path) -> dict:
    """The same in the architecture of Stable Diffusion XL: two text encoders, attention at two levels only, several
    transformer blocks in each layer, pooled text and sizes."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder)
    text_encoder = build_text_encoder(tokenizer)
    settings = {**text_encoder.config.to_dict(), "hidden_size": 32, "projection_dim": 24}
    text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**settings))
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=text_encoder.config.hidden_size + 32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        use_linear_projection=True,
        norm_num_groups=4,
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    fill_zero_convolutions(controlnet)
    parts = random_parts(folder)
    parts |= {"unet": unet, "controlnet": controlnet, "tokenizer": tokenizer, "text_encoder": text_encoder}
    return parts | {"tokenizer_2": tokenizer, "text_encoder_2": text_encoder_2}


def pipeline_of(parts: dict) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A pipeline of the parts without a ControlNet."""
    parts = {name: part for name, part in parts.items() if name != "controlnet"}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    parts |= {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def save_xl_set(folder: Path) -> Path:
    """Write a random model set of Stable Diffusion XL's architecture, its ControlNet inside, into a folder of that
    folder; its own folder."""
    parts = random_xl_parts(folder / "tokenizer")
    pipeline_of(parts).save_pretrained(folder / "xl")
    parts["controlnet"].save_pretrained(folder / "xl/controlnet")
    return folder / "xl"


def sampled_by_diffusers(
    pipeline: Any, image: Any, latents: Tensor, negative: str | None, num_steps: int, guidance_scale: float, scale: Any
) -> Tensor:
    """Latents that a ControlNet pipeline of diffusers makes of "a blue shirt"."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a blue shirt",
        image=image,
        negative_prompt=negative,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        controlnet_conditioning_scale=scale,
        latents=latents,
        output_type="latent",
    ).images


SD_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""Settings of the UNet of Stable Diffusion 1.5; the others are diffusers' defaults."""


def save_sd_set(folder: Path) -> Path:
    """Write a random model set of Stable Diffusion 1.5's size in half precision, its ControlNet inside, into a folder
    of that folder; its own folder."""
    torch.manual_seed(0)
    parts = random_parts(folder / "tokenizer")
    levels = 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    text = CLIPTextModel(CLIPTextConfig(**{**parts["text_encoder"].config.to_dict(), "hidden_size": 768}))
    unet = UNet2DConditionModel(**SD_UNET)
    controlnet = ControlNetModel.from_unet(unet)
    fill_zero_convolutions(controlnet)
    parts |= {"vae": vae, "text_encoder": text, "unet": unet, "controlnet": controlnet}
    for part in (vae, text, unet, controlnet):
        part.half()
    pipeline_of(parts).save_pretrained(folder / "sd")
    controlnet.save_pretrained(folder / "sd/controlnet")
    return folder / "sd"


def models_of(parts: dict, zeros_for_empty: bool = False) -> Models:
    """The models of an editor from the parts of a diffusers pipeline."""
    encoders = [(parts[f"tokenizer{n}"], parts[f"text_encoder{n}"]) for n in ("", "_2") if f"tokenizer{n}" in parts]
    rest = (parts[name] for name in ("vae", "unet", "scheduler"))
    return Models(*rest, PromptEncoder(encoders, zeros_for_empty))


DEFAULTS = {"resolution": 64, "dtype": "float32", "num_steps": 8, "guidance_scale": 1.0, "injection_start": 0.0}


def make_editor(folder: Path, prediction_type: str = "epsilon", **settings) -> ControlNetEditor:
    """An editor of random parts, float32 on the CPU."""
    config = EditorConfig(**{**DEFAULTS, **settings})
    parts = random_parts(folder, prediction_type)
    return ControlNetEditor(models_of(parts), [parts["controlnet"]], config, "cpu")


def make_xl_editor(folder: Path, zeros_for_empty: bool = False, **settings) -> ControlNetEditor:
    """The same of Stable Diffusion XL's architecture."""
    config = EditorConfig(**{**DEFAULTS, **settings})
    parts = random_xl_parts(folder)
    return ControlNetEditor(models_of(parts, zeros_for_empty), [parts["controlnet"]], config, "cpu")
