"""What of the captured scene belongs to which bone, read off the field of the photos."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.rigs.bones import Skeleton

Density = Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N"]]
"""Density of the field of the photos at points in scene coordinates, per unit of length."""
Allowed = Callable[[Float[Tensor, "N 3"]], Bool[Tensor, "N"]]
"""Whether matter at points in scene coordinates may move."""

CELLS = 144
"""Cells along the longest side of the grid."""
MARGIN = 0.25
"""The grid reaches this share of the skeleton's longest side beyond it."""
OPAQUE = 0.2
"""A cell holds matter where it stops at least this share of the light that crosses it."""
THICKEST = 0.5
"""A limb's radius is at most this share of its length."""
REACH = 1.5
"""Matter farther from a bone's axis than its radius times this belongs to something else."""
BEYOND = 1.5
"""Matter beyond a bone that ends there, such as hands, hair and hats, belongs to it up to its length times this."""
SHELL = 3.0
"""Cells of empty space around matter that go with it: the field's surfaces lie between the cells."""
GROUND = 0.3
"""Share of the surface around a skeleton that lies on its ground, if it stands on one."""
FOOTING = 0.2
"""The same of the surface beyond a bone that stands on it."""
FLAT = 2.0
"""Cells above the ground up to which only matter itself goes with a bone, and no space around it, and below the ground
down to which soles go with theirs."""
CLEARANCE, FACING = 2.0, 0.2
"""Cells before a surface from which on other matter hides it, and the cosine of the angle from which on it is seen."""
FEWEST = 20
"""Cells of surface that tell a radius."""


@dataclass(frozen=True)
class MatterGrid:
    """Where a field shows matter, on a grid around a skeleton."""

    box: Float[Tensor, "2 3"]
    """Lower and upper corner."""
    side: float
    """Length of a cell."""
    solid: Bool[Tensor, "X Y Z"]
    """Cells with matter."""

    @cached_property
    def centres(self) -> Float[Tensor, "P 3"]:
        """Centres of the cells, in the grid's order."""
        x, y, z = self.solid.shape
        return cell_centres(self.box, (x, y, z))

    @cached_property
    def outermost(self) -> Bool[Tensor, "X Y Z"]:
        """Cells with matter beside empty ones."""
        return self.solid & ~torch.from_numpy(ndimage.binary_erosion(self.solid.numpy(), border_value=1))

    def seen(self, points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"], views: Views) -> Bool[Tensor, "N"]:
        """Whether any view sees points of the surface with these outward unit normals: they lie in its image, face it,
        and no other matter of the grid is before them."""
        cells = OwnerGrid(self.box, self.solid.short() - 1)
        diagonal = float((self.box[1] - self.box[0]).norm())
        steps = torch.arange(CLEARANCE, diagonal / self.side) * self.side
        seen = torch.zeros(len(points), dtype=torch.bool)
        for number in range(len(views)):
            left = (~seen).nonzero()[:, 0]
            pixels, valid = (each[0] for each in views[number : number + 1].project(points[left]))
            within = valid & (pixels >= 0).all(-1) & (pixels < torch.tensor(views.size[::-1])).all(-1)
            towards = views.c2w[number, :, 3].to(points) - points[left]
            away = towards.norm(dim=-1)
            towards = towards / away[:, None].clamp_min(1e-9)
            within &= (towards * normals[left]).sum(-1) > FACING
            left, towards, away = left[within], towards[within], away[within]
            for part in torch.arange(len(left)).split(1 << 12):
                path = points[left[part], None] + steps[:, None] * towards[part, None]
                hidden = (cells(path) >= 0) & (steps < away[part, None])
                seen[left[part]] = ~hidden.any(-1)
        return seen


@dataclass(frozen=True)
class OwnerGrid:
    """Which part owns each cell of a box of the captured scene."""

    box: Float[Tensor, "2 3"]
    """Lower and upper corner."""
    owners: Int[Tensor, "X Y Z"]
    """Number of the part, -1 where the matter belongs to none."""

    def __call__(self, points: Float[Tensor, "*batch 3"]) -> Int[Tensor, "*batch"]:
        """The owner at points; -1 outside of the box."""
        shape = torch.tensor(self.owners.shape, device=points.device)
        index = ((points - self.box[0]) / (self.box[1] - self.box[0]) * shape).floor().long()
        inside = ((index >= 0) & (index < shape)).all(-1)
        x, y, z = torch.minimum(index.clamp_min(0), shape - 1).unbind(-1)
        return torch.where(inside, self.owners[x, y, z].long(), -1)

    def to(self, device: str) -> "OwnerGrid":
        """The same on another device."""
        return OwnerGrid(self.box.to(device), self.owners.to(device))


@dataclass(frozen=True)
class Anatomy:
    """How thick the matter around every bone is, and what belongs to it."""

    radii: Float[Tensor, "K"]
    """Radius of every bone's capsule."""
    reach: Float[Tensor, "K"]
    """How far what a bone owns reaches beyond its capsule."""
    owners: OwnerGrid
    """Which bone owns what, matter and the empty space around it."""
    matter: OwnerGrid
    """Cells that hold matter are 0, empty ones -1."""

    def to(self, device: str) -> "Anatomy":
        """The same on another device."""
        return Anatomy(*(getattr(self, item.name).to(device) for item in fields(self)))


def read_matter(density: Density, skeleton: Skeleton) -> MatterGrid:
    """Find the matter around a skeleton in the field of the photos."""
    box, shape, side = cell_grid(skeleton)
    opacity = [1 - torch.exp(-density(part) * side) for part in cell_centres(box, shape).split(1 << 17)]
    matter = (torch.cat(opacity) > OPAQUE).reshape(shape).numpy()
    # Nothing teaches a field what is inside of matter, so that it can be hollow there.
    solid = np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(matter, iterations=2))) | matter
    return MatterGrid(box, side, torch.from_numpy(solid))


