"""State an edit in Python: raise one arm of a skeleton, and write an edit.json.

The joints of an existing edit.json are read in the source pose. The arm turns about the shoulder, in the plane of the
body. `qnerf pose` writes the same file from a page in the browser.

    qnerf toy capture scene
    python examples/2_pose_a_skeleton.py --edit scene/edit.json --out scene/edit-arm.json --degrees 100

`ns-train qnerf-edit-tiny --data scene --pipeline.edit scene/edit-arm.json` then makes the edit.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from scipy.spatial.transform import Rotation

from qnerf_nerfstudio import Edit, SkeletonControl, UserError, load_edit


def raised(joints: dict[str, np.ndarray], side: str, degrees: float) -> dict[str, np.ndarray]:
    """Joints with the arm of a side raised away from the body."""
    shoulder = joints[f"{side}_shoulder"]
    outwards = shoulder - joints["neck"]
    hips = (joints["l_hip"] + joints["r_hip"]) / 2
    # The shortest turn from straight down to straight outwards is about this axis.
    axis = np.cross(hips - joints["neck"], outwards)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis))
    arm = (f"{side}_elbow", f"{side}_wrist")
    return joints | {name: shoulder + turn.apply(joints[name] - shoulder) for name in arm}


def main(edit: Path, out: Path, side: Literal["l", "r"] = "l", degrees: float = 90.0) -> None:
    """Write an edit that raises an arm.

    Args:
        edit: An edit.json whose control is a skeleton with OpenPose's joints.
        out: The edit.json to write.
        side: The left or the right arm of the person.
        degrees: How far the arm turns.
    """
    stated = load_edit(edit)
    if not isinstance(stated.control, SkeletonControl):
        raise UserError(f"{edit}: the control is a {stated.control.type}; this example poses a skeleton")
    source = {name: np.array(at) for name, at in stated.control.source.items()}
    target = {name: at.round(5).tolist() for name, at in raised(source, side, degrees).items()}
    document = stated.model_dump(mode="json", exclude_defaults=True)
    posed = Edit.model_validate({**document, "control": {**document["control"], "target": target}})
    out.write_text(posed.model_dump_json(indent=2, exclude_defaults=True), encoding="utf-8")
    print(f"edit: {out}")


if __name__ == "__main__":
    tyro.cli(main)
