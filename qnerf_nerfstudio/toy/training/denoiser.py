"""Trains the bundled editor's UNet, ControlNet and text encoder on pairs of poses, appearance injection in the loop."""

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from qnerf_nerfstudio.common.files import atomic_write
from qnerf_nerfstudio.diffusion.attention import AttentionState, attention, install
from qnerf_nerfstudio.toy.training.checkpoint import Progress, load_state, save_state
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.figures import sample_scenes
from qnerf_nerfstudio.toy.training.model_set import ModelSet
from qnerf_nerfstudio.toy.training.models import build_scheduler
from qnerf_nerfstudio.toy.training.pairs import LatentPairs, Pool, draw_controls, draw_pairs, pairs_after
from qnerf_nerfstudio.toy.training.schedule import Budget, learning_rate, update_average
from qnerf_nerfstudio.toy.training.tasks import Task, as_rendered, draw_task
from qnerf_nerfstudio.toy.training.vae import encode


class Denoiser:
    """UNet and ControlNet on batches of [sources, targets].

    Args:
        parts: The parts of a `ModelSet`; the UNet's attention processors are replaced.
        backend: Backend of torch.compile, which makes one graph of both models; None runs them as they are. Passes
            that take or give queries, another table of tensors each time, are never compiled.
    """

    def __init__(self, parts: nn.ModuleDict, backend: str | Callable | None = None) -> None:
        self.state = AttentionState()
        unet, controlnet = parts["unet"], parts["controlnet"]
        install(unet, self.state)

        def forward(noisy: Tensor, timesteps: Tensor, text: Tensor, controls: Tensor) -> Tensor:
            down, middle = controlnet(noisy, timesteps, text, controls, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return unet(noisy, timesteps, text, return_dict=False, **residuals)[0]

        self.forward = self.uncompiled = forward
        if backend is not None:
            self.forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend)

    def predict(
        self,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, "N"],
        text: Float[Tensor, "N L D"],
        controls: Float[Tensor, "N 3 H W"],
        injected: bool,
        queries: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "N C h w"]:
        """The models' output; where asked for, the sources' keys and values are injected, and these queries, too."""
        settings, forward = AttentionState(branches=2, share_first=True) if injected else AttentionState(), self.forward
        if queries is not None:
            settings.source_first, settings.edit_query = True, lambda layer, own: queries[layer]
            forward = self.uncompiled
        prediction = None
        with attention(self.state, settings):
            prediction = forward(noisy, timesteps, text, controls)
        assert prediction is not None
        return prediction

    @torch.no_grad()
    def queries(
        self,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, "N"],
        text: Float[Tensor, "N L D"],
        controls: Float[Tensor, "N 3 H W"],
    ) -> dict[str, Tensor]:
        """The targets' queries by layer, the sources' keys and values injected."""
        captured: dict[str, Tensor] = {}
        settings = AttentionState(branches=2, share_first=True, captured=captured, stop_after_capture=True)
        with attention(self.state, settings):
            self.uncompiled(noisy, timesteps, text, controls)
        return captured


def latent_pool(config: TrainEditorConfig, models: ModelSet) -> Pool[LatentPairs]:
    """The pool of pairs with their latents, controls and tokens; the VAE is on the device already."""
    device, size, scale = torch.device(config.device), models.image_size, models.vae.config.scaling_factor

    def make(count: int, generator: torch.Generator) -> LatentPairs:
        scenes = sample_scenes(count, generator)
        captions = [body.caption() for body in scenes.bodies.single()]
        scenes = scenes.to(device)
        pairs = draw_pairs(scenes, size)
        controls, loose = draw_controls(scenes, size, generator)
        latents = (encode(models.vae, pairs.images.flatten(0, 1)) * scale).unflatten(0, (-1, 2))
        return LatentPairs(
            latents=latents.half(),
            controls=controls,
            loose=loose,
            masks=F.adaptive_max_pool2d(pairs.masks.any(1)[:, None].float(), latents.shape[-2:]) > 0,
            tokens=_tokens(models, captions).to(device),
        )

    return Pool(make, config.pool, 2 * config.seed, device)


def _tokens(models: ModelSet, captions: list[str]) -> Int[Tensor, "N L"]:
    return models.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def training_loss(
    denoiser: Denoiser, text_encoder: nn.Module, task: Task, injected: bool, generator: torch.Generator
) -> Float[Tensor, ""]:
    """The v-prediction loss of one step; a task with right inputs is done with the queries that these give, as a field
    would render them."""
    text = text_encoder(task.tokens).last_hidden_state.repeat(2, 1, 1)
    if task.right is None:
        return task.loss(denoiser.predict(task.noisy, task.timesteps, text, task.controls, injected))
    queries = denoiser.queries(task.right.noisy, task.timesteps, text, task.right.controls)
    queries = {name: as_rendered(tokens, generator) for name, tokens in queries.items()}
    return task.loss(denoiser.predict(task.noisy, task.timesteps, text, task.controls, True, queries))


def _trained(parts: nn.ModuleDict, config: TrainEditorConfig) -> list[nn.Module]:
    """The parts that training changes."""
    if config.trained == "decoder":
        unet: Any = parts["unet"]
        return [unet.up_blocks, unet.conv_norm_out, unet.conv_out]
    return [parts["controlnet"]] if config.trained == "controlnet" else list(parts.values())


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
    parts.requires_grad_(False)
    for part in _trained(parts, config):
        part.requires_grad_(True)
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
        draws = random.Random(seed)
        injected, followed = draws.random() < config.injected, draws.random() < config.followed
        batch = pool.sample(config.denoiser_batch, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            task = draw_task(batch, scheduler, no_caption, config.caption_dropout, followed, generator)
            loss = training_loss(denoiser, parts["text_encoder"], task, injected, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for mean, part in zip(_trained(average, config), _trained(parts, config), strict=True):
            update_average(mean, part, step)
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
