"""Architecture of the bundled editor: every part is a stock diffusers or transformers model.

The defaults are those of the set that comes with the package.
"""

import re
from pathlib import Path

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.toy.figure import COLOURS, Body

MAX_TOKENS = 48
TEXT_WIDTH = 96


def build_vae(
    image_size: int = 256, widths: tuple[int, ...] = (16, 32, 64, 128), latent_channels: int = 8
) -> AutoencoderKL:
    """The VAE.

    Args:
        image_size: Width and height in pixels of the images that it is trained on.
        widths: Channels of its levels, multiples of 4; each level but the last halves the image. Four levels make
            latents that are 8 times smaller than images, as Stable Diffusion's.
        latent_channels: Channels of the latents.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=image_size,
    )


def build_denoiser(
    sample_size: int = 32,
    widths: tuple[int, ...] = (96, 128, 192),
    latent_channels: int = 8,
    text_width: int = TEXT_WIDTH,
) -> UNet2DConditionModel:
    """The UNet: self- and cross-attention at every level.

    Args:
        sample_size: Width and height of the latents.
        widths: Channels of its levels, multiples of 16.
        latent_channels: Channels of the latents.
        text_width: Width of the text encoder.
    """
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=text_width,
        norm_num_groups=16,
    )


def build_control(
    denoiser: UNet2DConditionModel, embedding_widths: tuple[int, ...] = (16, 32, 64, 96)
) -> ControlNetModel:
    """The ControlNet, started from the UNet's encoder as usual.

    Args:
        denoiser: The UNet.
        embedding_widths: Channels of the levels that bring control images to the size of the latents; as many as the
            VAE has.
    """
    return ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=embedding_widths)


def vae_stride(vae: AutoencoderKL) -> int:
    """Pixels per latent along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = TEXT_WIDTH) -> CLIPTextModel:
    """A CLIP text model of two layers, `width` channels wide, a multiple of 4."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a CLIP tokenizer to `folder` and load it: all ASCII letters, and merges towards the words of the captions.

    Any prompt can be read: other words are spelt in pieces, and so are a few of the captions' own ("orange", "yellow"),
    whose letters the merges of other words claim first.
    """
    caption = Body(hat="red", sleeves="short").caption() + " " + Body().caption()
    words = sorted(set(re.findall(r"[a-z]+", caption)) | set(COLOURS))
    symbols = [chr(code) for code in range(33, 127)]
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in words:
        left = word[0]
        for position in range(1, len(word)):
            right = word[position] + ("</w>" if position == len(word) - 1 else "")
            if (left, right) not in merges:
                merges.append((left, right))
                vocabulary.append(left + right)
            left += right
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(dict.fromkeys(vocabulary))
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_TOKENS
    )
