"""A mesh that moves with a skeleton."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import invert_affine
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.rigs.bones import Skeleton, bone_motions
from qnerf_nerfstudio.rigs.matter import fit_radii

JOINT = 1.5
"""Within the radius of a bone times this around a joint, its neighbours there move its matter, too."""
BLEND = 0.5
"""Softness of the blend of neighbours near their joint, as a share of the bones' median radius."""
FAR = 1.0
"""A bone is far from a mesh where its middle is farther away than its length times this, and outside."""


@dataclass(frozen=True)
class Rig:
    """A mesh on the bones of a skeleton, in the captured scene."""

    mesh: trimesh.Trimesh
    """The mesh."""
    skeleton: Skeleton
    """The skeleton, in the mesh's coordinates."""

    @cached_property
    def weights(self) -> Float[Tensor, "N K"]:
        """How far each vertex follows each bone; the weights of a vertex sum to 1.

        A vertex follows the bone whose capsule is nearest. Near a joint the bones there share it, as in the deformation
        of the field.
        """
        vertices = torch.as_tensor(np.asarray(self.mesh.vertices), dtype=torch.float32)
        side = float((self.skeleton.joints.amax(0) - self.skeleton.joints.amin(0)).max()) / 1000
        # Vertices can be dense where there is detail; samples are even.
        surface, _ = trimesh.sample.sample_surface_even(self.mesh, 20_000, seed=0)
        radii = fit_radii(torch.as_tensor(np.asarray(surface), dtype=torch.float32), self.skeleton, side)
        distances = self.skeleton.along(vertices)[0] - radii
        owner = distances.argmin(-1)
        shared = self.skeleton.shared_joints()[owner]
        apart = (vertices[:, None] - self.skeleton.joints[shared.clamp_min(0)]).norm(dim=-1)
        follows = (shared >= 0) & (apart < JOINT * radii[owner, None])
        follows[torch.arange(len(owner)), owner] = True
        closeness = torch.where(follows, -distances / (BLEND * radii.median()), -torch.inf)
        return torch.softmax(closeness, dim=-1)

    def posed(self, edited: Skeleton) -> trimesh.Trimesh:
        """The mesh in another pose of the skeleton (linear blend skinning).

        Triangles between bones that share no joint are left out: a hand that rested on a hip takes nothing of it along.
        """
        back = bone_motions(edited, self.skeleton)
        motions = torch.stack([invert_affine(motion) for motion in back.double()])
        vertices = torch.as_tensor(np.asarray(self.mesh.vertices), dtype=torch.float64)
        # As a sum of offsets, so that what does not move stays where it is.
        moved = torch.einsum("kij,nj->nki", motions[..., :3], vertices) + motions[..., 3] - vertices[:, None]
        moved = vertices + (self.weights.double()[..., None] * moved).sum(1)
        return trimesh.Trimesh(moved.numpy(), self._faces, process=False)

    @cached_property
    def _faces(self) -> Int[np.ndarray, "M 3"]:
        """The triangles between vertices of one bone, or of bones that share a joint."""
        joined = self.skeleton.shared_joints() >= 0
        joined.fill_diagonal_(True)
        faces = torch.as_tensor(np.asarray(self.mesh.faces))
        first, second, third = self.weights.argmax(-1)[faces].unbind(-1)
        return faces[joined[first, second] & joined[second, third] & joined[third, first]].numpy()

    def refuse_far(self, where: str) -> None:
        """See that the mesh is around the skeleton.

        Raises:
            UserError: It is far away from more than half of the bones.
        """
        middles = ((self.skeleton.start + self.skeleton.end) / 2).numpy()
        _, distance, _ = trimesh.proximity.closest_point(self.mesh, middles)
        far = int((torch.as_tensor(distance) > FAR * self.skeleton.lengths).sum())
        if 2 * far > len(middles):
            raise UserError(
                f"{where} is far away from {far} of the skeleton's {len(middles)} bones; both are in the coordinates "
                f"of transforms.json (qnerf proxy makes such a mesh)"
            )
