"""Control images of whole edits."""

import json
from pathlib import Path

import pytest
import torch
import trimesh
from helpers import fuzzing
from helpers.cameras import ring, views
from helpers.documents import BOX_EDIT, GOOD, MESH_EDIT, with_control, write_edit

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.controls import draw
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.toy.capture import write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig


def test_control_images_follow_the_scene_transform(tmp_path: Path) -> None:
    edit = load_edit(write_edit(tmp_path, GOOD))
    cameras = views()
    source, target = control_images(edit, tmp_path, cameras, ["a", "b", "c"], torch.eye(3, 4), (48, 64))
    assert source.shape == target.shape == (3, 3, 48, 64)
    assert (source - target).abs().max() > 0.5
    away = torch.eye(3, 4)
    away[:, 3] = 50
    with pytest.raises(UserError, match="outside every view"):
        control_images(edit, tmp_path, cameras, ["a", "b", "c"], away, (48, 64))


def test_an_open_surface_is_drawn_and_all_meshes_together_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    trimesh.Trimesh(ball.vertices, ball.faces[:40]).export(folder / "open.ply")
    half = {"mesh": "open.ply", "position": [0, 0, 1], "scale": 0.5}
    part = {"type": "mesh", "source": half, "target": half}
    document = {**MESH_EDIT, "control": {"type": "parts", "parts": [part, part, BOX_EDIT["control"]]}}
    assert fuzzing.outcome(json.dumps(document), folder) == "projected"
    monkeypatch.setattr("qnerf_nerfstudio.controls.draw.MAX_FACES", 90)
    (folder / "edit.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="have 92 triangles in all, at most 90"):
        control_images(load_edit(folder / "edit.json"), folder, views(), list("abc"), torch.eye(3, 4), (12, 16))


@pytest.mark.parametrize("draw", ["depth", "normal"])
@pytest.mark.parametrize(
    ("place", "seen"),
    [
        ({"size": [1e6, 1e6, 1e6]}, True),
        ({"size": [1e6, 1e6, 1e-6], "rotation": [12, 34, 56]}, True),
        ({"size": [1e-6, 1e-6, 1e-6], "position": [0, 0, 1]}, False),
        ({"size": [1, 1, 1], "position": [1e6, -1e6, 1e6]}, False),
        ({"size": [1, 1, 1], "position": [0, 0, 500]}, False),
        ({"size": [10, 10, 10], "rotation": [1e6, -1e6, 1e6]}, True),
    ],
)
def test_solids_of_any_size_and_place_are_drawn_or_refused(folder: Path, draw: str, place: dict, seen: bool) -> None:
    document = with_control(BOX_EDIT, source=place, target={"size": [1, 1, 1], "position": [0, 0, 1]}, draw=draw)
    (folder / "edit.json").write_text(json.dumps({**document, "region": {"type": "everywhere"}}))
    edit = load_edit(folder / "edit.json")
    arguments = (edit, folder, views(), list("abc"), torch.eye(3, 4), (24, 32))
    if not seen:
        with pytest.raises(UserError, match=r"control.source: the box is outside every view"):
            control_images(*arguments)
        return
    source, target = control_images(*arguments)
    for drawn in (source, target):
        assert drawn.isfinite().all() and drawn.min() >= 0 and 0 < drawn.max() <= 1


def test_mesh_and_boxes_of_a_capture_stand_where_the_truth_stands(tmp_path: Path) -> None:
    write_capture(tmp_path / "scene", CaptureConfig(seed=3, num_views=4, num_novel_views=0, size=128))
    meta = json.loads((tmp_path / "scene/truth/transforms.json").read_text())
    names = [Path(frame["file_path"]).name for frame in meta["frames"]]
    cameras = Views(
        torch.tensor([frame["transform_matrix"][:3] for frame in meta["frames"]]),
        torch.tensor([[meta["fl_x"], meta["fl_y"], meta["cx"], meta["cy"]]] * len(names)),
        torch.zeros(len(names), 6),
        (128, 128),
    )
    for name, least in (("edit-mesh.json", 0.95), ("edit-boxes.json", 0.55)):
        edit = load_edit(tmp_path / "scene" / name)
        images = control_images(edit, tmp_path / "scene", cameras, names, torch.eye(4)[:3], (128, 128))
        for key, drawn in zip(("source_mask_path", "mask_path"), images, strict=True):
            masks = [_mask(tmp_path / "scene/truth" / frame[key]) for frame in meta["frames"]]
            seen, truth = drawn[:, 0] > 0, torch.stack(masks)
            assert ((seen & truth).sum() / (seen | truth).sum()) > least
            assert (seen & truth).sum() / truth.sum() > 0.95


def _mask(path: Path) -> torch.Tensor:
    return load_images([path])[0][..., 0] > 0.5


def test_a_solid_around_all_cameras_is_told(capsys: pytest.CaptureFixture) -> None:
    views = ring(4)
    reach = 2 * float(views.c2w[:, :, 3].abs().max()) + 1
    for size, told in ((2 * reach, True), (0.1, False)):
        draw._tell_of_units(views, [trimesh.creation.box([size] * 3)], "edit.json: control.source")
        assert ("encloses every camera" in capsys.readouterr().out.replace("\n", " ")) == told
