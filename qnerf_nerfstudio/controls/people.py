"""From people's 2D keypoints in many photos to the skeleton in 3D of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views, nearest_to_rays
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.keypoints import Person
from qnerf_nerfstudio.controls.lifting import triangulate
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_JOINTS

TOLERANCE = 0.02
"""A view agrees with a joint within this share of the photo's shorter side."""
MAX_PAIRS = 150
"""Pairs of people in two photos that are tried for being the same person."""
SHARED = 3
"""Joints that two photos must show of a person to be such a pair."""
PARALLEL = 0.34
"""Sine of the smallest angle between two rays that tell where a joint is, where no third one does: 20 degrees. A
detector's error of a hundredth of a person's height is three of them in depth then."""


@dataclass(frozen=True)
class SeenJoint:
    """A joint of a person, and how well the photos agree on it."""

    position: Float[Tensor, "3"]
    """Where it is, in the coordinates of the cameras."""
    views: int
    """Photos that show it where it is."""
    error: float
    """Root mean square of its distance in pixels from where these photos show it."""


@dataclass(frozen=True)
class SeenPerson:
    """A person that several photos show."""

    joints: dict[str, SeenJoint]
    """The joints that were found, by OpenPose's names."""
    left_out: dict[str, int]
    """Joints that were seen but not found, and in how many photos."""
    views: int
    """Photos that show the person."""


def find_person(views: Views, people: Sequence[Sequence[Person]], number: int = 1) -> SeenPerson:
    """The skeleton of the person that most photos agree on, or of another one.

    Args:
        views: The cameras.
        people: The people of each photo.
        number: 1 for the person that most photos agree on, 2 for the next one, and so on.

    Raises:
        UserError: Photos do not agree on that many people, or on too few joints to make a bone.
    """
    count = max(map(len, people), default=0)
    pixels = torch.full((len(views), max(count, 1), len(OPENPOSE_JOINTS), 2), torch.nan)
    for view, each in enumerate(people):
        for index, person in enumerate(each):
            pixels[view, index] = person
    tolerance = TOLERANCE * min(views.size)
    chosen = torch.full((len(views),), -1)
    for found in range(number):
        # Who is found already is not looked for again.
        taken = chosen >= 0
        pixels[taken.nonzero()[:, 0], chosen[taken]] = torch.nan
        chosen = _same_person(views, pixels, tolerance)
        if (chosen >= 0).sum() < 2:
            raise UserError(_too_few(found, pixels, number))
    own = torch.stack([pixels[view, max(index, 0)] for view, index in enumerate(chosen.tolist())])
    own[chosen < 0] = torch.nan
    return _skeleton(views, own, tolerance)


def _too_few(found: int, pixels: Float[Tensor, "V K J 2"], number: int) -> str:
    seen = int((~pixels.isnan()).any(-1).sum(-1).ge(SHARED).any(1).sum())
    if found == 0 and seen < 2:
        return f"--keypoints: {seen} photos show a person with {SHARED} or more joints; at least two are needed"
    if found == 0:
        return (
            f"--keypoints: {seen} photos show people, but no two agree on where one stands; are these the keypoints "
            f"of these photos?"
        )
    return f"--person is {number}, but photos agree on {found} only; leave it out, or give a smaller number"


def _same_person(views: Views, pixels: Float[Tensor, "V K J 2"], tolerance: float) -> Tensor:
    """The number of the same person in every photo, -1 where it is not seen: the hypothesis, made from two photos, that
    most joints in all photos agree with."""
    seen = ~pixels.isnan().any(-1)
    view, person = (seen.sum(-1) >= SHARED).nonzero().T
    first, second = torch.combinations(torch.arange(len(view))).T
    shared = (seen[view[first], person[first]] & seen[view[second], person[second]]).sum(-1)
    usable = (view[first] != view[second]) & (shared >= SHARED)
    pairs = torch.stack([first[usable], second[usable]], dim=-1)
    pairs = pairs[:: max(1, -(-len(pairs) // MAX_PAIRS))]
    best, agreed = torch.full((len(views),), -1), 0.0
    origins, directions = views.rays_through(pixels.flatten(1, 2).nan_to_num())
    origins, directions = (each.unflatten(1, pixels.shape[1:3]) for each in (origins, F.normalize(directions, dim=-1)))
    for one, other in pairs.tolist():
        both = seen[view[one], person[one]] & seen[view[other], person[other]]
        ends = [(view[each], person[each]) for each in (one, other)]
        lines = (torch.stack([part[end][both] for end in ends], dim=1) for part in (origins, directions))
        near, joints = _agreeing(views, pixels[:, :, both], nearest_to_rays(*lines).float(), tolerance)
        # Most of what a photo shows of a person agrees, or it is another one.
        joints = torch.where(2 * joints > seen[:, :, both].sum(-1), joints, 0)
        score = float(near.where(joints > 0, 0.0).amax(1).sum())
        if score > agreed:
            most, index = joints.max(1)
            best, agreed = torch.where(most > 0, index, -1), score
    return best


def _agreeing(
    views: Views, pixels: Float[Tensor, "V K J 2"], points: Float[Tensor, "J 3"], tolerance: float
) -> tuple[Float[Tensor, "V K"], Tensor]:
    """How closely people agree with joints, and on how many; joints that are not seen agree with nothing."""
    projected, valid = views.project(points)
    errors = (pixels - projected[:, None]).norm(dim=-1)
    agree = valid[:, None] & (errors < tolerance)
    return torch.where(agree, 1 - (errors / tolerance).square(), 0.0).sum(-1), agree.sum(-1)


def _skeleton(views: Views, pixels: Float[Tensor, "V J 2"], tolerance: float) -> SeenPerson:
    """The skeleton of one person from its keypoints in each photo."""
    joints, left_out = {}, {}
    for index, name in enumerate(OPENPOSE_JOINTS):
        own = pixels[:, index]
        seen = ~own.isnan().any(-1)
        if not seen.any():
            continue
        point = triangulate(views, own[:, None], tolerance) if seen.sum() > 2 else _from_two(views, own, seen)
        if point is not None:
            projected, _ = views.project(point[None])
            errors = (projected[:, 0] - own).norm(dim=-1)
            near = errors < tolerance
            if near.sum() >= 2:
                error = float(errors[near].square().mean().sqrt())
                joints[name] = SeenJoint(point, int(near.sum()), error)
                continue
        left_out[name] = int(seen.sum())
    if not any(set(bone) <= set(joints) for bone in OPENPOSE_BONES):
        alone = [name for name, count in left_out.items() if count == 1]
        detail = f"; one photo alone shows {', '.join(alone)}" if alone else ""
        raise UserError(
            f"--keypoints: photos agree on {len(joints)} of the person's joints, and no two of them make a bone{detail}"
        )
    return SeenPerson(joints, left_out, int((~pixels.isnan()).any(-1).any(1).sum()))


def _from_two(views: Views, pixels: Float[Tensor, "V 2"], seen: Bool[Tensor, "V"]) -> Float[Tensor, "3"] | None:
    """The point that two photos show, None where they look from nearly the same side."""
    if seen.sum() < 2:
        return None
    origins, directions = (rays[seen, 0] for rays in views.rays_through(pixels.nan_to_num()[:, None]))
    directions = F.normalize(directions, dim=-1)
    if not directions.isfinite().all() or torch.linalg.cross(directions[0], directions[1]).norm() < PARALLEL:
        return None
    return nearest_to_rays(origins, directions).float()
