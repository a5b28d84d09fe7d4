"""Meshes of densities that are known."""

import numpy as np
import pytest
import torch
import trimesh

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.field.proxy import extract_mesh

BOX = torch.tensor([[-0.5, -0.5, -0.4], [0.5, 0.5, 0.6]])
CENTRE = torch.tensor([0.1, 0.0, 0.05])


def balls(points: torch.Tensor) -> torch.Tensor:
    """A hollow ball of radius 0.25, and a smaller one of 0.1 beside it."""
    own, other = (points - CENTRE).norm(dim=-1), (points - torch.tensor([-0.35, -0.3, -0.2])).norm(dim=-1)
    inside = ((own < 0.25) & (own > 0.2)) | (other < 0.1)
    return torch.where(inside, 1e4, 0.0)


def test_the_largest_piece_is_found_where_it_is_and_closed() -> None:
    mesh = extract_mesh(balls, BOX, None, 100_000)
    distances = np.linalg.norm(np.asarray(mesh.vertices) - CENTRE.numpy(), axis=1)
    assert np.abs(distances - 0.25).max() < 1.0 / 160
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi * 0.25**3, rel=0.05)


def test_meshes_are_simplified() -> None:
    mesh = extract_mesh(balls, BOX, None, 2000)
    assert 1500 < len(mesh.faces) <= 2000
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.25**3, rel=0.05)


def test_what_does_not_belong_is_left_out_and_the_cut_is_closed() -> None:
    mesh = extract_mesh(balls, BOX, lambda points: points[:, 2] > CENTRE[2], 100_000)
    assert mesh.is_watertight and mesh.bounds[0, 2] > float(CENTRE[2]) - 0.02
    assert isinstance(mesh, trimesh.Trimesh)


def test_nothing_and_fog_are_told() -> None:
    with pytest.raises(UserError, match="shows no matter there"):
        extract_mesh(lambda points: torch.zeros(len(points)), BOX, None, 1000)
    generator = torch.Generator().manual_seed(0)
    specks = lambda points: torch.where(torch.rand(len(points), generator=generator) < 1e-4, 1e4, 0.0)  # noqa: E731
    with pytest.raises(UserError, match="so the field shows fog"):
        extract_mesh(specks, BOX, None, 1000)
