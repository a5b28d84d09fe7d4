"""Memory is estimated before long work."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.diffusion.memory import (
    CERTAIN,
    MOST_ON_CPU,
    ROOM,
    available_bytes,
    check_memory,
    checkpoint_if_needed,
    estimate_bytes,
    fitting_chunk,
)

MIB = 2**20


@pytest.fixture(scope="module")
def editor() -> Any:
    return load_editor(EditorConfig(BUNDLED, dtype="float32", resolution=256, guidance_scale=1.0), "cpu", ["openpose"])


def test_memory_that_was_measured_to_suffice_is_never_refused(editor: Any) -> None:
    # Peaks of the bundled editor in a process of its own: guidance, and denoising without it.
    check_memory(editor, 8, (256, 256), available=537 * MIB)
    check_memory(editor, 8, (128, 128), available=139 * MIB)
    check_memory(editor, 8, (256, 256), available=219 * MIB, guided=False)
    check_memory(editor, 1, (64, 64))


def test_a_chunk_that_cannot_fit_is_refused_with_one_that_does(editor: Any) -> None:
    with pytest.raises(UserError, match=r"--pipeline.chunk is 8: .*256x256.*; give --pipeline.chunk (\d+)$") as refused:
        check_memory(editor, 8, (256, 256), available=200 * MIB)
    fitting = int(str(refused.value).rsplit(" ", 1)[1])
    assert 1 <= fitting < 8
    assert estimate_bytes(editor, fitting, (256, 256)) <= 200 * MIB
    assert estimate_bytes(editor, fitting + 1, (256, 256)) > 200 * MIB
    with pytest.raises(UserError, match=r"--pipeline.editor.checkpointing True, or --pipeline.editor.resolution less"):
        check_memory(editor, 1, (256, 256), available=MIB)


def test_a_run_chooses_the_largest_chunk_that_leaves_room(editor: Any) -> None:
    size = (256, 256)
    on_gpu = _like(editor, device=torch.device("cuda"))
    for views in (1, 7, 16, 40):
        before = views
        for fits in range(16, 0, -1):
            available = int(estimate_bytes(editor, fits, size) / ROOM) + 1
            chunk = fitting_chunk(on_gpu, views, size, available)
            assert 1 <= chunk <= min(fits, before)
            # No chunk would be spared by larger ones.
            assert math.ceil(views / chunk) == math.ceil(views / min(fits, views))
            before = chunk
    assert fitting_chunk(editor, 40, size) == MOST_ON_CPU
    assert fitting_chunk(on_gpu, 40, size, available=1) == 1


@pytest.mark.parametrize(
    ("asked", "guided", "share", "expected"),
    [("auto", True, 0.9, True), ("auto", True, 1.1, False), ("auto", False, 0.1, False), (False, True, 0.1, False)],
)
def test_activations_are_computed_twice_only_where_memory_asks_for_it(
    editor: Any, asked: Any, guided: bool, share: float, expected: bool
) -> None:
    size, switched = (256, 256), []
    config = replace(editor.config, checkpointing=asked)
    like = _like(editor, config=config, checkpointing=False, checkpoint=lambda: switched.append(True))
    checkpoint_if_needed(like, 4, size, int(share * estimate_bytes(like, 4, size) / ROOM), guided)
    assert bool(switched) is expected


def _like(editor: Any, **changed: Any) -> Any:
    """What the estimate reads of an editor, changed."""
    names = ("config", "unet", "vae", "latent_stride", "checkpointing", "dtype", "device")
    return SimpleNamespace(**{**{name: getattr(editor, name) for name in names}, **changed})


@pytest.mark.parametrize(
    ("width", "chunk", "size", "checkpointing", "measured"),
    [
        (64, 1, 512, False, 405),
        (64, 2, 512, False, 817),
        (64, 4, 512, False, 1684),
        (64, 4, 256, False, 390),
        (64, 4, 256, True, 127),
        (128, 2, 256, False, 447),
    ],
)
def test_the_estimate_is_close_below_what_was_measured(
    width: int, chunk: int, size: int, checkpointing: bool, measured: int
) -> None:
    """Models in the shape of Stable Diffusion, whose first level has `width` channels; peak in MiB."""
    like = SimpleNamespace(
        config=EditorConfig(guidance_scale=5.0),
        checkpointing=checkpointing,
        unet=SimpleNamespace(
            config=SimpleNamespace(
                block_out_channels=(width, 2 * width, 4 * width, 4 * width),
                layers_per_block=2,
                transformer_layers_per_block=1,
            )
        ),
        vae=SimpleNamespace(
            dtype=torch.float32, config=SimpleNamespace(block_out_channels=(width // 2, width, 2 * width, 2 * width))
        ),
        latent_stride=8,
        dtype=torch.float32,
    )
    estimate = estimate_bytes(like, chunk, (size, size)) / MIB
    assert CERTAIN * estimate < measured
    assert estimate > 0.6 * measured


def test_free_memory_is_known_on_the_cpu_alone_without_a_gpu() -> None:
    assert (available_bytes(torch.device("cpu")) or 0) > 10 * MIB
    assert available_bytes(torch.device("meta")) is None
