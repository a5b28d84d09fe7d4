"""An edit projected into a capture: control images of one skeleton are stated as it."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from helpers.cameras import SCENE_BOX
from settings import Setting, write_scene

from qnerf_nerfstudio.capture.cameras import transform_points
from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.images import to_unit, write_png
from qnerf_nerfstudio.controls.projection import ProjectedEdit, project_edit
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import SkeletonControl
from qnerf_nerfstudio.toy.truth import load_truth


def project(data: Path, lift: bool) -> ProjectedEdit:
    """Project the edit of a capture of 128 pixels."""
    edit, capture = load_edit(data / "edit.json"), read_capture(data)
    views, names, size = capture.views(), capture.names, (128, 128)
    return project_edit(edit, data, views, names, capture.num_train, capture.to_scene, size, SCENE_BOX, lift=lift)


VIEWS = 10
"""Photos of a capture."""


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> list[ProjectedEdit]:
    """What the product makes of a stated skeleton without and with lifting."""
    data = tmp_path_factory.mktemp("tight")
    write_scene(data, 3, VIEWS, "tight", size=128)
    with redirect_stdout(io.StringIO()) as output:
        projected = [project(data, lift) for lift in (False, True)]
    assert "lifted to 3D" not in output.getvalue()
    return projected


@pytest.mark.parametrize("setting", ["loose", "wrong"])
def test_the_product_states_the_whole_edit_where_control_images_do_not(
    tight: list[ProjectedEdit], tmp_path: Path, setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path, 3, VIEWS, setting, size=128)
    given, lifted = (project(tmp_path, lift) for lift in (False, True))
    assert "lifted to 3D: 13 bones" in capsys.readouterr().out.replace("\n", " ")
    stated, same = tight
    assert torch.equal(stated.target, same.target)
    missed, left = ((each.target - stated.target).abs().flatten(1).mean(1).max() for each in (given, lifted))
    # Lifted joints are a millimetre or two off, which shows along the edges of lines.
    assert left < 0.3 * missed


def test_control_images_that_cannot_be_lifted_are_used_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path, 3, 6, "loose", size=128)
    for path in (tmp_path / "controls/target").iterdir():
        write_png(path, torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)))
    given, kept = (project(tmp_path, lift) for lift in (False, True))
    assert torch.equal(given.source, kept.source) and torch.equal(given.target, kept.target)
    assert "images of the target show no single OpenPose skeleton: " in capsys.readouterr().out.replace("\n", " ")


def test_drawings_of_512_pixels_are_lifted_for_a_method_of_128(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path, 3, 12, "tight", size=128)
    capture, control = read_capture(tmp_path), load_edit(tmp_path / "edit.json").control
    assert isinstance(control, SkeletonControl)
    views = capture.views().resized((512, 512))
    stated = project(tmp_path, True)
    for key in ("source", "target"):
        stated_joints = getattr(control, key).items()
        joints = {name: transform_points(torch.tensor(at), capture.to_scene) for name, at in stated_joints}
        for name, image in zip(capture.names, draw_skeleton(views, joints, control.all_bones), strict=True):
            write_png(tmp_path / "controls" / key / name, to_unit(image))
    document = json.loads((tmp_path / "edit.json").read_text())
    images = {"type": "images", "kind": "openpose", "source": "controls/source", "target": "controls/target"}
    (tmp_path / "edit.json").write_text(json.dumps({**document, "control": images}))
    lifted = project(tmp_path, True)
    assert "lifted to 3D: 13 bones" in capsys.readouterr().out.replace("\n", " ")
    assert (lifted.target - stated.target).abs().mean() < 0.004


def test_the_region_holds_hats(tmp_path: Path) -> None:
    write_scene(tmp_path, 1, 12, "tight", size=128)
    capture, truth = read_capture(tmp_path), load_truth(tmp_path, "train")
    masks = project(tmp_path, True).influence.masks
    assert masks is not None
    masks = masks[[capture.names.index(name) for name in truth.names]]
    assert not (truth.unions & ~masks).any()
    assert masks.float().mean() < 0.65
