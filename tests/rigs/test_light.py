"""The light on a subject, against figures whose light is known."""

import pytest
import torch
from helpers.cameras import views
from helpers.figures import figure_density, figure_skeleton, offsets, signed_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.deformation.motion import SkeletonMotion
from qnerf_nerfstudio.deformation.skeleton import SkeletonDeformation
from qnerf_nerfstudio.rigs.bones import Skeleton
from qnerf_nerfstudio.rigs.light import BRIGHTEST, Surface, explained_by_others, fit_harmonics, read_light
from qnerf_nerfstudio.rigs.matter import Anatomy, MatterGrid, read_anatomy, read_matter
from qnerf_nerfstudio.toy.figure import Body, Pose, capsules, joints
from qnerf_nerfstudio.toy.render import LIGHT

BODY = Body()
SOURCE = Pose(r_arm_raise=20, l_arm_raise=25)
TARGET = Pose(r_arm_raise=110, l_arm_raise=60, r_elbow=40, l_leg_swing=30, l_knee=25)
VIEWS = views(9)
"""All around the figure."""


def _nearest(pose: Pose, points: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the figure's nearest capsule at points, and its normal there."""
    away = offsets(BODY, pose, points)
    number = (away.norm(dim=-1) - capsules(BODY, pose).radius).argmin(-1)
    return number, F.normalize(away[torch.arange(len(points)), number], dim=-1)


def _brightness(normals: Tensor) -> Tensor:
    """The toy renderer's light."""
    return 0.62 + 0.38 * (normals @ LIGHT).clamp(-0.6, 1)


def _lit(points: Tensor, directions: Tensor) -> Tensor:
    """Every part has a paint of its own, and is lit."""
    number, normals = _nearest(SOURCE, points)
    paint = 0.3 + 0.5 * torch.rand(64, 3, generator=torch.Generator().manual_seed(0))[number]
    return paint * _brightness(normals)[:, None]


def _sunlit(points: Tensor, directions: Tensor) -> Tensor:
    """Grey, lit from one side, with little light from elsewhere."""
    _, normals = _nearest(SOURCE, points)
    return (0.05 + 0.9 * (normals @ LIGHT).clamp_min(0))[:, None].expand(-1, 3)


def _painted(points: Tensor, directions: Tensor) -> Tensor:
    """Stripes without any light."""
    return (0.5 + 0.3 * torch.sin(40 * points[:, 2] + 30 * points[:, 0]))[:, None].expand(-1, 3)


@pytest.fixture(scope="module")
def captured() -> Skeleton:
    return figure_skeleton(BODY, SOURCE)


@pytest.fixture(scope="module")
def matter(captured: Skeleton) -> MatterGrid:
    return read_matter(figure_density(BODY, SOURCE), captured)


@pytest.fixture(scope="module")
def anatomy(captured: Skeleton, matter: MatterGrid) -> Anatomy:
    return read_anatomy(matter, captured)


def test_limbs_that_turn_are_lit_as_in_their_new_pose(captured: Skeleton, matter: MatterGrid, anatomy: Anatomy) -> None:
    light, explained = read_light(matter, anatomy.owners, _lit, VIEWS)
    assert light is not None and explained > 0.7
    deformation = SkeletonDeformation.of(figure_skeleton(BODY, TARGET), captured, anatomy, light)
    points = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.2, 1.9])
    points = points - torch.tensor([1.0, 0.6, -0.1])
    points = points[signed_distance(BODY, TARGET, points).abs() < 0.005]
    origins = deformation(points)
    turned = origins.kept & ((origins.points - points).norm(dim=-1) > 0.05)
    assert turned.sum() > 300 and origins.shades is not None
    _, before = _nearest(SOURCE, origins.points[turned])
    _, after = _nearest(TARGET, points[turned])
    expected = _brightness(after) / _brightness(before)
    shaded, kept = (origins.shades[turned] / expected).log().abs(), expected.log().abs()
    assert shaded.median() < 0.06 and shaded.mean() < 0.4 * kept.mean()
    assert origins.shades.min() >= 1 / BRIGHTEST - 1e-4 and origins.shades.max() <= BRIGHTEST + 1e-4


def test_light_that_a_camera_encoded_is_found_as_light(
    captured: Skeleton, matter: MatterGrid, anatomy: Anatomy
) -> None:
    """Spherical harmonics hold radiance, which displays show as its 2.2nd root."""
    light, explained = read_light(matter, anatomy.owners, lambda *where: _sunlit(*where) ** (1 / 2.2), VIEWS)
    plain, _ = read_light(matter, anatomy.owners, _sunlit, VIEWS)
    assert light is not None and plain is not None and explained > 0.7
    assert (light.exponent, plain.exponent) == (2.2, 1.0)
    torch.testing.assert_close(light.harmonics, plain.harmonics, atol=0.02, rtol=0)
    encoded, stored = (
        SkeletonDeformation.of(figure_skeleton(BODY, TARGET), captured, anatomy, each) for each in (light, plain)
    )
    assert encoded.shades is not None and stored.shades is not None
    held = (stored.shades.shades.log().abs() < 0.6) & (encoded.shades.shades.log().abs() < 0.6)
    torch.testing.assert_close(encoded.shades.shades[held] ** 2.2, stored.shades.shades[held], atol=0.05, rtol=0.05)


