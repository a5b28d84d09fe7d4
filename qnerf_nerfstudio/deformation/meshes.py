"""The deformation that a mesh in two poses states: what lies in it moves as the nearest of its triangles does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.deformation.deformation import Origins

SHELL = 0.02
"""What lies this share of the mesh's longest side outside of it still belongs to it: proxies are coarse."""
FINENESS = 0.03
"""Triangles are divided until no side is longer than this share of it."""


@dataclass(frozen=True)
class Facets:
    """Triangles as frames."""

    centres: Float[Tensor, "T 3"]
    """Their centres."""
    frames: Float[Tensor, "T 3 3"]
    """Two sides and the outward normal, as long as the square root of twice the area, as columns."""

    @classmethod
    def of(cls, corners: Float[Tensor, "T 3 3"]) -> "Facets":
        """The frames of triangles that are given by their corners."""
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        normal = torch.linalg.cross(first, second)
        normal = normal / normal.norm(dim=-1, keepdim=True).sqrt()
        return cls(corners.mean(1), torch.stack([first, second, normal], dim=-1))

    @cached_property
    def tree(self) -> KDTree:
        """Finds the nearest centre."""
        return KDTree(self.centres.cpu().numpy())

    @cached_property
    def bounds(self) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        """Lower and upper corner of the box around the centres."""
        return self.centres.amin(0), self.centres.amax(0)

    def around(self, points: Float[Tensor, "N 3"], shell: float) -> Int[Tensor, "M"]:
        """Which points lie in the box around the triangles and twice their shell."""
        low, high = self.bounds
        return ((points > low - 2 * shell) & (points < high + 2 * shell)).all(-1).nonzero()[:, 0]

    def nearest(self, points: Float[Tensor, "N 3"]) -> tuple[Tensor, Float[Tensor, "N"]]:
        """The triangle whose centre is nearest, and how far above its plane each point is."""
        found = torch.from_numpy(np.asarray(self.tree.query(points.cpu().numpy())[1])).to(points.device)
        normals = F.normalize(self.frames[found, :, 2], dim=-1)
        return found, ((points - self.centres[found]) * normals).sum(-1)


@dataclass(frozen=True)
class MeshDeformation:
    """A mesh moves and bends with all that lies in it."""

    captured: Facets
    """Its triangles in the captured scene."""
    edited: Facets
    """The same triangles in the edited scene."""
    shell: float
    """Distance up to which what lies outside of the mesh belongs to it."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[trimesh.Trimesh, trimesh.Trimesh]]) -> "MeshDeformation":
        """The deformation between the poses of meshes in scene coordinates, each with the same triangles in both."""
        both = [np.hstack([before.vertices, after.vertices]) for before, after in pairs]
        longest = max(float(np.ptp(each[:, :3], axis=0).max()) for each in both)
        corners = []
        for stacked, (before, _) in zip(both, pairs, strict=True):
            # Both poses are divided alike, as sides in six dimensions are at least as long as in either of them.
            divided = trimesh.remesh.subdivide_to_size(stacked, before.faces, FINENESS * longest, max_iter=20)
            vertices, faces = divided[0], divided[1]
            corners.append(torch.from_numpy(np.asarray(vertices)[np.asarray(faces)]).float())
        joined = torch.cat(corners)
        solid = torch.ones(len(joined), dtype=torch.bool)
        for part in (joined[..., :3], joined[..., 3:]):
            sides = part - part.roll(1, dims=1)
            solid &= torch.linalg.cross(sides[:, 0], sides[:, 1]).norm(dim=-1) > (1e-6 * longest) ** 2
        joined = joined[solid]
        return cls(Facets.of(joined[..., :3]), Facets.of(joined[..., 3:]), SHELL * longest)

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Origins:
        """Where the matter at points was captured."""
        flat = points.reshape(-1, 3)
        origins, kept = flat.clone(), torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        rows = self.captured.around(flat, self.shell)
        kept[rows] = self.captured.nearest(flat[rows])[1] > self.shell
        rows = self.edited.around(flat, self.shell)
        found, height = self.edited.nearest(flat[rows])
        found, rows = found[height <= self.shell], rows[height <= self.shell]
        local = torch.linalg.solve(self.edited.frames[found], (flat[rows] - self.edited.centres[found])[..., None])
        origins[rows] = self.captured.centres[found] + (self.captured.frames[found] @ local)[..., 0]
        kept[rows] = True
        shape = points.shape[:-1]
        return Origins(origins.reshape(points.shape), kept.reshape(shape), torch.ones(shape, device=flat.device))

    def to(self, device: str) -> "MeshDeformation":
        """The same on another device."""
        captured, edited = (Facets(p.centres.to(device), p.frames.to(device)) for p in (self.captured, self.edited))
        return MeshDeformation(captured, edited, self.shell)
