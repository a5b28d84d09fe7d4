"""Skeletons are drawn where their joints are seen."""

import torch
from helpers.cameras import views

from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.openpose import OPENPOSE_COLOURS


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
