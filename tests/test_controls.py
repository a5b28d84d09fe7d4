"""Controls: projection against OpenCV, drawing, and the checks of edit.json."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.controls.images import load_control_images
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_COLOURS
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.toy.capture import orbit_camera


def views(count: int = 3, distortion: tuple[float, ...] = (0.0,) * 6, size: tuple[int, int] = (96, 128)) -> Views:
    c2w = torch.stack([orbit_camera(40.0 * i, 15.0, 4.0, 1.0) for i in range(count)])
    intrinsics = torch.tensor([[130.0, 125.0, 66.0, 45.0]]).expand(count, 4)
    return Views(c2w, intrinsics, torch.tensor([distortion]).expand(count, 6), size)


@given(
    st.lists(st.floats(-0.15, 0.15), min_size=3, max_size=3),
    st.lists(st.floats(-0.02, 0.02), min_size=2, max_size=2),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=50)
def test_projection_equals_opencv_with_distortion(radial: list[float], tangential: list[float], seed: int) -> None:
    cameras = views(distortion=(*radial, 0.0, *tangential))
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed)) * 0.6 + torch.tensor([0.0, 0.0, 1.0])
    pixels, visible = cameras.project(points)
    for view in range(len(cameras)):
        c2w = cameras.c2w[view].double().numpy()
        # OpenCV's camera looks along +z with y down, nerfstudio's along -z with y up.
        rotation: np.ndarray = np.diag([1.0, -1.0, -1.0]) @ c2w[:, :3].T
        translation = -rotation @ c2w[:, 3]
        fx, fy, cx, cy = cameras.intrinsics[view].tolist()
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        coefficients = np.array([radial[0], radial[1], *tangential, radial[2]])
        expected, _ = cv2.projectPoints(
            points.double().numpy(), cv2.Rodrigues(rotation)[0], translation, matrix, coefficients
        )
        seen = visible[view].numpy()
        np.testing.assert_allclose(pixels[view].numpy()[seen], expected[:, 0][seen], atol=2e-2, rtol=1e-4)


def test_points_behind_the_camera_and_beyond_the_lens_are_not_visible() -> None:
    cameras = views(1, distortion=(-0.4, 0.0, 0.0, 0.0, 0.0, 0.0))
    centre, forward = cameras.c2w[0, :, 3], -cameras.c2w[0, :, 2]
    right = cameras.c2w[0, :, 0]
    points = torch.stack([centre + forward, centre - forward, centre + forward + 3 * right])
    assert cameras.project(points)[1].tolist() == [[True, False, False]]


def test_resized_cameras_see_the_same() -> None:
    cameras = views()
    points = torch.rand(5, 3)
    small = cameras.resized((48, 32)).project(points)[0]
    torch.testing.assert_close(small * torch.tensor([4.0, 2.0]), cameras.project(points)[0], atol=1e-3, rtol=1e-4)


def test_skeleton_is_drawn_where_its_joints_project() -> None:
    cameras = views().resized((384, 512))
    joints = {"neck": torch.tensor([0.0, 0.0, 1.4]), "nose": torch.tensor([0.0, 0.0, 1.6])}
    images = draw_skeleton(cameras, joints, [("neck", "nose")])
    assert images.shape == (3, 384, 512, 3)
    pixels, _ = cameras.project(torch.stack(list(joints.values())))
    for view in range(3):
        for joint, (x, y) in zip(joints, pixels[view].tolist(), strict=True):
            assert images[view, int(y), int(x)].tolist() == list(OPENPOSE_COLOURS[joint])
    far = draw_skeleton(cameras, {name: at + 100 for name, at in joints.items()}, [("neck", "nose")])
    assert not far.any()


def test_openpose_colours_are_those_of_controlnet() -> None:
    limbs = [OPENPOSE_COLOURS[bone] for bone in OPENPOSE_BONES]
    assert limbs[:4] == [(255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0)]
    assert limbs[-1] == (255, 0, 170)
    assert OPENPOSE_COLOURS["l_ear"] == (255, 0, 85)


GOOD = {
    "prompt": "b",
    "source_prompt": "a",
    "control": {
        "type": "skeleton",
        "source": {"neck": [0, 0, 1.4], "nose": [0, 0, 1.6]},
        "target": {"neck": [0, 0, 1.4], "nose": [0, 0.1, 1.6]},
    },
}


BOX = {"type": "box", "source": {"size": [1, 1, 1]}, "target": {"size": [1, 1, 2]}}


def write(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "edit.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def changed(**control: object) -> dict:
    return {**GOOD, "control": {**GOOD["control"], **control}}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", ["not valid JSON"]),
        ({}, ["prompt", "missing"]),
        ({**GOOD, "promt": "x"}, ["promt", "unknown key", "'prompt'"]),
        (changed(bonez=[]), ["bonez", "unknown key", "'bones'"]),
        (changed(type="meshes"), ["control", "'mesh'"]),
        (changed(type="mesh"), ["control.source", "unknown key"]),
        ({**GOOD, "prompt": " "}, ["prompt", "empty"]),
        ({**GOOD, "region": {"type": "sphere", "position": [0, 0, 0], "radius": -1}}, ["region.radius", "greater"]),
        ({**GOOD, "region": {"type": "box", "position": [0, 0, 0], "sise": [1, 1, 1]}}, ["region.sise", "'size'"]),
        ({**GOOD, "control": {**BOX, "target": {"size": [1, 1, 0]}}}, ["control.target.size.2", "greater"]),
        ({**GOOD, "control": {"type": "parts", "parts": [BOX, GOOD["control"]]}}, ["part 1", "openpose", "depth"]),
        ({**GOOD, "control": {"type": "parts", "parts": [{**BOX, "drow": "depth"}]}}, ["parts.0.drow", "'draw'"]),
        (changed(target={"neck": [0, 0, 1], "nos": [0, 0, 2]}), ["nos", "did you mean"]),
        (changed(bones=[["neck", "nosee"]]), ["nosee", "'nose'"]),
        (changed(target={"neck": [0, 0, 1], "nose": [0, 0, "NaN"]}), ["target.nose", "finite"]),
        (changed(target={"neck": [0, 0, 1], "nose": [0, 0]}), ["target.nose"]),
        (changed(source={"neck": [0, 0, 1], "nose": [0, 0, 1]}, bones=[["neck", "nose"]]), ["no length"]),
        (changed(source={"x": [0, 0, 1]}, target={"x": [0, 0, 1]}), ["bones"]),
    ],
)
def test_mistakes_in_edit_json_are_named(tmp_path: Path, document: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_edit(write(tmp_path, document))
    message = str(caught.value)
    assert "edit.json" in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_missing_edit_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"edit\.json does not exist"):
        load_edit(tmp_path / "edit.json")


def test_control_images_follow_the_scene_transform(tmp_path: Path) -> None:
    edit = load_edit(write(tmp_path, GOOD))
    cameras = views()
    source, target = control_images(edit, tmp_path, cameras, ["a", "b", "c"], torch.eye(3, 4), (48, 64))
    assert source.shape == target.shape == (3, 3, 48, 64)
    assert (source - target).abs().max() > 0.5
    away = torch.eye(3, 4)
    away[:, 3] = 50
    with pytest.raises(UserError, match="outside every view"):
        control_images(edit, tmp_path, cameras, ["a", "b", "c"], away, (48, 64))


def test_control_image_folders_must_match_the_photos(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / f"{name}.png")
    images = load_control_images(tmp_path, ["one.jpg", "two.jpg"], (8, 16))
    assert images.shape == (2, 8, 16, 3)
    with pytest.raises(UserError, match=r"2 images for 3 photos, none for three\.jpg"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg", "three.jpg"], (8, 16))
    with pytest.raises(UserError, match="2 images for 1 photos"):
        load_control_images(tmp_path, ["one.jpg"], (8, 16))
    (tmp_path / "one.png").write_text("no image")
    with pytest.raises(UserError, match=r"one\.png cannot be read"):
        load_control_images(tmp_path, ["one.jpg", "two.jpg"], (8, 16))
    with pytest.raises(UserError, match="not a folder"):
        load_control_images(tmp_path / "none", ["one.jpg"], (8, 16))
