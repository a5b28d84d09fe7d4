"""Attention processors: idle ones are AttnProcessor2_0; layers are chosen by structure."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from helpers.models import random_parts

from qnerf_nerfstudio.diffusion.attention import AttentionState, attention, decoder_self_attention, install
from qnerf_nerfstudio.toy.training.models import build_denoiser


def forward(unet: UNet2DConditionModel, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 5, 96, generator=generator)
    return unet(sample, 10, text, return_dict=False)[0]


@torch.no_grad()
def test_idle_processors_equal_diffusers(tmp_path: Path) -> None:
    unet = random_parts(tmp_path)["unet"]
    unet.set_attn_processor(AttnProcessor2_0())
    expected = forward(unet)
    install(unet, AttentionState())
    torch.testing.assert_close(forward(unet), expected, atol=0, rtol=0)


def test_layers_of_stable_diffusion_15() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
            layers_per_block=2,
        )
    layers = decoder_self_attention(unet)
    assert list(layers) == [
        f"up_blocks.{block}.attentions.{index}.transformer_blocks.0.attn1" for block in (1, 2, 3) for index in range(3)
    ]
    assert [layer.to_q.out_features for layer in layers.values()] == [1280] * 3 + [640] * 3 + [320] * 3


def test_layers_of_the_bundled_architecture() -> None:
    assert len(decoder_self_attention(build_denoiser())) == 6


@torch.no_grad()
def test_injection_lets_every_group_read_the_first_one(tmp_path: Path) -> None:
    unet = random_parts(tmp_path)["unet"]
    state = AttentionState()
    names = install(unet, state)
    recorded: dict = {}
    with attention(state, AttentionState(branches=2, share_first=True, recorded=recorded)):
        together = forward(unet)
    assert list(recorded) == names
    idle = forward(unet)
    torch.testing.assert_close(together[:1], idle[:1])
    assert (together[1:] - idle[1:]).abs().max() > 1e-4

    # The same keys and values, replayed in a pass of the second group alone, give the same result.
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 96, generator=generator)
    with attention(state, AttentionState(replayed=recorded)):
        alone = unet(sample[1:], 10, text[1:], return_dict=False)[0]
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_capture_stops_after_the_last_layer_and_state_is_idle_afterwards(tmp_path: Path) -> None:
    unet = random_parts(tmp_path)["unet"]
    state = AttentionState()
    names = install(unet, state)
    captured: dict = {}
    reached = False
    with attention(state, AttentionState(branches=2, captured=captured, stop_after_capture=True)):
        forward(unet, batch=4)
        reached = True
    assert not reached
    assert list(captured) == names
    assert all(queries.shape[0] == 2 for queries in captured.values())
    assert state == AttentionState()
