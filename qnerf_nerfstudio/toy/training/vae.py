"""Trains the bundled editor's VAE on images of the procedural domain."""

import copy
import time

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.training.checkpoint import Progress, load_state, save_state
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.data import HELD_OUT, render_pair
from qnerf_nerfstudio.toy.training.figures import sample_scenes
from qnerf_nerfstudio.toy.training.model_set import ModelSet
from qnerf_nerfstudio.toy.training.models import vae_stride
from qnerf_nerfstudio.toy.training.pairs import CPU_CHUNK, ImagePairs, Pool, draw_pairs, pairs_after
from qnerf_nerfstudio.toy.training.schedule import Budget, learning_rate, update_average

KL_WEIGHT = 1e-4
"""Times the mean KL per latent value: enough to keep latents smooth and near unit scale."""
FIGURE_WEIGHT = 4.0
"""The figure fills an eighth of an image; its pixels count this much more."""
START_CHUNKS, BALANCE_CHUNKS = 2, 4
"""Chunks of pairs on which the VAE is started, and its latent channels are balanced."""
ROUND_TRIP_PAIRS = 8
"""Held-out pairs of the round trip that is printed."""
ENCODED_AT_ONCE = 16
"""Images."""
SPREAD_POWER = 1 / 3
"""The spreads of the latent channels are raised to this power, so that noise does not hide the channels of edges."""


def _pass_through(conv: nn.Conv2d, kernel: list[float], latent_channels: int) -> None:
    """Let a convolution copy its first channels, blurred by a separable kernel, with weak random mixing.

    New channels start at constants of both signs. They keep the group normalisation's statistics from depending on the
    image alone, which would wash out its colours.
    """
    out_channels, in_channels = conv.weight.shape[:2]
    taps = torch.outer(torch.tensor(kernel), torch.tensor(kernel))
    conv.weight.mul_(0.1).sub_(conv.weight.mean(dim=(1, 2, 3), keepdim=True))
    conv.weight.add_(torch.eye(out_channels, in_channels)[:, :, None, None] * taps)
    assert conv.bias is not None
    constants = torch.tensor([1.0] * 4 + [-1.0] * 4).repeat(out_channels // 8 + 1)[:out_channels]
    conv.bias.zero_()
    if out_channels > in_channels:
        start = 0 if in_channels <= latent_channels else in_channels
        conv.bias[start:] = constants[start:]


def _least_squares(
    features: Float[Tensor, "N F H W"], target: Float[Tensor, "N C H W"]
) -> tuple[Float[Tensor, "C F"], Float[Tensor, "C"]]:
    """Weights and bias of the best linear map from feature maps to `target`."""
    flat = features.movedim(1, -1).flatten(0, 2).double()  # in float32 the normal equations can come out singular
    flat = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
    wanted = target.movedim(1, -1).flatten(0, 2).double()
    normal = flat.T @ flat + 1e-6 * len(flat) * torch.eye(flat.shape[1], dtype=flat.dtype)
    solution = torch.linalg.solve(normal, flat.T @ wanted)
    return solution[:-1].T, solution[-1]


@torch.no_grad()
def start_linear(vae: AutoencoderKL, images: Float[Tensor, "N 3 H W"]) -> None:
    """Start the VAE as a block average and its interpolation, solved by least squares on `images` in [-1, 1].

    From a random start, group normalisation makes a VAE take hours to learn colours.
    """
    stride, channels = vae_stride(vae), vae.config.latent_channels
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if isinstance(module.conv_shortcut, nn.Conv2d):
                _pass_through(module.conv_shortcut, [1.0], channels)
        elif isinstance(module, Downsample2D):
            _pass_through(module.conv, [0.5, 0.5, 0.0], channels)
        elif isinstance(module, Upsample2D):
            _pass_through(module.conv, [0.25, 0.5, 0.25], channels)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _pass_through(conv, [0.0, 1.0, 0.0], channels)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.mul_(0.1).add_(torch.eye(len(conv.weight))[:, :, None, None])
        conv.bias.zero_()

    features: dict[str, Tensor] = {}
    hooks = [
        part.conv_norm_out.register_forward_hook(lambda _, __, output: features.update(last=F.silu(output)))
        for part in (vae.encoder, vae.decoder)
    ]
    vae.encode(images)
    weight, bias = _least_squares(features["last"], F.avg_pool2d(images, stride))
    out = vae.encoder.conv_out
    out.weight.mul_(0.1)
    out.weight[:3] = 0
    out.weight[:3, :, 1, 1], out.bias[:3] = 2 * weight, 2 * bias
    out.weight[channels:], out.bias[channels:] = 0, -4
    vae.decode(vae.encode(images).latent_dist.mean)
    weight, bias = _least_squares(features["last"], images)
    out = vae.decoder.conv_out
    out.weight.mul_(0.02)
    out.weight[:, :, 1, 1] = weight
    out.bias.copy_(bias)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def balance_channels(vae: AutoencoderKL, latents: Float[Tensor, "N C h w"]) -> None:
    """Rescale the latent channels towards equal spreads, and undo it in the decoder: images stay as they are.

    The scaling factor is set so that all latents together have unit standard deviation.

    Args:
        vae: The VAE, changed in place.
        latents: Unscaled latents to measure the spreads on.
    """
    spreads = latents.std(dim=(0, 2, 3))
    gains = spreads ** (SPREAD_POWER - 1)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    assert encoder is not None and decoder is not None
    count = len(gains)
    encoder.weight[:count] *= gains[:, None, None, None]
    encoder.bias[:count] *= gains
    encoder.bias[count:] += 2 * gains.log()  # the posterior's log-variances
    decoder.weight /= gains[:, None, None]
    vae.register_to_config(scaling_factor=round(1 / (latents * gains[:, None, None]).std().item(), 5))


def train_vae(config: TrainEditorConfig, models: ModelSet, console: Console) -> tuple[Progress, Progress]:
    """Train the VAE for `config.vae_steps` steps, or go on from its checkpoint.

    Args:
        config: Settings.
        models: The set; its VAE is replaced by the one with averaged weights and balanced latent channels. The VAE of
            `config.initial` stays as it is where it is trained for no step.
        console: Gets a line at every report.

    Returns:
        What earlier calls did, and what is done now.
    """
    device, size = torch.device(config.device), models.image_size
    vae = models.vae
    path = config.work / "vae.safetensors"
    if config.initial is None and not path.exists():
        start_linear(vae, to_unit(_some_images(config, size, START_CHUNKS).cpu()) * 2 - 1)
    vae = vae.to(device, memory_format=torch.channels_last)
    if config.initial is not None and config.vae_steps == 0:
        vae.eval().requires_grad_(False)
        return Progress(), Progress()
    average = copy.deepcopy(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_lr, weight_decay=1e-4)
    before = load_state(path, vae, average, optimizer)
    budget = Budget(config.vae_steps, None, before, time.monotonic())
    pool = Pool(
        lambda count, generator: _draw_chunk(count, generator, size, device), config.pool, 2 * config.seed + 1, device
    )
    held_out = torch.cat([render_pair(HELD_OUT + index, size).images for index in range(ROUND_TRIP_PAIRS)])
    for step in range(before.steps, config.vae_steps):
        pool.grow_to(pairs_after(step, config.vae_batch / 2, config.pool, device))
        generator = torch.Generator(device).manual_seed(config.seed * 7_919 + step)
        images, masks = _batch(pool, config, step, generator)
        weight = 1 + FIGURE_WEIGHT * F.max_pool2d(masks, 5, 1, 2)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, budget.share(step), config.vae_lr)
        posterior = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - images
        loss = (weight * (error.square() + 0.1 * error.abs())).mean() / weight.mean()
        loss = loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, vae, step)
        if (step + 1) % config.report_every == 0 or step + 1 == config.vae_steps:
            save_state(path, vae, average, optimizer, budget.progress(step + 1))
            quality = round_trip_psnr(average, held_out)
            console.print(f"vae step {budget.line(step + 1)}, loss {loss.item():.4f}, round trip {quality:.2f} dB")
    models.vae = average.eval().requires_grad_(False)
    balance_channels(average, encode(average, _some_images(config, size, BALANCE_CHUNKS)))
    return before, budget.progress(max(before.steps, config.vae_steps))


