"""Skeletons whose joints other conventions name."""

import json
from pathlib import Path
from typing import Any

import pytest

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.edit.openpose import OPENPOSE_JOINTS, openpose_name
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import SkeletonControl, control_kinds

BODY_25 = (
    *("Nose", "Neck", "RShoulder", "RElbow", "RWrist", "LShoulder", "LElbow", "LWrist", "MidHip", "RHip", "RKnee"),
    *("RAnkle", "LHip", "LKnee", "LAnkle", "REye", "LEye", "REar", "LEar", "LBigToe", "LSmallToe", "LHeel", "RBigToe"),
    *("RSmallToe", "RHeel"),
)
COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)


def load(folder: Path, names: tuple[str, ...], **more: Any) -> SkeletonControl:
    """The control of an edit whose skeleton has these joints."""
    joints = {name: [index, index**2 / 9, 1.0] for index, name in enumerate(names)}
    control = {"type": "skeleton", "source": joints, "target": joints, **more}
    document = {"prompt": "a", "source_prompt": "b", "control": control}
    (folder / "edit.json").write_text(json.dumps(document))
    read = load_edit(folder / "edit.json").control
    assert isinstance(read, SkeletonControl)
    return read


def test_body_25_is_openpose_without_its_further_joints(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    control = load(tmp_path, BODY_25)
    assert set(control.source) == set(OPENPOSE_JOINTS) and len(control.all_bones) == 17
    assert control.source["l_wrist"] == (7, 49 / 9, 1)
    assert control_kinds(control) == ("openpose",)
    said = capsys.readouterr().out.replace("\n", " ")
    assert '"MidHip"' in said and '"RHeel"' in said and "left out" in said


def test_coco_gets_its_neck_between_the_shoulders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    control = load(tmp_path, COCO)
    assert set(control.source) == set(OPENPOSE_JOINTS) and len(control.all_bones) == 17
    assert control.source["neck"] == pytest.approx((5.5, (25 + 36) / 18, 1))
    assert "between the shoulders" in capsys.readouterr().out.replace("\n", " ")
    # An edit that is read for its settings alone is told of when it is read to be used.
    assert load_edit(tmp_path / "edit.json", tell=False).control.type == "skeleton"
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "joint"),
    [("right_hip", "r_hip"), ("Left Hip", "l_hip"), ("left-knee", "l_knee"), ("LAnkle", "l_ankle"), ("r_eye", "r_eye")],
)
def test_names_of_other_conventions(name: str, joint: str) -> None:
    assert openpose_name(name) == joint


def test_names_that_no_convention_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"joint \"r_elbov\" is none of OpenPose's \(did you mean 'r_elbow'\?\)"):
        load(tmp_path, ("neck", "nose", "r_elbov"))
    with pytest.raises(UserError, match=r'"r_hip" and "RHip" are both r_hip'):
        load(tmp_path, ("neck", "nose", "r_hip", "RHip"))


def test_a_skeleton_with_bones_of_its_own_keeps_its_names_and_is_not_called_openpose(tmp_path: Path) -> None:
    control = load(tmp_path, ("left_hip", "tail"), bones=[["left_hip", "tail"]])
    assert set(control.source) == {"left_hip", "tail"}
    assert control_kinds(control) is None
    assert control_kinds(load(tmp_path, ("neck", "nose"), bones=[["neck", "nose"]])) == ("openpose",)
