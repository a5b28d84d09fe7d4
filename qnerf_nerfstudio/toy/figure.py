"""The articulated figure: a body (proportions and colours), a pose (joint angles) and forward kinematics.

Units are metres; z points up, the figure stands on z = 0 and faces +y. Joint names are those of OpenPose (without
eyes and ears), so that a pose is a skeleton control as it stands.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.16, 0.14),
    "orange": (0.90, 0.50, 0.12),
    "yellow": (0.90, 0.80, 0.20),
    "green": (0.20, 0.60, 0.25),
    "cyan": (0.20, 0.70, 0.72),
    "blue": (0.18, 0.30, 0.78),
    "purple": (0.50, 0.22, 0.65),
    "pink": (0.92, 0.55, 0.68),
    "brown": (0.45, 0.28, 0.16),
    "white": (0.90, 0.90, 0.88),
    "grey": (0.50, 0.50, 0.52),
    "black": (0.12, 0.12, 0.14),
}
"""Colour names of captions, with linear values in [0, 1]."""

SKIN = ("brown", "pink", "orange", "yellow", "white")
FLOORS = ("brown", "green", "grey", "blue", "red", "cyan")
WALLS = ("white", "cyan", "grey", "pink", "yellow", "black")

HEIGHTS = (1.5, 1.85)
"""Range of the bodies' heights in metres."""
LIMB_RADII = (0.055, 0.095)
"""Range of the radii of arms and legs in metres."""
TORSO_RADII = (0.12, 0.19)
"""Range of the torsos' radii in metres."""
HAT_SHARE = 0.5
"""Share of the bodies that wear a hat."""

REFERENCE_HEIGHT = 1.7
"""The lengths below are metres for a body of this height."""
TORSO_LENGTH, NECK_LENGTH = 0.52, 0.20
"""From the pelvis to the neck, and from there to the nose."""
SHOULDER_REACH, HIP_REACH = 0.19, 0.10
"""Distances of shoulders and hips from the middle."""
UPPER_ARM_LENGTH, FOREARM_LENGTH, THIGH_LENGTH, SHIN_LENGTH = 0.28, 0.27, 0.42, 0.40
HEAD_LENGTH, HEAD_RADIUS = 0.06, 0.12
HAT_START, HAT_LENGTH, HAT_RADIUS = 0.16, 0.08, 0.105
"""Where the hat starts above the nose, its length and its radius."""
THICKNESS = {"neck": 0.8, "forearm": 0.9, "hand": 1.15, "thigh": 1.25, "shin": 1.05}
"""Radii relative to `Body.limb_radius`; shoulders and upper arms have that radius itself."""
ELBOW_FACING = (0.0, 1.0, 0.25)
"""An elbow bends about the axis across limb and this direction, so that the hand comes forwards and up."""


@dataclass(frozen=True)
class Body:
    """Proportions (metres) and colours (names in COLOURS) of one figure, and of the room that it stands in."""

    height: float = 1.7
    """Scale: the standing height of the figure without its hat."""
    limb_radius: float = 0.07
    """Radius of arms and legs. The skeleton does not tell it."""
    torso_radius: float = 0.15
    """Radius of the torso."""
    shirt: str = "red"
    """Colour of torso and sleeves."""
    trousers: str = "blue"
    """Colour of the legs."""
    skin: str = "brown"
    """Colour of head and hands, and of bare forearms."""
    hat: str = "none"
    """Colour of the hat, or "none"."""
    sleeves: str = "long"
    """"long" sleeves have the shirt's colour down to the wrist, "short" ones show the skin of the forearms."""
    floor: str = "green"
    """Colour of the floor."""
    wall: str = "white"
    """Colour of the background."""
    texture_phase: float = 0.0
    """Shifts the patterns of floor and background, in radians."""

    def palette(self) -> Float[Tensor, "4 3"]:
        """Colours of the figure's parts: skin, shirt, trousers and hat (skin again where there is none)."""
        hat = self.skin if self.hat == "none" else self.hat
        return torch.tensor([COLOURS[name] for name in (self.skin, self.shirt, self.trousers, hat)])

    def caption(self) -> str:
        """The prompt that names every colour of the figure and its room."""
        hat = "" if self.hat == "none" else f" a {self.hat} hat and"
        return (
            f"a figure with {self.skin} skin,{hat} a {self.shirt} shirt with {self.sleeves} sleeves and "
            f"{self.trousers} trousers on a {self.floor} floor before a {self.wall} wall"
        )


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees; all zero is standing upright with hanging arms."""

    r_arm_raise: float = 15.0
    """Right shoulder: 0 hangs down, 90 is level, 180 points up, in the frontal plane."""
    l_arm_raise: float = 15.0
    """The same for the left shoulder."""
    r_arm_swing: float = 0.0
    """Right upper arm: forwards (positive) or backwards."""
    l_arm_swing: float = 0.0
    """The same for the left upper arm."""
    r_elbow: float = 10.0
    """Right elbow: 0 is straight; it bends the forearm upwards and forwards."""
    l_elbow: float = 10.0
    """The same for the left elbow."""
    r_leg_raise: float = 6.0
    """Right hip, in the frontal plane."""
    l_leg_raise: float = 6.0
    """The same for the left hip."""
    r_leg_swing: float = 0.0
    """Right thigh: forwards (positive) or backwards."""
    l_leg_swing: float = 0.0
    """The same for the left thigh."""
    r_knee: float = 0.0
    """Right knee: 0 is straight; it bends the shin backwards."""
    l_knee: float = 0.0
    """The same for the left knee."""
    lean: float = 0.0
    """The torso leans to the figure's left (positive) or right."""


