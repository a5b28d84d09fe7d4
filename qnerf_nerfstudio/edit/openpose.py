"""OpenPose's 18 body keypoints, its limbs, and the colours that ControlNet's openpose models read."""

import re

OPENPOSE_JOINTS: tuple[str, ...] = (
    "nose",
    "neck",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "r_hip",
    "r_knee",
    "r_ankle",
    "l_hip",
    "l_knee",
    "l_ankle",
    "r_eye",
    "l_eye",
    "r_ear",
    "l_ear",
)
"""OpenPose's 18 body keypoints, in its order."""

OPENPOSE_BONES: tuple[tuple[str, str], ...] = (
    ("neck", "r_shoulder"),
    ("neck", "l_shoulder"),
    ("r_shoulder", "r_elbow"),
    ("r_elbow", "r_wrist"),
    ("l_shoulder", "l_elbow"),
    ("l_elbow", "l_wrist"),
    ("neck", "r_hip"),
    ("r_hip", "r_knee"),
    ("r_knee", "r_ankle"),
    ("neck", "l_hip"),
    ("l_hip", "l_knee"),
    ("l_knee", "l_ankle"),
    ("neck", "nose"),
    ("nose", "r_eye"),
    ("r_eye", "r_ear"),
    ("nose", "l_eye"),
    ("l_eye", "l_ear"),
)
"""OpenPose's 17 limbs, in its drawing order."""

_OPENPOSE_HUES = [(255, 85 * i, 0) for i in range(3)] + [(255 - 85 * i, 255, 0) for i in range(3)]
_OPENPOSE_HUES += [(0, 255, 85 * i) for i in range(3)] + [(0, 255 - 85 * i, 255) for i in range(3)]
_OPENPOSE_HUES += [(85 * i, 0, 255) for i in range(3)] + [(255, 0, 255 - 85 * i) for i in range(3)]
OPENPOSE_COLOURS: dict[str | tuple[str, str], tuple[int, int, int]] = {
    **dict(zip(OPENPOSE_JOINTS, _OPENPOSE_HUES, strict=True)),
    **dict(zip(OPENPOSE_BONES, _OPENPOSE_HUES, strict=False)),
}
"""RGB of every OpenPose joint and limb, as ControlNet's openpose models were trained on."""

_COCO = ("nose", *(f"{side}_{part}" for part in ("eye", "ear") for side in "lr"))
_COCO += tuple(f"{side}_{part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in "lr")
_BODY_25 = (*OPENPOSE_JOINTS[:8], None, *OPENPOSE_JOINTS[8:])
KEYPOINT_ORDERS: dict[int, tuple[str | None, ...]] = {
    17: _COCO,
    18: OPENPOSE_JOINTS,
    25: _BODY_25,
    133: _COCO,
    134: OPENPOSE_JOINTS,
}
"""Joints of detectors' keypoints by their number: COCO, OpenPose's COCO, its BODY_25, COCO's whole body, and that in
OpenPose's order. Keypoints after those named, and those named None, are none of OpenPose's 18."""

_SIDES = {"left": "l", "right": "r", "l": "l", "r": "r"}
_PARTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "eye", "ear")
_LEFT_OUT = ("big_toe", "small_toe", "heel", "foot", "foot_index", "toe_base")


def openpose_name(name: str) -> str | None:
    """OpenPose's name of a joint that another convention names, such as "RShoulder" (BODY_25), "left_hip" (COCO, SMPL),
    or "MidHip"; None where OpenPose's 18 have no such joint.

    Raises:
        ValueError: No convention knows the name.
    """
    # "RBigToe", "right-big-toe" and "right_big_toe" are one name.
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\s\-.]+", "_", name.strip()).lower()
    if words in ("nose", "neck"):
        return words
    if words in ("mid_hip", "pelvis", "background"):
        return None
    side, _, part = words.partition("_")
    if side in _SIDES and part in _PARTS:
        return f"{_SIDES[side]}_{part}"
    if side in _SIDES and part in _LEFT_OUT:
        return None
    raise ValueError(name)