def read_anatomy(matter: MatterGrid, skeleton: Skeleton, allowed: Allowed | None = None) -> Anatomy:
    """Share out the matter around a skeleton among its bones.

    What lies in the bones' capsules belongs to the skeleton, and matter that hangs together with it, within the bones'
    reach; the ground does not. The bone whose capsule is nearest owns it.

    Args:
        matter: The matter around the skeleton.
        skeleton: The skeleton in the captured scene.
        allowed: Whether matter at points may belong to it; None: all may.

    Raises:
        UserError: There is no matter around most of its bones.
    """
    centres, side, solid, shape = matter.centres, matter.side, matter.solid.flatten(), matter.solid.shape
    outermost = matter.outermost.flatten()
    radii = fit_radii(centres[outermost], skeleton, side)
    capsules = _Capsules(skeleton, radii)
    owner, distance, end = capsules.share_out(centres)
    limit = capsules.limits(owner, end, side)
    may = solid & (distance <= limit)
    if allowed is not None:
        may &= allowed(centres)
    inside = (distance < 0).reshape(shape)
    # The plane of soft ground is a cell or two off, which must cut no soles.
    lowest = torch.where(distance < side, -FLAT * side, 0.0)
    height = _height(centres, centres[outermost & (distance > limit)], skeleton, side, GROUND)
    may &= height > lowest
    subject = _hanging_together(may.reshape(shape), inside)
    for joint in _unended(subject, distance > limit - SHELL * side, end):
        below = centres[outermost & torch.from_numpy(subject).flatten() & (end == joint)]
        height = torch.minimum(height, _height(centres, below, skeleton, side, FOOTING))
    may &= height > lowest
    subject = _hanging_together(may.reshape(shape), inside)
    for joint in _unended(subject, distance > limit - SHELL * side, end):
        end[end == joint] = -1
    end[height <= FLAT * side] = -1
    may &= distance <= capsules.limits(owner, end, side)
    subject = _hanging_together(may.reshape(shape), inside)
    _refuse_nothing(owner.reshape(shape).numpy()[subject], skeleton)
    # A field that is thin somewhere must not tear a limb in two.
    subject |= ((distance < side) & (height > lowest)).reshape(shape).numpy()
    shell = (np.asarray(ndimage.distance_transform_edt(~subject)) <= SHELL) & ~(matter.solid.numpy() & ~subject)
    # What is soft of the ground stays with the ground.
    owned = torch.from_numpy(subject).flatten() | torch.from_numpy(shell).flatten() & (height > FLAT * side)
    reach = side + torch.zeros(len(radii)).scatter_reduce_(0, owner[owned], distance[owned], "amax")
    filled = torch.from_numpy(subject | matter.solid.numpy())
    owners = torch.where(owned, owner, -1).short().reshape(shape)
    return Anatomy(radii, reach, OwnerGrid(matter.box, owners), OwnerGrid(matter.box, filled.short() - 1))


