"""Many figures at once on one device: what toy/figure.py and toy/capture.py have for one figure and one camera."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qnerf_nerfstudio.toy import figure
from qnerf_nerfstudio.toy.figure import COLOURS, Body, Pose
from qnerf_nerfstudio.toy.training.data import CAMERAS, POSE_KINDS

NAMES = tuple(COLOURS)
"""Colours by number."""
ANGLES = tuple(Pose.__dataclass_fields__)
"""The joint angles of a pose, in order."""
LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
JOINTS = ("neck", "nose", *("r_" + name for name in LIMBS), *("l_" + name for name in LIMBS))
"""The joints, in the order of `figure.joints`."""


@dataclass(frozen=True)
class Bodies:
    """B bodies with the fields of `Body`; a colour is its number in NAMES."""

    height: Float[Tensor, "B"]
    limb_radius: Float[Tensor, "B"]
    torso_radius: Float[Tensor, "B"]
    shirt: Int[Tensor, "B"]
    trousers: Int[Tensor, "B"]
    skin: Int[Tensor, "B"]
    hat: Int[Tensor, "B"]
    wears_hat: Bool[Tensor, "B"]
    long_sleeves: Bool[Tensor, "B"]
    floor: Int[Tensor, "B"]
    wall: Int[Tensor, "B"]
    texture_phase: Float[Tensor, "B"]

    def single(self) -> list[Body]:
        """The bodies one by one."""
        columns = [getattr(self, name).tolist() for name in self.__dataclass_fields__]
        bodies = []
        for row in zip(*columns, strict=True):
            value = dict(zip(self.__dataclass_fields__, row, strict=True))
            value |= {key: NAMES[value[key]] for key in ("shirt", "trousers", "skin", "hat", "floor", "wall")}
            if not value.pop("wears_hat"):
                value["hat"] = "none"
            bodies.append(Body(sleeves="long" if value.pop("long_sleeves") else "short", **value))
        return bodies


@dataclass(frozen=True)
class CapsuleBatch:
    """K capsules of each of B figures; all have a hat's, `present` says whether it is worn."""

    start: Float[Tensor, "B K 3"]
    end: Float[Tensor, "B K 3"]
    radius: Float[Tensor, "B K"]
    colour: Float[Tensor, "B K 3"]
    number: Int[Tensor, "B K"]
    """Number among the capsules that are present."""
    present: Bool[Tensor, "B K"]

    def first(self, count: int) -> "CapsuleBatch":
        """Those of the first figures."""
        return CapsuleBatch(*(getattr(self, name)[:count] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Scenes:
    """B bodies, each before one camera in two poses."""

    bodies: Bodies
    poses: Float[Tensor, "B 2 A"]
    """Joint angles in degrees, see ANGLES."""
    c2w: Float[Tensor, "B 3 4"]
    """Camera to world, OpenGL axes."""

    def to(self, device: torch.device | str) -> "Scenes":
        """The same on another device."""
        bodies = Bodies(*(getattr(self.bodies, name).to(device) for name in Bodies.__dataclass_fields__))
        return Scenes(bodies, self.poses.to(device), self.c2w.to(device))


def _uniform(span: tuple[float, float], count: int, generator: torch.Generator) -> Float[Tensor, "B"]:
    low, high = span
    return low + (high - low) * torch.rand(count, generator=generator)


def _choice(names: tuple[str, ...], count: int, generator: torch.Generator) -> Int[Tensor, "B"]:
    numbers = torch.tensor([NAMES.index(name) for name in names])
    return numbers[torch.randint(len(names), (count,), generator=generator)]


def sample_bodies(count: int, generator: torch.Generator) -> Bodies:
    """Draw bodies, distributed as those of `figure.sample_body`."""
    return Bodies(
        height=_uniform(figure.HEIGHTS, count, generator),
        limb_radius=_uniform(figure.LIMB_RADII, count, generator),
        torso_radius=_uniform(figure.TORSO_RADII, count, generator),
        shirt=_choice(NAMES, count, generator),
        trousers=_choice(NAMES, count, generator),
        skin=_choice(figure.SKIN, count, generator),
        hat=_choice(NAMES, count, generator),
        wears_hat=_uniform((0, 1), count, generator) < figure.HAT_SHARE,
        long_sleeves=_uniform((0, 1), count, generator) < 0.5,
        floor=_choice(figure.FLOORS, count, generator),
        wall=_choice(figure.WALLS, count, generator),
        texture_phase=_uniform((0, 2 * math.pi), count, generator),
    )


def sample_poses(count: int, generator: torch.Generator) -> Float[Tensor, "B A"]:
    """Draw poses, each from one of POSE_KINDS."""
    keys = [name.removeprefix("r_").removeprefix("l_") for name in ANGLES]
    spans = torch.tensor([[ranges[key] for key in keys] for ranges in POSE_KINDS])
    low, high = spans[torch.randint(len(spans), (count,), generator=generator)].unbind(-1)
    return low + (high - low) * torch.rand(low.shape, generator=generator)


def sample_cameras(count: int, generator: torch.Generator) -> Float[Tensor, "B 3 4"]:
    """Draw cameras, distributed as those of `data.render_pair`."""
    start, extent = torch.tensor(CAMERAS).unbind(-1)
    draws = torch.rand(count, len(CAMERAS), generator=generator)
    return orbit_cameras(start + extent * draws)


def sample_scenes(count: int, generator: torch.Generator) -> Scenes:
    """Draw bodies, two poses of each, and cameras, with a generator on the CPU: the same ones for every device."""
    return Scenes(
        bodies=sample_bodies(count, generator),
        poses=torch.stack([sample_poses(count, generator) for _ in range(2)], dim=1),
        c2w=sample_cameras(count, generator),
    )


def orbit_cameras(places: Float[Tensor, "B 4"]) -> Float[Tensor, "B 3 4"]:
    """Cameras at azimuths, elevations (degrees), distances and heights, as those of `capture.orbit_camera`."""
    azimuth, elevation = torch.deg2rad(places[:, 0]), torch.deg2rad(places[:, 1])
    distance, height = places[:, 2], places[:, 3]
    back = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()],
        dim=-1,
    )
    up = _vectors([0.0, 0.0, 1.0], back)
    right = torch.linalg.cross(up, back)
    right = right / right.norm(dim=-1, keepdim=True)
    position = up * height[:, None] + back * distance[:, None]
    return torch.stack([right, torch.linalg.cross(back, right), back, position], dim=-1)


