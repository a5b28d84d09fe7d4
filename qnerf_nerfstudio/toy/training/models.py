"""Architecture of the bundled editor: every part is a stock diffusers or transformers model."""

import re
from pathlib import Path

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.toy.figure import COLOURS, Body

IMAGE_SIZE = 128
LATENT_CHANNELS = 8
MAX_TOKENS = 48
TEXT_WIDTH = 96


def build_vae() -> AutoencoderKL:
    """The VAE: f = 8 as Stable Diffusion's, 8 latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )


def build_denoiser() -> UNet2DConditionModel:
    """The UNet: three levels with self- and cross-attention, as few channels as the domain allows."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(96, 128, 160),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def build_control(denoiser: UNet2DConditionModel) -> ControlNetModel:
    """The ControlNet, started from the UNet's encoder as usual."""
    return ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(16, 32, 64, 96))


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


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
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