def cell_grid(skeleton: Skeleton, margin: float = MARGIN) -> tuple[Float[Tensor, "2 3"], tuple[int, int, int], float]:
    """Box, shape and length of the cells of a grid that reaches a share of the skeleton's longest side beyond it."""
    low, high = skeleton.joints.amin(0), skeleton.joints.amax(0)
    longest = float((high - low).max())
    side = longest * (1 + 2 * margin) / CELLS
    low, high = low - margin * longest, high + margin * longest
    x, y, z = ((high - low) / side).ceil().long().tolist()
    return torch.stack([low, low + side * torch.tensor([x, y, z])]), (x, y, z), side


def cell_centres(box: Float[Tensor, "2 3"], shape: tuple[int, int, int]) -> Float[Tensor, "P 3"]:
    """Centres of the cells of a grid, in its memory's order."""
    axes = [torch.arange(count) + 0.5 for count in shape]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return box[0] + cells / torch.tensor(shape) * (box[1] - box[0])


@dataclass(frozen=True)
class _Capsules:
    """The bones with their radii."""

    skeleton: Skeleton
    radii: Float[Tensor, "K"]

    def share_out(self, points: Float[Tensor, "P 3"]) -> tuple[Int[Tensor, "P"], Float[Tensor, "P"], Int[Tensor, "P"]]:
        """The capsule that is nearest to each point, the signed distance from it, and the joint beyond which the point
        lies where the skeleton ends there, otherwise -1."""
        leaf = self.skeleton.degrees() == 1
        parts = []
        for part in points.split(1 << 16):
            distances, shares = self.skeleton.along(part)
            distance, owner = (distances - self.radii).min(-1)
            share = shares.gather(1, owner[:, None])[:, 0]
            joint = self.skeleton.bones[owner].gather(1, (share > 1).long()[:, None])[:, 0]
            beyond = ((share < 0) | (share > 1)) & leaf[joint]
            parts.append((owner, distance, torch.where(beyond, joint, -1)))
        owners, distances, ends = zip(*parts, strict=True)
        return torch.cat(owners), torch.cat(distances), torch.cat(ends)

    def limits(self, owner: Int[Tensor, "P"], end: Int[Tensor, "P"], side: float) -> Float[Tensor, "P"]:
        """How far from its capsule the matter of a bone may reach at points that it owns, where cells are `side`
        long."""
        beside = (REACH - 1) * self.radii + 2 * side
        return torch.where(end >= 0, BEYOND * self.skeleton.lengths[owner], beside[owner])


def _hanging_together(may: Bool[Tensor, "X Y Z"], inside: Bool[Tensor, "X Y Z"]) -> np.ndarray:
    """The cells that hang together with those inside of the capsules."""
    labels = np.zeros(tuple(may.shape), dtype=np.int32)
    ndimage.label(may.numpy(), structure=np.ones((3, 3, 3)), output=labels)
    return np.isin(labels, np.setdiff1d(labels[(may & inside).numpy()], [0]))


