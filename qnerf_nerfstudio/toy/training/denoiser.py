"""Trains the bundled editor's UNet, ControlNet and text encoder on pairs of poses, appearance injection in the loop."""

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import set_seed
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.diffusion.attention import AttentionState, attention, install
from qnerf_nerfstudio.toy.training.checkpoint import load_state, save_state
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.data import Pair, Pool, training_pool
from qnerf_nerfstudio.toy.training.evaluate import evaluate, load_trained
from qnerf_nerfstudio.toy.training.models import (
    build_control,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
)
from qnerf_nerfstudio.toy.training.vae import encode, learning_rate, update_average

FIGURE_WEIGHT = 3.0
"""Latents of the figure (either pose) count this much more than the room's."""
SHARED_NOISE_SHARE = 0.6
"""Share of the pairs whose two images get the same noise, as an edit starts from its source view's inverted noise."""
SOURCE_INPUT_SHARE = 0.5
"""Share of the pairs with the same noise whose target gets its source's noisy latents as input, at high noise only."""
SOURCE_INPUT_FROM_TIMESTEP = 700
"""The first timestep, of 1000, at which that happens."""
FIRST_PAIRS, PAIRS_PER_STEP = 512, 2
"""The pool starts with so many pairs and grows by so many in a step: each pair is seen some six times."""


@dataclass
class LatentPool:
    """The pool of pairs with their latents, encoded once."""

    vae: AutoencoderKL
    pool: Pool
    latents: list[Tensor] = field(default_factory=list)

    def grow(self, count: int) -> None:
        """Render and encode up to `count` more pairs."""
        new = self.pool.grow(count)
        for start in range(0, len(new), 16):
            chunk = new[start : start + 16]
            encoded = encode(self.vae, torch.cat([pair.images for pair in chunk]))
            self.latents += list((encoded * self.vae.config.scaling_factor).unflatten(0, (-1, 2)))


def build_parts(tokenizer: CLIPTokenizer, initial: Path | None) -> nn.ModuleDict:
    """The trained parts, freshly initialised or loaded from a model set."""
    if initial is not None:
        kinds = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel, "text_encoder": CLIPTextModel}
        loaded = {name: kind.from_pretrained(initial / name, torch_dtype=torch.float32) for name, kind in kinds.items()}
        return nn.ModuleDict(loaded)
    denoiser = build_denoiser()
    return nn.ModuleDict(
        {"unet": denoiser, "controlnet": build_control(denoiser), "text_encoder": build_text_encoder(tokenizer)}
    )


