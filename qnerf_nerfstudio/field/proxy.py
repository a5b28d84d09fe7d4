"""Meshes of what was captured, from the density of a field."""

from collections.abc import Callable

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.rigs.matter import Density, cell_centres

CELLS = 160
"""Cells along the longest side of the box that a mesh is looked for in."""
OPAQUE = 0.2
"""The surface lies where a cell stops this share of the light that crosses it, as for what belongs to bones."""
CLOSED = 2
"""Gaps in the surface up to twice this number of cells wide are closed."""
FEWEST = 100
"""Triangles of the smallest mesh."""


def extract_mesh(
    density: Density,
    box: Float[Tensor, "2 3"],
    belongs: Callable[[Float[Tensor, "P 3"]], Bool[Tensor, "P"]] | None,
    faces: int,
) -> trimesh.Trimesh:
    """The surface of the largest piece of matter in a box, by marching cubes (Lorensen and Cline, 1987).

    Args:
        density: Density of a field at points.
        box: Lower and upper corner of the box, in the field's coordinates.
        belongs: Whether points may be part of it; None: all may.
        faces: Number of triangles that the mesh is simplified to.

    Raises:
        UserError: There is no matter in the box.
    """
    side = float((box[1] - box[0]).max()) / CELLS
    counts = ((box[1] - box[0]) / side).ceil().clamp_min(2).long().tolist()
    shape = (counts[0], counts[1], counts[2])
    centres = cell_centres(torch.stack([box[0], box[0] + side * torch.tensor(shape)]), shape)
    opacity = torch.cat([1 - torch.exp(-density(part) * side) for part in centres.split(1 << 17)])
    if belongs is not None:
        opacity = torch.where(belongs(centres), opacity, 0.0)
    # A frame of empty cells closes the mesh where the box cuts matter.
    grid = np.pad(opacity.reshape(shape).numpy(), CLOSED + 1)
    # Nothing teaches a field what is inside of matter: it is hollow there, and open where few photos look.
    matter = grid > OPAQUE
    solid = np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(matter, iterations=CLOSED))) | matter
    labels = np.zeros(grid.shape, dtype=np.int32)
    found = ndimage.label(solid, output=labels)
    if not found:
        raise UserError("the field shows no matter there: say where the subject is, or train the field longer")
    largest = int(np.bincount(labels.flatten())[1:].argmax()) + 1
    # Cells beside the piece take part, so that its surface lies between the cells where the field says.
    kept = ndimage.binary_dilation(labels == largest)
    level = np.where(kept, np.where((labels == largest) & (grid <= OPAQUE), 1.0, grid), 0.0)
    mesh = _marching_cubes(level)
    if len(mesh.faces) < FEWEST:
        raise UserError(
            f"the largest piece of matter there has {len(mesh.faces)} triangles, so the field shows fog: say where the "
            f"subject is, or train the field longer"
        )
    mesh = simplified(mesh, faces)
    # Values are those of the cells' centres, and the frame's cells come first.
    mesh.apply_scale(side)
    mesh.apply_translation((box[0] - (CLOSED + 0.5) * side).double().numpy())
    return mesh


def simplified(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """A mesh with about so many triangles, by quadric error metrics (Garland and Heckbert, 1997)."""
    return mesh if len(mesh.faces) <= faces else mesh.simplify_quadric_decimation(face_count=faces)


def _marching_cubes(level: Float[np.ndarray, "X Y Z"]) -> trimesh.Trimesh:
    vertices, faces, _, _ = marching_cubes(level, OPAQUE)
    mesh = trimesh.Trimesh(vertices, faces[:, ::-1], process=True)
    pieces = mesh.split(only_watertight=False)
    return max(pieces, key=lambda piece: len(piece.faces)) if len(pieces) > 1 else mesh