def test_what_no_camera_saw_tells_nothing_of_the_light(matter: MatterGrid, anatomy: Anatomy) -> None:
    """A field makes up the colours of a back that only cameras in front were given."""
    front = views(2)
    eyes = front.c2w[:, :, 3]

    def made_up(points: Tensor, directions: Tensor) -> Tensor:
        faces = (-directions[:, None] * (eyes - points[:, None])).sum(-1).amax(-1) > 0
        return torch.where(faces[:, None], _lit(points, directions), torch.tensor([1.0, 0.0, 1.0]))

    light, explained = read_light(matter, anatomy.owners, made_up, front)
    assert light is not None and explained > 0.6
    assert read_light(matter, anatomy.owners, made_up, VIEWS)[1] < 0.4


def test_surfaces_are_seen_by_cameras_that_nothing_hides_them_from(matter: MatterGrid) -> None:
    places = matter.centres[matter.outermost.flatten()]
    places = places[(places[:, 2] > 0.1) & (signed_distance(BODY, SOURCE, places) < 0)]
    _, normals = _nearest(SOURCE, places)
    camera = views(1)
    towards = F.normalize(camera.c2w[0, :, 3] - places, dim=-1)
    cosine = (towards * normals).sum(-1)
    path = places[:, None] + torch.linspace(0.05, 3, 200)[:, None] * towards[:, None]
    hidden = (signed_distance(BODY, SOURCE, path.flatten(0, 1)) < -0.01).reshape(path.shape[:2]).any(-1)
    seen = matter.seen(places, normals, camera)
    assert seen[(cosine > 0.4) & ~hidden].float().mean() > 0.97
    assert not seen[cosine < 0].any()
    assert (cosine > 0.4)[hidden].any() and seen[hidden & (cosine > 0.4)].float().mean() < 0.1
    away = Views(camera.c2w, camera.intrinsics + torch.tensor([0.0, 0, 1000, 0]), camera.distortion, camera.size)
    assert not matter.seen(places, normals, away).any()


def test_what_stands_still_keeps_its_colours_to_the_bit(
    captured: Skeleton, matter: MatterGrid, anatomy: Anatomy
) -> None:
    light, _ = read_light(matter, anatomy.owners, _lit, VIEWS)
    still = SkeletonDeformation.of(captured, captured, anatomy, light).to("cpu")
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - torch.tensor([1.0, 1.0, 0.1])
    shades = still(points).shades
    assert shades is not None and torch.equal(shades, torch.ones(len(points)))


def test_a_motion_keeps_the_light_that_it_reads(captured: Skeleton) -> None:
    motion = SkeletonMotion(captured, figure_skeleton(BODY, TARGET))
    lit, dark = (motion.read(figure_density(BODY, SOURCE), colour, None, VIEWS) for colour in (_lit, None))
    assert float(lit["explained"]) > 0.7 and "explained" not in dark
    wrist = motion.edited.joints[list(joints(BODY, TARGET)).index("r_wrist")]
    points = wrist + 0.02 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    shaded, kept = (motion.deformation(tensors)(points) for tensors in (lit, dark))
    assert torch.equal(shaded.points, kept.points) and kept.shades is None
    assert shaded.shades is not None and (shaded.shades - 1).abs().max() > 0.05


def test_paint_is_not_taken_for_light(matter: MatterGrid, anatomy: Anatomy) -> None:
    light, explained = read_light(matter, anatomy.owners, _painted, VIEWS)
    assert light is None and explained < 0.1


Direction = st.tuples(*[st.floats(-1, 1)] * 3).map(torch.tensor)


@settings(max_examples=20, deadline=None)
@given(Direction, st.integers(0, 1000), st.sampled_from([0.0, 0.02]))
def test_a_light_is_found_whatever_the_paint(towards: Tensor, seed: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    normals = F.normalize(torch.randn(2000, 3, generator=generator), dim=-1)
    bones = torch.randint(6, (2000,), generator=generator)
    paint = 0.2 + 0.6 * torch.rand(6, 3, generator=generator)
    brightness = 1 + 0.5 * normals @ towards
    colours = paint[bones] * brightness[:, None] + noise * torch.randn(2000, 3, generator=generator)
    surface = Surface(colours, normals, bones)
    assert fit_harmonics(surface)[1:4] == pytest.approx(0.5 * towards, abs=0.03)
    if noise == 0 and towards.norm() > 0.2:
        assert explained_by_others(surface) > 0.98


def test_one_bone_alone_tells_no_light() -> None:
    normals = F.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    surface = Surface(_brightness(normals)[:, None].expand(-1, 3), normals, torch.zeros(500, dtype=torch.long))
    assert explained_by_others(surface) == 0