def _vectors(vector: list[float] | tuple[float, ...], like: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    return like.new_tensor(vector).expand_as(like)


def _direction(side: float, raised: Float[Tensor, "B"], swung: Float[Tensor, "B"]) -> Float[Tensor, "B 3"]:
    """Unit vectors of limbs that hang down, are raised sideways and swung forwards by angles in degrees."""
    raised, swung = torch.deg2rad(raised), torch.deg2rad(swung)
    down, out = -raised.cos(), raised.sin()
    return torch.stack([side * out, -down * swung.sin(), down * swung.cos()], dim=-1)


def _bend(
    directions: Float[Tensor, "B 3"], axes: Float[Tensor, "B 3"], degrees: Float[Tensor, "B"]
) -> Float[Tensor, "B 3"]:
    """Rotate directions about unit axes (Rodrigues' formula)."""
    angle = torch.deg2rad(degrees)[:, None]
    parallel = axes * (axes * directions).sum(-1, keepdim=True)
    crossed = torch.linalg.cross(axes, directions)
    return directions * angle.cos() + crossed * angle.sin() + parallel * (1 - angle.cos())


def place_joints(bodies: Bodies, poses: Float[Tensor, "B A"]) -> Float[Tensor, "B J 3"]:
    """Forward kinematics: the positions of JOINTS in metres, feet on the floor."""
    angles = dict(zip(ANGLES, poses.unbind(-1), strict=True))
    unit = (bodies.height / figure.REFERENCE_HEIGHT)[:, None]
    lean = torch.deg2rad(angles["lean"])
    zero = torch.zeros_like(lean)
    up = torch.stack([-lean.sin(), zero, lean.cos()], dim=-1)
    across = torch.stack([lean.cos(), zero, lean.sin()], dim=-1)
    at = {"neck": up * figure.TORSO_LENGTH * unit}
    at["nose"] = at["neck"] + up * figure.NECK_LENGTH * unit
    for prefix, side in (("r_", 1.0), ("l_", -1.0)):
        upper = _direction(side, angles[prefix + "arm_raise"], angles[prefix + "arm_swing"])
        hinge = torch.linalg.cross(upper, _vectors(figure.ELBOW_FACING, upper))
        fore = _bend(upper, hinge / hinge.norm(dim=-1, keepdim=True), angles[prefix + "elbow"])
        at[prefix + "shoulder"] = at["neck"] + across * side * figure.SHOULDER_REACH * unit
        at[prefix + "elbow"] = at[prefix + "shoulder"] + upper * figure.UPPER_ARM_LENGTH * unit
        at[prefix + "wrist"] = at[prefix + "elbow"] + fore * figure.FOREARM_LENGTH * unit
        thigh = _direction(side, angles[prefix + "leg_raise"], angles[prefix + "leg_swing"])
        shin = _bend(thigh, _vectors([-1.0, 0.0, 0.0], thigh), angles[prefix + "knee"])
        at[prefix + "hip"] = _vectors([side * figure.HIP_REACH, 0.0, 0.0], thigh) * unit
        at[prefix + "knee"] = at[prefix + "hip"] + thigh * figure.THIGH_LENGTH * unit
        at[prefix + "ankle"] = at[prefix + "knee"] + shin * figure.SHIN_LENGTH * unit
    lowest = torch.minimum(at["r_ankle"][:, 2], at["l_ankle"][:, 2])
    shift = torch.stack([zero, zero, bodies.limb_radius - lowest], dim=-1)
    return torch.stack([at[name] + shift for name in JOINTS], dim=1)


def place_capsules(bodies: Bodies, joints: Float[Tensor, "B J 3"]) -> CapsuleBatch:
    """The matter of figures whose joints are placed, in the order of `figure.capsules`; a hat comes after the head."""
    at = dict(zip(JOINTS, joints.unbind(1), strict=True))
    unit, radius = bodies.height / figure.REFERENCE_HEIGHT, bodies.limb_radius
    up = at["nose"] - at["neck"]
    up = up / up.norm(dim=-1, keepdim=True)
    rise = up * unit[:, None]
    pelvis = (at["r_hip"] + at["l_hip"]) / 2
    crown = at["nose"] + rise * figure.HAT_START
    forearm = torch.where(bodies.long_sleeves, bodies.shirt, bodies.skin)
    thickness = {part: radius * share for part, share in figure.THICKNESS.items()}
    head, hat = at["nose"] + rise * figure.HEAD_LENGTH, crown + rise * figure.HAT_LENGTH
    parts = [
        (pelvis, at["neck"] - up * bodies.torso_radius[:, None], bodies.torso_radius, bodies.shirt),
        (at["r_shoulder"], at["l_shoulder"], radius, bodies.shirt),
        (at["neck"], at["nose"], thickness["neck"], bodies.skin),
        (at["nose"], head, figure.HEAD_RADIUS * unit, bodies.skin),
        (crown, hat, figure.HAT_RADIUS * unit, bodies.hat),
    ]
    hat_at = len(parts) - 1
    for side in ("r_", "l_"):
        parts += [
            (at[side + "shoulder"], at[side + "elbow"], radius, bodies.shirt),
            (at[side + "elbow"], at[side + "wrist"], thickness["forearm"], forearm),
            (at[side + "wrist"], at[side + "wrist"], thickness["hand"], bodies.skin),
            (at[side + "hip"], at[side + "knee"], thickness["thigh"], bodies.trousers),
            (at[side + "knee"], at[side + "ankle"], thickness["shin"], bodies.trousers),
        ]
    starts, ends, radii, colours = zip(*parts, strict=True)
    present = torch.ones(len(joints), len(parts), dtype=torch.bool, device=joints.device)
    present[:, hat_at] = bodies.wears_hat
    return CapsuleBatch(
        start=torch.stack(starts, dim=1),
        end=torch.stack(ends, dim=1),
        radius=torch.stack(radii, dim=1),
        colour=colour_table(joints)[torch.stack(colours, dim=1)],
        number=present.cumsum(dim=1) - 1,
        present=present,
    )


def colour_table(like: Tensor) -> Float[Tensor, "N 3"]:
    """The colours of NAMES, on the device of another tensor."""
    return like.new_tensor([COLOURS[name] for name in NAMES])
