"""What the page of `qnerf pose` begins with: the edit that there is, a new one, or a person that photos show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import focus_of
from qnerf_nerfstudio.capture.capture import Capture, read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.detection import detect_people
from qnerf_nerfstudio.controls.keypoints import Person, read_keypoints
from qnerf_nerfstudio.controls.people import SeenPerson, find_person
from qnerf_nerfstudio.controls.solids import load_mesh
from qnerf_nerfstudio.edit.reading import load_edit, refuse_outside
from qnerf_nerfstudio.edit.schema import Edit, SkeletonControl
from qnerf_nerfstudio.pages.posing import Joints, PoseDocument

REST_POSE: Joints = {
    "nose": (0.0, 0.05, 1.0),
    "neck": (0.0, 0.0, 0.84),
    "r_shoulder": (-0.12, 0.0, 0.84),
    "r_elbow": (-0.16, 0.0, 0.62),
    "r_wrist": (-0.18, 0.02, 0.44),
    "l_shoulder": (0.12, 0.0, 0.84),
    "l_elbow": (0.16, 0.0, 0.62),
    "l_wrist": (0.18, 0.02, 0.44),
    "r_hip": (-0.07, 0.0, 0.5),
    "r_knee": (-0.08, 0.01, 0.26),
    "r_ankle": (-0.08, 0.0, 0.02),
    "l_hip": (0.07, 0.0, 0.5),
    "l_knee": (0.08, 0.01, 0.26),
    "l_ankle": (0.08, 0.0, 0.02),
}
"""A standing figure of height 1, feet at the origin, z up."""


def standing_skeleton(feet: Float[Tensor, "3"], up: Float[Tensor, "3"], height: float) -> dict[str, Any]:
    """A skeleton control with a standing figure as source and target.

    Args:
        feet: Where it stands.
        up: Unit vector.
        height: Its height.
    """
    turn = np.array(trimesh.geometry.align_vectors([0.0, 0.0, 1.0], up.double().numpy()))[:3, :3]
    placed = {name: (feet.double().numpy() + height * (turn @ np.array(at))).tolist() for name, at in REST_POSE.items()}
    return {"type": "skeleton", "source": placed, "target": placed}


def open_document(
    data: Path, path: Path, control: str, mesh: str | None, person: SeenPerson | None = None
) -> PoseDocument:
    """The edit to work on: the one at `path`, or a new one.

    Args:
        data: The capture.
        path: Where edit.json is or is to be.
        control: What a new edit begins with: "skeleton", "box" or "mesh".
        mesh: Mesh file of a new edit, relative to edit.json.
        person: The person in the captured scene, which becomes the source pose of the edit's skeleton.

    Raises:
        UserError: The edit or the capture cannot be read, its control is ready-made images, or no mesh is named.
    """
    if path.exists():
        edit = load_edit(path)
        if edit.control.type == "images":
            raise UserError(f'{path}: the control is "images", which have no place in 3D; pose another --edit')
        document = PoseDocument(path, edit)
        if person is not None:
            _take_up(document, person)
        return document
    views = read_capture(data).dataset_views()
    focus, distance = focus_of(views)
    up = F.normalize(views.c2w[:, :, 1].mean(0), dim=0)
    stated: dict[str, Any]
    if person is not None:
        stated = _posed(person)
    elif control == "skeleton":
        stated = standing_skeleton(focus - distance / 4 * up, up, distance / 2)
    elif control == "box":
        placed = {"position": focus.tolist(), "size": [distance / 4] * 3}
        stated = {"type": "box", "source": placed, "target": placed}
    else:
        if mesh is None:
            raise UserError("--control is mesh, but no --mesh is named; give its path relative to edit.json")
        refuse_outside(path, "--mesh", mesh)
        load_mesh(path.parent / mesh)
        placed = {"mesh": mesh, "position": focus.tolist()}
        stated = {"type": "mesh", "source": placed, "target": placed}
    prompts = {"prompt": "the scene after the edit", "source_prompt": "the scene as it was captured"}
    return PoseDocument(path, Edit.model_validate({**prompts, "control": stated}))


def _posed(person: SeenPerson) -> dict[str, Any]:
    """A skeleton control that stands in both poses as a person does."""
    placed = {name: [round(float(value), 6) for value in joint.position] for name, joint in person.joints.items()}
    return {"type": "skeleton", "source": placed, "target": placed}


def _take_up(document: PoseDocument, person: SeenPerson) -> None:
    """Put a person in the place of the source pose of the first skeleton of an edit; this can be undone.

    The target pose of joints that it has already stays.
    """
    for index, part in enumerate(document.parts):
        if isinstance(part, SkeletonControl) and part.is_openpose:
            posed = _posed(person)
            target = {**posed["target"], **{name: at for name, at in part.target.items() if name in posed["target"]}}
            document.change_part(index, source=posed["source"], target=target, bones=None)
            return
    raise UserError(
        f"{document.path}: the control holds no skeleton of OpenPose's joints, which keypoints could place; name "
        f"another file with --edit"
    )


def seen_person(data: Path, keypoints: Path | None, number: int, console: Console) -> SeenPerson:
    """The person that photos show, and a table of how well they agree on every joint.

    Args:
        data: The capture.
        keypoints: Folder of a detector's files; None looks for people in the photos.
        number: 1 for the person that most photos agree on, 2 for the next one, and so on.
        console: Where the table is printed.

    Raises:
        UserError: The keypoints cannot be read, or photos agree on no person.
    """
    capture = read_capture(data)
    views = capture.dataset_views()
    if keypoints is None:
        people: Sequence[Sequence[Person]] = _detect(capture, views.size, console)
    else:
        people = read_keypoints(keypoints, capture.names, views.size)
    person = find_person(views, people, number)
    table = Table("joint", "photos", "mean error, pixels", title=f"Seen in {person.views} of {len(views)} photos")
    for name, joint in person.joints.items():
        table.add_row(name, str(joint.views), f"{joint.error:.1f}")
    console.print(table)
    for name, count in person.left_out.items():
        why = "one photo alone shows it" if count == 1 else f"the {count} photos that show it do not agree"
        console.print(f"{name} is left out: {why}.", markup=False)
    return person


def _detect(capture: Capture, size: tuple[int, int], console: Console) -> list[list[Person]]:
    photos = (to_bytes(capture.photos(range(index, index + 1), size))[0] for index in range(len(capture.names)))
    shown = track(photos, "looking for a person", total=len(capture.names), console=console, transient=True)
    people = detect_people(shown)
    if not any(people):
        raise UserError(f"--detect: no person was found in the {len(people)} photos; name --keypoints of a detector")
    return people
