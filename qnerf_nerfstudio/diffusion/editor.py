"""The diffusion editor: inversion, controlled sampling with appearance injection, query capture and query injection."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMInverseScheduler, DDIMScheduler, MultiControlNetModel
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.diffusion.attention import AttentionState, KeysValues, attention, install
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.model_check import is_xl
from qnerf_nerfstudio.diffusion.models import Models
from qnerf_nerfstudio.diffusion.queries import Extraction, QueryMaps
from qnerf_nerfstudio.diffusion.text import Prompts, TextStates

GRADIENT_SCALE = 2.0**10
"""Half precision would lose small gradients; only their direction is used, so the scale cancels."""

Images = Float[Tensor, "V 3 H W"]
Latents = Float[Tensor, "V C h w"]
Controls = Float[Tensor, "V K H W"]
"""Control images in [0, 1], three channels for each ControlNet."""


class ControlNetEditor:
    """A diffusers model set and the operations that an edit is made of.

    All tensors go in and come out as float32 on the editor's device; the cast to the models' precision happens in
    `_predict`, `encode` and `decode` alone. Timesteps are counted by index: latents with index 0 are the noisiest,
    those with index `num_steps` are clean, and the step at index i leads to i + 1.

    Args:
        models: The model set. The UNet's attention processors are replaced.
        controlnets: The ControlNets, made for it.
        config: Settings.
        device: Where the models are put.
    """

    def __init__(
        self, models: Models, controlnets: Sequence[ControlNetModel], config: EditorConfig, device: torch.device | str
    ) -> None:
        config.validate()
        self.config = config
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        # diffusers' annotations are unions that no caller can use without casts.
        self.vae: Any = models.vae
        self.unet: Any = models.unet
        # It adds up what the ControlNets say.
        self.controlnet: Any = MultiControlNetModel(list(controlnets))
        self.prompts = models.prompts
        for model in self._models():
            # diffusers warns about every cast, also of models that have the right type already.
            cast = {} if model.dtype == self._dtype_of(model) else {"dtype": self._dtype_of(model)}
            model.to(device=self.device, **cast).eval().requires_grad_(False)
        for model in (self.vae, self.unet, self.controlnet):
            # Convolutions are faster so: 7 % of a step on a CPU (benchmarks/README.md), more in half precision.
            model.to(memory_format=torch.channels_last)
        if config.vae_slicing:
            self.vae.enable_slicing()
        if config.vae_tiling:
            self.vae.enable_tiling()
        if config.checkpointing is True:
            self.checkpoint()
        # Inversion needs timesteps that differ by a constant; "leading" is what DDIM was published with.
        settings = {"clip_sample": False, "timestep_spacing": "leading"}
        self.scheduler: Any = DDIMScheduler.from_config(models.scheduler.config, **settings)
        self.inverse_scheduler: Any = DDIMInverseScheduler.from_config(models.scheduler.config, **settings)
        self.scheduler.set_timesteps(config.num_steps)
        self.inverse_scheduler.set_timesteps(config.num_steps)
        self.state = AttentionState()
        self.layer_names = install(self.unet, self.state, config.query_blocks)

    def _models(self) -> list[Any]:
        return [self.vae, *self.prompts.models, self.unet, self.controlnet]

    def _dtype_of(self, model: Any) -> torch.dtype:
        """The precision of a model: the VAE of Stable Diffusion XL overflows in half precision, and says so."""
        overflows = self.is_xl and self.dtype == torch.float16 and self.vae.config.force_upcast
        return torch.float32 if model is self.vae and overflows else self.dtype

    @property
    def checkpointing(self) -> bool:
        """Whether guidance computes activations twice instead of keeping them."""
        return self.unet.is_gradient_checkpointing

    def checkpoint(self) -> None:
        """Compute activations twice in guidance from now on, instead of keeping them."""
        self.unet.enable_gradient_checkpointing()
        for controlnet in self.controlnet.nets:
            controlnet.enable_gradient_checkpointing()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Run the models in float32 meanwhile."""
        models, dtype = self._models(), self.dtype
        for model in models:
            model.float()
        self.dtype = torch.float32
        try:
            yield
        finally:
            self.dtype = dtype
            for model in models:
                model.to(self._dtype_of(model))

    @property
    def is_xl(self) -> bool:
        """Whether the denoiser reads pooled text and the image's size, as Stable Diffusion XL."""
        return is_xl(self.unet.config)

    @property
    def num_steps(self) -> int:
        """Number of timesteps, T."""
        return self.config.num_steps

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this number of pixels."""
        return self.latent_stride * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def latent_stride(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Size at which a photo of `height` x `width` is edited: the shorter side as configured, both in strides."""
        scale = self.config.resolution / min(height, width)
        return tuple(max(1, round(side * scale / self.stride)) * self.stride for side in (height, width))  # pyright: ignore[reportReturnType]

    def encode_prompts(self, source: str, target: str, negative: str) -> Prompts:
        """Encode the prompts of an edit."""
        encoder = self.prompts
        return Prompts(encoder.encode(source), encoder.encode(target), encoder.encode_negative(negative))

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """Latents (posterior mean, scaled) of images in [0, 1]."""
        distribution = self.vae.encode((images * 2 - 1).to(self.device, self.vae.dtype)).latent_dist
        return distribution.mean.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        """Images in [0, 1] of clean latents."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return (self.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def invert_step(self, latents: Latents, index: int, prompt: TextStates, controls: Controls) -> Latents:
        """One DDIM inversion index, from index index + 1 (cleaner) to `index` (noisier), at guidance scale 1.

        With more than one iteration the noise is predicted again at the noisier latents just found, which makes the
        step the inverse of the denoising step up to the iteration's error (fixed-point inversion).
        """
        timestep = int(self.scheduler.timesteps[index])
        noisier = latents
        for iteration in range(self.config.inversion_iterations):
            prediction = self._predict(noisier, index, prompt, controls, AttentionState())
            if iteration > 0:
                prediction = self._restate(prediction, noisier, latents, timestep)
            noisier = self.inverse_scheduler.step(prediction, timestep, latents).prev_sample
        return noisier

    def invert(self, clean: Latents, prompt: TextStates, controls: Controls) -> list[Latents]:
        """The source trajectory of clean latents, noisiest first: entry i holds the latents at index i."""
        trajectory = [clean]
        for index in range(self.num_steps - 1, -1, -1):
            trajectory.insert(0, self.invert_step(trajectory[0], index, prompt, controls))
        return trajectory

    def _restate(self, prediction: Latents, noisier: Latents, cleaner: Latents, timestep: int) -> Latents:
        """Restate a prediction made at `noisier` so that DDIMInverseScheduler, which reads it at `cleaner`, sees the
        same noise. Only v-prediction depends on the sample."""
        if self.scheduler.config.prediction_type != "v_prediction":
            return prediction
        alphas = self.scheduler.alphas_cumprod
        previous = timestep - self.scheduler.config.num_train_timesteps // self.num_steps
        here = alphas[timestep]
        there = alphas[previous] if previous >= 0 else self.inverse_scheduler.initial_alpha_cumprod
        noise = here.sqrt() * prediction + (1 - here).sqrt() * noisier
        return (noise - (1 - there).sqrt() * cleaner) / there.sqrt()

    @torch.no_grad()
    def denoise_step(
        self,
        latents: Latents,
        index: int,
        prompts: Prompts,
        controls: Controls,
        source: SourceBranch | None = None,
        targets: QueryTargets | None = None,
    ) -> Latents:
        """One DDIM step of the edited views, from index `index` to index + 1.

        Args:
            latents: Latents of V edited views at index `index`.
            index: Index of the timestep.
            prompts: Encoded prompts.
            controls: Target control images in [0, 1].
            source: The same views on the source trajectory; None samples without appearance injection.
            targets: Rendered queries; None samples without consolidation.

        Returns:
            Latents at index index + 1.
        """
        injected = source is not None and index >= round(self.config.injection_start * self.num_steps)
        if targets is not None and self.config.guides:
            keys_values = self._source_keys_values(source, index, prompts) if injected and source else None
            latents = self._guide(latents, index, prompts, controls, keys_values, targets)
            settings = AttentionState(replayed=keys_values)
            prediction = self._guided_prediction(latents, index, prompts, controls, None, settings)
        else:
            settings = AttentionState(share_first=injected, source_first=injected)
            if targets is not None and self.config.mode != "guidance":
                settings.edit_query = self._query_edit(targets)
            prediction = self._guided_prediction(
                latents, index, prompts, controls, source if injected else None, settings
            )
        timestep = int(self.scheduler.timesteps[index])
        result = self.scheduler.step(prediction, timestep, latents)
        if targets is None or targets.clean is None or index >= round(self.config.render_stop * self.num_steps):
            return result.prev_sample
        # DDIM adds predicted clean latents, scaled, to predicted noise; only the former are drawn to the render.
        drawn = self.config.render_weight * (targets.clean - result.pred_original_sample)
        return result.prev_sample + self._alpha_after(timestep).sqrt() * drawn

    def _alpha_after(self, timestep: int) -> Tensor:
        """Cumulative alpha of the timestep that a denoising step from `timestep` leads to."""
        following = timestep - self.scheduler.config.num_train_timesteps // self.num_steps
        return self.scheduler.alphas_cumprod[following] if following >= 0 else self.scheduler.final_alpha_cumprod

    @torch.no_grad()
    def extract(
        self, latents: Latents, index: int, prompts: Prompts, controls: Controls, source: SourceBranch | None = None
    ) -> Extraction:
        """Query maps of the edited views at index `index`, and what their images look like so far."""
        injected = source is not None and index >= round(self.config.injection_start * self.num_steps)
        captured: dict[str, Tensor] = {}
        settings = AttentionState(share_first=injected, source_first=injected, captured=captured)
        prediction = self._guided_prediction(latents, index, prompts, controls, source if injected else None, settings)
        clean = self.scheduler.step(prediction, int(self.scheduler.timesteps[index]), latents).pred_original_sample
        return Extraction(self._to_maps(captured, latents), self.decode(clean))

    def query_distance(
        self,
        latents: Latents,
        index: int,
        prompts: Prompts,
        controls: Controls,
        keys_values: KeysValues | None,
        targets: QueryTargets,
    ) -> Float[Tensor, "V"]:
        """QueryTargets.distance of the edited views, differentiable in `latents`; the forward pass ends at the last
        layer."""
        captured: dict[str, Tensor] = {}
        settings = AttentionState(replayed=keys_values, captured=captured, stop_after_capture=True)
        self._predict(latents, index, prompts.target, controls, settings)
        return targets.distance(self._to_maps(captured, latents))

    def _guide(
        self,
        latents: Latents,
        index: int,
        prompts: Prompts,
        controls: Controls,
        keys_values: KeysValues | None,
        targets: QueryTargets,
    ) -> Latents:
        """Move each view's latents against the gradient of its query distance.

        The step is alpha times the latents' norm where queries differ from their targets by one standard deviation,
        and shrinks with that difference and with the confidence in the targets, so that views which agree already, and
        views that the field has not learned yet, are left alone.
        """
        with torch.enable_grad():
            variable = latents.detach().requires_grad_(True)
            distance = self.query_distance(variable, index, prompts, controls, keys_values, targets)
            # Checkpointed blocks run again here, and have to find the keys and values that they ran with.
            with attention(self.state, AttentionState(replayed=keys_values)):
                (gradient,) = torch.autograd.grad(GRADIENT_SCALE * distance.sum(), variable)
        difference = distance.detach() / len(targets.codec.layers)
        norms = latents.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        lengths = self.config.guidance_strength * targets.confidence * difference.clamp_max(1) * norms
        return latents - lengths[:, None, None, None] * gradient

    def _source_keys_values(self, source: SourceBranch, index: int, prompts: Prompts) -> KeysValues:
        """Keys and values of the source branch, to be replayed in the passes of a guided step."""
        recorded: KeysValues = {}
        self._predict(source.latents, index, prompts.source, source.controls, AttentionState(recorded=recorded))
        return recorded

    def _query_edit(self, targets: QueryTargets) -> Callable[[str, Tensor], Tensor]:
        weight = 1.0 if self.config.mode == "replace" else self.config.blend_weight
        return lambda layer, queries: targets.replace_queries(layer, queries, weight)

    def _guided_prediction(
        self,
        latents: Latents,
        index: int,
        prompts: Prompts,
        controls: Controls,
        source: SourceBranch | None,
        settings: AttentionState,
    ) -> Latents:
        """Prediction with classifier-free guidance; source, unconditional and conditional branch in one batch."""
        branches: list[tuple[Tensor, TextStates, Tensor]] = []
        if source is not None:
            branches.append((source.latents, prompts.source, source.controls))
        if self.config.guidance_scale > 1:
            branches.append((latents, prompts.negative, controls))
        branches.append((latents, prompts.target, controls))
        settings.branches = len(branches)
        batch, text, images = zip(*branches, strict=True)
        texts = TextStates.joined([states.expand(len(latents)) for states in text])
        prediction = self._predict(torch.cat(batch), index, texts, torch.cat(images), settings)
        groups = prediction.chunk(len(branches))
        if self.config.guidance_scale > 1:
            unconditional, conditional = groups[-2:]
            return unconditional + self.config.guidance_scale * (conditional - unconditional)
        return groups[-1]

    def _predict(
        self, latents: Latents, index: int, text: TextStates, controls: Controls, settings: AttentionState
    ) -> Latents:
        """ControlNet and UNet on one batch, in the models' precision."""
        timestep = self.scheduler.timesteps[index]
        sample, controls = latents.to(self.dtype), controls.to(self.device, self.dtype)
        text = text.expand(len(latents))
        tokens, added = text.tokens.to(self.dtype), None
        if text.pooled is not None:
            # Size of the original image, where the crop begins, and size of the result.
            height, width = controls.shape[-2:]
            sizes = sample.new_tensor([height, width, 0, 0, height, width])
            added = {"text_embeds": text.pooled.to(self.dtype), "time_ids": sizes.expand(len(latents), -1)}
        # A pass that fills or reads tables of tensors would be compiled again in every step.
        forward = self._compiled if self.config.compile and settings.is_sampling else self._forward
        prediction = latents
        with attention(self.state, settings):
            prediction = forward(sample, timestep, tokens, list(controls.split(3, dim=1)), added).float()
        return prediction

    @cached_property
    def _compiled(self) -> Callable[..., Latents]:
        return torch.compile(self._forward)

    def _forward(
        self,
        sample: Latents,
        timestep: Tensor,
        tokens: Float[Tensor, "V L D"],
        controls: list[Tensor],
        added: dict[str, Tensor] | None,
    ) -> Latents:
        """What the models say of a batch that is in their precision."""
        down, middle = self.controlnet(
            sample,
            timestep,
            tokens,
            controls,
            conditioning_scale=self._controlnet_scales(),
            added_cond_kwargs=added,
            return_dict=False,
        )
        return self.unet(
            sample,
            timestep,
            tokens,
            added_cond_kwargs=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    def _controlnet_scales(self) -> list[float]:
        """Weight of every ControlNet; one that is stated is for all."""
        stated, count = list(self.config.controlnet_scale), len(self.controlnet.nets)
        return stated * count if len(stated) == 1 else stated

    def _to_maps(self, captured: dict[str, Tensor], latents: Latents) -> QueryMaps:
        """Tokens [V, N, C] to maps [V, H, W, C], float32: levels of the UNet halve the latents' size, rounding up."""
        maps = {}
        for name, tokens in captured.items():
            height, width = latents.shape[-2:]
            while height * width > tokens.shape[1]:
                height, width = (height + 1) // 2, (width + 1) // 2
            maps[name] = tokens.float().unflatten(1, (height, width))
        return maps