POSE_RANGES: dict[str, tuple[float, float]] = {
    "arm_raise": (5.0, 165.0),
    "arm_swing": (-30.0, 50.0),
    "elbow": (0.0, 100.0),
    "leg_raise": (3.0, 35.0),
    "leg_swing": (-30.0, 40.0),
    "knee": (0.0, 60.0),
    "lean": (-15.0, 15.0),
}
"""Ranges in degrees from which poses are drawn."""


@dataclass(frozen=True)
class Capsules:
    """K capsules (a line segment with a radius), the matter that the figure is made of."""

    start: Float[Tensor, "K 3"]
    """First end of each segment."""
    end: Float[Tensor, "K 3"]
    """Second end of each segment."""
    radius: Float[Tensor, "K"]
    """Radius of each capsule."""
    colour: Float[Tensor, "K 3"]
    """Base colour of each capsule."""
    names: tuple[str, ...] = field(default=())
    """Name of each capsule."""


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _choice(names: tuple[str, ...], generator: torch.Generator) -> str:
    return names[int(torch.randint(len(names), (), generator=generator))]


def sample_body(generator: torch.Generator) -> Body:
    """Draw a body: heights 1.5 to 1.85 m, limbs 5.5 to 9.5 cm thick, a hat on every second head."""
    names = tuple(COLOURS)
    return Body(
        height=_uniform(*HEIGHTS, generator),
        limb_radius=_uniform(*LIMB_RADII, generator),
        torso_radius=_uniform(*TORSO_RADII, generator),
        shirt=_choice(names, generator),
        trousers=_choice(names, generator),
        skin=_choice(SKIN, generator),
        hat=_choice(names, generator) if _uniform(0, 1, generator) < HAT_SHARE else "none",
        sleeves=_choice(("long", "short"), generator),
        floor=_choice(FLOORS, generator),
        wall=_choice(WALLS, generator),
        texture_phase=_uniform(0, 2 * math.pi, generator),
    )


def sample_pose(generator: torch.Generator, ranges: dict[str, tuple[float, float]] = POSE_RANGES) -> Pose:
    """Draw every joint angle uniformly from `ranges` (degrees; keys as in POSE_RANGES)."""
    angles = {}
    for name in Pose.__dataclass_fields__:
        low, high = ranges[name.removeprefix("r_").removeprefix("l_")]
        angles[name] = _uniform(low, high, generator)
    return Pose(**angles)


def _direction(side: float, raise_deg: float, swing_deg: float) -> Tensor:
    """Unit vector of a limb that hangs down (-z), is raised sideways by `raise_deg` and swung forwards."""
    raised, swung = math.radians(raise_deg), math.radians(swing_deg)
    down, out = -math.cos(raised), math.sin(raised)
    return torch.tensor([side * out, -down * math.sin(swung), down * math.cos(swung)])


def _bend(direction: Tensor, axis: Tensor, degrees: float) -> Tensor:
    """Rotate `direction` about the unit vector `axis` (Rodrigues' formula)."""
    angle = math.radians(degrees)
    parallel = axis * (axis @ direction)
    crossed = torch.linalg.cross(axis, direction)
    return direction * math.cos(angle) + crossed * math.sin(angle) + parallel * (1 - math.cos(angle))


