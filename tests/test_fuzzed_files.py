"""Damaged files are read or refused in one sentence; `helpers/fuzz_files.py` runs as many as one likes."""

import json
from pathlib import Path

import pytest
from helpers.fuzz_files import KINDS, Models, fuzz
from rich.console import Console

from qnerf_nerfstudio.common.errors import UserError


@pytest.mark.parametrize(("kind", "files"), [("images", 120), ("meshes", 200), ("transforms", 200), ("models", 20)])
def test_damaged_files_are_read_or_refused(kind: str, files: int) -> None:
    counts = fuzz(kind, 0, lambda number: number < files, Console())
    assert counts is not None and counts["refused"] > 0 and counts["read"] > 0


@pytest.mark.parametrize("kind", ["images", "transforms", "models"])
def test_what_the_fuzzing_starts_from_is_read(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path).read()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    fuzzer = Models(tmp_path)
    path = fuzzer.model / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": "<new>"}))
    with pytest.raises(UserError, match="its tokenizer has tokens up to 283, its text_encoder reads 283 of them"):
        fuzzer.read()


def test_parts_that_cannot_compute_are_refused(tmp_path: Path) -> None:
    fuzzer = Models(tmp_path)
    path = fuzzer.model / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps_offset": 0.5}))
    with pytest.raises(UserError, match="cannot load parts that work with"):
        fuzzer.read()
