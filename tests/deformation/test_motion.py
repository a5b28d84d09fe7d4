"""Which edits state a motion."""

from pathlib import Path

import torch
import trimesh

from qnerf_nerfstudio.controls.lifting import LiftedSkeleton
from qnerf_nerfstudio.deformation.motion import SkeletonMotion, SolidsMotion, stated_motion
from qnerf_nerfstudio.edit.schema import Edit

TO_SCENE = torch.tensor([[2.0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 2, 0]])
ARM = {"r_shoulder": (0, 0, 0), "r_elbow": (0, 0, 1), "r_wrist": (0, 0, 2)}
RAISED = {**ARM, "r_wrist": (0, 1, 1)}
BOX = {"type": "box", "source": {"size": (1, 1, 1)}, "target": {"size": (1, 1, 1), "position": (0, 0, 1)}}


def edit(control: dict) -> Edit:
    """An edit by a control."""
    return Edit.model_validate({"prompt": "a", "source_prompt": "b", "control": control})


def test_a_skeleton_states_a_motion_in_the_scene() -> None:
    motion = stated_motion(edit({"type": "skeleton", "source": ARM, "target": RAISED}), Path(), TO_SCENE, None)
    assert isinstance(motion, SkeletonMotion)
    assert motion.captured.bones.tolist() == motion.edited.bones.tolist()
    torch.testing.assert_close(motion.captured.lengths, torch.tensor([2.0, 2.0]))
    assert sorted(motion.edited.joints.tolist()) == [[1, 0, 0], [1, 0, 2], [1, 2, 2]]
    # Matter is expected along the captured bones, (1, 0, 0) to (1, 0, 2) to (1, 0, 4), away from their joints.
    inside = motion.inside()
    assert torch.equal(inside[:, :2], torch.tensor([[1.0, 0.0]]).expand(len(inside), -1))
    assert bool((((inside[:, 2] % 2) - 1).abs() <= 0.5).all())
    assert inside[:, 2].min() < 1 and inside[:, 2].max() > 3


def test_several_skeletons_state_one_motion() -> None:
    part = {"type": "skeleton", "source": ARM, "target": RAISED}
    motion = stated_motion(edit({"type": "parts", "parts": [part, part]}), Path(), TO_SCENE, None)
    assert isinstance(motion, SkeletonMotion)
    assert len(motion.captured.joints) == 6
    assert motion.captured.shared_joints()[:2, 2:].tolist() == [[-1, -1], [-1, -1]]


def test_boxes_state_a_motion() -> None:
    motion = stated_motion(edit(BOX), Path(), TO_SCENE, None)
    assert isinstance(motion, SolidsMotion) and motion.inside() is None
    motion = stated_motion(edit({"type": "parts", "parts": [BOX, BOX]}), Path(), TO_SCENE, None)
    assert isinstance(motion, SolidsMotion)
    assert len(motion.solids.captured) == 2


def test_lifted_skeletons_state_the_motion_of_the_bones_that_both_have() -> None:
    control = edit({"type": "images", "source": "a", "target": "b", "kind": "openpose"})
    joints = [{name: torch.tensor(at).float() for name, at in each.items()} for each in (ARM, RAISED)]
    bones = [("r_shoulder", "r_elbow"), ("r_elbow", "r_wrist")]
    motion = stated_motion(
        control, Path(), TO_SCENE, (LiftedSkeleton(joints[0], bones), LiftedSkeleton(joints[1], bones[:1]))
    )
    assert isinstance(motion, SkeletonMotion)
    assert len(motion.captured.bones) == 2
    del joints[1]["r_wrist"]
    motion = stated_motion(
        control, Path(), TO_SCENE, (LiftedSkeleton(joints[0], bones), LiftedSkeleton(joints[1], bones[:1]))
    )
    assert isinstance(motion, SkeletonMotion)
    assert len(motion.captured.bones) == 1


def test_what_states_no_motion_is_told() -> None:
    images = edit({"type": "images", "source": "a", "target": "b", "kind": "openpose"})
    assert "control images show no skeleton" in str(stated_motion(images, Path(), TO_SCENE, None))


def test_a_mesh_states_a_motion_where_its_triangles_stay(tmp_path: Path) -> None:
    trimesh.creation.icosphere(radius=0.5).export(tmp_path / "a.ply")
    trimesh.creation.icosphere(radius=0.7).export(tmp_path / "b.ply")
    trimesh.creation.box().export(tmp_path / "c.ply")
    for target, moves in (("a.ply", True), ("b.ply", True), ("c.ply", False)):
        control = {"type": "mesh", "source": {"mesh": "a.ply"}, "target": {"mesh": target, "position": (0, 0, 1)}}
        motion = stated_motion(edit(control), tmp_path, TO_SCENE, None)
        assert isinstance(motion, SolidsMotion if moves else str)
    mixed = {"type": "parts", "parts": [BOX, control | {"target": {"mesh": "a.ply"}}]}
    assert isinstance(stated_motion(edit(mixed), tmp_path, TO_SCENE, None), SolidsMotion)
