"""What a skeleton carries along, against the procedural figure, whose motion is known."""

from dataclasses import replace

import pytest
import torch
from helpers.figures import figure_density, figure_skeleton, signed_distance
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import transform_points
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.deformation.skeleton import SkeletonDeformation
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.rigs.matter import Density, read_anatomy, read_matter
from qnerf_nerfstudio.toy.figure import Body, Pose, joints

BODY = Body(hat="red")
SOURCE = Pose(r_arm_raise=20, l_arm_raise=25)
TARGET = Pose(r_arm_raise=110, l_arm_raise=60, r_elbow=40, l_leg_swing=30, l_knee=25)


@pytest.fixture(scope="module")
def captured() -> Skeleton:
    return figure_skeleton(BODY, SOURCE)


@pytest.fixture(scope="module")
def deformation(captured: Skeleton) -> SkeletonDeformation:
    anatomy = read_anatomy(read_matter(figure_density(BODY, SOURCE), captured), captured)
    return SkeletonDeformation.of(figure_skeleton(BODY, TARGET), captured, anatomy)


def test_radii_are_those_of_the_limbs(deformation: SkeletonDeformation) -> None:
    radius = BODY.limb_radius
    expected = {(2, 3): radius, (3, 4): 0.9 * radius, (5, 6): 1.25 * radius, (6, 7): 1.05 * radius}
    for number, bone in enumerate(deformation.captured.bones.tolist()):
        if tuple(bone) in expected:
            assert float(deformation.anatomy.radii[number]) == pytest.approx(expected[tuple(bone)], abs=0.008)


def test_what_stands_still_is_left_alone_to_the_bit(captured: Skeleton, deformation: SkeletonDeformation) -> None:
    still = SkeletonDeformation.of(captured, captured, deformation.anatomy)
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2.4 - torch.tensor([1.2, 1.2, 0.2])
    origins = still(points)
    assert torch.equal(origins.points, points)
    assert origins.kept.all()


def test_a_figure_that_turns_as_one_takes_all_its_matter_along(
    captured: Skeleton, deformation: SkeletonDeformation
) -> None:
    angle = torch.tensor(0.6)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0, 1.0], [angle.sin(), angle.cos(), 0, 0.5], [0, 0, 1, 0.1]])
    moved = SkeletonDeformation.of(
        Skeleton(transform_points(captured.joints, turn), captured.bones), captured, deformation.anatomy
    )
    matter = torch.rand(60_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.6, 0.6, 2.0])
    matter = matter - torch.tensor([0.8, 0.3, 0.0])
    distance = signed_distance(BODY, SOURCE, matter)
    matter = matter[(distance.abs() < 0.01) & (matter[:, 2] > 0.05)]
    origins = moved(transform_points(matter, turn))
    assert origins.kept.all()
    away = (origins.points - matter).norm(dim=-1)
    assert (away < 1e-4).float().mean() > 0.99
    assert moved(matter).kept.float().mean() < 0.01


def test_limbs_arrive_within_a_centimetre(deformation: SkeletonDeformation) -> None:
    edited, captured = deformation.edited, deformation.captured
    generator, shares = torch.Generator().manual_seed(0), []
    for number, (first, _) in enumerate(captured.bones.tolist()):
        if first == 0:  # the torso is one capsule, and two bones
            continue
        share = 0.45 + 0.35 * torch.rand(200, 1, generator=generator)
        axis = edited.end[number] - edited.start[number]
        across = torch.linalg.cross(torch.randn(200, 3, generator=generator), axis.expand(200, 3))
        radius = deformation.anatomy.radii[number]
        points = edited.start[number] + share * axis + radius * across / across.norm(dim=-1, keepdim=True)
        surface = signed_distance(BODY, TARGET, points).abs() < 0.015
        origins = deformation(points[surface])
        distance, along = captured.along(origins.points)
        away = (along[:, number] - share[surface, 0]).abs() * captured.lengths[number]
        near = (away < 0.01) & ((distance[:, number] - radius).abs() < 0.01)
        assert near.float().mean() > 0.9
        shares.append(near.float().mean())
    assert torch.stack(shares).mean() > 0.97


