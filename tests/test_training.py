"""Training of the bundled editor, and the bundled editor itself."""

from pathlib import Path

import torch

from qnerf_nerfstudio.editor.config import BUNDLED_FOLDER
from qnerf_nerfstudio.scenes import Body
from qnerf_nerfstudio.training.codec import round_trip_psnr, start_linear
from qnerf_nerfstudio.training.data import HELD_OUT, render_pair, to_unit
from qnerf_nerfstudio.training.models import IMAGE_SIZE, MAX_TOKENS, build_codec, build_tokenizer


def test_longest_caption_fits_and_words_are_whole_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    caption = Body(hat="purple", shirt="yellow", trousers="orange", skin="orange", floor="brown").caption()
    tokens = tokenizer.tokenize(caption)
    assert len(tokens) + 2 <= MAX_TOKENS
    assert {"purple</w>", "brown</w>", "figure</w>"} <= set(tokens)
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


def test_bundled_editor_fits_its_size() -> None:
    size = sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*") if path.is_file())
    assert size <= 40e6
    assert not [path for path in BUNDLED_FOLDER.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert (BUNDLED_FOLDER / "README.md").exists()
