"""From the coordinates of transforms.json to those of the scene, as nerfstudio's dataparser places it."""

from pathlib import Path

import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.utils.io import load_from_json
from torch import Tensor

from qnerf_nerfstudio.capture.paths import transforms_path


def dataset_to_scene(outputs: DataparserOutputs, data: Path) -> Float[Tensor, "3 4"]:
    """Takes points in the coordinates of transforms.json to the coordinates of the scene.

    The dataparser's transform starts from coordinates *before* transforms.json's `applied_transform` and
    `applied_scale`, so these are taken out again.

    Args:
        outputs: What the nerfstudio dataparser made of the dataset.
        data: The dataset's folder, or its transforms file.
    """
    transform, scale = outputs.dataparser_transform.double(), float(outputs.dataparser_scale)
    meta = load_from_json(transforms_path(data))
    applied = meta.get("applied_transform")
    if applied is None and (data / "colmap/sparse/0").exists():
        # nerfstudio's dataparser assumes this transform for such data.
        applied = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    if applied is not None:
        square = torch.cat([torch.tensor(applied).double(), torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()])
        transform = transform @ torch.linalg.inv(square)
    return (transform * (scale / float(meta.get("applied_scale", 1.0)))).float()