def joints(body: Body, pose: Pose) -> dict[str, Float[Tensor, "3"]]:
    """Forward kinematics: the position of every joint in metres, feet on the floor."""
    unit = body.height / REFERENCE_HEIGHT
    lean = math.radians(pose.lean)
    up = torch.tensor([-math.sin(lean), 0.0, math.cos(lean)])
    across = torch.tensor([math.cos(lean), 0.0, math.sin(lean)])
    pelvis = torch.zeros(3)
    placed = {"neck": pelvis + up * TORSO_LENGTH * unit}
    placed["nose"] = placed["neck"] + up * NECK_LENGTH * unit
    for prefix, side in (("r_", 1.0), ("l_", -1.0)):
        shoulder = placed["neck"] + across * side * SHOULDER_REACH * unit
        upper = _direction(side, getattr(pose, prefix + "arm_raise"), getattr(pose, prefix + "arm_swing"))
        hinge = torch.linalg.cross(upper, torch.tensor(ELBOW_FACING))
        fore = _bend(upper, hinge / hinge.norm(), getattr(pose, prefix + "elbow"))
        placed[prefix + "shoulder"] = shoulder
        placed[prefix + "elbow"] = shoulder + upper * UPPER_ARM_LENGTH * unit
        placed[prefix + "wrist"] = placed[prefix + "elbow"] + fore * FOREARM_LENGTH * unit
        hip = pelvis + torch.tensor([side * HIP_REACH * unit, 0.0, 0.0])
        thigh = _direction(side, getattr(pose, prefix + "leg_raise"), getattr(pose, prefix + "leg_swing"))
        shin = _bend(thigh, torch.tensor([-1.0, 0.0, 0.0]), getattr(pose, prefix + "knee"))
        placed[prefix + "hip"] = hip
        placed[prefix + "knee"] = hip + thigh * THIGH_LENGTH * unit
        placed[prefix + "ankle"] = placed[prefix + "knee"] + shin * SHIN_LENGTH * unit
    lowest = min(float(placed["r_ankle"][2]), float(placed["l_ankle"][2]))
    shift = torch.tensor([0.0, 0.0, body.limb_radius - lowest])
    return {name: position + shift for name, position in placed.items()}


def capsules(body: Body, pose: Pose) -> Capsules:
    """The figure's matter in a pose: torso, head, limbs, hands and, where the body has one, a hat."""
    at = joints(body, pose)
    unit = body.height / REFERENCE_HEIGHT
    up = (at["nose"] - at["neck"]) / (at["nose"] - at["neck"]).norm()
    pelvis = (at["r_hip"] + at["l_hip"]) / 2
    forearm = body.shirt if body.sleeves == "long" else body.skin
    radius = body.limb_radius
    parts: list[tuple[str, Tensor, Tensor, float, str]] = [
        ("torso", pelvis, at["neck"] - up * body.torso_radius, body.torso_radius, body.shirt),
        ("shoulders", at["r_shoulder"], at["l_shoulder"], radius, body.shirt),
        ("neck", at["neck"], at["nose"], radius * THICKNESS["neck"], body.skin),
        ("head", at["nose"], at["nose"] + up * HEAD_LENGTH * unit, HEAD_RADIUS * unit, body.skin),
    ]
    if body.hat != "none":
        crown = at["nose"] + up * HAT_START * unit
        parts.append(("hat", crown, crown + up * HAT_LENGTH * unit, HAT_RADIUS * unit, body.hat))
    for side in ("r_", "l_"):
        parts += [
            (side + "upper_arm", at[side + "shoulder"], at[side + "elbow"], radius, body.shirt),
            (side + "forearm", at[side + "elbow"], at[side + "wrist"], radius * THICKNESS["forearm"], forearm),
            (side + "hand", at[side + "wrist"], at[side + "wrist"], radius * THICKNESS["hand"], body.skin),
            (side + "thigh", at[side + "hip"], at[side + "knee"], radius * THICKNESS["thigh"], body.trousers),
            (side + "shin", at[side + "knee"], at[side + "ankle"], radius * THICKNESS["shin"], body.trousers),
        ]
    names, starts, ends, radii, colours = zip(*parts, strict=True)
    return Capsules(
        start=torch.stack(starts),
        end=torch.stack(ends),
        radius=torch.tensor(radii),
        colour=torch.tensor([COLOURS[c] for c in colours]),
        names=names,
    )
