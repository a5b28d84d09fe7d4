"""People's keypoints as detectors write them, projected from figures that are known."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.controls.keypoints import Person
from qnerf_nerfstudio.edit.openpose import KEYPOINT_ORDERS, OPENPOSE_JOINTS
from qnerf_nerfstudio.toy.capture import TARGET_RANGES, orbit_camera
from qnerf_nerfstudio.toy.figure import joints, sample_body, sample_pose


def orbit(count: int, size: int, k1: float = 0.0) -> Views:
    """Cameras around a figure."""
    c2w = torch.stack([orbit_camera(360 * i / count, 5 + 30 * (i % 3) / 2, 3.8, 1.0) for i in range(count)])
    focal = 1.8 * size
    distortion = torch.zeros(count, 6)
    distortion[:, 0] = k1
    return Views(c2w, torch.tensor([[focal, focal, size / 2, size / 2]] * count), distortion, (size, size))


def figure(seed: int) -> dict[str, torch.Tensor]:
    """Joints of a procedural figure in some pose."""
    generator = torch.Generator().manual_seed(seed)
    return joints(sample_body(generator), sample_pose(generator, TARGET_RANGES))


def seen(views: Views, skeleton: Mapping[str, torch.Tensor]) -> list[Person]:
    """A person's joints in every view."""
    pixels, _ = views.project(torch.stack(list(skeleton.values())))
    people = torch.full((len(views), len(OPENPOSE_JOINTS), 2), math.nan)
    people[:, [OPENPOSE_JOINTS.index(name) for name in skeleton]] = pixels
    return list(people)


def rows(person: Person, order: int) -> list[list[float]]:
    """Keypoints x, y, confidence in a detector's order; those that are not seen are zeros, as OpenPose has them."""
    known = (*KEYPOINT_ORDERS[order], *[None] * order)[:order]
    table = []
    for name in known:
        at = person[OPENPOSE_JOINTS.index(name)].tolist() if name else [math.nan, math.nan]
        table.append([0.0, 0.0, 0.0] if math.isnan(at[0]) else [*at, 0.9])
    return table


def openpose(people: Sequence[Person], order: int = 25) -> dict[str, Any]:
    """OpenPose's JSON."""
    flat = [[value for row in rows(each, order) for value in row] for each in people]
    return {"version": 1.3, "people": [{"pose_keypoints_2d": each} for each in flat]}


def mmpose(people: Sequence[Person], order: int = 17) -> list[dict[str, Any]]:
    """The JSON of MMPose's inferencer."""
    entries = []
    for each in people:
        table = rows(each, order)
        entries.append({"keypoints": [row[:2] for row in table], "keypoint_scores": [row[2] for row in table]})
    return entries


def write_keypoints(folder: Path, names: Sequence[str], documents: Sequence[Any]) -> Path:
    """One file a photo, called as OpenPose calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in zip(names, documents, strict=True):
        (folder / f"{Path(name).stem}_keypoints.json").write_text(json.dumps(document))
    return folder
