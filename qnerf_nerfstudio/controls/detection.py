"""People in photos by MediaPipe, where it is installed."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.wording import error_text
from qnerf_nerfstudio.controls.keypoints import Person, neck_between_shoulders
from qnerf_nerfstudio.edit.openpose import OPENPOSE_JOINTS

LANDMARKS = {"nose": 0, "l_eye": 2, "r_eye": 5, "l_ear": 7, "r_ear": 8}
LANDMARKS |= {
    f"{side}_{part}": first + number
    for part, first in (("shoulder", 11), ("elbow", 13), ("wrist", 15), ("hip", 23), ("knee", 25), ("ankle", 27))
    for number, side in enumerate("lr")
}
"""Numbers of MediaPipe's landmarks that are OpenPose's joints."""
VISIBLE = 0.5
"""Landmarks that MediaPipe is less sure to see are not seen."""


def detect_people(photos: Iterable[UInt8[Tensor, "H W 3"]]) -> list[list[Person]]:
    """The person in every photo, if one is found; MediaPipe finds one at most.

    Args:
        photos: The photos.

    Raises:
        UserError: MediaPipe cannot be imported, or is one without its pose solution.
    """
    try:
        import mediapipe  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        pose: Any = mediapipe.solutions.pose.Pose  # pyright: ignore[reportAttributeAccessIssue]
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(
            f"--detect needs MediaPipe 0.10.9 and the system's libGL ({error_text(error)}); install them with pip "
            f'install "qnerf-nerfstudio[detect]" on Python 3.11 and, on Debian, apt install libgl1, or run a detector '
            f"elsewhere and name its files with --keypoints"
        ) from error
    with pose(static_image_mode=True, model_complexity=1) as model:
        return [_person(model.process(photo.numpy()), (photo.shape[1], photo.shape[0])) for photo in photos]


def _person(found: Any, sides: tuple[int, int]) -> list[Person]:
    """The person of a photo of some width and height."""
    if found.pose_landmarks is None:
        return []
    person = torch.full((len(OPENPOSE_JOINTS), 2), math.nan)
    for joint, number in LANDMARKS.items():
        landmark = found.pose_landmarks.landmark[number]
        if landmark.visibility >= VISIBLE and 0 <= landmark.x <= 1 and 0 <= landmark.y <= 1:
            place = torch.tensor([landmark.x, landmark.y]) * torch.tensor(sides)
            person[OPENPOSE_JOINTS.index(joint)] = place
    return [neck_between_shoulders(person)]
