"""Meshes in two poses, against boxes and a bend that is known."""

import numpy as np
import pytest
import torch
import trimesh

from qnerf_nerfstudio.controls.solids import placement_matrix
from qnerf_nerfstudio.deformation.meshes import MeshDeformation

TURN = placement_matrix((0.5, 0.2, 0.1), (20, 40, 60), (1, 1, 1)).double().numpy()


def inside(mesh: trimesh.Trimesh, count: int = 500) -> np.ndarray:
    """Points in a mesh."""
    return trimesh.sample.volume_mesh(mesh, count)


def test_a_mesh_that_moves_rigidly_takes_what_is_in_it_along() -> None:
    mesh = trimesh.creation.capsule(height=1.0, radius=0.2)
    moved = mesh.copy().apply_transform(TURN)
    deformation = MeshDeformation.of([(mesh, moved)])
    before = inside(mesh)
    after = trimesh.transform_points(before, TURN)
    origins = deformation(torch.from_numpy(after).float())
    assert origins.kept.all()
    torch.testing.assert_close(origins.points, torch.from_numpy(before).float(), atol=1e-4, rtol=0)


def test_a_mesh_that_bends_bends_what_is_in_it() -> None:
    mesh = trimesh.creation.box((0.2, 0.2, 2.0)).subdivide().subdivide().subdivide()

    def bent(points: np.ndarray) -> np.ndarray:
        angle = 0.6 * points[:, 2]
        reach = 1 / 0.6 + points[:, 0]
        return np.stack([reach * np.cos(angle) - 1 / 0.6, points[:, 1], reach * np.sin(angle)], axis=-1)

    after = trimesh.Trimesh(bent(mesh.vertices), mesh.faces, process=False)
    deformation = MeshDeformation.of([(mesh, after)])
    before = inside(mesh) * 0.95
    origins = deformation(torch.from_numpy(bent(before)).float())
    assert origins.kept.all()
    away = (origins.points - torch.from_numpy(before).float()).norm(dim=-1)
    assert away.mean() < 0.01 and away.max() < 0.05


def test_nothing_is_left_where_a_mesh_was_and_all_else_stays() -> None:
    mesh = trimesh.creation.icosphere(radius=0.5)
    deformation = MeshDeformation.of([(mesh, mesh.copy().apply_translation((3, 0, 0)))])
    points = torch.tensor([[0.0, 0, 0], [0.3, 0.3, 0], [0, 0.6, 0], [-2, 0, 0], [3, 0.2, 0]])
    origins = deformation(points)
    assert origins.kept.tolist() == [False, False, True, True, True]
    assert torch.equal(origins.points[2:4], points[2:4])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_mesh_that_grows_stretches_what_is_in_it(scale: float) -> None:
    mesh = trimesh.creation.icosphere(radius=0.5)
    deformation = MeshDeformation.of([(mesh, mesh.copy().apply_scale(scale))])
    before = torch.from_numpy(inside(mesh)).float()
    torch.testing.assert_close(deformation(before * scale).points, before, atol=0.02, rtol=0)
