"""What benchmarks start from: captures whose control states the edit tightly, loosely or wrongly, and fields."""

import copy
import json
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.engine.trainer import TrainerConfig

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import to_unit, write_png
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.toy.capture import TARGET_RANGES, sample_edit, write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.figure import joints, sample_pose
from qnerf_nerfstudio.toy.training.data import DROPPED_BONE_SHARE, draw_loosely

Setting = Literal["tight", "loose", "wrong"]
WRONG_EVERY = 5
"""In the "wrong" setting, one in this number of views follows another pose."""


def views_of(capture: Path) -> Views:
    """The cameras of a capture, in the order of its frames."""
    meta = json.loads((capture / "transforms.json").read_text())
    count = len(meta["frames"])
    return Views(
        c2w=torch.tensor([frame["transform_matrix"][:3] for frame in meta["frames"]]),
        intrinsics=torch.tensor([[meta["fl_x"], meta["fl_y"], meta["cx"], meta["cy"]]] * count),
        distortion=torch.zeros(count, 6),
        size=(meta["h"], meta["w"]),
    )


def write_scene(out: Path, seed: int, views: int, setting: Setting, size: int = CaptureConfig.size) -> None:
    """Write the capture with this seed, and the control images of the setting instead of its skeleton."""
    write_capture(out, CaptureConfig(seed=seed, num_views=views, size=size))
    if setting == "tight":
        return
    generator = torch.Generator().manual_seed(seed)
    body, source, target = sample_edit(seed)
    wrong = replace(sample_pose(generator, TARGET_RANGES), lean=target.lean)
    cameras = views_of(out)
    dropped = DROPPED_BONE_SHARE if setting == "loose" else 0.0
    drawings = {
        "source": draw_loosely(cameras, joints(body, source), 0.0, generator),
        "target": draw_loosely(cameras, joints(body, target), dropped, generator),
    }
    if setting == "wrong":
        others = slice(None, None, WRONG_EVERY)
        drawings["target"][others] = draw_loosely(cameras[others], joints(body, wrong), 0.0, generator)
    names = [frame["file_path"] for frame in json.loads((out / "transforms.json").read_text())["frames"]]
    for key, images in drawings.items():
        for name, image in zip(names, to_unit(images), strict=True):
            write_png(out / "controls" / key / Path(name).name, image)
    edit = json.loads((out / "edit.json").read_text())
    edit["control"] = {"type": "images", "source": "controls/source", "target": "controls/target", "kind": "openpose"}
    write_json(out / "edit.json", edit)


def field_settings(iterations: int) -> TrainerConfig:
    """The settings of the fields that edited views are judged by: those of qnerf-edit-tiny."""
    edit = copy.deepcopy(qnerf_edit_tiny.config)
    assert isinstance(edit.pipeline, QNerfPipelineConfig)
    edit.pipeline.final_iterations = iterations
    return edit


def change(edit: TrainerConfig, settings: dict[str, Any]) -> None:
    """Change settings of the edit's pipeline, and of what it holds, by their dotted names."""
    for key, value in settings.items():
        *owners, name = key.split(".")
        setattr(reduce(getattr, owners, edit.pipeline), name, value)