def _unended(subject: np.ndarray, rim: Bool[Tensor, "P"], end: Int[Tensor, "P"]) -> list[int]:
    """The joints beyond which matter goes on up to the rim of what may belong to them.

    Hands, hair and hats end before it; what goes on is what the subject stands on or holds on to.
    """
    at_rim = end[torch.from_numpy(subject).flatten() & rim]
    joints, cells = at_rim[at_rim >= 0].unique(return_counts=True)
    return joints[cells >= FEWEST].tolist()


def fit_radii(surface: Float[Tensor, "P 3"], skeleton: Skeleton, side: float) -> Float[Tensor, "K"]:
    """Radii of the bones' capsules: the median distance of the surface along each bone.

    Args:
        surface: Centres of the outermost cells of matter.
        skeleton: The bones.
        side: Length of a cell; the surface lies half of it outside of the centres.
    """
    distances, shares = (torch.cat(parts) for parts in zip(*map(skeleton.along, surface.split(1 << 16)), strict=True))
    lengths = skeleton.lengths
    thickest = THICKEST * torch.maximum(lengths, lengths.median() / 2)
    radii = 0.1 * lengths.median().expand_as(lengths)
    for _ in range(4):
        nearest = (distances - radii).argmin(-1)
        fitted = []
        for number in range(len(radii)):
            along = (nearest == number) & (shares[:, number] > 0.1) & (shares[:, number] < 0.9)
            found = distances[along & (distances[:, number] < thickest[number]), number]
            fitted.append(found.median() if len(found) >= FEWEST else radii[number])
        radii = torch.stack(fitted)
    return radii + side / 2


def _height(
    points: Float[Tensor, "P 3"], around: Float[Tensor, "S 3"], skeleton: Skeleton, side: float, least: float
) -> Float[Tensor, "P"]:
    """Height of points above the plane that a skeleton stands on; infinite where it stands on none.

    The plane holds at least a share `least` of the surface around, and all joints lie on one side of it (RANSAC;
    Fischler and Bolles, 1981), and is fitted to what lies on it (as in LO-RANSAC; Chum, Matas and Kittler, 2003).
    """
    everywhere = torch.full((len(points),), torch.inf)
    if len(around) < 100:
        return everywhere
    generator = torch.Generator().manual_seed(0)
    around = around[torch.randperm(len(around), generator=generator)[:4000]]
    corners = around[torch.randint(len(around), (500, 3), generator=generator)]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = normals / normals.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    offsets = (normals * corners[:, 0]).sum(-1)
    heights = skeleton.joints @ normals.T - offsets
    flip = torch.where(heights.mean(0) < 0, -1.0, 1.0)
    normals, offsets, heights = normals * flip[:, None], offsets * flip, heights * flip
    on_plane = ((around @ normals.T - offsets).abs() < side).float().mean(0)
    on_plane = torch.where((heights > 0).all(0), on_plane, 0)
    best = int(on_plane.argmax())
    if on_plane[best] < least:
        return everywhere
    normal, offset = normals[best], offsets[best]
    for _ in range(5):
        inliers = around[(around @ normal - offset).abs() < side]
        centre = inliers.mean(0)
        fitted = torch.linalg.svd(inliers - centre, full_matrices=False)[2][2]
        normal = fitted * (fitted @ normal).sign()
        offset = centre @ normal
    return points @ normal - offset - side / 2  # the centres of its cells lie below the surface


def _refuse_nothing(owners: np.ndarray, skeleton: Skeleton) -> None:
    """Refuse a skeleton beside the subject."""
    found = np.unique(owners)
    if len(found) < len(skeleton.bones) / 2:
        raise UserError(
            f"edit.json: control.source: the field of the photos has matter around {len(found)} of the skeleton's "
            f"{len(skeleton.bones)} bones; place the joints inside of what is to move (qnerf pose shows them there), "
            f"or begin from the photos' noise with --pipeline.start inverted"
        )