def _some_images(config: TrainEditorConfig, size: int, chunks: int) -> UInt8[Tensor, "N H W 3"]:
    """Images that depend on the seed alone."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = [_draw_chunk(CPU_CHUNK, generator, size, torch.device(config.device)).images for _ in range(chunks)]
    return torch.cat(drawn).flatten(0, 1)


def _draw_chunk(count: int, generator: torch.Generator, size: int, device: torch.device) -> ImagePairs:
    return draw_pairs(sample_scenes(count, generator).to(device), size)


def _batch(
    pool: Pool[ImagePairs], config: TrainEditorConfig, step: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B 1 h w"]]:
    """Images in [-1, 1] and masks: half-size crops at first, which buy four times the steps, whole ones at the end."""
    whole = step >= 0.75 * config.vae_steps
    pairs = pool.sample(max(1, config.vae_batch // 2) if whole else config.vae_batch, generator)
    images, masks = pairs.images[:, step % 2], pairs.masks[:, step % 2]
    if not whole:
        full = images.shape[1]
        side = full // 2
        corners = torch.randint(full - side + 1, (2, len(images), 1), generator=generator, device=images.device)
        rows, columns = corners + torch.arange(side, device=images.device)
        chosen = (torch.arange(len(images), device=images.device)[:, None, None], rows[:, :, None], columns[:, None])
        images, masks = images[chosen], masks[chosen]
    return to_unit(images) * 2 - 1, masks[:, None].float()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N C h w"]:
    """Unscaled latents (posterior mean) of images."""
    device = next(vae.parameters()).device
    parts = images.to(device).split(ENCODED_AT_ONCE)
    return torch.cat([vae.encode(to_unit(part) * 2 - 1).latent_dist.mean for part in parts])


@torch.no_grad()
def round_trip_psnr(vae: AutoencoderKL, images: UInt8[Tensor, "N H W 3"]) -> float:
    """PSNR in dB of decoded latents (mean over images)."""
    decoded = (vae.decode(encode(vae, images)).sample.cpu() / 2 + 0.5).clamp(0, 1)
    return float(psnr(decoded, to_unit(images), None).mean())
