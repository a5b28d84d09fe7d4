"""A tiny model, and rays through it."""

from dataclasses import replace

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from helpers.cameras import SCENE_BOX
from qnerf_nerfstudio.field.model import QNerfModel, QNerfModelConfig
from qnerf_nerfstudio.methods import qnerf_edit_tiny


def build(**settings: object) -> QNerfModel:
    """The tiny method's model with other settings, always with the same weights."""
    torch.manual_seed(0)
    config = replace(qnerf_edit_tiny.config.pipeline.model, **settings)
    assert isinstance(config, QNerfModelConfig)
    built = config.setup(scene_box=SceneBox(SCENE_BOX), num_train_data=3, metadata={}, device="cpu")
    assert isinstance(built, QNerfModel)
    return built


def rays(count: int = 7) -> RayBundle:
    """Rays from the scene's middle in random directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return RayBundle(
        origins=torch.rand(count, 3, generator=generator) - 0.5,
        directions=directions,
        pixel_area=torch.full((count, 1), 1e-4),
        camera_indices=torch.zeros(count, 1, dtype=torch.long),
        nears=torch.full((count, 1), 0.05),
        fars=torch.full((count, 1), 5.0),
    )
