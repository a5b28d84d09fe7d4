"""Figures in batches are the figures of toy/figure.py."""

from dataclasses import fields

import pytest
import torch

from qnerf_nerfstudio.toy.capture import orbit_camera
from qnerf_nerfstudio.toy.figure import COLOURS, HEIGHTS, SKIN, Pose, capsules, joints
from qnerf_nerfstudio.toy.training.figures import (
    JOINTS,
    orbit_cameras,
    place_capsules,
    place_joints,
    sample_bodies,
    sample_poses,
    sample_scenes,
)


def test_joints_and_capsules_are_those_of_one_figure() -> None:
    scenes = sample_scenes(24, torch.Generator().manual_seed(0))
    for pose in scenes.poses.unbind(1):
        placed = place_joints(scenes.bodies, pose)
        matter = place_capsules(scenes.bodies, placed)
        for index, (body, angles) in enumerate(zip(scenes.bodies.single(), pose.tolist(), strict=True)):
            true_joints, true_matter = joints(body, Pose(*angles)), capsules(body, Pose(*angles))
            assert tuple(true_joints) == JOINTS
            torch.testing.assert_close(placed[index], torch.stack(list(true_joints.values())), atol=1e-5, rtol=0)
            present = matter.present[index]
            for name in ("start", "end", "radius", "colour"):
                found = getattr(matter, name)[index][present]
                torch.testing.assert_close(found, getattr(true_matter, name), atol=1e-5, rtol=0)
            assert matter.number[index][present].tolist() == list(range(len(true_matter.names)))


def test_bodies_are_drawn_as_one_is() -> None:
    drawn = sample_bodies(500, torch.Generator().manual_seed(1))
    bodies = drawn.single()
    assert {body.skin for body in bodies} == set(SKIN)
    assert {body.shirt for body in bodies} == set(COLOURS)
    assert {body.sleeves for body in bodies} == {"long", "short"}
    assert 0.4 < sum(body.hat == "none" for body in bodies) / 500 < 0.6
    assert HEIGHTS[0] <= drawn.height.min() < 1.55
    assert 1.8 < drawn.height.max() <= HEIGHTS[1]
    again = sample_bodies(500, torch.Generator().manual_seed(1))
    assert all(torch.equal(getattr(drawn, item.name), getattr(again, item.name)) for item in fields(drawn))


def test_poses_come_from_every_range() -> None:
    raised = Pose.__dataclass_fields__.keys() - {"lean"}
    poses = [Pose(*angles) for angles in sample_poses(400, torch.Generator().manual_seed(2)).tolist()]
    assert len(raised) == 12
    resting = [pose for pose in poses if max(pose.r_arm_raise, pose.l_arm_raise) <= 35 and abs(pose.lean) <= 3]
    lifted = [pose for pose in poses if min(pose.r_arm_raise, pose.l_arm_raise) >= 85 and abs(pose.lean) <= 8]
    assert 0.2 < len(resting) / 400 < 0.4
    assert 0.2 < len(lifted) / 400 < 0.5


@pytest.mark.parametrize("place", [(0.0, 3.0, 3.5, 0.95), (210.0, 48.0, 4.3, 1.05), (90.0, 20.0, 4.0, 1.0)])
def test_cameras_look_where_those_of_captures_do(place: tuple[float, float, float, float]) -> None:
    found = orbit_cameras(torch.tensor([place]))[0]
    torch.testing.assert_close(found, orbit_camera(*place), atol=1e-5, rtol=0)
