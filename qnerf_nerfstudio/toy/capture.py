"""Writes the procedural capture as a nerfstudio dataset, with the true edited views beside it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.figure import Body, Pose, joints, sample_body, sample_pose
from qnerf_nerfstudio.toy.proxy import Box, capsule_mesh, limb_boxes
from qnerf_nerfstudio.toy.render import render

SOURCE_RANGES = {
    "arm_raise": (12.0, 35.0),
    "arm_swing": (-10.0, 15.0),
    "elbow": (5.0, 30.0),
    "leg_raise": (5.0, 14.0),
    "leg_swing": (-10.0, 10.0),
    "knee": (0.0, 12.0),
    "lean": (-3.0, 3.0),
}
"""Degrees: the source pose stands at rest, arms down."""

TARGET_RANGES = {
    "arm_raise": (85.0, 150.0),
    "arm_swing": (-15.0, 25.0),
    "elbow": (0.0, 60.0),
    "leg_raise": (12.0, 30.0),
    "leg_swing": (-15.0, 25.0),
    "knee": (0.0, 25.0),
    "lean": (-8.0, 8.0),
}
"""Degrees: the target pose has both arms raised and the legs apart."""

SEED_OFFSET = 2_000_000
"""Added to a capture's seed, so that no capture shows a body that the bundled editor was trained on."""
TARGET_HEIGHT = 1.0
"""Height in metres of the point that all cameras look at."""
FIELD_OF_VIEW = 31.0
"""Of every camera, in degrees."""
DISTANCE_RANGE = (3.7, 4.1)
"""Distances in metres of the cameras from the point that they look at."""
ELEVATIONS = (8.0, 24.0, 40.0)
"""Elevations in degrees of the rings of cameras."""


def look_at(position: Float[Tensor, "3"], target: Float[Tensor, "3"]) -> Float[Tensor, "3 4"]:
    """Camera to world (OpenGL axes, z up in the world) of a camera at `position` that looks at `target`."""
    back = position - target
    back = back / back.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back)
    right = right / right.norm()
    return torch.stack([right, torch.linalg.cross(back, right), back, position], dim=1)


def orbit_camera(azimuth: float, elevation: float, distance: float, height: float) -> Float[Tensor, "3 4"]:
    """A camera on a sphere around the figure; angles in degrees, lengths in metres."""
    a, e = math.radians(azimuth), math.radians(elevation)
    target = torch.tensor([0.0, 0.0, height])
    offset = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    return look_at(target + distance * offset, target)


def focal_length(size: int) -> float:
    """Focal length in pixels of the capture's cameras for square images of `size` pixels."""
    return size / (2 * math.tan(math.radians(FIELD_OF_VIEW) / 2))


def _ring_cameras(count: int, offset: float, generator: torch.Generator) -> list[Tensor]:
    """`count` cameras on the rings in turn, evenly spaced in azimuth, with the jitter of a hand-held capture."""
    cameras = []
    for index in range(count):
        jitter = torch.rand(3, generator=generator)
        azimuth = 360.0 * (index + offset) / count + float(jitter[0] - 0.5) * 120 / count
        elevation = ELEVATIONS[index % len(ELEVATIONS)] + float(jitter[1] - 0.5) * 6
        distance = DISTANCE_RANGE[0] + (DISTANCE_RANGE[1] - DISTANCE_RANGE[0]) * float(jitter[2])
        cameras.append(orbit_camera(azimuth, elevation, distance, TARGET_HEIGHT))
    return cameras


def sample_edit(seed: int) -> tuple[Body, Pose, Pose]:
    """The body, source pose and target pose of the capture with this seed."""
    generator = torch.Generator().manual_seed(SEED_OFFSET + seed)
    return sample_body(generator), sample_pose(generator, SOURCE_RANGES), sample_pose(generator, TARGET_RANGES)


