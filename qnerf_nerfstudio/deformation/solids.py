"""The deformation that boxes state: what lies in a box moves with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import invert_affine
from qnerf_nerfstudio.controls.solids import placement_matrix
from qnerf_nerfstudio.deformation.deformation import Origins
from qnerf_nerfstudio.edit.schema import BoxControl, BoxPlacement


@dataclass(frozen=True)
class BoxesDeformation:
    """Boxes move, turn and stretch with all that lies in them."""

    captured: Float[Tensor, "K 3 4"]
    """Takes the cube from -0.5 to 0.5 to every box in the captured scene."""
    edited: Float[Tensor, "K 3 4"]
    """The same in the edited scene."""

    @classmethod
    def of(cls, controls: Sequence[BoxControl], to_scene: Float[Tensor, "3 4"]) -> "BoxesDeformation":
        """The deformation of boxes that are stated in the dataset's coordinates."""

        def placed(box: BoxPlacement) -> Tensor:
            return to_scene @ placement_matrix(box.position, box.rotation, box.size)

        return cls(*(torch.stack([placed(getattr(each, key)) for each in controls]) for key in ("source", "target")))

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Origins:
        """Where the matter at points was captured."""
        flat = points.reshape(-1, 3)
        to_captured, to_edited = self._inverses
        local = _locate(to_edited, flat)
        carrying = _innermost(local)
        rows = carrying.clamp_min(0)
        own = local[torch.arange(len(flat), device=flat.device), rows]
        sources = (self.captured[rows, :, :3] @ own[..., None])[..., 0] + self.captured[rows, :, 3]
        carried = carrying >= 0
        kept = carried | (_innermost(_locate(to_captured, flat)) < 0)
        shape = points.shape[:-1]
        origins = torch.where(carried[:, None], sources, flat).reshape(points.shape)
        return Origins(origins, kept.reshape(shape), torch.ones(shape, device=flat.device))

    @cached_property
    def _inverses(self) -> tuple[Float[Tensor, "K 3 4"], Float[Tensor, "K 3 4"]]:
        """Takes points of the captured and of the edited scene to the coordinates of every box."""
        captured, edited = (torch.stack(list(map(invert_affine, boxes))) for boxes in (self.captured, self.edited))
        return captured, edited

    def to(self, device: str) -> "BoxesDeformation":
        """The same on another device."""
        return BoxesDeformation(self.captured.to(device), self.edited.to(device))


def _locate(inverse: Float[Tensor, "K 3 4"], points: Float[Tensor, "N 3"]) -> Float[Tensor, "N K 3"]:
    """Points in the coordinates of every box."""
    return torch.einsum("kij,nj->nki", inverse[..., :3], points) + inverse[..., 3]


def _innermost(local: Float[Tensor, "N K 3"]) -> Int[Tensor, "N"]:
    """The box that each point lies deepest in, -1 where it lies in none."""
    depth, box = (0.5 - local.abs().amax(-1)).max(-1)
    return torch.where(depth >= 0, box, -1)
