"""The start of the VAE's training, and its balanced channels."""

import torch

from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.toy.training.data import HELD_OUT, render_pair
from qnerf_nerfstudio.toy.training.models import build_vae
from qnerf_nerfstudio.toy.training.vae import balance_channels, encode, round_trip_psnr, start_linear


def test_vae_starts_near_a_block_average() -> None:
    torch.manual_seed(0)
    vae = build_vae(128)
    start_linear(vae, to_unit(torch.cat([render_pair(i, 128).images for i in range(12)])) * 2 - 1)
    assert round_trip_psnr(vae, torch.cat([render_pair(HELD_OUT + i, 128).images for i in range(4)])) > 19


def test_balanced_channels_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    vae = build_vae(128).eval().requires_grad_(False)
    images = torch.cat([render_pair(i, 128).images for i in range(2)])
    start_linear(vae, to_unit(images) * 2 - 1)
    latents = encode(vae, images)
    decoded, deviation = vae.decode(latents).sample, vae.encode(to_unit(images) * 2 - 1).latent_dist.std
    balance_channels(vae, latents)
    balanced = encode(vae, images)
    torch.testing.assert_close(vae.decode(balanced).sample, decoded, atol=1e-4, rtol=1e-4)
    before, after = latents.std(dim=(0, 2, 3)), balanced.std(dim=(0, 2, 3))
    torch.testing.assert_close(after, before ** (1 / 3))
    relative = vae.encode(to_unit(images) * 2 - 1).latent_dist.std / balanced.std(dim=(0, 2, 3))[:, None, None]
    torch.testing.assert_close(relative, deviation / before[:, None, None])
    assert abs(balanced.std() * vae.config.scaling_factor - 1) < 1e-3
