"""Meshes that move with skeletons: rigid motions, bends, and meshes that are elsewhere."""

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.rigs.skin import Rig
from qnerf_nerfstudio.toy.capture import sample_edit
from qnerf_nerfstudio.toy.figure import joints
from qnerf_nerfstudio.toy.proxy import capsule_mesh

LIMB = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
BONES = torch.tensor([[0, 1], [1, 2]])


def limb() -> trimesh.Trimesh:
    """A capsule of two bones along x."""
    mesh = trimesh.creation.capsule(height=2.0, radius=0.15, count=[32, 32])
    mesh.apply_translation(-mesh.bounds.mean(axis=0))
    # Capsules have no vertices between their ends.
    vertices, faces = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, 0.06)[:2]
    mesh = trimesh.Trimesh(vertices, faces)
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], [1, 0, 0]))
    mesh.apply_translation([1, 0, 0])
    return mesh


def figure(seed: int) -> tuple[trimesh.Trimesh, Skeleton, Skeleton]:
    """A figure's surface in its source pose, and its skeleton in both poses."""
    body, source, target = sample_edit(seed)
    before, after = joints(body, source), joints(body, target)
    names = list(before)
    bones = torch.tensor([[names.index(end) for end in bone] for bone in OPENPOSE_BONES if set(bone) <= set(names)])
    skeletons = [Skeleton(torch.stack([each[name] for name in names]), bones) for each in (before, after)]
    return capsule_mesh(body, source), skeletons[0], skeletons[1]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_a_rigid_motion_of_all_joints_moves_every_vertex_rigidly(seed: int) -> None:
    mesh, skeleton, _ = figure(seed % 5)
    generator = np.random.default_rng(seed)
    rotation = trimesh.transformations.random_rotation_matrix(generator.random(3))[:3, :3]
    shift = generator.normal(size=3)
    moved = torch.from_numpy(skeleton.joints.double().numpy() @ rotation.T + shift)
    posed = Rig(mesh, skeleton).posed(Skeleton(moved, skeleton.bones))
    expected = np.asarray(mesh.vertices) @ rotation.T + shift
    np.testing.assert_allclose(np.asarray(posed.vertices), expected, atol=1e-4)


def test_what_does_not_move_stays_to_the_bit() -> None:
    mesh, skeleton, _ = figure(1)
    posed = Rig(mesh, skeleton).posed(skeleton)
    assert np.array_equal(posed.vertices, mesh.vertices)


@pytest.mark.parametrize("angle", [30, 60, 90])
def test_a_limb_that_bends_keeps_its_volume(angle: float) -> None:
    mesh = limb()
    radians = np.radians(angle)
    end = LIMB[1] + torch.tensor([np.cos(radians), 0, np.sin(radians)], dtype=torch.float32)
    posed = Rig(mesh, Skeleton(LIMB, BONES)).posed(Skeleton(torch.stack([LIMB[0], LIMB[1], end]), BONES))
    assert len(posed.faces) == len(mesh.faces)
    assert posed.volume == pytest.approx(mesh.volume, rel=0.05)
    tip = np.asarray(posed.vertices)[np.asarray(mesh.vertices)[:, 0].argmax()]
    np.testing.assert_allclose(tip, LIMB[1] + 1.15 * (end - LIMB[1]), atol=0.01)


def test_a_figure_follows_its_pose() -> None:
    body, _, target = sample_edit(3)
    mesh, skeleton, edited = figure(3)
    posed = Rig(mesh, skeleton).posed(edited)
    points = trimesh.sample.sample_surface(posed, 3000, seed=0)[0]
    _, distance, _ = trimesh.proximity.closest_point(capsule_mesh(body, target), points)
    assert np.median(distance) < 0.01 and np.percentile(distance, 90) < 0.04


def test_a_mesh_that_is_elsewhere_is_told() -> None:
    mesh, skeleton, _ = figure(1)
    Rig(mesh, skeleton).refuse_far("mesh")
    mesh.apply_translation([3.0, 0, 0])
    with pytest.raises(UserError, match=r"a\.ply is far away from 13 of the skeleton's 13 bones"):
        Rig(mesh, skeleton).refuse_far("a.ply")
