"""Training pairs."""

import pytest
import torch

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.toy.capture import focal_length, orbit_camera
from qnerf_nerfstudio.toy.figure import Body, Pose, joints
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.data import HELD_OUT, LIMB_BONES, draw_loosely, render_pair, training_pool


def test_pairs_are_reproducible_and_held_out_ones_differ() -> None:
    first, again, held = render_pair(3, 64), render_pair(3, 64), render_pair(HELD_OUT + 3, 64)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.controls, again.controls)
    assert not torch.equal(first.images, held.images)
    assert first.caption.startswith("a figure with")


def test_every_seed_trains_on_pairs_of_its_own_and_none_that_is_held_out() -> None:
    pools = [training_pool(TrainEditorConfig(seed=seed, pool=5000)) for seed in (0, 1, 199)]
    assert [pool.first for pool in pools] == [0, 5000, HELD_OUT - 5000]
    with pytest.raises(UserError, match=r"--seed is 200.*0 to 199"):
        training_pool(TrainEditorConfig(seed=200, pool=5000))


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


def test_training_pairs_have_skeletons_or_depths_as_controls() -> None:
    pairs = [render_pair(index, 64) for index in range(12)]
    grey = [bool((pair.controls[..., 0] == pair.controls[..., 1]).all()) for pair in pairs]
    assert 2 <= sum(grey) <= 10
    depth = render_pair(HELD_OUT, 64, kind="depth")
    assert torch.equal(depth.images, render_pair(HELD_OUT, 64).images)
    seen = depth.controls[..., 0] > 0
    assert (seen & depth.masks).sum() > 0.8 * depth.masks.sum()