def test_nothing_is_left_where_limbs_were(deformation: SkeletonDeformation) -> None:
    points = torch.rand(60_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.6, 0.8, 2.0])
    points = points - torch.tensor([0.8, 0.3, 0.0])
    left = (signed_distance(BODY, SOURCE, points) < -0.005) & (signed_distance(BODY, TARGET, points) > 0.03)
    origins = deformation(points[left & (points[:, 2] > 0.05)])
    empty = ~origins.kept | (signed_distance(BODY, SOURCE, origins.points) > 0)
    assert left.sum() > 500
    assert empty.float().mean() > 0.97


def test_a_hat_goes_with_its_head(deformation: SkeletonDeformation) -> None:
    nodding = Pose(**{**SOURCE.__dict__, "lean": 12.0})
    moved = replace(deformation, edited=figure_skeleton(BODY, nodding))
    moved = SkeletonDeformation.of(moved.edited, moved.captured, moved.anatomy)
    nose, neck = moved.edited.joints[1], moved.edited.joints[0]
    around = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 0.03
    top = nose + (nose - neck) / (nose - neck).norm() * 0.25 + around
    origins = moved(top)
    assert origins.kept.all()
    assert (signed_distance(BODY, SOURCE, origins.points) < 0).float().mean() > 0.95


def test_the_floor_stays(deformation: SkeletonDeformation) -> None:
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 1.0, 0.05])
    points = points - torch.tensor([0.5, 0.5, 0.05])
    origins = deformation(points)
    unmoved = origins.kept & (origins.points == points).all(-1)
    below_feet = signed_distance(BODY, SOURCE, points) < 0.02
    assert unmoved[~below_feet].float().mean() > 0.97


def _with_balls(centres: list[list[float]], radius: float) -> Density:
    """The figure on its floor, and solid balls."""
    figure, placed = figure_density(BODY, SOURCE), torch.tensor(centres)

    def density(points: Tensor) -> Tensor:
        return torch.maximum(figure(points), 300.0 * (torch.cdist(points, placed).amin(-1) < radius))

    return density


def test_the_floor_stays_where_much_else_stands_on_it(captured: Skeleton) -> None:
    """The plane of the floor is a small part of the surface around the figure."""
    across, up = torch.linspace(-1, 1, 9), torch.linspace(0.1, 2.2, 9)
    places = torch.cartesian_prod(across, torch.tensor([-0.45, -0.3, 0.3, 0.45]), up)
    anatomy = read_anatomy(read_matter(_with_balls(places.tolist(), 0.1), captured), captured)
    generator = torch.Generator().manual_seed(1)
    floor = torch.rand(8000, 3, generator=generator) * torch.tensor([1.4, 0.6, 0.04]) - torch.tensor([0.7, 0.3, 0.05])
    away = floor[signed_distance(BODY, SOURCE, floor) > 0.03]
    assert (anatomy.owners(away) < 0).float().mean() > 0.97
    legs = torch.rand(60_000, 3, generator=generator) * torch.tensor([0.8, 0.4, 0.3]) - torch.tensor([0.4, 0.2, -0.02])
    legs = legs[signed_distance(BODY, SOURCE, legs) < 0]
    assert len(legs) > 500
    assert (anatomy.owners(legs) >= 0).float().mean() > 0.97


def test_soles_go_with_their_feet_from_ground_that_a_field_shows_too_high(captured: Skeleton) -> None:
    figure = figure_density(BODY, SOURCE, floor=None)

    def density(points: Tensor) -> Tensor:
        waves = 0.008 * (torch.sin(25 * points[:, 0]) + torch.sin(31 * points[:, 1]))
        return torch.maximum(figure(points), 60.0 * torch.exp(-(points[:, 2] - 0.01 - waves).clamp_min(0) / 0.008))

    anatomy = read_anatomy(read_matter(density, captured), captured)
    generator = torch.Generator().manual_seed(3)
    near = torch.rand(200_000, 3, generator=generator) * torch.tensor([1.0, 0.6, 0.04]) - torch.tensor([0.5, 0.3, 0.0])
    distance = signed_distance(BODY, SOURCE, near)
    soles, floor = near[distance < 0.005], near[(distance > 0.06) & (near[:, 2] < 0.005)]
    assert len(soles) > 500
    assert (anatomy.owners(soles) >= 0).float().mean() > 0.95
    assert (anatomy.owners(floor) < 0).float().mean() > 0.97


