"""Trains the bundled editor's VAE on images of the procedural domain."""

import copy
import math
import time

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from diffusers.training_utils import set_seed
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.training.checkpoint import load_state, save_state
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.data import HELD_OUT, Pool, render_pair, training_pool
from qnerf_nerfstudio.toy.training.models import IMAGE_SIZE, LATENT_CHANNELS, build_vae

KL_WEIGHT = 1e-4
"""Times the mean KL per latent value: enough to keep latents smooth and near unit scale."""
FIGURE_WEIGHT = 4.0
"""The figure fills an eighth of an image; its pixels count this much more."""
SPREAD_POWER = 1 / 3
"""The spreads of the latent channels are raised to this power, so that noise does not hide the channels of edges."""


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then cosine decay to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))))


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float = 0.995) -> None:
    """Exponential moving average of the weights, with a warm-up of the decay."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, weight)


def _pass_through(conv: nn.Conv2d, kernel: list[float]) -> None:
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
        start = 0 if in_channels <= LATENT_CHANNELS else in_channels
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
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if isinstance(module.conv_shortcut, nn.Conv2d):
                _pass_through(module.conv_shortcut, [1.0])
        elif isinstance(module, Downsample2D):
            _pass_through(module.conv, [0.5, 0.5, 0.0])
        elif isinstance(module, Upsample2D):
            _pass_through(module.conv, [0.25, 0.5, 0.25])
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _pass_through(conv, [0.0, 1.0, 0.0])
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.mul_(0.1).add_(torch.eye(len(conv.weight))[:, :, None, None])
        conv.bias.zero_()

    features: dict[str, Tensor] = {}
    hooks = [
        part.conv_norm_out.register_forward_hook(lambda _, __, output: features.update(last=F.silu(output)))
        for part in (vae.encoder, vae.decoder)
    ]
    vae.encode(images)
    weight, bias = _least_squares(features["last"], F.avg_pool2d(images, 8))
    out = vae.encoder.conv_out
    out.weight.mul_(0.1)
    out.weight[:3] = 0
    out.weight[:3, :, 1, 1], out.bias[:3] = 2 * weight, 2 * bias
    out.weight[LATENT_CHANNELS:], out.bias[LATENT_CHANNELS:] = 0, -4
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


def train_vae(config: TrainEditorConfig, console: Console) -> AutoencoderKL:
    """Train the VAE for `config.vae_steps` steps, or go on from its checkpoint.

    Returns:
        The VAE with averaged weights and balanced latent channels. The VAE of `config.initial` stays as it is where it
        is trained for no step.
    """
    set_seed(config.seed)
    device = torch.device(config.device)
    pool = training_pool(config)
    if config.initial is None:
        vae = build_vae()
        start_linear(vae, to_unit(torch.cat([pair.images for pair in pool.grow(32)])) * 2 - 1)
    else:
        vae = AutoencoderKL.from_pretrained(config.initial / "vae", torch_dtype=torch.float32)
    vae = vae.to(device, memory_format=torch.channels_last)
    if config.initial is not None and config.vae_steps == 0:
        return vae.eval().requires_grad_(False)
    average = copy.deepcopy(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_lr, weight_decay=1e-4)
    path = config.work / "vae.safetensors"
    done = load_state(path, vae, average, optimizer)
    pool.grow(64 + (done if done < config.vae_steps else 0))
    started = time.monotonic()
    for step in range(done, config.vae_steps):
        pool.grow(1)
        generator = torch.Generator().manual_seed(config.seed * 7_919 + step)
        images, masks = _batch(pool, config, step, generator)
        weight = 1 + FIGURE_WEIGHT * F.max_pool2d(masks.to(device), 5, 1, 2)
        images = images.to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.vae_steps, config.vae_lr)
        posterior = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - images
        loss = (weight * (error.square() + 0.1 * error.abs())).mean() / weight.mean()
        loss = loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, vae, step)
        if (step + 1) % config.report_every == 0 or step + 1 == config.vae_steps:
            save_state(path, vae, average, optimizer, step + 1)
            rate = (time.monotonic() - started) / (step + 1 - done)
            console.print(
                f"vae {step + 1}/{config.vae_steps}  loss {loss.item():.4f}  "
                f"round trip {round_trip_psnr(average):.2f} dB  {rate:.2f} s/step"
            )
    average.eval().requires_grad_(False)
    balance_channels(average, torch.cat([encode(average, pair.images) for pair in pool.pairs[:64]]))
    return average


def _batch(
    pool: Pool, config: TrainEditorConfig, step: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B 1 h w"]]:
    """Images in [-1, 1] and masks: half-size crops at first, which buy four times the steps, whole ones at the end."""
    whole = step >= 0.75 * config.vae_steps
    pairs = pool.sample(max(1, config.vae_batch // 2) if whole else config.vae_batch, generator)
    images = to_unit(torch.stack([pair.images[step % 2] for pair in pairs])) * 2 - 1
    masks = torch.stack([pair.masks[step % 2] for pair in pairs])[:, None].float()
    if whole:
        return images, masks
    size = IMAGE_SIZE // 2
    corners = torch.randint(IMAGE_SIZE - size + 1, (len(pairs), 2), generator=generator).tolist()
    crops = [
        (image[:, y : y + size, x : x + size], mask[:, y : y + size, x : x + size])
        for image, mask, (y, x) in zip(images, masks, corners, strict=True)
    ]
    cropped_images, cropped_masks = zip(*crops, strict=True)
    return torch.stack(cropped_images), torch.stack(cropped_masks)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N C h w"]:
    """Unscaled latents (posterior mean) of images."""
    device = next(vae.parameters()).device
    return vae.encode(to_unit(images).to(device) * 2 - 1).latent_dist.mean


@torch.no_grad()
def round_trip_psnr(vae: AutoencoderKL, count: int = 16) -> float:
    """PSNR in dB of decoded latents over held-out images (mean over images)."""
    images = torch.cat([render_pair(HELD_OUT + i, IMAGE_SIZE).images for i in range(count // 2)])
    decoded = (vae.decode(encode(vae, images)).sample.cpu() / 2 + 0.5).clamp(0, 1)
    return float(psnr(decoded, to_unit(images), None).mean())
