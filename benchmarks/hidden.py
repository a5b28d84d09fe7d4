"""PSNR of edited views where their own photo cannot tell what to draw: what sharing appearance could win.

    python benchmarks/hidden.py --setting loose

Reads the edited views of the cells of consistency.py that still have theirs, and trains nothing. Hidden from a photo
are surface points of the figure that it does not show, once they are carried back from the target pose into the source
pose, and the room behind the figure's source pose.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import trimesh
import tyro
from jaxtyping import Bool, Float
from recipes import read_views
from settings import Setting
from torch import Tensor

from qnerf_nerfstudio.toy.capture import sample_edit
from qnerf_nerfstudio.toy.figure import Body, Pose, capsules
from qnerf_nerfstudio.toy.render import intersect_capsules, pinhole_rays, render
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.truth import load_truth

TOLERANCE = 0.005
"""A point is seen where nothing lies more than this before it, in metres."""


@dataclass
class Hidden:
    """Score edited views where their own photos hide what they show, and in the rest of the union of silhouettes."""

    setting: Setting = "loose"
    """Setting of the cells."""
    cells: Path = Path("benchmarks/results/consistency")
    """Folder that consistency.py wrote."""


def turns(start: Float[Tensor, "K 3"], end: Float[Tensor, "K 3"]) -> Float[Tensor, "K 3 3"]:
    """The least rotation that turns each vector of `start` into the direction of `end`; none where one is zero."""
    matrices = [
        trimesh.geometry.align_vectors(a.numpy(), b.numpy())[:3, :3] if min(a.norm(), b.norm()) > 0 else torch.eye(3)
        for a, b in zip(start.double(), end.double(), strict=True)
    ]
    return torch.stack([torch.as_tensor(matrix, dtype=torch.float32) for matrix in matrices])


def hidden_pixels(
    body: Body, source: Pose, target: Pose, c2w: Float[Tensor, "3 4"], focal: float, size: tuple[int, int]
) -> Bool[Tensor, "H W"]:
    """Pixels of the edited view that show what the photo of the same camera does not.

    Limbs are carried from pose to pose by the least rotation between their axes; how far a limb twists about its own
    axis the skeleton does not say.
    """
    before, after = (render(body, pose, c2w, focal, size, supersampling=1) for pose in (source, target))
    old, new = capsules(body, source), capsules(body, target)
    on_figure = after.mask.flatten()
    origins, directions, cosines = (x[on_figure] for x in pinhole_rays(c2w, focal, size, 1))
    points = origins + directions * (after.depth.flatten()[on_figure] / cosines)[:, None]
    part = intersect_capsules(origins, directions, new).argmin(dim=-1)
    rotations = turns(new.end - new.start, old.end - old.start)[part]
    moved = old.start[part] + (rotations @ (points - new.start[part])[..., None]).squeeze(-1)
    distances = (moved - origins).norm(dim=-1)
    hits = intersect_capsules(origins, (moved - origins) / distances[:, None], old).amin(dim=-1)
    hidden = before.mask.flatten() & ~on_figure
    hidden[on_figure] = hits < distances - TOLERANCE
    return hidden.reshape(size)


def main(config: Hidden) -> None:
    """Print a table: recipes x seeds."""
    seeds: list[str] = []
    rows: dict[str, dict[str, str]] = {}
    for folder in sorted((config.cells / config.setting).glob("*/capture")):
        seed, truth = folder.parent.name, load_truth(folder, "train")
        focal, size = truth.meta["fl_x"], (truth.meta["h"], truth.meta["w"])
        hidden = torch.stack([hidden_pixels(*sample_edit(int(seed)), c2w, focal, size) for c2w in truth.c2w])
        seeds.append(f"{seed} ({(hidden & truth.unions).sum() / truth.unions.sum():.0%} hidden)")
        for views in sorted(folder.parent.glob("*/edited")):
            edited = read_views(views)
            scores = [psnr(edited, truth.images, region).mean() for region in (hidden, truth.unions & ~hidden)]
            rows.setdefault(views.parent.name, {})[seeds[-1]] = " / ".join(f"{score:.2f}" for score in scores)
    print(f"| hidden / seen, dB | {' | '.join(seeds)} |\n{'|---' * (len(seeds) + 1)}|")
    for method, cells in rows.items():
        print(f"| {method} | {' | '.join(cells.get(seed, '') for seed in seeds)} |")


if __name__ == "__main__":
    main(tyro.cli(Hidden))
