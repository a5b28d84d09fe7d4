"""Every control gets a ControlNet that reads it."""

import pytest

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.controlnets import PUBLISHED, choose_controlnet, controlnet_kind
from qnerf_nerfstudio.methods import qnerf_edit, qnerf_edit_tiny


def test_controlnets_are_known_by_their_names() -> None:
    assert all(controlnet_kind(name) == kind for kind, name in PUBLISHED.items())
    assert controlnet_kind("/models/sd-controlnet-depth/") == "depth"
    assert controlnet_kind("thibaud/controlnet-sd21-openpose-diffusers") == "openpose"
    assert controlnet_kind("me/mine") is None


def test_each_control_gets_a_controlnet_that_reads_it_or_a_sentence() -> None:
    auto = qnerf_edit.config.pipeline.editor
    assert choose_controlnet(auto, "depth") == PUBLISHED["depth"]
    assert choose_controlnet(auto, "openpose") == PUBLISHED["openpose"]
    assert choose_controlnet(EditorConfig(controlnet="me/mine"), "normal") == "me/mine"
    with pytest.raises(UserError, match=r"reads openpose controls.*drawn as depth.*f1p_sd15_depth"):
        choose_controlnet(EditorConfig(controlnet=PUBLISHED["openpose"]), "depth")
    with pytest.raises(UserError, match='add "kind"'):
        choose_controlnet(auto, None)
    with pytest.raises(UserError, match=r"bundled editor reads.*drawn as normal"):
        choose_controlnet(qnerf_edit_tiny.config.pipeline.editor, "normal")
