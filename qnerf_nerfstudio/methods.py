"""The methods that nerfstudio registers. Imports neither diffusers nor transformers: all `ns-*` commands load it.

Why the values are what they are: docs/options.md.
"""

from copy import deepcopy

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from qnerf_nerfstudio.diffusion.bundled import BUNDLED
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.field.datamanager import QNerfDataManagerConfig
from qnerf_nerfstudio.field.model import QNerfModelConfig
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.studio.scheduler import StageDecaySchedulerConfig
from qnerf_nerfstudio.studio.trainer import QNerfTrainerConfig


def _optimizers() -> dict[str, dict]:
    return {
        name: {"optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15), "scheduler": StageDecaySchedulerConfig()}
        for name in ("proposal_networks", "fields")
    }


_edit = QNerfTrainerConfig(
    method_name="qnerf-edit",
    steps_per_eval_batch=0,
    steps_per_eval_image=0,
    steps_per_eval_all_images=0,
    steps_per_save=500,
    # The plan sets the number of steps when the number of views is known.
    max_num_iterations=0,
    mixed_precision=True,
    machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
    pipeline=QNerfPipelineConfig(
        datamanager=QNerfDataManagerConfig(
            dataparser=NerfstudioDataParserConfig(),
            train_num_rays_per_batch=4096,
            eval_num_rays_per_batch=4096,
        ),
        model=QNerfModelConfig(
            eval_num_rays_per_chunk=1 << 15, use_appearance_embedding=False, use_gradient_scaling=True
        ),
    ),
    optimizers=_optimizers(),
    viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
    vis="viewer",
)
# Camera poses stay as they are: query maps and edited views are made for them.
_edit.pipeline.model.camera_optimizer.mode = "off"  # pyright: ignore[reportAttributeAccessIssue]

_small = deepcopy(_edit)
_small.method_name = "qnerf-edit-small"
_small.pipeline.chunk = 1  # pyright: ignore[reportAttributeAccessIssue]

_xl = deepcopy(_small)
_xl.method_name = "qnerf-edit-xl"
_xl.pipeline.editor.model = "stabilityai/stable-diffusion-xl-base-1.0"  # pyright: ignore[reportAttributeAccessIssue]
_xl.pipeline.editor.variant = "fp16"  # pyright: ignore[reportAttributeAccessIssue]
_xl.pipeline.editor.resolution = 1024  # pyright: ignore[reportAttributeAccessIssue]

_tiny = deepcopy(_edit)
_tiny.method_name = "qnerf-edit-tiny"
_tiny.mixed_precision = False
_tiny.viewer = ViewerConfig(num_rays_per_chunk=1 << 12, websocket_host="127.0.0.1", max_num_display_images=64)
_tiny.pipeline = QNerfPipelineConfig(
    datamanager=QNerfDataManagerConfig(
        dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=1024, eval_num_rays_per_batch=1024
    ),
    model=QNerfModelConfig(
        eval_num_rays_per_chunk=1 << 11,
        use_appearance_embedding=False,
        use_gradient_scaling=True,
        average_init_density=0.6,
        near_plane=0.5,
        space_annealing=300,
        far_plane=20.0,
        implementation="torch",
        num_levels=10,
        log2_hashmap_size=17,
        max_res=1024,
        hidden_dim_color=32,
        num_proposal_iterations=1,
        num_proposal_samples_per_ray=(32,),
        num_nerf_samples_per_ray=24,
        proposal_net_args_list=[{"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 4, "max_res": 128}],
        proposal_warmup=300,
        proposal_weights_anneal_max_num_iters=300,
        query_width=72,
        queries_shape_density=False,
        camera_optimizer=deepcopy(_edit.pipeline.model.camera_optimizer),  # pyright: ignore[reportAttributeAccessIssue]
    ),
    editor=EditorConfig(
        model=BUNDLED,
        resolution=256,
        dtype="float32",
        vae_slicing=False,
        num_steps=20,
        guidance_scale=1.0,
        injection_start=0.0,
        inversion_iterations=2,
        guidance_strength=0.0,
        render_stop=1.0,
    ),
    tau=4,
    chunk=8,
    source_iterations=1500,
    fit_iterations=500,
    final_iterations=1000,
)

qnerf_edit = MethodSpecification(
    config=_edit, description="3D-consistent geometric edits with Stable Diffusion and ControlNet, 24 GB class."
)
qnerf_edit_small = MethodSpecification(config=_small, description="qnerf-edit one view at a time, 12 GB class.")
qnerf_edit_xl = MethodSpecification(
    config=_xl, description="qnerf-edit with Stable Diffusion XL at 1024 pixels, one view at a time, 24 GB class."
)
qnerf_edit_tiny = MethodSpecification(
    config=_tiny, description="qnerf-edit with the bundled editor at 256 pixels: minutes on a CPU, no network."
)
