"""Trains the bundled editor's UNet, ControlNet and text encoder on pairs of poses, appearance injection in the loop."""

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from qnerf_nerfstudio.common.files import atomic_write
from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.diffusion.attention import AttentionState, attention, install
from qnerf_nerfstudio.toy.training.checkpoint import Progress, load_state, save_state
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.figures import sample_scenes
from qnerf_nerfstudio.toy.training.model_set import ModelSet
from qnerf_nerfstudio.toy.training.models import build_scheduler
from qnerf_nerfstudio.toy.training.pairs import LatentPairs, Pool, draw_controls, draw_pairs, pairs_after
from qnerf_nerfstudio.toy.training.schedule import Budget, learning_rate, update_average
from qnerf_nerfstudio.toy.training.vae import encode

FIGURE_WEIGHT = 3.0
"""Latents of the figure (either pose) count this much more than the room's."""
SHARED_NOISE_SHARE = 0.6
"""Share of the pairs whose two images get the same noise, as an edit starts from its source view's inverted noise."""
SOURCE_INPUT_SHARE = 0.5
"""Share of the pairs with the same noise whose target gets its source's noisy latents as input, at high noise only."""
SOURCE_INPUT_FROM_TIMESTEP = 700
"""The first timestep, of 1000, at which that happens."""


class Denoiser:
    """UNet and ControlNet on batches of [sources, targets].

    Args:
        parts: The parts of a `ModelSet`; the UNet's attention processors are replaced.
        backend: Backend of torch.compile, which makes one graph of both models; None runs them as they are.
    """

    def __init__(self, parts: nn.ModuleDict, backend: str | Callable | None = None) -> None:
        self.state = AttentionState()
        unet, controlnet = parts["unet"], parts["controlnet"]
        install(unet, self.state)

        def forward(noisy: Tensor, timesteps: Tensor, text: Tensor, controls: Tensor) -> Tensor:
            down, middle = controlnet(noisy, timesteps, text, controls, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return unet(noisy, timesteps, text, return_dict=False, **residuals)[0]

        self.forward = forward
        if backend is not None:
            self.forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend)

    def predict(
        self,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, "N"],
        text: Float[Tensor, "N L D"],
        controls: Float[Tensor, "N 3 H W"],
        injected: bool,
    ) -> Float[Tensor, "N C h w"]:
        """The models' output; the sources' keys and values are injected where asked for."""
        settings = AttentionState(branches=2, share_first=True) if injected else AttentionState()
        prediction = None
        with attention(self.state, settings):
            prediction = self.forward(noisy, timesteps, text, controls)
        assert prediction is not None
        return prediction


def latent_pool(config: TrainEditorConfig, models: ModelSet) -> Pool[LatentPairs]:
    """The pool of pairs with their latents, controls and tokens; the VAE is on the device already."""
    device, size, scale = torch.device(config.device), models.image_size, models.vae.config.scaling_factor

    def make(count: int, generator: torch.Generator) -> LatentPairs:
        scenes = sample_scenes(count, generator)
        captions = [body.caption() for body in scenes.bodies.single()]
        scenes = scenes.to(device)
        pairs = draw_pairs(scenes, size)
        latents = (encode(models.vae, pairs.images.flatten(0, 1)) * scale).unflatten(0, (-1, 2))
        return LatentPairs(
            latents=latents.half(),
            controls=draw_controls(scenes, size, generator),
            masks=F.adaptive_max_pool2d(pairs.masks.any(1)[:, None].float(), latents.shape[-2:]) > 0,
            tokens=_tokens(models, captions).to(device),
        )

    return Pool(make, config.pool, 2 * config.seed, device)


