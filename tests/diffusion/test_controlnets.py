"""Every control gets a ControlNet that reads it."""

import pytest

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.controlnets import PUBLISHED, PUBLISHED_XL, UNKNOWN, choose_controlnets, controlnet_kind
from qnerf_nerfstudio.methods import qnerf_edit, qnerf_edit_tiny


def test_controlnets_are_known_by_their_names() -> None:
    assert all(controlnet_kind(name) == kind for kind, name in PUBLISHED.items())
    assert controlnet_kind("/models/sd-controlnet-depth/") == "depth"
    assert controlnet_kind("thibaud/controlnet-sd21-openpose-diffusers") == "openpose"
    assert controlnet_kind("me/mine") == UNKNOWN
    assert controlnet_kind("lllyasviel/control_v11f1e_sd15_tile") is None


@pytest.mark.parametrize(
    "name", ["a/control_sd15_tile", "b/control-ip2p", "c/shuffle", "d/inpaint", "e/qrcode_monster"]
)
def test_controlnets_that_read_pictures_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="reads pictures"):
        choose_controlnets(EditorConfig(controlnet=(name,)), ["openpose"])


def test_an_unknown_controlnet_is_taken_with_a_warning(capsys: pytest.CaptureFixture) -> None:
    assert choose_controlnets(EditorConfig(controlnet=("me/mine",)), ["depth"]) == ["me/mine"]
    assert "drawn as depth" in capsys.readouterr().out.replace("\n", " ")


def test_each_control_gets_a_controlnet_that_reads_it_or_a_sentence() -> None:
    auto = qnerf_edit.config.pipeline.editor
    assert choose_controlnets(auto, ["depth"]) == [PUBLISHED["depth"]]
    assert choose_controlnets(auto, ["openpose"]) == [PUBLISHED["openpose"]]
    assert choose_controlnets(EditorConfig(controlnet=("me/mine",)), ["normal"]) == ["me/mine"]
    with pytest.raises(UserError, match=r"reads openpose controls.*drawn as depth.*f1p_sd15_depth"):
        choose_controlnets(EditorConfig(controlnet=(PUBLISHED["openpose"],)), ["depth"])
    with pytest.raises(UserError, match='add "kind"'):
        choose_controlnets(auto, None)
    with pytest.raises(UserError, match=r"bundled editor reads.*drawn as normal"):
        choose_controlnets(qnerf_edit_tiny.config.pipeline.editor, ["normal"])


def test_several_kinds_of_control_images_get_a_controlnet_each() -> None:
    auto, both = qnerf_edit.config.pipeline.editor, ["openpose", "depth"]
    assert choose_controlnets(auto, both) == [PUBLISHED[kind] for kind in both]
    assert choose_controlnets(auto, both, xl=True) == [PUBLISHED_XL[kind] for kind in both]
    assert choose_controlnets(EditorConfig(controlnet=("a/pose", "a/depth")), both) == ["a/pose", "a/depth"]
    with pytest.raises(UserError, match=r"a/depth reads depth controls.*drawn as openpose"):
        choose_controlnets(EditorConfig(controlnet=("a/depth", "a/pose")), both)
    with pytest.raises(UserError, match=r"names 1 ControlNets.*openpose and depth; name one for each"):
        choose_controlnets(EditorConfig(controlnet=("a/pose",)), both)
    with pytest.raises(UserError, match=r"has 3 weights for 2 ControlNets"):
        choose_controlnets(EditorConfig(controlnet_scale=(1.0, 0.5, 0.2)), both)
    with pytest.raises(UserError, match=r"no ControlNet of Stable Diffusion XL is known for normal"):
        choose_controlnets(auto, ["normal"], xl=True)
