"""The light on the subject, read off the field of the photos, and how matter that turns is shaded by it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.rigs.matter import FEWEST, MatterGrid, OwnerGrid

Colour = Callable[[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], Float[Tensor, "N 3"]]
"""Colours of the field of the photos, in [0, 1], at points in scene coordinates, seen along unit directions."""

SMOOTH = 1.5
"""Cells that matter is smoothed over before its surface's normals are taken."""
APART = 2
"""The light is read this many cells away from what does not belong to the subject and may hide it from the light."""
LEAST = 0.25
"""Share of how colours vary along a bone that the light found on all other bones must explain."""
DARKEST = 0.1
"""Least light from any side, as a share of the mean."""
BRIGHTEST = 2.5
"""Matter that turns gets at most this many times brighter or darker."""
ROUNDS = 10
"""Rounds of the fit."""
EXPONENTS = (1.0, 2.2)
"""Light adds up in stored colours to this power: in these colours themselves, as procedural captures store what they
shade, or as displays show them, which is what cameras encode for (2.2 is sRGB's curve to within a few levels)."""


@dataclass(frozen=True)
class Surface:
    """P places on the surface of the subject."""

    colours: Float[Tensor, "P 3"]
    """Colours in [0, 1], seen head on."""
    normals: Float[Tensor, "P 3"]
    """Unit normals, outward."""
    bones: Int[Tensor, "P"]
    """Number of the bone that owns each."""

    def of(self, chosen: Tensor) -> "Surface":
        """Some of the places, by a mask."""
        return Surface(self.colours[chosen], self.normals[chosen], self.bones[chosen])


