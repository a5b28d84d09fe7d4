"""Motions of bones against motions that are known."""

import math

import pytest
import torch
from helpers.figures import figure_skeleton
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.capture.cameras import transform_points
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.rigs.bones import Skeleton, bone_motions, least_rotation
from qnerf_nerfstudio.toy.figure import Body, Pose, joints

SEEDS = st.integers(0, 2**31 - 1)


def random_rotation(generator: torch.Generator) -> torch.Tensor:
    """A rotation."""
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    return rotation * torch.linalg.det(rotation).sign()


@settings(deadline=None)
@given(SEEDS)
def test_a_skeleton_that_moves_as_one_moves_all_bones_alike(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    motion = torch.cat([random_rotation(generator), torch.randn(3, 1, generator=generator)], dim=-1)
    edited = figure_skeleton(Body(), Pose(r_arm_raise=120, l_elbow=70, r_leg_swing=40))
    captured = Skeleton(transform_points(edited.joints, motion), edited.bones)
    torch.testing.assert_close(
        bone_motions(edited, captured), motion.expand(len(edited.bones), 3, 4), atol=1e-4, rtol=0
    )


def test_what_does_not_move_is_left_alone_to_the_bit() -> None:
    skeleton = figure_skeleton(Body(), Pose(r_arm_raise=100))
    assert torch.equal(bone_motions(skeleton, skeleton), torch.eye(3, 4).expand(len(skeleton.bones), 3, 4))


@settings(deadline=None)
@given(SEEDS, st.floats(-170, 170), st.floats(0, 120))
def test_bones_arrive_where_their_joints_are(seed: int, raised: float, bent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    captured = figure_skeleton(Body(), Pose())
    edited = figure_skeleton(Body(), Pose(r_arm_raise=raised, l_elbow=bent, l_leg_swing=bent / 2, lean=10))
    edited = Skeleton(edited.joints * (1 + 0.2 * torch.rand(1, generator=generator)), edited.bones)
    motions = bone_motions(edited, captured)
    for ends, wanted in ((edited.start, captured.start), (edited.end, captured.end)):
        arrived = (motions[..., :3] @ ends[..., None])[..., 0] + motions[..., 3]
        torch.testing.assert_close(arrived, wanted, atol=1e-4, rtol=0)


def test_a_straight_limb_has_no_twist_of_its_own() -> None:
    captured, edited = (
        figure_skeleton(Body(), Pose(r_elbow=0)),
        figure_skeleton(Body(), Pose(r_elbow=0, r_arm_raise=100)),
    )
    motions = bone_motions(edited, captured)
    upper, fore = (
        number
        for number, bone in enumerate(bone for bone in OPENPOSE_BONES if set(bone) <= set(joints(Body(), Pose())))
        if bone in (("r_shoulder", "r_elbow"), ("r_elbow", "r_wrist"))
    )
    torch.testing.assert_close(motions[upper], motions[fore], atol=1e-5, rtol=0)


def test_bones_that_hang_together_with_no_others_move_by_themselves() -> None:
    joints = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 5, 0], [0, 6, 0]])
    captured = Skeleton(joints, torch.tensor([[0, 1], [2, 3]]))
    edited = Skeleton(joints + torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 2]]), captured.bones)
    first, second = bone_motions(edited, captured)
    torch.testing.assert_close(first, torch.eye(3, 4))
    torch.testing.assert_close(second, torch.cat([torch.eye(3), torch.tensor([[0.0], [0], [-2]])], dim=-1))


@settings(deadline=None)
@given(SEEDS)
def test_the_least_rotation_turns_about_the_common_normal(seed: int) -> None:
    before, after = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).double()
    rotation = least_rotation(before, after)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double())
    torch.testing.assert_close(rotation @ before / before.norm(), after / after.norm())
    angle = math.acos(max(-1.0, min(1.0, float((rotation.trace() - 1) / 2))))
    between = math.acos(max(-1.0, min(1.0, float(before @ after / before.norm() / after.norm()))))
    assert angle == pytest.approx(between, abs=1e-6)


def test_opposite_directions_have_a_rotation_too() -> None:
    rotation = least_rotation(torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, -1]))
    torch.testing.assert_close(rotation @ torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, -1]))
    assert torch.linalg.det(rotation) == pytest.approx(1)
