"""OpenPose's skeleton."""

from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES, OPENPOSE_COLOURS


def test_openpose_colours_are_those_of_controlnet() -> None:
    limbs = [OPENPOSE_COLOURS[bone] for bone in OPENPOSE_BONES]
    assert limbs[:4] == [(255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0)]
    assert limbs[-1] == (255, 0, 170)
    assert OPENPOSE_COLOURS["l_ear"] == (255, 0, 85)
