"""Held-out pairs."""

import torch

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.toy.capture import focal_length, orbit_camera
from qnerf_nerfstudio.toy.figure import Body, Pose, joints
from qnerf_nerfstudio.toy.training.data import HELD_OUT, LIMB_BONES, draw_loosely, render_pair


def test_pairs_are_reproducible_and_held_out_ones_differ() -> None:
    first, again, held = render_pair(3, 64), render_pair(3, 64), render_pair(HELD_OUT + 3, 64)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.controls, again.controls)
    assert not torch.equal(first.images, held.images)
    assert first.caption.startswith("a figure with")


def test_loose_controls_leave_out_limbs_and_their_joints() -> None:
    skeleton = joints(Body(), Pose())
    bones = [bone for bone in OPENPOSE_BONES if set(bone) <= set(skeleton)]
    focal = focal_length(128)
    c2w = torch.stack([orbit_camera(azimuth, 10, 4, 1) for azimuth in (0.0, 90.0, 180.0)])
    cameras = Views(c2w, torch.tensor([[focal, focal, 64, 64]]).expand(3, 4), torch.zeros(3, 6), (128, 128))
    generator = torch.Generator().manual_seed(0)
    whole = draw_skeleton(cameras, skeleton, bones)
    assert torch.equal(draw_loosely(cameras, skeleton, 0.0, generator), whole)
    trunk = {name: skeleton[name] for bone in bones if bone not in LIMB_BONES for name in bone}
    without = draw_skeleton(cameras, trunk, [bone for bone in bones if bone not in LIMB_BONES])
    assert torch.equal(draw_loosely(cameras, skeleton, 1.0, generator), without)
    loose = draw_loosely(cameras, skeleton, 0.4, generator)
    drawn = [int((image != 0).sum()) for image in (without, loose, whole)]
    assert drawn[0] < drawn[1] < drawn[2]
    assert torch.equal(render_pair(HELD_OUT, 64).controls, render_pair(HELD_OUT, 64, dropped=0.0).controls)
    assert not torch.equal(render_pair(HELD_OUT, 64).controls, render_pair(HELD_OUT, 64, dropped=1.0).controls)


def test_depth_controls_show_the_same_pair() -> None:
    depth = render_pair(HELD_OUT, 64, kind="depth")
    assert torch.equal(depth.images, render_pair(HELD_OUT, 64).images)
    assert torch.equal(depth.controls[..., 0], depth.controls[..., 1])
    seen = depth.controls[..., 0] > 0
    assert (seen & depth.masks).sum() > 0.8 * depth.masks.sum()
