"""What the denoiser is asked in a training step: to find the clean latents of pairs from noisy ones."""

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.toy.training.pairs import LatentPairs

FIGURE_WEIGHT = 3.0
"""Latents of the figure (either pose) count this much more than the room's."""
LOOSE_CONTROL_SHARE = 0.5
"""Share of the pairs whose controls are the loose ones."""
SHARED_NOISE_SHARE = 0.6
"""Share of the pairs whose two images get the same noise, as an edit starts from its source view's inverted noise."""
SOURCE_INPUT_SHARE = 0.5
"""Share of the pairs with the same noise whose target gets its source's noisy latents as input, at high noise only."""
SOURCE_INPUT_FROM_TIMESTEP = 700
"""The first timestep, of 1000, at which that happens."""
MIXED_INPUT_FROM_TIMESTEP = 300
"""The first timestep at which targets that follow queries get a mixture of both noisy latents as input."""


LEAST_EXPLAINED = 0.4
"""Least share of the variance of queries that is left of them in training: fields explain 0.6 to 0.75."""


@dataclass(frozen=True)
class Inputs:
    """Noisy latents of sources, then of their targets, and controls."""

    noisy: Float[Tensor, "N C h w"]
    """Noisy latents."""
    controls: Float[Tensor, "N 3 H W"]
    """Control images in [0, 1]."""


@dataclass(frozen=True)
class Task(Inputs):
    """What is predicted for B pairs, sources first, and from what."""

    timesteps: Int[Tensor, "N"]
    """Timesteps."""
    tokens: Int[Tensor, "B L"]
    """Token numbers of the captions."""
    velocities: Float[Tensor, "N C h w"]
    """What v-prediction should find."""
    masks: Bool[Tensor, "B 1 h w"]
    """Latents that see the figure in either pose."""
    right: Inputs | None
    """Where the targets are to follow queries: what these are taken from."""

    def loss(self, prediction: Float[Tensor, "N C h w"]) -> Float[Tensor, ""]:
        """Mean squared error of a prediction, the figure weighs more."""
        weight = (1 + FIGURE_WEIGHT * self.masks.float()).repeat(2, 1, 1, 1)
        return (weight * (prediction.float() - self.velocities).square()).mean() / weight.mean()


def draw_task(
    pairs: LatentPairs,
    scheduler: DDIMScheduler,
    no_caption: Int[Tensor, "1 L"],
    caption_dropout: float,
    followed: bool,
    generator: torch.Generator,
) -> Task:
    """Draw noise and timesteps for pairs, and which image of a pair is the source.

    Where the targets are to follow queries, their control is absent, the source's or loose. From
    MIXED_INPUT_FROM_TIMESTEP on their input is a mixture of their noisy latents and the source's, as it is while an
    edit is on its way from one to the other.

    Args:
        pairs: The batch.
        scheduler: The noise schedule.
        no_caption: Tokens of the empty caption.
        caption_dropout: Share of the captions that the empty one replaces.
        followed: Whether the targets are to follow queries.
        generator: Random numbers, on the device of the pairs.
    """
    count, device = len(pairs.latents), pairs.latents.device

    def chance(share: float) -> Tensor:
        return torch.rand(count, generator=generator, device=device) < share

    rows, source = torch.arange(count, device=device), chance(0.5).long()

    def ordered(values: Tensor) -> Tensor:
        return torch.cat([values[rows, source], values[rows, 1 - source]])

    clean = ordered(pairs.latents.float())
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (count,), generator=generator, device=device)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    shared = chance(1.0 if followed else SHARED_NOISE_SHARE)
    noise[count:] = torch.where(_each(shared), noise[:count], noise[count:])
    tokens = torch.where(chance(caption_dropout)[:, None], no_caption, pairs.tokens)
    noisy = scheduler.add_noise(clean, noise, timesteps.repeat(2))
    velocities = scheduler.get_velocity(clean, noise, timesteps.repeat(2))
    # An edit starts from noise that its source view was inverted to, which still holds a little of the source. So at
    # high noise some targets get their source's noisy latents as input: only the control tells the two apart there.
    share = (shared & (timesteps >= SOURCE_INPUT_FROM_TIMESTEP) & chance(SOURCE_INPUT_SHARE)).float()
    if followed:
        mixed = torch.rand(count, generator=generator, device=device)
        share = torch.where(timesteps >= MIXED_INPUT_FROM_TIMESTEP, mixed, torch.zeros_like(mixed))
    signal = _each(scheduler.alphas_cumprod.to(device)[timesteps].sqrt())
    begun = torch.lerp(noisy[count:], noisy[:count], _each(share))
    to_target = (signal * begun - clean[count:]) / (1 - signal.square()).sqrt()
    velocities = torch.cat([velocities[:count], torch.where(_each(share > 0), to_target, velocities[count:])])
    whole, loose = ordered(pairs.controls), ordered(pairs.loose)
    controls, right = torch.where(_each(chance(LOOSE_CONTROL_SHARE)).repeat(2, 1, 1, 1), loose, whole), None
    if followed:
        right = Inputs(_last(noisy), _last(to_unit(whole)))
        kinds = torch.randint(3, (count,), generator=generator, device=device)
        controls = torch.cat([whole[:count], _wrong(whole, loose, kinds)])
    return Task(
        noisy=_last(torch.cat([noisy[:count], begun])),
        controls=_last(to_unit(controls)),
        timesteps=timesteps.repeat(2),
        tokens=tokens,
        velocities=velocities,
        masks=pairs.masks,
        right=right,
    )


def as_rendered(queries: Float[Tensor, "B N C"], generator: torch.Generator) -> Float[Tensor, "B N C"]:
    """Queries of square maps as a field would render them that explains a share of their variance, drawn for each map.

    What is left has that share of the variance, and so has the covariance with the queries, as for the best linear
    estimate. The error is smooth over two tokens.

    Args:
        queries: Queries of B maps.
        generator: Random numbers, on the device of the queries.
    """
    (count, tokens, channels), device = queries.shape, queries.device
    side = math.isqrt(tokens)
    half = max(1, side // 2)
    explained = torch.rand(count, 1, 1, generator=generator, device=device) * (1 - LEAST_EXPLAINED) + LEAST_EXPLAINED
    error = torch.randn(count, channels, half, half, generator=generator, device=device)
    error = F.interpolate(error, (side, side), mode="bilinear").flatten(2).movedim(1, 2)
    error = error / error.std(correction=0).clamp_min(1e-6)
    mean, spread = queries.mean(1, keepdim=True), queries.std(1, correction=0, keepdim=True)
    return mean + explained * (queries - mean) + (explained * (1 - explained)).sqrt() * spread * error


def _wrong(
    whole: UInt8[Tensor, "N H W 3"], loose: UInt8[Tensor, "N H W 3"], kinds: Int[Tensor, "B"]
) -> UInt8[Tensor, "B H W 3"]:
    """Controls that do not say the targets' poses: none, the sources', or loose ones."""
    count = len(kinds)
    options = torch.stack([torch.zeros_like(whole[:count]), whole[:count], loose[count:]])
    return options[kinds, torch.arange(count, device=kinds.device)]


def _each(values: Tensor) -> Tensor:
    """One value per pair, to be combined with images."""
    return values[:, None, None, None]


def _last(images: Tensor) -> Tensor:
    """In the memory format that convolutions are fast in."""
    return images.contiguous(memory_format=torch.channels_last)
