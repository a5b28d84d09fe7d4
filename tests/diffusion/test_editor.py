"""The sampling loop against diffusers' own pipeline and schedulers."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, StableDiffusionControlNetPipeline
from helpers.models import DEFAULTS, make_editor, models_of, random_parts, sampled_by_diffusers
from torch._dynamo.testing import CompileCounter

from qnerf_nerfstudio.diffusion.attention import AttentionState
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.queries import CodecFit
from qnerf_nerfstudio.diffusion.text import Prompts

PREDICTIONS = ["epsilon", "v_prediction"]


def inputs(views: int = 2, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, 4, 8, 8, generator=generator), torch.rand(views, 3, 16, 16, generator=generator)


def prompts(editor: ControlNetEditor) -> Prompts:
    return editor.encode_prompts("a red shirt", "a blue shirt", "grey")


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(tmp_path: Path, prediction_type: str, guidance_scale: float) -> None:
    editor = make_editor(tmp_path, prediction_type, guidance_scale=guidance_scale, controlnet_scale=(0.7,))
    latents, controls = inputs(1)
    ours = latents
    for step in range(editor.num_steps):
        ours = editor.denoise_step(ours, step, prompts(editor), controls)
    pipeline = StableDiffusionControlNetPipeline(
        **random_parts(tmp_path, prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs = sampled_by_diffusers(pipeline, controls, latents, "grey", editor.num_steps, guidance_scale, 0.7)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_several_controlnets_are_what_the_diffusers_pipeline_makes_of_them(tmp_path: Path) -> None:
    parts, other = random_parts(tmp_path), random_parts(tmp_path)["controlnet"]
    for parameter in other.parameters():
        parameter.data.mul_(1.3)
    both = [parts["controlnet"], other]
    config = EditorConfig(**{**DEFAULTS, "guidance_scale": 4.0, "controlnet_scale": (0.7, 0.4)})
    editor = ControlNetEditor(models_of(parts), both, config, "cpu")
    latents, controls = inputs(1)
    second = inputs(1, seed=8)[1]
    ours = latents
    for step in range(editor.num_steps):
        ours = editor.denoise_step(ours, step, prompts(editor), torch.cat([controls, second], dim=1))
    unneeded = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionControlNetPipeline(**{**random_parts(tmp_path), "controlnet": both}, **unneeded)
    theirs = sampled_by_diffusers(pipeline, [controls, second], latents, "grey", editor.num_steps, 4.0, [0.7, 0.4])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@torch.no_grad()
def test_inversion_step_equals_ddim_inverse_scheduler(tmp_path: Path, prediction_type: str) -> None:
    editor = make_editor(tmp_path, prediction_type)
    latents, controls = inputs()
    text = editor.prompts.encode("a red shirt")
    scheduler = DDIMInverseScheduler.from_config(editor.scheduler.config)
    scheduler.set_timesteps(editor.num_steps)
    ours = theirs = latents
    for step, timestep in zip(range(editor.num_steps - 1, -1, -1), scheduler.timesteps, strict=True):
        ours = editor.invert_step(ours, step, text, controls)
        prediction = editor._predict(theirs, step, text, controls, AttentionState())
        theirs = scheduler.step(prediction, timestep, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@torch.no_grad()
def test_fixed_point_iterations_make_inversion_exact(tmp_path: Path, prediction_type: str) -> None:
    def round_trip(iterations: int) -> float:
        editor = make_editor(tmp_path, prediction_type, inversion_iterations=iterations, num_steps=20)
        clean, controls = inputs()
        same = editor.prompts.encode("a red shirt")
        latents = clean
        for step in range(editor.num_steps - 1, -1, -1):
            latents = editor.invert_step(latents, step, same, controls)
        for step in range(editor.num_steps):
            latents = editor.denoise_step(latents, step, Prompts(same, same, same), controls)
        return float((latents - clean).norm() / clean.norm())

    errors = [round_trip(iterations) for iterations in (1, 2, 6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def targets_of(editor: ControlNetEditor, latents: torch.Tensor, controls: torch.Tensor, step: int) -> QueryTargets:
    """The codes of other latents' queries."""
    extraction = editor.extract(latents, step, prompts(editor), controls)
    fit = CodecFit(6)
    fit.add(extraction.queries)
    codec = fit.codec()
    return QueryTargets(codec, codec.encode(extraction.queries), torch.ones(len(latents)))


