"""The files that a run depends on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.captures import small_capture
from helpers.models import save_tiny_set
from PIL import Image
from safetensors.torch import load_file, save_file

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.run.inputs import inputs


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture with masks, an edit by meshes and masks of its own, and a local model set."""
    folder = tmp_path_factory.mktemp("inputs")
    scene = small_capture(folder, num_views=3)
    meta = json.loads((scene / "transforms.json").read_text())
    for number, name in enumerate(("masks", "region")):
        (scene / name).mkdir()
        for frame in meta["frames"]:
            pixels = np.full((64, 64), 255 - number, np.uint8)
            Image.fromarray(pixels).save(scene / name / Path(frame["file_path"]).name)
            frame["mask_path"] = f"masks/{Path(frame['file_path']).name}"
    (scene / "transforms.json").write_text(json.dumps(meta))
    edit = json.loads((scene / "edit-mesh.json").read_text())
    (scene / "edit.json").write_text(json.dumps({**edit, "masks": "region"}))
    save_tiny_set(folder)
    return folder


def read(folder: Path) -> dict[str, str]:
    scene, models = folder / "scene", folder / "editor"
    editor = EditorConfig(model=str(models), controlnet=(str(models / "controlnet"),))
    return inputs(read_capture(scene), load_edit(scene / "edit.json"), scene, editor)


def move_camera(folder: Path) -> None:
    path = folder / "scene/transforms.json"
    meta = json.loads(path.read_text())
    meta["fl_x"] += 1
    path.write_text(json.dumps(meta))


def blacken(name: str) -> Callable[[Path], None]:
    return lambda folder: Image.new("L", (64, 64)).save(folder / f"scene/{name}/frame_00001.png")


def move_mesh(folder: Path) -> None:
    path = folder / "scene/proxies/target.ply"
    mesh = trimesh.load(path)
    mesh.apply_translation([0.1, 0, 0])
    mesh.export(path)


def narrow_model(folder: Path) -> None:
    path = next((folder / "editor/unet").glob("*.safetensors"))
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][..., :1].contiguous()}, path)


def tune_scheduler(folder: Path) -> None:
    path = folder / "editor/scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.02}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (move_camera, "transforms.json"),
        (blacken("masks"), "mask of frame_00001.png"),
        (blacken("region"), "region/frame_00001.png"),
        (move_mesh, "proxies/target.ply"),
        (narrow_model, "editor/unet/diffusion_pytorch_model.safetensors"),
        (tune_scheduler, "editor/scheduler/scheduler_config.json"),
    ],
)
def test_what_changes_is_named(begun: Path, tmp_path: Path, change: Callable[[Path], None], named: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(begun, folder)
    before = read(begun)
    assert read(folder) == before
    change(folder)
    after = read(folder)
    assert [name for name in before if after.get(name) != before[name]] == [named] and set(after) == set(before)


def test_what_changes_nothing_does_not_count(begun: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(begun, folder)
    path = folder / "scene/transforms.json"
    meta = json.loads(path.read_text())
    for frame in meta["frames"]:
        frame["file_path"] = str(folder / "scene" / frame["file_path"])
        frame["mask_path"] = str(folder / "scene" / frame["mask_path"])
    path.write_text(json.dumps(meta, indent=7))
    (folder / "scene/proxies/target.fbm").mkdir()
    (folder / "scene/proxies/target.blend").write_text("not read")
    (folder / "scene/region/frame_00001").mkdir()
    (folder / "editor/.git").mkdir()
    (folder / "editor/.git/index.json").write_text("{}")
    (folder / "editor/README.md").write_text("read by nobody")
    capture = read_capture(begun / "scene")
    moved = replace(capture, data=folder / "scene")
    editor = EditorConfig(model=str(folder / "editor"), controlnet=(str(folder / "editor/controlnet"),))
    assert inputs(moved, load_edit(folder / "scene/edit.json"), folder / "scene", editor) == read(begun)
