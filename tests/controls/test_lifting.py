"""Skeletons lifted from OpenPose drawings, against the skeletons that were drawn."""

import io
import math

import cv2
import numpy as np
import pytest
import torch
from helpers.people import figure, orbit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.controls.lifting import NoSkeletonError, find_joints, lift_skeleton, triangulate
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_COLOURS, OPENPOSE_JOINTS
from qnerf_nerfstudio.toy.training.data import draw_loosely

BONES = [bone for bone in OPENPOSE_BONES if bone[0] in OPENPOSE_JOINTS[:14] and bone[1] in OPENPOSE_JOINTS[:14]]


def drawn(views: Views, skeleton: dict[str, torch.Tensor]) -> torch.Tensor:
    return draw_skeleton(views, skeleton, BONES)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([128, 256]), k1=st.sampled_from([0.0, -0.05]))
def test_limbs_that_views_leave_out_are_found(seed: int, size: int, k1: float) -> None:
    views, truth = orbit(24, size, k1), figure(seed)
    loose = draw_loosely(views, truth, 0.4, torch.Generator().manual_seed(seed))
    lifted = lift_skeleton(views, list(loose))
    assert lifted.bones == BONES
    # A pixel is about 4.3 / 1.8 / size wide at the figure.
    for name, point in lifted.joints.items():
        assert (point - truth[name]).norm() < 2.4 / size, name
    missed, left = ((each - to_unit(drawn(views, truth))).abs().mean() for each in (to_unit(loose), lifted.draw(views)))
    assert left < 0.004 and left < missed / 2


def test_views_with_another_pose_are_outvoted() -> None:
    views, truth = orbit(20, 128), figure(1)
    images = drawn(views, truth)
    images[::5] = drawn(views[::5], figure(2))
    lifted = lift_skeleton(views, list(images))
    assert max(float((lifted.joints[name] - truth[name]).norm()) for name in OPENPOSE_JOINTS[:14]) < 0.02


def test_a_bone_that_nobody_draws_is_not_invented() -> None:
    views, truth = orbit(12, 256), figure(3)
    without = [bone for bone in BONES if bone != ("r_hip", "r_knee")]
    lifted = lift_skeleton(views, list(draw_skeleton(views, truth, without)))
    assert lifted.bones == without


@pytest.mark.parametrize("what", ["two persons", "every view its own pose", "one joint", "depth", "nothing"])
def test_what_is_not_one_skeleton_is_left_alone(what: str) -> None:
    views, truth = orbit(12, 256), figure(4)
    images = drawn(views, truth)
    seen = {"depth": "no joint .* was seen", "nothing": "no joint .* was seen"}.get(what, "explains [1-6].% of what")
    if what == "two persons":
        other = drawn(views, {name: point + torch.tensor([0.9, 0.0, 0.0]) for name, point in figure(5).items()})
        images = torch.where(other > 0, other, images)
    elif what == "every view its own pose":
        images = torch.cat([drawn(views[i : i + 1], figure(100 + i)) for i in range(len(views))])
    elif what == "one joint":
        images = draw_skeleton(views, {"nose": truth["nose"]}, [])
        seen = "seen in 12 of 12 views, at most 1 in one, but the views agree on where nose is"
    elif what == "depth":
        images = images.amax(-1, keepdim=True).expand(-1, -1, -1, 3)
    else:
        images = torch.zeros_like(images)
    with pytest.raises(NoSkeletonError, match=seen):
        lift_skeleton(views, list(images))


def test_joints_are_found_to_a_fraction_of_a_pixel() -> None:
    views, truth = orbit(6, 512), figure(6)
    pixels = find_joints(list(drawn(views, truth)))[:, :14, 0] * 512
    expected, _ = views.project(torch.stack([truth[name] for name in OPENPOSE_JOINTS[:14]]))
    errors = (pixels - expected).norm(dim=-1)
    assert errors.nanmedian() < 0.3


