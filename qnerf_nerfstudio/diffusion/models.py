"""The models that an editor is made of."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from qnerf_nerfstudio.diffusion.text import PromptEncoder


@dataclass
class Models:
    """A model set of Stable Diffusion 1.x, 2.x or XL."""

    vae: AutoencoderKL
    """The autoencoder."""
    unet: UNet2DConditionModel
    """The denoiser."""
    scheduler: DDIMScheduler
    """Its noise schedule."""
    prompts: PromptEncoder
    """The text encoders."""
