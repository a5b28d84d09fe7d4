"""`qnerf pose` that begins with a person: from a detector's files, and from the photos themselves."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import free_port
from helpers.captures import small_capture
from helpers.commands import SCRIPTS, command
from helpers.people import openpose, seen, write_keypoints
from helpers.preloaded import start_script
from PIL import Image
from rich.console import Console
from torch.nn import functional as F

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import SkeletonControl
from qnerf_nerfstudio.pages.pose_start import open_document, seen_person
from qnerf_nerfstudio.toy.capture import orbit_camera

QUIET = Console(quiet=True)


def stated_source(path: Path) -> dict[str, tuple[float, float, float]]:
    control = load_edit(path).control
    assert isinstance(control, SkeletonControl)
    return control.source


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural capture with the keypoints of its figure beside it."""
    folder = small_capture(tmp_path_factory.mktemp("people"), num_views=8, size=64)
    skeleton = {name: torch.tensor(at) for name, at in stated_source(folder / "edit.json").items()}
    capture = read_capture(folder)
    people = seen(capture.dataset_views(), skeleton)
    write_keypoints(folder / "keypoints", capture.names, [openpose([person]) for person in people])
    (folder / "edit.json").rename(folder / "stated.json")
    return folder


def test_a_new_edit_begins_with_the_person(data: Path) -> None:
    person = seen_person(data, data / "keypoints", 1, QUIET)
    (part,) = open_document(data, data / "edit.json", "skeleton", None, person).parts
    truth = stated_source(data / "stated.json")
    assert part.source == part.target and set(part.source) == set(truth)
    assert max(np.linalg.norm(np.subtract(part.source[name], truth[name])) for name in truth) < 1e-3


def test_an_edit_that_is_there_keeps_its_target_pose(data: Path) -> None:
    person = seen_person(data, data / "keypoints", 1, QUIET)
    stated = json.loads((data / "stated.json").read_text())
    stated["control"]["source"] = {name: [at[0] + 0.3, *at[1:]] for name, at in stated["control"]["source"].items()}
    (data / "moved.json").write_text(json.dumps(stated))
    document = open_document(data, data / "moved.json", "skeleton", None, person)
    (part,) = document.parts
    assert np.allclose(part.source["neck"], person.joints["neck"].position, atol=1e-5)
    assert list(part.target["neck"]) == pytest.approx(stated["control"]["target"]["neck"])
    assert document.undo() and document.parts[0].source["neck"][0] == stated["control"]["source"]["neck"][0]
    stated["control"] = json.loads((data / "edit-boxes.json").read_text())["control"]
    (data / "boxes.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match="holds no skeleton of OpenPose's joints"):
        open_document(data, data / "boxes.json", "skeleton", None, person)


def test_the_command_tells_what_it_saw_and_opens_the_page(data: Path, tmp_path: Path) -> None:
    words = ["pose", "--data", data, "--keypoints", data / "keypoints", "--port", str(free_port())]
    words += ["--field-iterations", "2"]
    log = tmp_path / "log.txt"
    log.touch()
    process = start_script(SCRIPTS / "qnerf", list(map(str, words)), {}, log)
    try:
        while "Pose the edit at" not in log.read_text():
            assert process.is_alive(), log.read_text()
            time.sleep(0.1)
    finally:
        process.kill()
        process.join()
    assert "Seen in 8 of 8 photos" in log.read_text()
    pose = ("qnerf", "pose", "--data", data)
    assert "none of the 0 JSON files" in command(*pose, "--keypoints", data / "images", code=2)
    assert "--person is one of those that" in command(*pose, "--person", "2", code=2)
    both = command(*pose, "--field-iterations", "9", "--run", data, code=2)
    assert "--field-iterations trains a field where no --run" in both


def test_detection_says_what_it_needs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mediapipe", None)
    with pytest.raises(UserError, match=r"--detect needs MediaPipe 0\.10\.9 .*qnerf-nerfstudio\[detect\]"):
        seen_person(data, None, 1, QUIET)


@pytest.mark.release
def test_a_person_on_a_plane_is_found_in_photos(tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    from skimage.data import astronaut  # noqa: PLC0415 - comes with `make release-check` alone

    size, focal, frames = 512, 700.0, []
    texture = torch.from_numpy(astronaut()).movedim(-1, 0)[None].float()
    (tmp_path / "images").mkdir()
    for index in range(6):
        # The picture is a square metre of the plane y = 0, upright, its middle a metre above the ground.
        c2w = orbit_camera(-90.0 + 12 * (index - 2.5), 4.0 * (index % 3), 1.6, 1.0)
        rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
        local = torch.stack([(columns - 256) / focal, -(rows - 256) / focal, -torch.ones_like(rows)], dim=-1)
        directions = local @ c2w[:, :3].T
        hits = c2w[:, 3] - directions * (c2w[1, 3] / directions[..., 1])[..., None]
        grid = torch.stack([2 * hits[..., 0], -2 * (hits[..., 2] - 1)], dim=-1)
        image = F.grid_sample(texture, grid[None], align_corners=False)[0].movedim(0, -1)
        Image.fromarray(image.byte().numpy()).save(tmp_path / f"images/{index}.png")
        matrix = [*c2w.tolist(), [0, 0, 0, 1]]
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": matrix})
    meta = {"fl_x": focal, "fl_y": focal, "cx": 256, "cy": 256, "w": size, "h": size, "camera_model": "PINHOLE"}
    (tmp_path / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    person = seen_person(tmp_path, None, 1, Console())
    # The picture ends at the hips: MediaPipe guesses arms and legs, in each photo otherwise.
    for name in ("nose", "neck", "l_shoulder", "r_shoulder", "l_eye", "r_eye", "l_ear", "r_ear"):
        assert abs(float(person.joints[name].position[1])) < 0.02, (name, person.joints[name])
    # Where they are in the picture, in pixels of it from its upper left corner.
    for name, (x, y) in {"nose": (223, 128), "l_eye": (249, 112), "r_eye": (205, 103)}.items():
        at = person.joints[name].position
        assert abs(float(at[0]) - (x / 512 - 0.5)) < 0.03 and abs(float(at[2]) - (1.5 - y / 512)) < 0.03, name
