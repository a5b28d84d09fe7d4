"""The tokenizer of the bundled editor."""

from pathlib import Path

from qnerf_nerfstudio.toy.figure import Body
from qnerf_nerfstudio.toy.training.models import MAX_TOKENS, build_tokenizer


def test_longest_caption_fits_and_words_are_whole_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    caption = Body(hat="purple", shirt="yellow", trousers="orange", skin="orange", floor="brown").caption()
    tokens = tokenizer.tokenize(caption)
    assert len(tokens) + 2 <= MAX_TOKENS
    assert {"purple</w>", "brown</w>", "figure</w>"} <= set(tokens)
    assert tokenizer.unk_token_id not in tokenizer("zebra crossing?").input_ids[1:-1]