def annotated(views: Views, skeleton: dict[str, torch.Tensor], radius: int, version: str) -> list[np.ndarray]:
    """Drawings as ControlNet's annotators make them: 1.1 draws discs over dimmed bones; 1.0 blends bones over discs."""
    pixels = views.project(torch.stack(list(skeleton.values())))[0].numpy()
    canvases = []
    for view in pixels:
        at = dict(zip(skeleton, view.astype(int), strict=True))
        canvas = np.zeros((*views.size, 3), np.uint8)

        def draw_discs(canvas: np.ndarray = canvas, at: dict[str, np.ndarray] = at) -> None:
            for name in OPENPOSE_JOINTS[:14]:
                cv2.circle(canvas, at[name].tolist(), radius, OPENPOSE_COLOURS[name], -1)

        if version == "1.0":
            draw_discs()
        for a, b in BONES:
            along = (at[a] - at[b]).astype(float)
            axes = (int(np.linalg.norm(along) / 2), radius)
            angle = int(math.degrees(math.atan2(along[1], along[0])))
            limb = cv2.ellipse2Poly(((at[a] + at[b]) // 2).tolist(), axes, angle, 0, 360, 1)
            over = canvas.copy() if version == "1.0" else np.zeros_like(canvas)
            cv2.fillConvexPoly(over, limb, OPENPOSE_COLOURS[a, b])
            if version == "1.0":
                canvas[:] = cv2.addWeighted(canvas, 0.4, over, 0.6, 0)
            else:
                canvas[over.any(-1)] = (0.6 * over[over.any(-1)]).astype(np.uint8)
        if version == "1.1":
            draw_discs()
        canvases.append(canvas)
    return canvases


@pytest.mark.parametrize("version", ["1.0", "1.1"])
# The thinnest and the thickest lines beside the drawing's size, and some between; `make release-check` has more.
@pytest.mark.parametrize(
    ("size", "radius"),
    [
        *((768, 2), (512, 4), (512, 8)),
        *(pytest.param(*each, marks=pytest.mark.release) for each in ((512, 2), (768, 4), (768, 8))),
    ],
)
def test_drawings_of_other_programs_are_lifted_for_a_smaller_method(size: int, radius: int, version: str) -> None:
    views, truth = orbit(12, 128), figure(1)
    images = [torch.from_numpy(each) for each in annotated(views.resized((size, size)), truth, radius, version)]
    lifted = lift_skeleton(views, images)
    assert lifted.bones == BONES
    assert max(float((point - truth[name]).norm()) for name, point in lifted.joints.items()) < 0.03


@pytest.mark.parametrize(("version", "radius"), [("1.1", 4), ("1.1", 8), ("1.0", 4)])
def test_jpeg_drawings_are_lifted(version: str, radius: int) -> None:
    views, truth = orbit(12, 512), figure(1)
    images = []
    for canvas in annotated(views, truth, radius, version):
        file = io.BytesIO()
        Image.fromarray(canvas).save(file, "JPEG", quality=85)
        images.append(torch.from_numpy(np.array(Image.open(file))))
    lifted = lift_skeleton(views, images)
    assert lifted.bones == BONES
    assert max(float((point - truth[name]).norm()) for name, point in lifted.joints.items()) < 0.03


@given(
    point=st.tuples(*[st.floats(-0.5, 0.5)] * 3), outliers=st.sets(st.integers(0, 9), max_size=4), angle=st.floats(0, 6)
)
@settings(max_examples=30, deadline=None)
def test_triangulation_ignores_outliers(point: tuple[float, ...], outliers: set[int], angle: float) -> None:
    views, truth = orbit(10, 256), torch.tensor(point) + torch.tensor([0.0, 0.0, 1.0])
    pixels = views.project(truth[None])[0]
    for number, index in enumerate(sorted(outliers)):
        pixels[index, 0] += 60 * torch.tensor([math.cos(angle + 1.7 * number), math.sin(angle + 1.7 * number)])
    found = triangulate(views, pixels, tolerance=4)
    assert found is not None
    assert (found - truth).norm() < 1e-3


def test_two_rays_are_not_enough() -> None:
    views = orbit(5, 256)
    pixels = views.project(torch.tensor([[0.0, 0.0, 1.0]]))[0]
    pixels[2:] = torch.nan
    assert triangulate(views, pixels, tolerance=4) is None


@given(seed=st.integers(0, 10_000), same=st.booleans(), k1=st.floats(-3, 3), share=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_no_drawing_and_no_cameras_make_it_fail(seed: int, same: bool, k1: float, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    views = orbit(6, 32, k1)
    if same:
        views = Views(views.c2w[:1].expand(6, -1, -1), views.intrinsics, views.distortion, views.size)
    palette = torch.tensor([OPENPOSE_COLOURS[name] for name in (*OPENPOSE_JOINTS, *OPENPOSE_BONES)])
    images = palette[torch.randint(len(palette), (6, 32, 32), generator=generator)]
    images = images * (torch.rand(6, 32, 32, 1, generator=generator) < share) * torch.rand(1, generator=generator)
    found = triangulate(views, 32 * torch.rand(6, 2, 2, generator=generator), tolerance=40)
    assert found is None or found.isfinite().all()
    try:
        lifted = lift_skeleton(views, list(images.byte()))
    except NoSkeletonError:
        return
    assert all(point.isfinite().all() for point in lifted.joints.values())
