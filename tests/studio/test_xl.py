"""A whole edit by a model of Stable Diffusion XL's architecture."""

import json
import signal
from pathlib import Path

import pytest
import torch
from helpers.captures import small_capture
from helpers.commands import KILLED_TRAIN, RUN, SHORT, command, edited_by, script, train, where
from helpers.models import save_xl_set
from safetensors.torch import load_file

from qnerf_nerfstudio.common.images import load_images

GUIDED = [
    *("--pipeline.editor.guidance-strength", "0.05"),
    *("--pipeline.editor.guidance-scale", "3"),
    *("--pipeline.editor.checkpointing", "True"),
    *("--pipeline.chunk", "2"),
]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 views, which are two chunks."""
    return small_capture(tmp_path_factory.mktemp("capture"), num_views=3)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_xl_set(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def run(xl: Path, capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(capture, tmp_path_factory.mktemp("run"), xl, *GUIDED)


def test_views_are_inverted_guided_fitted_and_decoded(run: Path) -> None:
    edit = run / "edit"
    images = torch.stack(load_images(sorted((edit / "images").glob("*.png"))))
    assert len(images) == 3 and float(images.std()) > 0.01
    # Four layers of queries: the first transformer block of each of the decoder's attention blocks.
    codes = load_file(next((edit / "queries").glob("*/codec.safetensors")))
    layers = {name.rsplit("/", 1)[0] for name in codes}
    assert sum("transformer_blocks.0.attn1" in name for name in layers) >= 4
    assert not any("transformer_blocks.1." in name for name in layers)
    assert json.loads((edit / "manifest.json").read_text())["image_size"] == [64, 64]


@pytest.mark.release  # the same slices as Stable Diffusion's, whose run is killed in test_commands.py
def test_a_run_that_is_killed_ends_as_one_that_is_not(run: Path, xl: Path, capture: Path, tmp_path: Path) -> None:
    begin = [
        "qnerf-edit-tiny",
        "--data",
        capture,
        *where(tmp_path),
        "--steps-per-save",
        "5",
        *SHORT,
        *edited_by(xl),
        *GUIDED,
    ]
    resume = [*begin, "--load-dir", tmp_path / RUN / "nerfstudio_models"]
    for step, words in ((9, begin), (26, resume)):
        code, output = script(KILLED_TRAIN, list(map(str, (step, "write", *words))))
        assert code == -signal.SIGKILL, output[-2000:]
    command("ns-train", *resume)
    for path in sorted((run / "edit/images").glob("*.png")):
        assert path.read_bytes() == (tmp_path / RUN / "edit/images" / path.name).read_bytes()