def predict(
    parts: nn.ModuleDict,
    state: AttentionState,
    injected: bool,
    noisy: Float[Tensor, "N C h w"],
    timesteps: Int[Tensor, "N"],
    text: Float[Tensor, "N L D"],
    controls: Float[Tensor, "N 3 H W"],
) -> Float[Tensor, "N C h w"]:
    """UNet and ControlNet on a batch of [sources, targets], the sources' keys and values injected if asked."""
    down, middle = parts["controlnet"](noisy, timesteps, text, controls, return_dict=False)
    settings = AttentionState(branches=2, share_first=True) if injected else AttentionState()
    prediction = None
    with attention(state, settings):
        prediction = parts["unet"](
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
    assert prediction is not None
    return prediction


def training_loss(
    parts: nn.ModuleDict,
    state: AttentionState,
    scheduler: DDIMScheduler,
    tokenizer: CLIPTokenizer,
    pairs: list[Pair],
    latents: Float[Tensor, "B 2 C h w"],
    config: TrainEditorConfig,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The v-prediction loss of one step on pairs; the figure's latents weigh more."""
    device = latents.device
    count = len(pairs)
    swap = torch.rand(count, generator=generator) < 0.5
    order = torch.stack([swap.long(), 1 - swap.long()])
    rows = torch.arange(count)

    def ordered(values: Tensor) -> Tensor:
        return torch.cat([values[rows, order[0]], values[rows, order[1]]])

    clean = ordered(latents)
    controls = ordered(torch.stack([to_unit(pair.controls) for pair in pairs])).to(device)
    masks = torch.stack([pair.masks.any(0) for pair in pairs])[:, None].float().to(device)
    weight = 1 + FIGURE_WEIGHT * F.adaptive_max_pool2d(masks, latents.shape[-2:])
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (count,), generator=generator).repeat(2).to(device)
    noise = torch.randn(clean.shape, generator=generator)
    shared = torch.rand(count, generator=generator) < SHARED_NOISE_SHARE
    noise[count:] = torch.where(shared[:, None, None, None], noise[:count], noise[count:])
    noise = noise.to(device)
    dropped = torch.rand(count, generator=generator) < config.caption_dropout
    captions = ["" if drop else pair.caption for drop, pair in zip(dropped.tolist(), pairs, strict=True)]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    text = parts["text_encoder"](tokens).last_hidden_state.repeat(2, 1, 1)
    injected = bool(torch.rand((), generator=generator) < config.injected)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    target = scheduler.get_velocity(clean, noise, timesteps)
    # An edit starts from noise that its source view was inverted to, which still holds a little of the source. So at
    # high noise some targets get their source's noisy latents as input: only the control tells the two apart there.
    source_input = shared & (timesteps[:count].cpu() >= SOURCE_INPUT_FROM_TIMESTEP)
    source_input &= torch.rand(count, generator=generator) < SOURCE_INPUT_SHARE
    source_input = source_input.to(device)[:, None, None, None]
    signal = scheduler.alphas_cumprod[timesteps[:count].cpu()].sqrt().to(device)[:, None, None, None]
    velocity_to_target = (signal * noisy[:count] - clean[count:]) / (1 - signal.square()).sqrt()
    noisy = torch.cat([noisy[:count], torch.where(source_input, noisy[:count], noisy[count:])])
    target = torch.cat([target[:count], torch.where(source_input, velocity_to_target, target[count:])])
    error = predict(parts, state, injected, noisy, timesteps, text, controls) - target
    weight = weight.repeat(2, 1, 1, 1)
    return (weight * error.square()).mean() / weight.mean()


def train_denoiser(config: TrainEditorConfig, vae: AutoencoderKL, console: Console) -> nn.ModuleDict:
    """Train for `config.denoiser_steps` steps or go on from the checkpoint; returns the averaged weights."""
    set_seed(config.seed)
    device = torch.device(config.device)
    tokenizer = build_tokenizer(config.work / "tokenizer")
    parts = build_parts(tokenizer, config.initial).to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(parts)
    state = AttentionState()
    install(_unet(parts), state)
    scheduler = build_scheduler()
    names = ["controlnet"] if config.control_only else list(parts)
    parts.requires_grad_(False)
    for name in names:
        parts[name].requires_grad_(True)
    trained = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.denoiser_lr, weight_decay=1e-3)
    path, curve_path = config.work / "denoiser.safetensors", config.work / "denoiser-curve.json"
    done = load_state(path, parts, average, optimizer)
    curve: list[tuple[int, float]] = json.loads(curve_path.read_text()) if done else []
    curve_path.write_text(json.dumps(curve))
    latents = LatentPool(vae.to(device), training_pool(config))
    latents.grow(min(config.pool, FIRST_PAIRS + PAIRS_PER_STEP * done))
    started, losses = time.monotonic(), []
    for step in range(done, config.denoiser_steps):
        latents.grow(PAIRS_PER_STEP)
        generator = torch.Generator().manual_seed(config.seed * 104_729 + step)
        chosen = torch.randint(len(latents.latents), (config.denoiser_batch,), generator=generator).tolist()
        pairs = [latents.pool.pairs[i] for i in chosen]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.denoiser_steps, config.denoiser_lr)
        batch = torch.stack([latents.latents[i] for i in chosen])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            loss = training_loss(parts, state, scheduler, tokenizer, pairs, batch, config, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name in names:
            update_average(average[name], parts[name], step, decay=0.995)
        losses.append(loss.item())
        if (step + 1) % config.report_every == 0 or step + 1 == config.denoiser_steps:
            curve.append((step + 1, sum(losses) / len(losses)))
            losses = []
            save_state(path, parts, average, optimizer, step + 1)
            curve_path.write_text(json.dumps(curve))
            rate = (time.monotonic() - started) / (step + 1 - done)
            console.print(f"denoiser {step + 1}/{config.denoiser_steps}  loss {curve[-1][1]:.4f}  {rate:.2f} s/step")
            export(config.work / "export", vae, average, tokenizer, scheduler)
        if (step + 1) % (4 * config.report_every) == 0:
            editor = load_trained(config.work / "export", config.device)
            evaluate(editor, Console(quiet=True), 8, config.work / f"sheet-{step + 1:05d}.png")
    return average.eval().requires_grad_(False)


def _unet(parts: nn.ModuleDict) -> UNet2DConditionModel:
    unet = parts["unet"]
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def export(
    out: Path, vae: AutoencoderKL, average: nn.ModuleDict, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler
) -> None:
    """Write the model set in the layout of a diffusers pipeline, half precision safetensors."""
    parts = {"vae": vae, **dict(average.items())}
    for name, part in parts.items():
        assert isinstance(part, AutoencoderKL | ControlNetModel | UNet2DConditionModel) or name == "text_encoder"
        copy.deepcopy(part).half().save_pretrained(out / name)
        # Parts that started from a model set remember its folder, which means nothing elsewhere.
        settings = json.loads((out / name / "config.json").read_text())
        settings.pop("_name_or_path", None)
        write_json(out / name / "config.json", settings)
    tokenizer.save_pretrained(out / "tokenizer")
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionControlNetPipeline",
        "controlnet": ["diffusers", "ControlNetModel"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(out / "model_index.json", index)
