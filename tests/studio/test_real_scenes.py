"""Two real captures: an edit whose target equals its source keeps the photos."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import RUN, command, where, without_diffusion
from helpers.real import SCENES, needs_scenes
from PIL import Image

from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.training.evaluate import load_trained

pytestmark = needs_scenes


def subset(name: str, out: Path, views: int, size: int) -> dict:
    """A few evenly spread views of a capture, `size` pixels wide and high; returns its transforms."""
    meta = json.loads((SCENES / name / "transforms.json").read_text())
    frames = sorted(meta["frames"], key=lambda frame: frame["file_path"])
    chosen = [frames[round(i * (len(frames) - 1) / (views - 1))] for i in range(views)]
    (out / "images").mkdir(parents=True)
    for frame in chosen:
        with Image.open(SCENES / name / frame["file_path"]) as photo:
            path = f"images/{Path(frame['file_path']).stem}.png"
            photo.convert("RGB").resize((size, size), Image.Resampling.LANCZOS).save(out / path)
        frame["file_path"] = path
    for camera in (meta, *chosen):
        if "w" in camera:
            scale_x, scale_y = size / camera["w"], size / camera["h"]
            camera |= {"w": size, "h": size}
            for key, scale in (("fl_x", scale_x), ("cx", scale_x), ("fl_y", scale_y), ("cy", scale_y)):
                if key in camera:
                    camera[key] *= scale
    meta["frames"] = chosen
    meta.pop("ply_file_path", None)
    (out / "transforms.json").write_text(json.dumps(meta))
    return meta


def edit_identically(data: Path, control: dict, out: Path, size: int) -> Path:
    """Run an edit whose target is its source, at `size` pixels; the run's folder."""
    document = {"prompt": "a photo of a statue", "source_prompt": "a photo of a statue", "control": control}
    (data / "edit.json").write_text(json.dumps(document))
    short = [
        *("--pipeline.editor.resolution", size),
        # So short a training makes no surface that needs more.
        *("--pipeline.model.num-proposal-samples-per-ray", "32"),
        *("--pipeline.model.num-nerf-samples-per-ray", "16"),
        *("--pipeline.datamanager.train-num-rays-per-batch", "256"),
        *("--pipeline.source-iterations", "20"),
        *("--pipeline.fit-iterations", "20"),
        *("--pipeline.final-iterations", "30"),
    ]
    command("ns-train", "qnerf-edit-tiny", "--data", data, *where(out), "--vis", "tensorboard", *short)
    return out / RUN


def likeness(data: Path, run: Path) -> float:
    """Mean PSNR in dB between edited views and the VAE's round trip of the photos."""
    editor = load_trained(BUNDLED_FOLDER, "cpu")
    photos = torch.stack(load_images(sorted((data / "images").iterdir()))).movedim(-1, 1)
    edited = torch.stack(load_images(sorted((run / "edit/images").iterdir()))).movedim(-1, 1)
    return float(psnr(edited, editor.decode(editor.encode(photos)), None).mean())


@pytest.mark.parametrize(("views", "size"), [(3, 128), pytest.param(6, 256, marks=pytest.mark.release)])
def test_bear_is_kept_by_an_identical_skeleton(tmp_path: Path, views: int, size: int) -> None:
    data = tmp_path / "bear"
    meta = subset("bear", data, views, size)
    # A skeleton in front of the cameras: where their optical axes meet.
    c2w = torch.tensor([frame["transform_matrix"] for frame in meta["frames"]])
    origins, axes = c2w[:, :3, 3], -c2w[:, :3, 2]
    across = torch.eye(3) - axes[:, :, None] * axes[:, None, :]
    centre = torch.linalg.solve(across.sum(0), (across @ origins[..., None]).sum(0)).squeeze(-1)
    reach = 0.15 * float((origins - centre).norm(dim=-1).mean())
    joints = {"neck": centre, "nose": centre + torch.tensor([0.0, 0.0, reach]), "r_hip": centre - reach}
    pose = {name: at.tolist() for name, at in joints.items()}
    run = edit_identically(data, {"type": "skeleton", "source": pose, "target": pose}, tmp_path / "out", size)
    assert likeness(data, run) >= 35
    path = json.loads((SCENES / "bear/camera_path.json").read_text())
    path["camera_path"] = path["camera_path"][:3]
    path |= {"render_width": 64, "render_height": 64}
    (tmp_path / "path.json").write_text(json.dumps(path))
    video = tmp_path / "bear.mp4"
    options = ["--camera-path-filename", tmp_path / "path.json", "--output-path", video]
    without_diffusion("ns-render", "camera-path", "--load-config", run / "config.yml", *options)
    assert video.stat().st_size > 500


@pytest.mark.release  # a bear of few views stands for it in `make test`
def test_dinosaur_is_kept_by_identical_control_images(tmp_path: Path) -> None:
    data = tmp_path / "dinosaur"
    subset("dinosaur", data, 6, 256)
    (data / "controls").mkdir()
    for photo in (data / "images").iterdir():
        with Image.open(photo) as image:
            image.convert("L").point([255 * (value > 128) for value in range(256)]).save(data / "controls" / photo.name)
    run = edit_identically(data, {"type": "images", "source": "controls", "target": "controls"}, tmp_path / "out", 256)
    assert likeness(data, run) >= 35
