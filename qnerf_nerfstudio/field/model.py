"""QNerfModel: nerfacto with rendered query codes, a query loss, and a region that an edit may change."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.model_components.losses import scale_gradients_by_distance_squared
from nerfstudio.model_components.scene_colliders import NearFarCollider
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.utils.external import TCNN_EXISTS
from torch import Tensor

from qnerf_nerfstudio.common import ranks
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.controls.region import VoxelRegion
from qnerf_nerfstudio.deformation.deformation import Deformation
from qnerf_nerfstudio.field.annealing import annealed_span
from qnerf_nerfstudio.field.carried import carried_density, carried_outputs
from qnerf_nerfstudio.field.field import QNerfField, QNerfHeadNames
from qnerf_nerfstudio.field.hash_encoding import gather_encodings
from qnerf_nerfstudio.field.look import Look, traced, untraced, wearing
from qnerf_nerfstudio.field.losses import Objective, query_loss, view_weights
from qnerf_nerfstudio.field.lpips import lazy_lpips

MEMORY = 0.9
"""Decay of a view's mean error, per training step in which rays of the view are drawn."""

EXPECTED_STEPS, LATER_STEPS = 300, 100
"""Training steps in which matter is expected where it is known to be, from scratch and from a trained field."""
EXPECTED_DEPTH = 0.02
"""What is known to be matter is to stop light within about this distance."""
EXPECTED_MULT = 0.01
"""Weight of light that comes through what is known to be matter, beside the colour loss."""


@dataclass
class QNerfModelConfig(NerfactoModelConfig):
    """Nerfacto with query heads. docs/options.md gives the reasons of the defaults."""

    _target: type = field(default_factory=lambda: QNerfModel)
    prompt: str | None = None
    """Target prompt instead of edit.json's; `--prompt` on ns-train sets this."""
    feature_dim: int = 48
    """Width of the base features that are composited along rays."""
    query_width: int = 144
    """Code channels of all query layers together."""
    view_dependent: bool = False
    """Let colours depend on the view direction; edited views that differ a little become fog by it."""
    query_loss_mult: float = 0.003
    """Weight of the query loss beside the colour loss."""
    queries_shape_density: bool = True
    """Let the query loss pull at the density in fits, as in the paper; guidance by queries wants it."""
    space_annealing: int = 0
    """Training steps over which a field from scratch widens the span of depths it sees; 0: none."""
    robust: bool = True
    """Weigh edited views down that the others contradict."""
    preview_loss_mult: float = 1.0
    """Weight of the colour loss on previews of the edited views while queries are fitted."""
    compile_encodings: bool = False
    """Compile torch's hash encodings: fewer kernels on a GPU, after a minute at the start; needs a compiler."""


