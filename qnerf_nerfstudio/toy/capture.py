"""Writes the procedural capture as a nerfstudio dataset, with the true edited views beside it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from qnerf_nerfstudio.toy.figure import Body, Pose, joints, sample_body, sample_pose
from qnerf_nerfstudio.toy.proxy import Box, capsule_mesh, limb_boxes
from qnerf_nerfstudio.toy.render import Frame, render

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
FIELD_OF_VIEW = 31.0
DISTANCE = (3.7, 4.1)
ELEVATIONS = (8.0, 24.0, 40.0)


@dataclass
class CaptureConfig:
    """A procedural capture: a figure in its source pose, with the truth for its target pose."""

    seed: int = 0
    """Seed of body, poses and cameras. The same seed gives the same files."""
    views: int = 24
    """Number of captured photos, on rings at three elevations."""
    novel_views: int = 8
    """Number of further cameras that only truth/ knows, between the rings."""
    size: int = 128
    """Width and height of every image in pixels."""


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


def _rings(count: int, offset: float, generator: torch.Generator) -> list[Tensor]:
    """`count` cameras dealt out to the rings in turn, evenly in azimuth, with the jitter of a hand-held capture."""
    cameras = []
    for index in range(count):
        jitter = torch.rand(3, generator=generator)
        azimuth = 360.0 * (index + offset) / count + float(jitter[0] - 0.5) * 120 / count
        elevation = ELEVATIONS[index % len(ELEVATIONS)] + float(jitter[1] - 0.5) * 6
        distance = DISTANCE[0] + (DISTANCE[1] - DISTANCE[0]) * float(jitter[2])
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
        FileExistsError: `out` exists and is not empty.
        ValueError: Fewer than 3 views, or a size that is not a positive multiple of 32.
    """
    if config.views < 3:
        raise ValueError(f"--views is {config.views}; a capture needs at least 3 views")
    if config.size < 32 or config.size % 32:
        raise ValueError(f"--size is {config.size}; expected a positive multiple of 32, the editor's stride")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name a new folder, nothing is overwritten")
    body, source, target = sample_edit(config.seed)
    generator = torch.Generator().manual_seed(SEED_OFFSET + config.seed + 1)
    cameras = [("train", c2w) for c2w in _rings(config.views, 0.0, generator)]
    cameras += [("novel", c2w) for c2w in _rings(config.novel_views, 0.5, generator)]
    focal, size = focal_length(config.size), (config.size, config.size)

    for folder in ("images", "truth/images", "truth/depth", "truth/masks", "truth/source_masks"):
        (out / folder).mkdir(parents=True)
    frames, truth_frames = [], []
    for index, (split, c2w) in enumerate(cameras):
        name = f"frame_{index + 1:05d}"
        matrix = [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]
        before, after = (render(body, pose, c2w, focal, size) for pose in (source, target))
        if split == "train":
            _save_image(out / "images" / f"{name}.png", before)
            frames.append({"file_path": f"images/{name}.png", "transform_matrix": matrix})
        _save_image(out / "truth/images" / f"{name}.png", after)
        np.save(out / "truth/depth" / f"{name}.npy", after.depth.numpy().astype(np.float32))
        Image.fromarray(after.mask.numpy()).save(out / "truth/masks" / f"{name}.png")
        Image.fromarray(before.mask.numpy()).save(out / "truth/source_masks" / f"{name}.png")
        truth_frames.append(
            {
                "file_path": f"images/{name}.png",
                "depth_file_path": f"depth/{name}.npy",
                "mask_path": f"masks/{name}.png",
                "source_mask_path": f"source_masks/{name}.png",
                "split": split,
                "transform_matrix": matrix,
            }
        )
    camera = {
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": config.size / 2,
        "cy": config.size / 2,
        "w": config.size,
        "h": config.size,
    }
    _save_json(out / "transforms.json", {**camera, "frames": frames})
    _save_json(out / "truth/transforms.json", {**camera, "frames": truth_frames})
    caption = body.caption()
    skeletons = {
        key: {name: [round(v, 5) for v in at.tolist()] for name, at in joints(body, pose).items()}
        for key, pose in (("source", source), ("target", target))
    }
    (out / "proxies").mkdir()
    meshes: dict[str, dict] = {}
    for key, pose in (("source", source), ("target", target)):
        capsule_mesh(body, pose).export(out / f"proxies/{key}.ply")
        meshes[key] = {"mesh": f"proxies/{key}.ply"}
    boxes = [
        {"type": "box", "source": _box(before), "target": _box(after)}
        for before, after in zip(limb_boxes(body, source), limb_boxes(body, target), strict=True)
    ]
    controls = {
        "edit.json": {"type": "skeleton", **skeletons},
        "edit-mesh.json": {"type": "mesh", **meshes},
        "edit-boxes.json": {"type": "parts", "parts": boxes},
    }
    for name, control in controls.items():
        _save_json(out / name, {"prompt": caption, "source_prompt": caption, "control": control})


def _box(box: Box) -> dict[str, list[float]]:
    return {
        key: [round(value, 5) for value in values]
        for key, values in zip(("position", "rotation", "size"), box, strict=True)
    }


def _save_image(path: Path, frame: Frame) -> None:
    Image.fromarray((frame.rgb * 255).round().clamp(0, 255).byte().numpy()).save(path)


def _save_json(path: Path, document: dict) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
