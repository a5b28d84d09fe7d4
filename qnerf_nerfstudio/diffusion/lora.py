"""LoRA weights (Hu et al., 2022), fused into the models that they were made for."""

from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.wording import error_text
from qnerf_nerfstudio.diffusion.models import Models


def fuse_lora(models: Models, lora: str, scale: float) -> None:
    """Add LoRA weights to those of the UNet and the text encoders, by diffusers' own loader.

    Args:
        models: The models, which are changed.
        lora: Hub id or file, in diffusers', PEFT's or Kohya's layout; safetensors only.
        scale: Their weight.

    Raises:
        UserError: They cannot be read, or do not fit the models.
    """
    pipeline = _pipeline(models)
    try:
        pipeline.load_lora_weights(lora, use_safetensors=True)
        changed = pipeline.get_list_adapters()
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except Exception as error:  # diffusers raises whatever its readers do
        raise UserError(
            f"--pipeline.editor.lora: {lora} does not fit the model ({error_text(error)}); choose one made for it"
        ) from error
    if not changed:
        raise UserError(
            f"--pipeline.editor.lora: {lora} changes no weights of the model; choose LoRA weights made for it"
        )


def _pipeline(models: Models) -> Any:
    """A pipeline of the models, which knows how LoRA weights are stored."""
    parts: dict[str, Any] = {"vae": models.vae, "unet": models.unet, "scheduler": models.scheduler}
    for suffix, tokenizer, encoder in zip(("", "_2"), models.prompts.tokenizers, models.prompts.models, strict=False):
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    if len(models.prompts.models) > 1:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    parts |= {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)
