"""Cameras: projection against OpenCV, rays against nerfstudio's."""

import cv2
import numpy as np
import pytest
import torch
from helpers.cameras import LENS, views
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras

from qnerf_nerfstudio.capture.cameras import focus_of, invert_affine, transform_cameras
from qnerf_nerfstudio.controls.solids import placement_matrix


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


def test_rays_are_the_inverse_of_projection_and_those_of_nerfstudio() -> None:
    cameras = views(distortion=LENS)
    origins, directions = cameras.rays()
    for view in range(len(cameras)):
        pixels, visible = cameras.project((origins + 2.5 * directions)[view])
        rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(128) + 0.5, indexing="ij")
        assert visible[view].all()
        torch.testing.assert_close(pixels[view], torch.stack([columns, rows], -1).reshape(-1, 2), atol=1e-3, rtol=0)
    fx, fy, cx, cy = cameras.intrinsics.split(1, dim=-1)
    theirs = Cameras(cameras.c2w, fx, fy, cx, cy, 128, 96, cameras.distortion)
    bundle = theirs.generate_rays(camera_indices=1)
    ours = torch.nn.functional.normalize(directions[1], dim=-1).unflatten(0, (96, 128))
    torch.testing.assert_close(ours, bundle.directions, atol=1e-4, rtol=0)


def test_cameras_return_to_the_datasets_coordinates() -> None:
    cameras = views(3)
    to_scene = placement_matrix((0.3, -0.1, 0.2), (10, 20, 30), (0.4, 0.4, 0.4))[:3]
    moved = cameras.c2w.clone()
    moved[:, :, :3] = (to_scene[:, :3] / 0.4) @ cameras.c2w[:, :, :3]
    moved[:, :, 3] = cameras.c2w[:, :, 3] @ to_scene[:, :3].T + to_scene[:, 3]
    torch.testing.assert_close(transform_cameras(moved, invert_affine(to_scene)), cameras.c2w, atol=1e-5, rtol=0)
    focus, distance = focus_of(cameras)
    torch.testing.assert_close(focus, torch.tensor([0.0, 0, 1]), atol=1e-4, rtol=0)
    assert distance == pytest.approx(4.0, abs=1e-3)
