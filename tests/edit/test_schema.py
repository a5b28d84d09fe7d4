"""What an edit's fields may hold."""

import math

import pytest

from qnerf_nerfstudio.edit.schema import BoxControl, RigControl, Settings, SphereRegion, control_kinds


def test_regions_refuse_sizes_that_are_none() -> None:
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius"):
            SphereRegion(type="sphere", position=(0, 0, 0), radius=value)


def test_a_control_is_drawn_in_one_kind_or_in_several() -> None:
    placed = {"size": [1, 1, 1]}
    box = BoxControl.model_validate({"type": "box", "source": placed, "target": placed})
    assert control_kinds(box) == ("depth",) and box.model_dump(mode="json")["draw"] == "depth"
    both = BoxControl.model_validate({**box.model_dump(), "draw": ["depth", "normal"]})
    assert control_kinds(both) == ("depth", "normal") and both.model_dump(mode="json")["draw"] == ["depth", "normal"]
    with pytest.raises(ValueError, match="name each kind once"):
        BoxControl.model_validate({**box.model_dump(), "draw": ["depth", "depth"]})
    with pytest.raises(ValueError, match="'depth' or 'normal'"):
        BoxControl.model_validate({**box.model_dump(), "draw": ["openpose"]})
    pose = {"a": [0, 0, 0], "b": [0, 0, 1]}
    rig = {"type": "rig", "mesh": "m.ply", "source": pose, "target": pose, "bones": [["a", "b"]]}
    assert control_kinds(RigControl.model_validate({**rig, "draw": ["depth", "normal"]})) == ("depth", "normal")
    with pytest.raises(ValueError, match="none of OpenPose's; draw depth or normal"):
        RigControl.model_validate({**rig, "draw": ["openpose", "depth"]})


def test_weights_of_controlnets_are_one_or_a_list() -> None:
    assert Settings(controlnet_scale=0.5).controlnet_scale == (0.5,)  # pyright: ignore[reportArgumentType]
    assert Settings.model_validate({"controlnet_scale": [1, 0.5]}).controlnet_scale == (1.0, 0.5)
    assert Settings().model_dump(mode="json")["controlnet_scale"] is None
    with pytest.raises(ValueError, match="controlnet_scale"):
        Settings.model_validate({"controlnet_scale": [1, -0.5]})