class QNerfModel(NerfactoModel):
    """Nerfacto that also renders query codes.

    Outputs are nerfacto's and "queries", the codes of all layers side by side, which nerfstudio shows by PCA.
    """

    config: QNerfModelConfig
    field: QNerfField
    view_errors: Float[Tensor, "N"]
    """Running mean of the squared colour error of every training view where it sees the edit, NaN before the first."""

    def populate_modules(self) -> None:
        """Build nerfacto, with our field instead of its own.

        Raises:
            ValueError: Normals are asked for, which this model does not render, or nothing would shape the density.
        """
        if self.config.preview_loss_mult == 0 and not self.config.queries_shape_density:
            raise ValueError(
                "model.preview_loss_mult is 0, so that nothing shapes the density in fits; set "
                "model.queries_shape_density to True, or give previews a weight"
            )
        if self.config.predict_normals:
            raise ValueError("model.predict_normals is set, but QNerfModel renders no normals; leave it out")
        if self.config.implementation == "tcnn" and not TCNN_EXISTS:
            # nerfstudio would do the same, with a banner for every part. The run's config.yml says torch then.
            CONSOLE.print("tinycudann cannot be imported: fields run in torch, which is slower (see qnerf doctor).")
            self.config.implementation = "torch"
        with lazy_lpips():
            super().populate_modules()
        self.field = self.build_field()
        # Nerfacto renders from the camera on, though it trains from the near plane on: what lies between was never
        # taught to be empty.
        self.collider = NearFarCollider(self.config.near_plane, self.config.far_plane, reset_near_plane=False)
        if self.config.camera_optimizer.mode == "off":
            gather_encodings(self, self.config.compile_encodings)
        self.objective: Objective = "rgb"
        self.stage_start = 0
        self.from_scratch = True
        """Whether the stage began with the initial weights."""
        self.region: VoxelRegion | None = None
        """Where rays that see the edit may change matter; None: everywhere."""
        self.deformation: Deformation | None = None
        """What the field is seen through; None: as it is."""
        self.expected: Float[Tensor, "N 3"] | None = None
        """Points known to lie inside of matter, in scene coordinates, which a stage begins with."""
        self.look: Look | None = None
        """What `get_outputs_for_camera` shows; None: the field as it is."""
        self.weights_lock = threading.RLock()
        """Held while a look's weights take the place of the field's, and by what needs these outside of training."""
        self.shows_query_features = False
        """Whether outputs hold "query_features", what the query heads look at."""
        self.register_buffer("view_errors", torch.full((self.num_train_data,), float("nan")))
        self.keep_initial_weights()

    def keep_initial_weights(self) -> None:
        """Remember the weights as they are; stages that do not go on from a trained field begin with them."""
        self.initial_weights = {name: value.detach().cpu().clone() for name, value in self.named_parameters()}

    def build_field(self) -> QNerfField:
        """The field that the configuration describes."""
        config = self.config
        return QNerfField(
            self.scene_box.aabb,
            num_images=self.num_train_data,
            feature_dim=config.feature_dim,
            query_width=config.query_width,
            view_dependent=config.view_dependent,
            hidden_dim=config.hidden_dim,
            num_levels=config.num_levels,
            max_res=config.max_res,
            base_res=config.base_res,
            features_per_level=config.features_per_level,
            log2_hashmap_size=config.log2_hashmap_size,
            hidden_dim_color=config.hidden_dim_color,
            spatial_distortion=None if config.disable_scene_contraction else SceneContraction(order=float("inf")),
            use_average_appearance_embedding=config.use_average_appearance_embedding,
            appearance_embedding_dim=config.appearance_embed_dim if config.use_appearance_embedding else 0,
            average_init_density=config.average_init_density,
            implementation=config.implementation,
        )

    def restrict(self, region: VoxelRegion | None) -> None:
        """Let rays that see the edit change matter in this region only; None: everywhere."""
        self.region = None if region is None else region.to(self.device)

    def density(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Density at points in scene coordinates, per unit of length, on the CPU."""
        if len(points) == 0:  # which nerfstudio's encodings refuse
            return torch.zeros(0)
        return self.field.density_fn(points.to(self.device))[..., 0].float().cpu()

    def colour(self, points: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Colours in [0, 1] at points in scene coordinates, seen along unit directions, as in renders; on the CPU."""
        if len(points) == 0:
            return torch.zeros(0, 3)
        origins, along = points.to(self.device)[:, None], directions.to(self.device)[:, None]
        nowhere = torch.zeros_like(origins[..., :1])
        samples = RaySamples(Frustums(origins, along, nowhere, nowhere, nowhere), camera_indices=nowhere.long())
        was_training = self.field.training
        self.field.eval()
        colours = self.field(samples)[FieldHeadNames.RGB]
        self.field.train(was_training)
        return colours[:, 0].float().cpu()

    @contextmanager
    def showing_query_features(self) -> Iterator[None]:
        """Render "query_features" meanwhile."""
        self.shows_query_features = True
        try:
            yield
        finally:
            self.shows_query_features = False

    @contextmanager
    def seen_through(self, deformation: Deformation | None) -> Iterator[None]:
        """Render the carried field meanwhile; None: the field as it is."""
        self.deformation = deformation
        try:
            yield
        finally:
            self.deformation = None

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Nerfstudio's outputs of a camera, of what `look` says. Training must not run meanwhile."""
        look = self.look
        if look is None:
            return super().get_outputs_for_camera(camera, obb_box)
        render = partial(super().get_outputs_for_camera, camera, obb_box)
        with untraced() as trace, self.weights_lock, wearing(self, look.weights), self.seen_through(look.deformation):
            return traced(trace, render)

    def begin_stage(self, step: int, objective: Objective, weights: Mapping[str, Tensor]) -> None:
        """Start a stage of training at training step `step`.

        Args:
            step: First training step of the stage; annealing schedules count from it.
            objective: What shapes the density from now on.
            weights: Parameters by name that the model starts from, such as `initial_weights`.
        """
        self.objective = objective
        self.stage_start = step
        self.from_scratch = weights is self.initial_weights
        self.view_errors.fill_(float("nan"))
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.data.copy_(weights[name])

    def get_extra_state(self) -> dict[str, float | str | bool]:
        """What nerfstudio's checkpoints leave out: our version, whether the stage began from scratch, when the proposal
        networks were updated last, and how far depths and samples are annealed, by which a slice may render first."""
        annealed = {name: getattr(self.collider, name) for name in ("near_plane", "far_plane")}
        annealed["anneal"] = float(self.proposal_sampler._anneal)
        return {"version": __version__, "from_scratch": self.from_scratch, **self._counters(), **annealed}

    def _counters(self) -> dict[str, int]:
        sampler = self.proposal_sampler
        return {"steps_since_update": sampler._steps_since_update, "step": sampler._step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what get_extra_state returned."""
        # Versions that did not anneal did not note it.
        self.from_scratch = state.get("from_scratch", False)
        self._set_counters(state)
        for name in ("near_plane", "far_plane"):
            setattr(self.collider, name, state.get(name, getattr(self.config, name)))
        self.proposal_sampler.set_anneal(state.get("anneal", 1.0))

    def _set_counters(self, counters: Mapping[str, int]) -> None:
        self.proposal_sampler._steps_since_update = counters["steps_since_update"]
        self.proposal_sampler._step = counters["step"]

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Nerfacto's callbacks, and one that counts training steps and anneals depths, all from the start of the
        stage."""
        counter = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._begin_step, 1)
        callbacks = [counter, *super().get_training_callbacks(training_callback_attributes)]
        for callback in callbacks:
            callback.func = self._from_stage_start(callback.func)
        return callbacks

    def _begin_step(self, step: int) -> None:
        # Nerfacto counts in the callback of an annealing that can be switched off.
        self.step = step
        near, far = self.config.near_plane, self.config.far_plane
        if self.from_scratch and step < self.config.space_annealing:
            near, far = annealed_span(near, far, step / self.config.space_annealing)
        assert isinstance(self.collider, NearFarCollider)
        self.collider.near_plane, self.collider.far_plane = near, far

    def _from_stage_start(self, func: Callable[[int], None]) -> Callable[..., None]:
        return lambda step: func(step - self.stage_start)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Render colour, depth, accumulation and query codes of rays."""
        if self.training:
            self.camera_optimizer.apply_to_raybundle(ray_bundle)
        counters = self._counters()
        density_fns = self.density_fns
        if self.deformation is not None:
            density_fns = [carried_density(each, self.deformation) for each in density_fns]
        samples, weights_list, samples_list = self.proposal_sampler(ray_bundle, density_fns=density_fns)
        if not self.training:
            # Nerfstudio's sampler counts a render as an update of the proposal networks; what was looked at meanwhile,
            # in the viewer or before a kill, must not change the training that follows.
            self._set_counters(counters)
        field_outputs: dict[Any, Tensor]
        origins = None
        if self.deformation is None:
            field_outputs = dict(self.field.forward(samples))
        else:
            field_outputs, origins = carried_outputs(self.field, samples, self.deformation)
        if self.training and self.region is not None and "sees_edit" in ray_bundle.metadata:
            field_outputs = self._keep_outside(self.region, field_outputs, samples)
        if self.config.use_gradient_scaling:
            field_outputs = dict(scale_gradients_by_distance_squared(field_outputs, samples))
        weights = samples.get_weights(field_outputs[FieldHeadNames.DENSITY])
        weights_list.append(weights)
        samples_list.append(samples)
        outputs: dict[str, Any] = {
            "rgb": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
            "depth": self.renderer_depth(weights=weights.detach(), ray_samples=samples),
            "expected_depth": self.renderer_expected_depth(weights=weights, ray_samples=samples),
        }
        # A linear head commutes with compositing: one product per ray instead of one per sample.
        features, places = ((weights * field_outputs[name]).sum(dim=-2) for name in QNerfHeadNames)
        if not (self.objective == "queries" and self.config.queries_shape_density):
            features = features.detach()
        features = self.field.query_features(features, places.detach(), outputs["accumulation"].detach())
        outputs["queries"] = self.field.codes(features)
        if self.shows_query_features:
            outputs["query_features"] = features
        if origins is not None:
            outputs["certainty"] = (weights * origins.certainty[..., None]).sum(dim=-2)
        if self.training:
            outputs["weights_list"] = weights_list
            outputs["ray_samples_list"] = samples_list
        for i in range(self.config.num_proposal_iterations):
            outputs[f"prop_depth_{i}"] = self.renderer_depth(weights=weights_list[i], ray_samples=samples_list[i])
        return outputs

    @staticmethod
    def _keep_outside(region: VoxelRegion, field_outputs: dict[Any, Tensor], samples: RaySamples) -> dict[Any, Tensor]:
        """Let rays that see the edit ("sees_edit" in their metadata) change the field inside the region only.

        What edited views do not agree on is cheapest to explain by matter that a single view sees, before its camera or
        far behind the scene. Such matter is not what the edit is about: there the photos alone teach the field.
        """
        assert samples.metadata is not None
        inside = region.contains(samples.frustums.get_positions())
        free = (inside | ~samples.metadata["sees_edit"].squeeze(-1))[..., None]
        return {name: torch.where(free, output, output.detach()) for name, output in field_outputs.items()}

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Nerfacto's losses, and that of queries.

        A batch holds "image", and may hold "queries" (codes [rays, W']) and "query_widths" (code channels per layer),
        and "sees_edit" ([rays], whether they see the region of the edit).
        """
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        if self.training and self.config.robust and self.region is not None and "sees_edit" in batch:
            rendered, image = self.renderer_rgb.blend_background_for_loss_computation(
                pred_image=outputs["rgb"],
                pred_accumulation=outputs["accumulation"],
                gt_image=batch["image"].to(self.device),
            )
            squared = (rendered - image).square().mean(-1)
            view_indices, sees_edit = batch["indices"][:, 0].to(self.device), batch["sees_edit"].to(self.device)
            self._note_errors(squared.detach()[sees_edit], view_indices[sees_edit])
            weights = torch.where(sees_edit, view_weights(self.view_errors)[view_indices], 1.0)
            losses["rgb_loss"] = (weights * squared).mean()
        steps = EXPECTED_STEPS if self.from_scratch else LATER_STEPS
        if self.training and self.expected is not None and self.step < steps:
            density = self.field.density_fn(self.expected.to(self.device))
            losses["expected_loss"] = EXPECTED_MULT * (-EXPECTED_DEPTH * density).exp().mean()
        if self.objective == "queries":
            losses["rgb_loss"] = losses["rgb_loss"] * self.config.preview_loss_mult
        if "queries" in batch:
            target = batch["queries"].to(self.device)
            rendered = outputs["queries"][:, : target.shape[-1]]
            losses["query_loss"] = self.config.query_loss_mult * query_loss(rendered, target, batch["query_widths"])
        return losses

    def _note_errors(self, errors: Float[Tensor, "R"], view_indices: Int[Tensor, "R"]) -> None:
        """Go on with the running mean error of each view."""
        # Of all processes: a buffer that differed would be that of the first one in their next step.
        rows = torch.stack([torch.ones_like(errors), errors])
        sums = rows.new_zeros(2, len(self.view_errors)).index_add_(1, view_indices, rows)
        counts, means = ranks.total(sums)
        means = means / counts
        known = torch.where(self.view_errors.isnan(), means, MEMORY * self.view_errors + (1 - MEMORY) * means)
        self.view_errors.copy_(torch.where(counts > 0, known, self.view_errors))

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Nerfacto's metrics; LPIPS only where its weights can be had."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        if metrics["lpips"] != metrics["lpips"]:
            del metrics["lpips"]
        return metrics, images