def write_capture(out: Path, config: CaptureConfig) -> None:
    """Write the dataset to `out`: images/, transforms.json and edit.json in the source pose, and truth/.

    The edit is stated three times: by skeletons (edit.json), by proxy meshes (edit-mesh.json) and by a box around every
    part of the figure (edit-boxes.json).

    truth/transforms.json lists all cameras with the image, float32 depth (metres along the optical axis, infinite on
    the background) and silhouette of the *target* pose, the silhouette of the source pose, and the split ("train" for
    the cameras of the capture, "novel" for the others).

    Raises:
        UserError: `out` exists and is not empty; fewer than 3 views, or a size that is no positive multiple of 32.
    """
    if config.num_views < 3:
        raise UserError(f"--num-views is {config.num_views}; a capture needs at least 3 views")
    if config.size < 32 or config.size % 32:
        raise UserError(f"--size is {config.size}; expected a positive multiple of 32, the editor's stride")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder, nothing is overwritten")
    body, source, target = sample_edit(config.seed)
    generator = torch.Generator().manual_seed(SEED_OFFSET + config.seed + 1)
    train_cameras = _ring_cameras(config.num_views, 0.0, generator)
    novel_cameras = _ring_cameras(config.num_novel_views, 0.5, generator)
    for folder in ("images", "truth/images", "truth/depth", "truth/masks", "truth/source_masks"):
        (out / folder).mkdir(parents=True)
    frames, truth_frames = [], []
    for index, c2w in enumerate(train_cameras + novel_cameras):
        name, split = f"frame_{index + 1:05d}", "train" if index < config.num_views else "novel"
        truth_frame = _write_view(out, name, split, body, source, target, c2w, config.size)
        truth_frames.append(truth_frame)
        if split == "train":
            frames.append({key: truth_frame[key] for key in ("file_path", "transform_matrix")})
    intrinsics = _intrinsics(config.size)
    write_json(out / "transforms.json", {**intrinsics, "frames": frames})
    write_json(out / "truth/transforms.json", {**intrinsics, "frames": truth_frames})
    _write_edits(out, body, source, target)


def _write_view(
    out: Path,
    name: str,
    split: str,
    body: Body,
    source: Pose,
    target: Pose,
    c2w: Float[Tensor, "3 4"],
    size: int,
) -> dict[str, Any]:
    """Render one camera and write its files: the photo, where it is a training view, and the truth.

    Returns:
        The view's entry in truth/transforms.json.
    """
    before, after = (render(body, pose, c2w, focal_length(size), (size, size)) for pose in (source, target))
    if split == "train":
        write_png(out / f"images/{name}.png", before.rgb.movedim(-1, 0))
    truth = out / "truth"
    write_png(truth / f"images/{name}.png", after.rgb.movedim(-1, 0))
    np.save(truth / f"depth/{name}.npy", after.depth.numpy().astype(np.float32))
    Image.fromarray(after.mask.numpy()).save(truth / f"masks/{name}.png")
    Image.fromarray(before.mask.numpy()).save(truth / f"source_masks/{name}.png")
    return {
        "file_path": f"images/{name}.png",
        "depth_file_path": f"depth/{name}.npy",
        "mask_path": f"masks/{name}.png",
        "source_mask_path": f"source_masks/{name}.png",
        "split": split,
        "transform_matrix": [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]],
    }


def _intrinsics(size: int) -> dict[str, Any]:
    """The intrinsics of every camera, as transforms.json has them."""
    focal, centre = focal_length(size), size / 2
    return {
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": centre,
        "cy": centre,
        "w": size,
        "h": size,
    }


def _write_edits(out: Path, body: Body, source: Pose, target: Pose) -> None:
    """Write the edit by skeletons, by meshes (with their files in proxies/) and by boxes."""
    skeletons: dict[str, Any] = {}
    meshes: dict[str, Any] = {}
    (out / "proxies").mkdir()
    for key, pose in (("source", source), ("target", target)):
        skeletons[key] = {name: _rounded(at.tolist()) for name, at in joints(body, pose).items()}
        capsule_mesh(body, pose).export(out / f"proxies/{key}.ply")
        meshes[key] = {"mesh": f"proxies/{key}.ply"}
    boxes = [
        {"type": "box", "source": _box_placement(before), "target": _box_placement(after)}
        for before, after in zip(limb_boxes(body, source), limb_boxes(body, target), strict=True)
    ]
    controls = {
        "edit.json": {"type": "skeleton", **skeletons},
        "edit-mesh.json": {"type": "mesh", **meshes},
        "edit-boxes.json": {"type": "parts", "parts": boxes},
    }
    caption = body.caption()
    for name, control in controls.items():
        write_json(out / name, {"prompt": caption, "source_prompt": caption, "control": control})


def _box_placement(box: Box) -> dict[str, list[float]]:
    """A box as edit.json has it."""
    return {key: _rounded(values) for key, values in zip(("position", "rotation", "size"), box, strict=True)}


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 5) for value in values]