@dataclass(frozen=True)
class ShadeGrid:
    """What colours at each place of the captured scene are multiplied by."""

    box: Float[Tensor, "2 3"]
    """Lower and upper corner."""
    shades: Float[Tensor, "X Y Z"]
    """Factors at the centres of the cells."""

    def __call__(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Factors at points, between the cells' by trilinear interpolation."""
        places = 2 * (points - self.box[0]) / (self.box[1] - self.box[0]) - 1
        grid = places.flip(-1)[None, None, None]
        return F.grid_sample(self.shades[None, None], grid, padding_mode="border", align_corners=False).flatten()

    def to(self, device: str) -> "ShadeGrid":
        """The same on another device."""
        return ShadeGrid(self.box.to(device), self.shades.to(device))


@dataclass(frozen=True)
class Light:
    """Light from afar on matte matter, the same for all of the subject."""

    harmonics: Float[Tensor, "9"]
    """Brightness of a surface by its normal, in spherical harmonics up to order 2; the first is 1."""
    normals: Float[Tensor, "X Y Z 3"]
    """Unit normals, outward, of the surface nearest to each cell of the owner grid."""
    exponent: float = 1.0
    """Brightness multiplies stored colours to this power."""

    def shades(self, owners: OwnerGrid, motions: Float[Tensor, "K 3 4"]) -> ShadeGrid:
        """What colours change by where bones turn.

        Args:
            owners: The bone that owns each cell of the captured scene.
            motions: Takes every bone of the edited scene to its place in the captured one.
        """
        left, _, right = torch.linalg.svd(motions[:, :, :3].double())
        turns = (left @ right).to(self.normals).mT  # from the captured to the edited scene
        owned = owners.owners >= 0
        before = self.normals[owned]
        after = (turns[owners.owners[owned].long()] @ before[..., None])[..., 0]
        shades = torch.ones(owned.shape)
        change = (brightness(self.harmonics, after) / brightness(self.harmonics, before)) ** (1 / self.exponent)
        shades[owned] = change.clamp(1 / BRIGHTEST, BRIGHTEST)
        return ShadeGrid(owners.box, shades)


def brightness(harmonics: Float[Tensor, "9"], normals: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Brightness of surfaces with these unit normals, 1 on the mean over all."""
    return (_basis(normals) @ harmonics.to(normals)).clamp_min(DARKEST)


def read_light(matter: MatterGrid, owners: OwnerGrid, colour: Colour, views: Views) -> tuple[Light | None, float]:
    """Find the light by which the subject's surface has its colours.

    Args:
        matter: Where the field of the photos shows matter.
        owners: Which bone owns what of it, on the same grid.
        colour: The colours of that field.
        views: The cameras of the photos: what none of them sees has no colour.

    Returns:
        The light, and the share of how colours vary along bones that it explains, at most 1, where it was found on the
        other bones. None where this is too little: colours then come from paint, shadows or gloss.
    """
    solid = matter.solid.numpy()
    slopes = np.stack(np.gradient(ndimage.gaussian_filter(solid.astype(np.float32), SMOOTH)), axis=-1)
    normals = F.normalize(-torch.from_numpy(slopes), dim=-1)
    owned = owners.owners.numpy() >= 0
    blocked = np.asarray(ndimage.binary_dilation(solid & ~owned, iterations=APART), dtype=bool)
    shown = matter.outermost & torch.from_numpy(owned & ~blocked)
    places, outward, bones = matter.centres[shown.flatten()], normals[shown], owners.owners[shown].long()
    seen = matter.seen(places, outward, views)
    if not seen.any():
        return None, 0.0
    surface = Surface(colour(places[seen], -outward[seen]).clamp(0, 1), outward[seen], bones[seen])
    explained, exponent = max((explained_by_others(surface, each), each) for each in EXPONENTS)
    if explained < LEAST:
        return None, explained
    nearest = ndimage.distance_transform_edt(~shown.numpy(), return_distances=False, return_indices=True)
    return Light(fit_harmonics(surface, exponent), normals[tuple(torch.from_numpy(nearest))], exponent), explained


def fit_harmonics(surface: Surface, exponent: float = 1.0) -> Float[Tensor, "9"]:
    """The light that explains a surface's colours best.

    A colour is that of its bone times the brightness of its normal, which spherical harmonics up to order 2 hold for
    matte surfaces (Ramamoorthi and Hanrahan, 2001). Both are fitted in turns by least squares; places that stand out,
    such as seams of clothes, weigh less.

    Args:
        surface: The surface.
        exponent: Light adds up in colours to this power.
    """
    basis, colours = _basis(surface.normals).double(), surface.colours.double() ** exponent
    harmonics = F.one_hot(torch.tensor(0), basis.shape[-1]).double()
    weights = torch.ones(len(colours), dtype=torch.float64)
    ridge = 1e-3 * len(colours) * torch.eye(basis.shape[-1], dtype=torch.float64)
    for _ in range(ROUNDS):
        paint = _paint(surface.bones, colours, basis @ harmonics, weights)[surface.bones]
        strength = weights * paint.square().sum(-1)
        seen = weights * (paint * colours).sum(-1)
        normal = (basis * strength[:, None]).T @ basis + ridge * strength.mean()
        harmonics = torch.linalg.solve(normal, basis.T @ seen)
        harmonics = harmonics / harmonics[0]
        errors = (colours - paint * (basis @ harmonics)[:, None]).norm(dim=-1)
        weights = (1.5 * errors.median() / errors.clamp_min(1e-9)).clamp_max(1)
    return harmonics.float()


def explained_by_others(surface: Surface, exponent: float = 1.0) -> float:
    """Share of how stored colours vary along each bone that the light explains which was found on all other bones, at
    most 1; 0 where there is one bone only."""
    left, variance = 0.0, 0.0
    for bone in surface.bones.unique():
        own = surface.bones == bone
        if own.sum() < FEWEST or (~own).sum() < FEWEST:
            continue
        seen = surface.of(own)
        bright = brightness(fit_harmonics(surface.of(~own), exponent), seen.normals)
        paint = _paint(seen.bones, seen.colours**exponent, bright, torch.ones_like(bright))[bone]
        left += float((seen.colours - (paint * bright[:, None]) ** (1 / exponent)).square().sum())
        variance += float((seen.colours - seen.colours.mean(0)).square().sum())
    return 1 - left / variance if variance > 0 else 0.0


def _paint(
    bones: Int[Tensor, "P"], colours: Float[Tensor, "P 3"], brightness: Float[Tensor, "P"], weights: Float[Tensor, "P"]
) -> Float[Tensor, "K 3"]:
    """The colour of every bone in light of brightness 1."""
    count = int(bones.max()) + 1
    seen = torch.zeros(count, 3).to(colours).index_add_(0, bones, (weights * brightness)[:, None] * colours)
    light = torch.zeros(count).to(colours).index_add_(0, bones, weights * brightness.square())
    return seen / light.clamp_min(1e-9)[:, None]


def _basis(normals: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 9"]:
    """Real spherical harmonics up to order 2, without their constant factors."""
    x, y, z = normals.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], dim=-1)
