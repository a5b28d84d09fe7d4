"""People's 2D keypoints as pose detectors write them: one JSON file for each photo."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import same_shape
from qnerf_nerfstudio.common.wording import error_text
from qnerf_nerfstudio.edit.openpose import KEYPOINT_ORDERS, OPENPOSE_JOINTS

SUFFIX = "_keypoints"
"""What OpenPose puts between a photo's name and .json; other detectors put nothing."""
LEAST_CONFIDENCE = 0.2
"""Keypoints that a detector is less sure of are not seen."""
OUTSIDE = 0.1
"""Keypoints may lie outside of the photo by this share of its sides."""
LARGEST_SHARE = 2.0
"""Keypoints that are all below this are shares of the photo's sides, not pixels."""
MAX_BYTES = 1 << 24
"""Size of the largest file that is read."""
MAX_PEOPLE = 50
"""People in a photo."""

Person = Float[Tensor, "J 2"]
"""Pixels (x, y) of OpenPose's joints in a photo, NaN where a joint is not seen."""


def read_keypoints(folder: Path, names: Sequence[str], photo_size: tuple[int, int]) -> list[list[Person]]:
    """The people in every photo.

    Reads OpenPose's JSON (18 or 25 keypoints), what ControlNet's annotators write in its form, with a canvas that the
    keypoints are in, and lists of people as MMPose writes them (17 or 133 keypoints).

    Args:
        folder: Holds one file for each photo in which people were looked for: its name with .json or _keypoints.json.
        names: File names of the photos, in the order of the views.
        photo_size: Height and width of the photos.

    Returns:
        The people of each photo; none where there is no file.

    Raises:
        UserError: A file cannot be read, or the keypoints are those of other photos or sizes, or of no one.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--keypoints: {folder} is not a folder; name the one with a detector's JSON files")
    files = {path.stem.removesuffix(SUFFIX): path for path in sorted(folder.glob("*.json"))}
    stems = [Path(name).stem for name in names]
    known = set(files) & set(stems)
    if not known:
        example = f", such as {next(iter(files.values())).name}" if files else ""
        raise UserError(
            f"--keypoints: none of the {len(files)} JSON files in {folder}{example} is of a photo; they are called as "
            f"the photos are, {stems[0]}.json or {stems[0]}{SUFFIX}.json"
        )
    if strays := sorted(set(files) - known):
        CONSOLE.print(
            f"--keypoints: {len(strays)} files are of no photo and left out, such as {files[strays[0]].name}.",
            soft_wrap=True,
            markup=False,
        )
    people = [_read(files[stem], photo_size) if stem in known else [] for stem in stems]
    if not any(people):
        raise UserError(f"--keypoints: the files in {folder} show no person in any photo")
    return people


def _read(path: Path, photo_size: tuple[int, int]) -> list[Person]:
    """The people in a file, at the size of its photo."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        # Some exporters put a list of frames around the one there is.
        if isinstance(document, list) and len(document) == 1 and "people" in document[0]:
            document = document[0]
        people = [_keypoints(each) for each in list(_people(document))[:MAX_PEOPLE]]
        canvas = _canvas(document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--keypoints: {path} cannot be read as a detector's keypoints ({error_text(error)}); expected OpenPose's "
            f'"people" with "pose_keypoints_2d", or MMPose\'s "keypoints" with "keypoint_scores"'
        ) from error
    return [_in_pixels(person, canvas, photo_size, path) for person in people]


def _people(document: Any) -> Iterator[dict[str, Any]]:
    """The entries of people in a document, wherever its exporter put them."""
    if isinstance(document, dict) and "people" in document:
        yield from document["people"]
    elif isinstance(document, dict) and "instance_info" in document:
        for frame in document["instance_info"]:
            yield from frame["instances"]
    elif isinstance(document, dict) and "instances" in document:
        yield from document["instances"]
    elif isinstance(document, list):
        # MMPose puts the people of each image in a list of their own.
        for entry in document:
            yield from entry if isinstance(entry, list) else [entry]
    else:
        raise ValueError("no people are listed")


def _canvas(document: Any) -> tuple[int, int] | None:
    """Height and width of what keypoints are stated in, where that is not the photo."""
    if isinstance(document, dict) and "canvas_height" in document:
        return int(document["canvas_height"]), int(document["canvas_width"])
    return None


def _keypoints(entry: dict[str, Any]) -> Float[Tensor, "J 2"]:
    """OpenPose's joints of one person as they are stated; NaN where they are not seen."""
    stated = entry.get("pose_keypoints_2d", entry.get("keypoints"))
    if stated is None:
        raise ValueError("a person has no keypoints")
    table = torch.tensor(stated, dtype=torch.float32)
    scores = entry.get("keypoint_scores")
    if scores is not None:
        table = torch.cat([table.reshape(len(scores), -1)[:, :2], torch.tensor(scores)[:, None].float()], dim=1)
    table = table.reshape(-1, 3)
    order = KEYPOINT_ORDERS.get(len(table))
    if order is None:
        raise ValueError(f"a person has {len(table)} keypoints, expected one of {', '.join(map(str, KEYPOINT_ORDERS))}")
    found = torch.full((len(OPENPOSE_JOINTS), 2), math.nan)
    for row, joint in enumerate(order):
        if joint is not None and float(table[row, 2]) >= LEAST_CONFIDENCE and table[row].isfinite().all():
            found[OPENPOSE_JOINTS.index(joint)] = table[row, :2]
    return found if "neck" in order else neck_between_shoulders(found)


def neck_between_shoulders(person: Person) -> Person:
    """A person with the neck where OpenPose puts it, as other detectors know none."""
    person = person.clone()
    left, right = (person[OPENPOSE_JOINTS.index(f"{side}_shoulder")] for side in "lr")
    person[OPENPOSE_JOINTS.index("neck")] = (left + right) / 2
    return person


def _in_pixels(
    person: Float[Tensor, "J 2"], canvas: tuple[int, int] | None, photo_size: tuple[int, int], path: Path
) -> Person:
    """Keypoints in pixels of the photo, from pixels of it or of a canvas, or from shares of either."""
    height, width = photo_size
    if canvas is not None and not same_shape(canvas, photo_size):
        raise UserError(
            f"--keypoints: {path} has keypoints of an image of {canvas[1]}x{canvas[0]} pixels, the photo has "
            f"{width}x{height}; detect people in the photos themselves"
        )
    sides = torch.tensor([width, height], dtype=torch.float32)
    if not (person > LARGEST_SHARE).any():
        person = person * sides
    elif canvas is not None:
        person = person * sides / torch.tensor([canvas[1], canvas[0]])
    if ((person < -OUTSIDE * sides) | (person > (1 + OUTSIDE) * sides)).any():
        raise UserError(
            f"--keypoints: {path} has keypoints outside of its photo of {width}x{height} pixels; they are of another "
            f"photo or size"
        )
    return person
