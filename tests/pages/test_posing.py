"""What `qnerf pose` does to an edit: rigid moves, mirrors, triangulation against projection, undo, and saving."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cameras import views as cameras
from helpers.documents import BOX, GOOD
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.capture.capture import sparse_points
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.solids import placement_matrix
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import Edit
from qnerf_nerfstudio.pages.pose_start import REST_POSE, open_document, standing_skeleton
from qnerf_nerfstudio.pages.posing import (
    PhotoClicks,
    PoseDocument,
    degrees,
    intersect_rays,
    mirror,
    move_joint,
    parents,
    quaternion,
    with_joint,
    with_name,
    with_or_without_bone,
    without_joint,
)
from qnerf_nerfstudio.toy.capture import write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.figure import Body, Pose, joints

BONES = tuple(bone for bone in OPENPOSE_BONES if set(bone) <= set(REST_POSE))

POINT = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


def length(skeleton: dict, bone: tuple[str, str]) -> float:
    return float(np.linalg.norm(np.subtract(skeleton[bone[0]], skeleton[bone[1]])))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(REST_POSE)), POINT)
def test_dragging_keeps_every_bone_and_all_that_does_not_hang_from_the_joint(name: str, at: list[float]) -> None:
    moved = move_joint(REST_POSE, BONES, name, at, keep_lengths=True)
    for bone in BONES:
        assert length(moved, bone) == pytest.approx(length(REST_POSE, bone), abs=1e-6)
    before = parents("neck", BONES)
    if name == "neck":
        assert moved["neck"] == pytest.approx(at)
        shifts = np.array([np.subtract(moved[key], REST_POSE[key]) for key in REST_POSE])
        np.testing.assert_allclose(shifts, shifts[:1].repeat(len(shifts), 0), atol=1e-9)
        return
    pivot = np.array(REST_POSE[before[name]])
    towards, wanted = np.subtract(moved[name], pivot), np.subtract(at, pivot)
    if np.linalg.norm(wanted) > 1e-3:
        assert np.dot(towards, wanted) == pytest.approx(np.linalg.norm(towards) * np.linalg.norm(wanted), rel=1e-6)
    still = {key for key in REST_POSE if key != name and not hangs(key, name, before)}
    assert all(moved[key] == REST_POSE[key] for key in still)
    alone = move_joint(REST_POSE, BONES, name, at, keep_lengths=False)
    assert alone[name] == pytest.approx(at)
    assert all(alone[key] == REST_POSE[key] for key in REST_POSE if key != name)


def hangs(joint: str, name: str, before: dict[str, str]) -> bool:
    while joint in before:
        joint = before[joint]
        if joint == name:
            return True
    return False


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 150), st.floats(0, 150), st.floats(0, 60))
def test_mirroring_twice_is_nothing_and_once_exchanges_sides(left: float, right: float, lean: float) -> None:
    posed = {
        name: tuple(at.tolist())
        for name, at in joints(Body(), Pose(l_arm_raise=left, r_arm_raise=right, lean=lean / 6)).items()
    }
    mirrored = mirror(posed)
    for first, second in BONES:
        other = [{"r_": "l_", "l_": "r_"}.get(name[:2], name[:2]) + name[2:] for name in (first, second)]
        assert length(mirrored, (first, second)) == pytest.approx(length(posed, (other[0], other[1])), abs=1e-6)
    for name, at in mirror(mirrored).items():
        assert at == pytest.approx(posed[name], abs=1e-5)
    with pytest.raises(UserError, match="left and right"):
        mirror({"a": (0, 0, 0), "b": (0, 0, 1)})


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-0.4, 0.4), min_size=3, max_size=3))
def test_a_joint_clicked_in_two_photos_is_where_it_is_seen_through_the_lens(at: list[float]) -> None:
    views = cameras(2, distortion=(0.05, -0.02, 0.001, 0.0, 0.002, -0.001))
    point = torch.tensor([at[0], at[1], at[2] + 1.0])
    pixels, visible = views.project(point[None])
    assert visible.all()
    # The page shows a photo flat: where a click's ray leaves the camera says which pixel of the photo it means.
    rays = []
    for index in range(2):
        height, width = views.size
        x, y = pixels[index, 0].tolist()
        if not (0 <= x < width and 0 <= y < height):
            return
        rays.append(point - views.c2w[index, :, 3])
    clicks = PhotoClicks(views)
    assert not clicks.add(0, rays[0])
    with pytest.raises(UserError, match="same photo"):
        clicks.add(0, rays[0])
    assert clicks.add(1, rays[1])
    found, gap = clicks.point()
    torch.testing.assert_close(found.float(), point, atol=2e-3, rtol=0)
    assert gap < 1e-3


def test_clicks_that_do_not_meet_are_refused() -> None:
    origins = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    with pytest.raises(UserError, match="same side"):
        intersect_rays(origins, torch.tensor([[0.0, 0, -1], [0.001, 0, -1]]))
    with pytest.raises(UserError, match="behind"):
        intersect_rays(origins, torch.tensor([[-1.0, 0, -1], [1.0, 0, -1]]))
    with pytest.raises(UserError, match="look through"):
        PhotoClicks(cameras(1)).add(0, cameras(1).c2w[0, :, 2])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-170, 170), min_size=3, max_size=3))
def test_rotations_survive_the_gizmo(angles: list[float]) -> None:
    before = placement_matrix((0, 0, 0), angles, (1, 1, 1))
    after = placement_matrix((0, 0, 0), degrees(quaternion(angles)), (1, 1, 1))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def test_changes_are_undone_one_by_one_and_saving_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    path.write_text(json.dumps({**GOOD, "control": {"type": "parts", "parts": [BOX, {**BOX, "draw": "depth"}]}}))
    document = open_document(tmp_path, path, "skeleton", None)
    first = document.edit
    document.change(prompt="something else")
    document.change_part(1, target={"size": [2, 2, 2], "position": [0, 0, 1]})
    document.change_part(1, merge=True, target={"size": [2, 2, 2], "position": [0, 0, 2]})
    assert document.parts[0] == first.control.parts[0]  # pyright: ignore[reportAttributeAccessIssue]
    document.reset()
    assert document.edit == first
    assert document.undo() and document.parts[1].target.position == (0, 0, 2)
    assert document.undo() and document.parts[1].target.size == (1, 1, 2)
    assert document.undo() and document.edit == first
    assert not document.undo()
    with pytest.raises(UserError, match="not changed"):
        document.change(prompt=" ")
    document.change(prompt="saved")
    original = path.read_bytes()
    assert document.save() == tmp_path / "edit.1.json"
    assert (tmp_path / "edit.1.json").read_bytes() == original
    assert load_edit(path) == document.edit
    assert document.save() == tmp_path / "edit.2.json"


def test_a_new_edit_begins_where_the_cameras_look(tmp_path: Path) -> None:
    data = tmp_path / "scene"
    write_capture(data, CaptureConfig(seed=2, num_views=6, num_novel_views=0, size=64))
    (data / "edit.json").unlink()
    document = open_document(data, data / "edit.json", "skeleton", None)
    placed = np.array(list(document.joints(0, "target").values()))
    assert np.linalg.norm(placed.mean(0) - [0, 0, 1.0]) < 0.5
    assert np.ptp(placed[:, 2]) == pytest.approx(1.9, abs=0.3)
    assert document.save() is None and load_edit(data / "edit.json") == document.edit
    (data / "edit.json").unlink()
    assert open_document(data, data / "edit.json", "box", None).parts[0].type == "box"
    mesh = open_document(data, data / "edit.json", "mesh", "proxies/source.ply").parts[0]
    assert mesh.source.mesh == "proxies/source.ply"
    with pytest.raises(UserError, match="no --mesh is named"):
        open_document(data, data / "edit.json", "mesh", None)
    images = {**GOOD, "control": {"type": "images", "source": "a", "target": "b"}}
    (data / "images.json").write_text(json.dumps(images))
    with pytest.raises(UserError, match="no place in 3D"):
        open_document(data, data / "images.json", "skeleton", None)
    assert sparse_points(data) is None


def test_a_standing_figure_has_the_height_it_is_asked_for() -> None:
    control = standing_skeleton(torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 1, 0]), 2.0)
    document = PoseDocument(Path("edit.json"), Edit.model_validate({**GOOD, "control": control}))
    placed = document.joints(0, "source")
    assert placed["nose"][1] == pytest.approx(2 + 2 * REST_POSE["nose"][2])
    assert placed["neck"] == pytest.approx((1.0, 2 + 2 * 0.84, 3.0))


def test_joints_and_bones_are_added_renamed_and_removed(tmp_path: Path) -> None:
    stated = {**GOOD, "control": {"type": "skeleton", "source": REST_POSE, "target": REST_POSE}}
    document = PoseDocument(tmp_path / "edit.json", Edit.model_validate(stated))
    count = len(document.parts[0].all_bones)
    values, name = with_joint(document.parts[0], "r_wrist")
    document.change_part(0, **values)
    part = document.parts[0]
    assert ("r_wrist", name) in part.all_bones and len(part.all_bones) == count + 1
    # It goes on where the arm ends.
    arm, hand = (np.subtract(part.target[b], part.target[a]) for a, b in (("r_elbow", "r_wrist"), ("r_wrist", name)))
    assert np.dot(arm, hand) == pytest.approx(np.linalg.norm(arm) * np.linalg.norm(hand))
    document.change_part(0, **with_name(part, name, " r_hand "))
    assert ("r_wrist", "r_hand") in document.parts[0].all_bones and not document.parts[0].is_openpose
    for name in ("neck", " "):
        with pytest.raises(UserError, match="no joint can be called"):
            with_name(document.parts[0], "r_hand", name)
    document.change_part(0, **with_or_without_bone(document.parts[0], "r_hand", "l_wrist"))
    assert ("r_hand", "l_wrist") in document.parts[0].all_bones
    document.change_part(0, **with_or_without_bone(document.parts[0], "l_wrist", "r_hand"))
    assert len(document.parts[0].all_bones) == count + 1
    with pytest.raises(UserError, match="a bone has two ends"):
        with_or_without_bone(document.parts[0], "neck", "neck")
    document.change_part(0, **without_joint(document.parts[0], "r_wrist"))
    assert "r_wrist" not in document.parts[0].target and ("r_elbow", "r_hand") in document.parts[0].all_bones
    for _ in range(5):
        document.undo()
    assert document.parts[0].bones is None and dict(document.parts[0].source) == REST_POSE
