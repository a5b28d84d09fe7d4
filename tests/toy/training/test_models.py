"""The architecture of the bundled editor."""

from pathlib import Path

from qnerf_nerfstudio.toy.figure import Body
from qnerf_nerfstudio.toy.training.models import MAX_TOKENS, build_denoiser, build_tokenizer, build_vae, vae_stride


def test_longest_caption_fits_and_words_are_whole_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    caption = Body(hat="purple", shirt="yellow", trousers="orange", skin="orange", floor="brown").caption()
    tokens = tokenizer.tokenize(caption)
    assert len(tokens) + 2 <= MAX_TOKENS
    assert {"purple</w>", "brown</w>", "figure</w>"} <= set(tokens)
    assert tokenizer.unk_token_id not in tokenizer("zebra crossing?").input_ids[1:-1]


def test_defaults_are_the_set_that_comes_with_the_package() -> None:
    unet, vae = build_denoiser(), build_vae()
    assert (unet.config.sample_size, unet.config.block_out_channels) == (32, (96, 128, 192))
    assert vae_stride(vae) * unet.config.sample_size == vae.config.sample_size == 256
    assert unet.config.in_channels == vae.config.latent_channels == 8
