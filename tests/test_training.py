"""Training of the bundled editor, and the bundled editor itself."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from qnerf_nerfstudio.scenes import Pose
from rich.console import Console
from safetensors.torch import load_file

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.diffusion.config import BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.controlnets import BUNDLED_KINDS
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.toy.capture import focal_length, orbit_camera
from qnerf_nerfstudio.toy.figure import Body, joints
from qnerf_nerfstudio.toy.scoring import iou, psnr, silhouette
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.data import HELD_OUT, LIMB_BONES, draw_loosely, render_pair, training_pool
from qnerf_nerfstudio.toy.training.evaluate import edit_pair, load_trained
from qnerf_nerfstudio.toy.training.models import IMAGE_SIZE, MAX_TOKENS, build_codec, build_tokenizer
from qnerf_nerfstudio.toy.training.train import train_editor
from qnerf_nerfstudio.toy.training.vae import balance_channels, encode, round_trip_psnr, start_linear


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


def test_balanced_channels_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    codec = build_codec().eval().requires_grad_(False)
    images = torch.cat([render_pair(i, IMAGE_SIZE).images for i in range(2)])
    start_linear(codec, to_unit(images) * 2 - 1)
    latents = encode(codec, images)
    decoded, deviation = codec.decode(latents).sample, codec.encode(to_unit(images) * 2 - 1).latent_dist.std
    balance_channels(codec, latents)
    balanced = encode(codec, images)
    torch.testing.assert_close(codec.decode(balanced).sample, decoded, atol=1e-4, rtol=1e-4)
    before, after = latents.std(dim=(0, 2, 3)), balanced.std(dim=(0, 2, 3))
    torch.testing.assert_close(after, before ** (1 / 3))
    relative = codec.encode(to_unit(images) * 2 - 1).latent_dist.std / balanced.std(dim=(0, 2, 3))[:, None, None]
    torch.testing.assert_close(relative, deviation / before[:, None, None])
    assert abs(balanced.std() * codec.config.scaling_factor - 1) < 1e-3


def test_pairs_are_reproducible_and_held_out_ones_differ() -> None:
    first, again, held = render_pair(3, 64), render_pair(3, 64), render_pair(HELD_OUT + 3, 64)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.controls, again.controls)
    assert not torch.equal(first.images, held.images)
    assert first.caption.startswith("a figure with")


def test_every_seed_trains_on_pairs_of_its_own_and_none_that_is_held_out() -> None:
    pools = [training_pool(TrainEditorConfig(seed=seed, pool=5000)) for seed in (0, 1, 199)]
    assert [pool.first for pool in pools] == [0, 5000, HELD_OUT - 5000]
    with pytest.raises(UserError, match=r"--seed is 200.*0 to 199"):
        training_pool(TrainEditorConfig(seed=200, pool=5000))


def test_loose_controls_leave_out_limbs_and_their_joints() -> None:
    skeleton = joints(Body(), Pose())
    bones = [bone for bone in OPENPOSE_BONES if set(bone) <= set(skeleton)]
    focal = focal_length(128)
    c2w = torch.stack([orbit_camera(azimuth, 10, 4, 1) for azimuth in (0.0, 90.0, 180.0)])
    cameras = Views(c2w, torch.tensor([[focal, focal, 64, 64]]).expand(3, 4), torch.zeros(3, 6), (128, 128))
    generator = torch.Generator().manual_seed(0)
    whole = draw_skeleton(cameras, skeleton, bones)
    assert torch.equal(draw_loosely(cameras, skeleton, 0.0, generator), whole)
    trunk = {name: skeleton[name] for bone in bones if bone not in LIMB_BONES for name in bone}
    without = draw_skeleton(cameras, trunk, [bone for bone in bones if bone not in LIMB_BONES])
    assert torch.equal(draw_loosely(cameras, skeleton, 1.0, generator), without)
    loose = draw_loosely(cameras, skeleton, 0.4, generator)
    drawn = [int((image != 0).sum()) for image in (without, loose, whole)]
    assert drawn[0] < drawn[1] < drawn[2]
    assert torch.equal(render_pair(HELD_OUT, 64).controls, render_pair(HELD_OUT, 64, dropped=0.0).controls)
    assert not torch.equal(render_pair(HELD_OUT, 64).controls, render_pair(HELD_OUT, 64, dropped=1.0).controls)


def test_bundled_editor_fits_its_size() -> None:
    size = sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*") if path.is_file())
    assert size <= 40e6
    assert not [path for path in BUNDLED_FOLDER.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert (BUNDLED_FOLDER / "README.md").exists()
    for path in BUNDLED_FOLDER.rglob("*.json"):
        assert "_name_or_path" not in path.read_text()


def train(
    folder: Path, codec_steps: int, denoiser_steps: int, initial: Path | None = None, control_only: bool = False
) -> None:
    """Train a little."""
    config = TrainEditorConfig(
        control_only=control_only,
        out=folder / "out",
        work=folder / "work",
        initial=initial,
        codec_steps=codec_steps,
        codec_batch=2,
        denoiser_steps=denoiser_steps,
        denoiser_batch=2,
        bf16=False,
        pool=4,
        report_every=1,
        device="cpu",
    )
    train_editor(config, Console(quiet=True))
    assert torch.tensor(1e-310, dtype=torch.float64) * 1 > 0  # denormals are flushed in training only


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    train(tmp_path / "whole", 2, 2)
    train(tmp_path / "resumed", 1, 0)
    train(tmp_path / "resumed", 2, 1)
    train(tmp_path / "resumed", 2, 2)
    whole, resumed = (load_file(tmp_path / name / "work/denoiser.safetensors") for name in ("whole", "resumed"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)
    curve = json.loads((tmp_path / "resumed/work/denoiser-curve.json").read_text())
    assert [step for step, _ in curve] == [1, 2]
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "resumed/out", use_safetensors=True)
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels


def test_training_starts_from_a_model_set(tmp_path: Path) -> None:
    train(tmp_path, 0, 0, initial=BUNDLED_FOLDER)
    for path in BUNDLED_FOLDER.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / path.relative_to(BUNDLED_FOLDER)), load_file(path)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for path in BUNDLED_FOLDER.glob("*/config.json"):
        assert (tmp_path / "out" / path.relative_to(BUNDLED_FOLDER)).read_text().count("_name_or_path") == 0


def test_the_controlnet_can_be_trained_alone(tmp_path: Path) -> None:
    train(tmp_path, 0, 2, initial=BUNDLED_FOLDER, control_only=True)
    for path in BUNDLED_FOLDER.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / path.relative_to(BUNDLED_FOLDER)), load_file(path)
        same = all(torch.equal(ours[name], value) for name, value in theirs.items())
        assert same == (path.parent.name != "controlnet"), path


def test_training_pairs_have_skeletons_or_depths_as_controls() -> None:
    pairs = [render_pair(index, 64) for index in range(12)]
    grey = [bool((pair.controls[..., 0] == pair.controls[..., 1]).all()) for pair in pairs]
    assert 2 <= sum(grey) <= 10
    depth = render_pair(HELD_OUT, 64, kind="depth")
    assert torch.equal(depth.images, render_pair(HELD_OUT, 64).images)
    seen = depth.controls[..., 0] > 0
    assert (seen & depth.masks).sum() > 0.8 * depth.masks.sum()


@pytest.mark.parametrize("kind", BUNDLED_KINDS)
def test_bundled_editor_follows_the_control_and_keeps_the_colours(kind: Literal["openpose", "depth"]) -> None:
    editor = load_trained(BUNDLED_FOLDER, "cpu")
    pairs = [render_pair(HELD_OUT + 500 + i, IMAGE_SIZE, with_room=True, kind=kind) for i in range(8)]
    edited = edit_pair(editor, pairs)
    sources, truths = (to_unit(torch.stack([pair.images[i] for pair in pairs])) for i in (0, 1))
    rooms = to_unit(torch.stack([pair.room for pair in pairs if pair.room is not None]))
    masks = torch.stack([pair.masks for pair in pairs])
    found = silhouette(edited, rooms, torch.stack([pair.palette for pair in pairs]))
    assert iou(found, masks[:, 1]).mean() > iou(found, masks[:, 0]).mean() + 0.1
    unions = masks.any(1)
    assert psnr(edited, truths, unions).mean() > psnr(sources, truths, unions).mean() + 1.5