def test_what_a_hand_rests_on_stays(captured: Skeleton) -> None:
    names = list(joints(BODY, SOURCE))
    wrist = captured.joints[names.index("r_wrist")]
    elbow = captured.joints[names.index("r_elbow")]
    ball = wrist + 0.43 * (wrist - elbow) / (wrist - elbow).norm()
    anatomy = read_anatomy(read_matter(_with_balls([ball.tolist()], 0.35), captured), captured)
    generator = torch.Generator().manual_seed(2)
    inside = ball + (torch.rand(20_000, 3, generator=generator) - 0.5) * 0.5
    apart = (inside - wrist).norm(dim=-1) > 0.16
    assert (anatomy.owners(inside[apart & (signed_distance(BODY, SOURCE, inside) > 0.05)]) < 0).float().mean() > 0.97
    number = captured.bones.tolist().index([names.index("r_elbow"), names.index("r_wrist")])
    assert int(anatomy.owners(wrist + 0.04 * (wrist - elbow) / (wrist - elbow).norm())) == number


def test_a_skeleton_beside_the_subject_is_refused(captured: Skeleton) -> None:
    beside = Skeleton(captured.joints + torch.tensor([3.0, 0, 0]), captured.bones)
    with pytest.raises(UserError, match="has matter around 0 of the skeleton's 13 bones"):
        read_anatomy(read_matter(figure_density(BODY, SOURCE, floor=None), beside), beside)


def test_bones_that_share_no_joint_are_not_blended_where_they_touch() -> None:
    """An arm that is lowered to the torso: a mean of both places would be a web between them."""
    raised, lowered = Pose(r_arm_raise=100, l_arm_raise=25), Pose(r_arm_raise=4, r_elbow=-6, l_arm_raise=25)
    captured, edited = figure_skeleton(BODY, raised), figure_skeleton(BODY, lowered)
    anatomy = read_anatomy(read_matter(figure_density(BODY, raised), captured), captured)
    moved = SkeletonDeformation.of(edited, captured, anatomy)
    generator = torch.Generator().manual_seed(4)
    low, high = edited.joints.amin(0), edited.joints.amax(0)
    points = low + (high - low) * torch.rand(400_000, 3, generator=generator)
    arm = [captured.bones.tolist().index(bone) for bone in ([2, 3], [3, 4])]
    torso = [number for number, bone in enumerate(captured.bones.tolist()) if set(bone) <= {0, 5, 8, 11}]
    surface = edited.along(points)[0] - anatomy.radii
    touching = (surface[:, arm].amin(-1) < 0.03) & (surface[:, torso].amin(-1) < 0.03)
    apart = (points - edited.joints[2]).norm(dim=-1) > 2 * BODY.limb_radius
    points = points[touching & apart]
    single = torch.einsum("kij,nj->nki", moved.motions[..., :3], points) + moved.motions[..., 3]
    origins = moved(points)
    assert origins.kept.sum() > 500
    # Where bones meet in a joint they do blend, between places that are close.
    away = (single - origins.points[:, None]).norm(dim=-1).amin(-1)
    assert (away[origins.kept] < 0.03).float().mean() > 0.999


def test_empty_space_around_a_limb_removes_nothing_where_it_arrives(captured: Skeleton) -> None:
    """A hand that touches a wall must carve no halo into it."""
    edited = figure_skeleton(BODY, TARGET)
    wrist = edited.joints[list(joints(BODY, TARGET)).index("r_wrist")]
    face = float(wrist[0]) + 0.9 * BODY.limb_radius
    figure = figure_density(BODY, SOURCE)
    anatomy = read_anatomy(
        read_matter(lambda points: torch.maximum(figure(points), 300.0 * (points[:, 0] > face)), captured), captured
    )
    moved = SkeletonDeformation.of(edited, captured, anatomy)
    generator = torch.Generator().manual_seed(5)
    near = wrist + 0.3 * (torch.rand(100_000, 3, generator=generator) - 0.5)
    side = float((anatomy.owners.box[1, 0] - anatomy.owners.box[0, 0]) / anatomy.owners.owners.shape[0])
    distance = signed_distance(BODY, TARGET, near)
    wall = near[(near[:, 0] > face + 1.5 * side) & (distance > 1.5 * side) & (distance < 2.5 * side)]
    origins = moved(wall)
    assert len(wall) > 200
    stays = origins.kept & (origins.points == wall).all(-1)
    assert stays.float().mean() > 0.99