def _tokens(models: ModelSet, captions: list[str]) -> Int[Tensor, "N L"]:
    return models.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def training_loss(
    predict: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    text_encoder: nn.Module,
    scheduler: DDIMScheduler,
    pairs: LatentPairs,
    no_caption: Int[Tensor, "1 L"],
    caption_dropout: float,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The v-prediction loss of one step on pairs; the figure's latents weigh more.

    Args:
        predict: Maps noisy latents, timesteps, text states and controls of [sources, targets] to a prediction.
        text_encoder: CLIP's text model.
        scheduler: The noise schedule.
        pairs: The batch; which image of a pair is the source is drawn.
        no_caption: Tokens of the empty caption.
        caption_dropout: Share of the captions that the empty one replaces.
        generator: Random numbers, on the device of the pairs.
    """
    count, device = len(pairs.latents), pairs.latents.device

    def chance(share: float) -> Tensor:
        return torch.rand(count, generator=generator, device=device) < share

    rows, source = torch.arange(count, device=device), chance(0.5).long()

    def ordered(values: Tensor) -> Tensor:
        return torch.cat([values[rows, source], values[rows, 1 - source]])

    clean, controls = ordered(pairs.latents.float()), to_unit(ordered(pairs.controls))
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (count,), generator=generator, device=device).repeat(2)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    shared = chance(SHARED_NOISE_SHARE)
    noise[count:] = torch.where(shared[:, None, None, None], noise[:count], noise[count:])
    tokens = torch.where(chance(caption_dropout)[:, None], no_caption, pairs.tokens)
    text = text_encoder(tokens).last_hidden_state.repeat(2, 1, 1)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    target = scheduler.get_velocity(clean, noise, timesteps)
    # An edit starts from noise that its source view was inverted to, which still holds a little of the source. So at
    # high noise some targets get their source's noisy latents as input: only the control tells the two apart there.
    misled = shared & (timesteps[:count] >= SOURCE_INPUT_FROM_TIMESTEP) & chance(SOURCE_INPUT_SHARE)
    misled = misled[:, None, None, None]
    signal = scheduler.alphas_cumprod.to(device)[timesteps[:count]].sqrt()[:, None, None, None]
    velocity_to_target = (signal * noisy[:count] - clean[count:]) / (1 - signal.square()).sqrt()
    noisy = torch.cat([noisy[:count], torch.where(misled, noisy[:count], noisy[count:])])
    target = torch.cat([target[:count], torch.where(misled, velocity_to_target, target[count:])])
    noisy, controls = (each.contiguous(memory_format=torch.channels_last) for each in (noisy, controls))
    error = predict(noisy, timesteps, text, controls).float() - target
    weight = (1 + FIGURE_WEIGHT * pairs.masks.float()).repeat(2, 1, 1, 1)
    return (weight * error.square()).mean() / weight.mean()


def train_denoiser(config: TrainEditorConfig, models: ModelSet, console: Console) -> tuple[Progress, Progress]:
    """Train for the steps or the time of `config`, or go on from the checkpoint.

    Args:
        config: Settings.
        models: The set; its denoiser is replaced by the one with averaged weights.
        console: Gets a line at every report.

    Returns:
        What earlier calls did, and what is done now.
    """
    started, device = time.monotonic(), torch.device(config.device)
    models.vae.to(device)
    parts = models.denoiser.to(device, memory_format=torch.channels_last)
    models.denoiser = average = copy.deepcopy(parts).eval().requires_grad_(False)
    names = ["controlnet"] if config.control_only else list(parts)
    parts.requires_grad_(False)
    for name in names:
        parts[name].requires_grad_(True)
    trained = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.denoiser_lr, weight_decay=1e-3)
    path = config.work / "denoiser.safetensors"
    before = load_state(path, parts, average, optimizer)
    curve = Curve(config.work / "denoiser-curve.json", before.steps)
    budget = Budget(config.denoiser_steps, config.minutes, before, started)
    denoiser = Denoiser(parts, "inductor" if device.type == "cuda" else None)
    pool, scheduler, no_caption = latent_pool(config, models), build_scheduler(), _tokens(models, [""]).to(device)
    step = before.steps

    def report() -> None:
        value = curve.add(step)
        save_state(path, parts, average, optimizer, budget.progress(step))
        console.print(f"denoiser step {budget.line(step)}, loss {value:.4f}")

    while True:
        # The share first: a checkpoint of the last step must not state less time than what ended the training.
        share = budget.share(step)
        if curve.losses and (share >= 1 or step % config.report_every == 0):
            report()
        if share >= 1:
            return before, budget.progress(step)
        pool.grow_to(pairs_after(step, config.denoiser_batch, config.pool, device))
        seed = config.seed * 104_729 + step
        generator = torch.Generator(device).manual_seed(seed)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, share, config.denoiser_lr)
        injected = random.Random(seed).random() < config.injected
        batch = pool.sample(config.denoiser_batch, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            loss = training_loss(
                lambda *inputs, injected=injected: denoiser.predict(*inputs, injected=injected),
                parts["text_encoder"],
                scheduler,
                batch,
                no_caption,
                config.caption_dropout,
                generator,
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name in names:
            update_average(average[name], parts[name], step)
        step += 1
        curve.losses.append(loss.detach())


class Curve:
    """The loss over the steps, a point at every report, on disk as JSON.

    Args:
        path: The file.
        done: Steps that the checkpoint has; later points are of steps that a killed call lost.
    """

    def __init__(self, path: Path, done: int) -> None:
        self.path, self.losses = path, []
        points = json.loads(path.read_text(encoding="utf-8")) if done and path.exists() else []
        self.points: list[tuple[int, float]] = [tuple(point) for point in points if point[0] <= done]
        self._write()

    def add(self, step: int) -> float:
        """Write the mean of `losses`, which starts anew, as the point of this step, and return it."""
        mean = float(torch.stack(self.losses).mean())
        self.losses = []
        self.points.append((step, mean))
        self._write()
        return mean

    def _write(self) -> None:
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.points), encoding="utf-8")
