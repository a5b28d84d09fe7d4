"""`qnerf proxy` as its help shows it, and edits by the rigs that it makes."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from helpers.captures import small_capture
from helpers.commands import command, qnerf, train, where
from helpers.real import SCENES, needs_scenes

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.controls.solids import raycast
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.grids import render_grid
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.proxies import field_points, quick_field
from qnerf_nerfstudio.toy.capture import sample_edit
from qnerf_nerfstudio.toy.proxy import capsule_mesh

SEED, STEPS = 7, 500


@pytest.fixture(scope="module")
def _small_field() -> Iterator[None]:
    """Make fields that are trained in this process small: their number of steps counts, not what each costs."""
    config: Any = copy.deepcopy(qnerf_edit_tiny.config)
    config.pipeline.datamanager.train_num_rays_per_batch = 384
    model = config.pipeline.model
    model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray = (16,), 12
    model.num_levels, model.log2_hashmap_size, model.max_res = 8, 15, 512
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qnerf_edit_tiny, "config", config)
        yield


@pytest.fixture(scope="module")
def made(_small_field: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural capture with the mesh that `qnerf proxy` makes of its photos."""
    data = small_capture(tmp_path_factory.mktemp("made"), num_views=16, size=96, seed=SEED)
    output = qnerf("proxy", "--data", data, "--iterations", STEPS)
    assert "proxies/subject.ply" in output.replace("\n", "")
    return data


@pytest.fixture(scope="module")
def rigged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural capture whose edit is stated by a rig with the figure's own mesh."""
    data = small_capture(tmp_path_factory.mktemp("rig"), num_views=6, size=96, seed=SEED)
    body, source, _ = sample_edit(SEED)
    capsule_mesh(body, source).export(data / "proxies/subject.ply")
    edit = json.loads((data / "edit.json").read_text())
    edit["control"] |= {"type": "rig", "mesh": "proxies/subject.ply"}
    (data / "edit.json").write_text(json.dumps(edit))
    return data


@pytest.mark.release
def test_the_mesh_is_the_figure(made: Path) -> None:
    body, source, _ = sample_edit(SEED)
    mesh, truth = trimesh.load(made / "proxies/subject.ply"), capsule_mesh(body, source)
    height = float(truth.extents[2])
    views = read_capture(made).dataset_views()
    seen, true = (raycast(views, [each]).depth for each in (mesh, truth))
    both = seen.isfinite() & true.isfinite()
    assert float((seen[both] - true[both]).abs().median()) < 0.02 * height
    assert float(both.sum() / (seen.isfinite() | true.isfinite()).sum()) > 0.8
    assert len(mesh.faces) <= 20_000


@pytest.mark.release
def test_the_drawn_depth_is_that_of_the_field(made: Path) -> None:
    body, source, _ = sample_edit(SEED)
    height = float(capsule_mesh(body, source).extents[2])
    # With the same seed this is the field that the mesh was made of.
    model, capture = quick_field(made, STEPS)
    views, stated = capture.views()[:4].resized((96, 96)), read_capture(made).dataset_views()[:4].resized((96, 96))
    lengths = views.rays()[1].norm(dim=-1).unflatten(1, views.size)
    rendered = render_grid(model, views, range(4), views.size, "expected_depth")[..., 0] / lengths
    rendered = rendered / torch.linalg.det(capture.to_scene[:, :3]) ** (1 / 3)
    drawn = raycast(stated, [trimesh.load(made / "proxies/subject.ply")]).depth
    error = (rendered - drawn)[drawn.isfinite()].abs()
    assert float(error.median()) < 0.02 * height


