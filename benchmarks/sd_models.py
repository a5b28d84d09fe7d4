"""Models of Stable Diffusion 1.5's and ControlNet 1.1's shape with random weights: they cost what real ones cost."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.models import Models
from qnerf_nerfstudio.diffusion.text import PromptEncoder
from qnerf_nerfstudio.toy.training.models import build_scheduler


def sd_size_editor(config: EditorConfig, device: str) -> ControlNetEditor:
    """An editor of Stable Diffusion 1.5's size."""
    models, controlnet = _sd_size(device)
    return ControlNetEditor(models, [controlnet], config, device)


def save_sd_size(folder: Path) -> None:
    """Write models of that size, in half precision, as a folder that a run reads; its ControlNet lies in it."""
    if (folder / "model_index.json").exists():
        return
    models, controlnet = _sd_size("cpu")
    (tokenizer,), (text_encoder,) = models.prompts.tokenizers, models.prompts.models
    controlnet.half().save_pretrained(folder / "controlnet")
    pipeline = StableDiffusionPipeline(
        vae=models.vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=models.unet,
        scheduler=models.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)


def _sd_size(device: str) -> tuple[Models, ControlNetModel]:
    """Models and their ControlNet, their configuration written out from the published one."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96, 256))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
            )
        )
    # Only the number of tokens matters here.
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED_FOLDER / "tokenizer")
    scheduler = build_scheduler()
    return Models(vae, unet, scheduler, PromptEncoder([(tokenizer, text_encoder)])), controlnet