def test_guidance_lowers_the_query_distance_monotonically(tmp_path: Path) -> None:
    editor = make_editor(tmp_path, guidance_strength=0.02)
    latents, controls = inputs()
    targets = targets_of(editor, inputs(seed=9)[0], controls, 4)
    distances = []
    for _ in range(12):
        with torch.no_grad():
            distances.append(editor.query_distance(latents, 4, prompts(editor), controls, None, targets))
        latents = editor._guide(latents, 4, prompts(editor), controls, None, targets)
    curve = torch.stack(distances)
    assert (curve[1:] < curve[:-1]).all()
    assert (curve[-1] < 0.9 * curve[0]).all()


def test_guidance_step_has_the_stated_length(tmp_path: Path) -> None:
    editor = make_editor(tmp_path, guidance_strength=0.03)
    latents, controls = inputs()
    targets = targets_of(editor, inputs(seed=9)[0], controls, 4)
    moved = editor._guide(latents, 4, prompts(editor), controls, None, targets)
    lengths = (moved - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
    with torch.no_grad():
        distance = editor.query_distance(latents, 4, prompts(editor), controls, None, targets)
    expected = 0.03 * (distance / len(targets.codec.layers)).clamp_max(1)
    torch.testing.assert_close(lengths, expected, atol=1e-5, rtol=1e-4)
    assert (expected < 0.03).any() or (distance >= len(targets.codec.layers)).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("step", [1, -1])
@torch.no_grad()
def test_render_draws_the_predicted_clean_latents_and_keeps_the_noise(
    tmp_path: Path, prediction_type: str, step: int
) -> None:
    editor = make_editor(tmp_path, prediction_type, render_weight=0.25, render_stop=1.0, guidance_strength=0.0)
    latents, controls = inputs()
    step %= editor.num_steps
    timestep, scheduler = editor.scheduler.timesteps[step], editor.scheduler
    render = inputs(seed=9)[0]
    targets = replace(targets_of(editor, latents, controls, step), clean=render)
    plain = editor.denoise_step(latents, step, prompts(editor), controls)
    drawn = editor.denoise_step(latents, step, prompts(editor), controls, targets=targets)
    # Diffusers' own noising of the drawn clean latents with the noise that was predicted.
    prediction = editor._predict(latents, step, prompts(editor).target, controls, AttentionState())
    clean = scheduler.step(prediction, int(timestep), latents).pred_original_sample
    alpha = scheduler.alphas_cumprod[timestep]
    noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    mixed = 0.75 * clean + 0.25 * render
    if step + 1 < editor.num_steps:
        following = scheduler.timesteps[step + 1].expand(len(latents))
        torch.testing.assert_close(plain, scheduler.add_noise(clean, noise, following), atol=1e-4, rtol=1e-4)
        expected = scheduler.add_noise(mixed, noise, following)
    else:
        last = scheduler.final_alpha_cumprod
        expected = last.sqrt() * mixed + (1 - last).sqrt() * noise
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_renders_draw_until_render_stop(tmp_path: Path) -> None:
    editor = make_editor(tmp_path, render_stop=0.5, guidance_strength=0.0)
    latents, controls = inputs()
    for step in range(editor.num_steps):
        targets = replace(targets_of(editor, latents, controls, step), clean=inputs(seed=9)[0])
        plain = editor.denoise_step(latents, step, prompts(editor), controls)
        drawn = editor.denoise_step(latents, step, prompts(editor), controls, targets=targets)
        assert torch.equal(plain, drawn) == (step >= editor.num_steps // 2)


@torch.no_grad()
def test_guidance_leaves_views_alone_that_agree_already(tmp_path: Path) -> None:
    editor = make_editor(tmp_path, guidance_strength=0.05)
    latents, controls = inputs()
    targets = targets_of(editor, latents, controls, 4)
    moved = editor._guide(latents, 4, prompts(editor), controls, None, targets)
    torch.testing.assert_close(moved, latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_blend_of_one_equals_replace_and_reaches_the_targets(tmp_path: Path) -> None:
    results = {}
    for name, settings in {
        "replace": {"mode": "replace"},
        "blend": {"mode": "blend", "blend_weight": 1.0},
        "none": {"mode": "blend", "blend_weight": 0.0},
    }.items():
        editor = make_editor(tmp_path, guidance_scale=2.0, **settings)
        latents, controls = inputs()
        source = SourceBranch(inputs(seed=5)[0], controls)
        targets = targets_of(editor, inputs(seed=9)[0], controls, 4)
        results[name] = editor.denoise_step(latents, 4, prompts(editor), controls, source, targets)
        results["plain"] = editor.denoise_step(latents, 4, prompts(editor), controls, source)
    torch.testing.assert_close(results["blend"], results["replace"])
    torch.testing.assert_close(results["none"], results["plain"], atol=1e-5, rtol=1e-5)
    assert (results["replace"] - results["plain"]).abs().max() > 1e-4


@torch.no_grad()
def test_editing_a_view_into_itself_keeps_it(tmp_path: Path) -> None:
    editor = make_editor(tmp_path, inversion_iterations=6, num_steps=20)
    clean, controls = inputs()
    same = editor.prompts.encode("a red shirt")
    trajectory = editor.invert(clean, same, controls)
    latents = trajectory[0]
    for step in range(editor.num_steps):
        source = SourceBranch(trajectory[step], controls)
        latents = editor.denoise_step(latents, step, Prompts(same, same, same), controls, source)
    torch.testing.assert_close(latents, clean, atol=5e-3, rtol=5e-3)


def test_sizes_are_multiples_of_the_stride(tmp_path: Path) -> None:
    editor = make_editor(tmp_path, resolution=64)
    assert editor.stride == 4
    assert editor.image_size(100, 100) == (64, 64)
    height, width = editor.image_size(270, 480)
    assert (height, width) == (64, 112) or abs(width / height - 480 / 270) < 4 / 64
    assert height % editor.stride == width % editor.stride == 0


@torch.no_grad()
def test_query_maps_of_non_square_latents_have_their_shape(tmp_path: Path) -> None:
    editor = make_editor(tmp_path)
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    maps = editor.extract(latents, 3, prompts(editor), torch.rand(1, 3, 16, 24)).queries
    assert {queries.shape[1:3] for queries in maps.values()} == {(8, 12)}


@torch.no_grad()
def test_compiled_it_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    settings = {"guidance_scale": 3.0, "guidance_strength": 0.05, "injection_start": 0.0}
    plain, compiled = make_editor(tmp_path, **settings), make_editor(tmp_path, **settings, compile=True)
    latents, controls = inputs()
    source = SourceBranch(inputs(seed=5)[0], controls)
    targets = targets_of(plain, inputs(seed=9)[0], controls, 4)

    def results(editor: ControlNetEditor, step: int) -> list[torch.Tensor]:
        start = latents, step, prompts(editor), controls, source
        inverted = editor.invert_step(latents, step, prompts(editor).source, controls)
        sampled, guided = editor.denoise_step(*start), editor.denoise_step(*start, targets)
        return [inverted, sampled, guided, *editor.extract(*start).queries.values()]

    for step in (4, 5):
        torch.testing.assert_close(results(compiled, step), results(plain, step), atol=1e-5, rtol=1e-5)
    # One graph of inversions and one of steps with their source, whatever the timestep.
    assert counter.frame_count == 2


def test_memory_settings_change_no_result(tmp_path: Path) -> None:
    plain = make_editor(tmp_path, guidance_strength=0.05, vae_slicing=False)
    small = make_editor(tmp_path, guidance_strength=0.05, checkpointing=True, vae_tiling=True)
    assert small.vae.use_slicing and small.vae.use_tiling and small.unet.is_gradient_checkpointing
    latents, controls = inputs()
    source = SourceBranch(inputs(seed=5)[0], inputs(seed=6)[1])
    targets = targets_of(plain, inputs(seed=9)[0], controls, 4)
    steps = [each.denoise_step(latents, 4, prompts(each), controls, source, targets) for each in (plain, small)]
    assert (steps[0] - plain.denoise_step(latents, 4, prompts(plain), controls, source)).norm() > 1e-3
    torch.testing.assert_close(*steps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.decode(latents), small.decode(latents), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.encode(controls), small.encode(controls), atol=1e-5, rtol=1e-5)