def test_both_poses_are_drawn_and_an_edit_by_a_rig_runs(rigged: Path, tiny_editor: Path, tmp_path: Path) -> None:
    # Its skeleton is OpenPose's, so that two ControlNets can read it at once.
    edit = json.loads((rigged / "edit.json").read_text())
    edit["control"]["draw"] = ["openpose", "depth"]
    (rigged / "both.json").write_text(json.dumps(edit))
    controlnet = tiny_editor / "controlnet"
    two = ["--pipeline.editor.controlnet", controlnet, controlnet, "--pipeline.editor.controlnet-scale", "1", "0.5"]
    # SHORT's few samples see no surface in so young a field.
    samples = ["--pipeline.model.num-proposal-samples-per-ray", 32, "--pipeline.model.num-nerf-samples-per-ray", 24]
    short = ["--pipeline.consolidation", "one-shot", "--pipeline.editor.num-steps", 2, "--pipeline.tau", 1]
    run = train(rigged, tmp_path, tiny_editor, "--pipeline.edit", rigged / "both.json", *two, *samples, *short)
    found = field_points(rigged, run, 0)
    assert found is not None
    points, colours = found
    # A few steps make a field of little matter; what there is lies around the capture, in its own coordinates.
    assert len(points) == len(colours) > 0 and np.isfinite(points).all() and float(np.abs(points).max()) < 10
    body, source, target = sample_edit(SEED)
    capture = read_capture(rigged)
    views = capture.dataset_views()
    for side, pose in (("source", source), ("target", target)):
        images = load_images([run / f"edit/controls/{side}/{Path(name).stem}.png" for name in capture.names])
        posed, drawn = (part.amax(-1) > 0 for part in torch.stack(images).chunk(2, dim=2))
        # Bones lie inside of the mesh.
        assert 0.05 < float((posed & drawn).sum() / drawn.sum()) < 0.9
        assert float((posed & drawn).sum() / posed.sum()) > 0.7
        true = raycast(views.resized((64, 64)), [capsule_mesh(body, pose)]).depth.isfinite()
        assert float((drawn & true).sum() / (drawn | true).sum()) > 0.75, side


def test_a_mesh_elsewhere_and_a_subject_nowhere_are_told(rigged: Path, tmp_path: Path) -> None:
    again = command("qnerf", "proxy", "--data", rigged, code=2)
    assert "is there already; name another file with --out" in again
    boxes = command("qnerf", "proxy", "--data", rigged, "--edit", rigged / "edit-boxes.json", "--out", "a.ply", code=2)
    assert "where is the subject? State --box" in boxes
    mesh = trimesh.load(rigged / "proxies/subject.ply")
    mesh.apply_translation([5.0, 0, 0])
    mesh.export(rigged / "proxies/moved.ply")
    edit = json.loads((rigged / "edit.json").read_text())
    edit["control"]["mesh"] = "proxies/moved.ply"
    (rigged / "moved.json").write_text(json.dumps(edit))
    train = ("ns-train", "qnerf-edit-tiny", "--data", rigged, "--pipeline.edit", rigged / "moved.json")
    told = command(*train, *where(tmp_path / "out"), "--pipeline.editing", "carried", code=2)
    assert "moved.ply is far away from" in told.splitlines()[-1]


@needs_scenes
@pytest.mark.release
def test_the_dinosaur_bends_its_neck(tmp_path: Path) -> None:
    data = tmp_path / "dinosaur"
    shutil.copytree(SCENES / "dinosaur", data, copy_function=shutil.copyfile)
    edit = json.loads((SCENES.parent / "carry/dinosaur-edit.json").read_text())
    source = {name: np.array(at) for name, at in edit["control"]["source"].items()}
    # The neck turns by 30 degrees about the axis across the animal.
    ahead, up = source["neckmid"] - source["neck"], read_capture(data).dataset_views().c2w[:, :, 1].mean(0).numpy()
    turn = trimesh.transformations.rotation_matrix(np.radians(30), np.cross(up, ahead), source["neck"])
    target = {name: at.tolist() for name, at in source.items()}
    for name in ("neckmid", "skull", "snout"):
        target[name] = trimesh.transform_points(source[name][None], turn)[0].tolist()
    edit["control"] |= {"target": target, "type": "rig", "mesh": "proxies/subject.ply"}
    (data / "edit.json").write_text(json.dumps(edit))
    command("qnerf", "proxy", "--data", data)
    mesh = trimesh.load(data / "proxies/subject.ply")
    # From the snout to the tip of the tail, which the skeleton states.
    assert (mesh.extents > 0.75 * np.ptp(list(source.values()), axis=0)).all()
    capture = read_capture(data)
    views = capture.dataset_views()
    drawn = control_images(load_edit(data / "edit.json"), data, views, capture.names, torch.eye(4)[:3], (128, 128))
    for images in drawn:
        seen = images.amax(1).flatten(1).gt(0).float().mean(1)
        assert float((seen > 0.02).float().mean()) > 0.9
    assert float((drawn[0] - drawn[1]).abs().amax(1).gt(0.02).float().mean()) > 0.005
