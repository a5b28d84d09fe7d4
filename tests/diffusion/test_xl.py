"""Stable Diffusion XL, against diffusers' own pipeline and schedulers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from helpers.models import make_xl_editor, random_xl_parts, sampled_by_diffusers

from qnerf_nerfstudio.diffusion.attention import decoder_self_attention, query_layers
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.memory import estimate_bytes
from qnerf_nerfstudio.diffusion.queries import CodecFit
from qnerf_nerfstudio.methods import qnerf_edit_xl

SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""Settings of the UNet of stabilityai/stable-diffusion-xl-base-1.0."""


def inputs(views: int = 2, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, 4, 8, 12, generator=generator), torch.rand(views, 3, 16, 24, generator=generator)


@pytest.mark.parametrize(("guidance_scale", "negative"), [(1.0, ""), (4.0, "grey"), (4.0, "")])
@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(tmp_path: Path, guidance_scale: float, negative: str) -> None:
    editor = make_xl_editor(tmp_path, True, guidance_scale=guidance_scale, controlnet_scale=(0.7,))
    prompts = editor.encode_prompts("a red shirt", "a blue shirt", negative)
    latents, controls = inputs(1)
    ours = latents
    for step in range(editor.num_steps):
        ours = editor.denoise_step(ours, step, prompts, controls)
    pipeline = StableDiffusionXLControlNetPipeline(**random_xl_parts(tmp_path), add_watermarker=False)
    theirs = sampled_by_diffusers(pipeline, controls, latents, negative or None, editor.num_steps, guidance_scale, 0.7)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_inversion_comes_back(tmp_path: Path) -> None:
    editor = make_xl_editor(tmp_path, inversion_iterations=6, num_steps=20)
    prompts = editor.encode_prompts("a red shirt", "a red shirt", "")
    clean, controls = inputs()
    latents = editor.invert(clean, prompts.source, controls)[0]
    for step in range(editor.num_steps):
        latents = editor.denoise_step(latents, step, prompts, controls)
    assert float((latents - clean).norm() / clean.norm()) < 1e-3


@pytest.mark.parametrize("blocks", ["first", "all"])
def test_guidance_by_queries_lowers_their_distance(tmp_path: Path, blocks: str) -> None:
    editor = make_xl_editor(tmp_path, query_blocks=blocks, guidance_strength=0.02)
    assert len(editor.layer_names) == (4 if blocks == "first" else 10)
    prompts = editor.encode_prompts("a red shirt", "a blue shirt", "")
    latents, controls = inputs()
    other = editor.extract(inputs(seed=9)[0], 4, prompts, controls)
    assert list(other.queries) == editor.layer_names
    fit = CodecFit(6)
    fit.add(other.queries)
    codec = fit.codec()
    targets = QueryTargets(codec, codec.encode(other.queries), torch.ones(2))
    keys_values = editor._source_keys_values(SourceBranch(latents, controls), 4, prompts)
    # Appearance comes from every transformer block, whatever queries are taken.
    assert len(keys_values) == 10
    distances = []
    for _ in range(8):
        with torch.no_grad():
            distances.append(editor.query_distance(latents, 4, prompts, controls, keys_values, targets))
        latents = editor._guide(latents, 4, prompts, controls, keys_values, targets)
    curve = torch.stack(distances)
    assert (curve[1:] < curve[:-1]).all()


def test_layers_of_the_real_architecture() -> None:
    with init_empty_weights():
        unet = UNet2DConditionModel(**SDXL)
    layers = list(decoder_self_attention(unet))
    assert len(layers) == 36
    assert query_layers(layers, "all") == layers
    first = query_layers(layers, "first")
    assert first == [
        f"up_blocks.{block}.attentions.{n}.transformer_blocks.0.attn1" for block in (0, 1) for n in range(3)
    ]


def test_the_vae_stays_in_float32_where_it_overflows(tmp_path: Path) -> None:
    parts = make_xl_editor(tmp_path, dtype="bfloat16")
    assert parts.vae.dtype == parts.unet.dtype == torch.bfloat16
    half = make_xl_editor(tmp_path, dtype="float16")
    assert half.vae.config.force_upcast
    assert (half.vae.dtype, half.unet.dtype) == (torch.float32, torch.float16)
    with half.in_float32():
        assert half.unet.dtype == torch.float32
    assert (half.vae.dtype, half.unet.dtype) == (torch.float32, torch.float16)


def test_the_estimate_of_memory_follows_the_transformer_blocks(tmp_path: Path) -> None:
    editor = make_xl_editor(tmp_path, guidance_strength=0.05)
    prompts = editor.encode_prompts("a red shirt", "a blue shirt", "")
    generator = torch.Generator().manual_seed(0)
    controls = torch.rand(1, 3, 128, 128, generator=generator)
    other = editor.extract(torch.randn(1, 4, 64, 64, generator=generator), 4, prompts, controls)
    fit = CodecFit(6)
    fit.add(other.queries)
    codec = fit.codec()
    targets = QueryTargets(codec, codec.encode(other.queries), torch.ones(1))
    weights = {each.untyped_storage().data_ptr() for model in editor._models() for each in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    latents = torch.randn(1, 4, 64, 64, generator=generator).requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        distance = editor.query_distance(latents, 4, prompts, controls, None, targets)
    assert distance.requires_grad
    measured = sum(storage.nbytes() for storage in kept.values())
    assert 0.8 * measured < estimate_bytes(editor, 1, (128, 128)) < 1.3 * measured


def test_one_view_of_1024_pixels_fits_a_card_of_24_gib() -> None:
    vae = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)))
    like: Any = SimpleNamespace(
        config=qnerf_edit_xl.config.pipeline.editor,  # pyright: ignore[reportAttributeAccessIssue]
        checkpointing=False,
        unet=SimpleNamespace(config=SimpleNamespace(**SDXL)),
        vae=vae,
        latent_stride=8,
        dtype=torch.float16,
    )
    gib, weights = 2**30, 8.9
    estimate = estimate_bytes(like, qnerf_edit_xl.config.pipeline.chunk, (1024, 1024)) / gib  # pyright: ignore[reportAttributeAccessIssue]
    assert estimate == pytest.approx(5.9, abs=0.1)
    assert weights + estimate < 0.9 * 24
    like.checkpointing = True
    assert estimate_bytes(like, 1, (1024, 1024)) / gib == pytest.approx(2.0, abs=0.3)
