"""People's keypoints: files of detectors, and the skeleton in 3D that they show, against joints that are known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.people import figure, mmpose, openpose, orbit, seen, write_keypoints
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.keypoints import read_keypoints
from qnerf_nerfstudio.controls.people import find_person
from qnerf_nerfstudio.edit.openpose import OPENPOSE_JOINTS

SIZE = 256
PIXEL = 4.3 / 1.8 / SIZE
"""About the width of a pixel at the figure."""
NAMES = [f"photo_{index}.jpg" for index in range(12)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), k1=st.sampled_from([0.0, -0.05]))
def test_joints_are_found_in_spite_of_noise_outliers_and_missing_views(seed: int, k1: float) -> None:
    views, truth = orbit(24, SIZE, k1), figure(seed)
    generator = torch.Generator().manual_seed(seed)
    people = torch.stack(seen(views, truth))
    people += 0.5 * torch.randn(people.shape, generator=generator)
    wrong = torch.rand(people.shape[:2], generator=generator) < 0.15
    elsewhere = SIZE * torch.rand(people.shape, generator=generator)
    # What lies close by chance is no outlier, and counts in the error.
    wrong &= (elsewhere - people).norm(dim=-1) > 20
    people = torch.where(wrong[..., None], elsewhere, people)
    people[torch.rand(people.shape[:2], generator=generator) < 0.2] = math.nan
    listed = [[person] if view % 5 else [] for view, person in enumerate(people)]
    found = find_person(views, listed)
    assert set(found.joints) == set(truth) and not found.left_out
    for name, joint in found.joints.items():
        assert (joint.position - truth[name]).norm() < 1.5 * PIXEL, name
        assert joint.views >= 4 and joint.error < 1.5


def test_the_person_that_most_photos_agree_on_comes_first() -> None:
    views = orbit(12, SIZE)
    first, second = figure(1), {name: at + torch.tensor([0.5, 0.3, 0.0]) for name, at in figure(2).items()}
    listed = [
        [other, one] if index % 2 else [one, *([other] if index % 3 else [])]
        for index, (one, other) in enumerate(zip(seen(views, first), seen(views, second), strict=True))
    ]
    for number, truth, count in ((1, first, 12), (2, second, 10)):
        found = find_person(views, listed, number)
        assert found.views == count
        for name, joint in found.joints.items():
            assert (joint.position - truth[name]).norm() < 0.2 * PIXEL, (number, name)
    with pytest.raises(UserError, match="--person is 3, but photos agree on 2 only"):
        find_person(views, listed, 3)


def test_two_photos_place_what_they_see_and_one_alone_places_nothing() -> None:
    views, truth = orbit(12, SIZE), figure(3)
    people = torch.stack(seen(views, truth))
    hand, foot = OPENPOSE_JOINTS.index("r_wrist"), OPENPOSE_JOINTS.index("l_ankle")
    people[[i for i in range(12) if i not in (2, 5)], hand] = math.nan
    people[1:, foot] = math.nan
    found = find_person(views, [[person] for person in people])
    assert (found.joints["r_wrist"].position - truth["r_wrist"]).norm() < 0.1 * PIXEL
    assert found.joints["r_wrist"].views == 2 and found.left_out == {"l_ankle": 1}


def test_photos_that_agree_on_nothing_are_refused() -> None:
    views = orbit(12, SIZE)
    alone = [[seen(views, figure(4))[0]], *[[] for _ in range(11)]]
    with pytest.raises(UserError, match="1 photos show a person with 3 or more joints; at least two are needed"):
        find_person(views, alone)
    others = [[person] for person in seen(views, figure(4))[6:] + seen(views, figure(5))[:6]]
    few = {name: at for name, at in figure(4).items() if name in ("r_wrist", "l_wrist", "l_ankle")}
    with pytest.raises(UserError, match="no two of them make a bone"):
        find_person(views, [[person] for person in seen(views, few)])
    with pytest.raises(UserError, match="no two agree on where one stands"):
        find_person(views[0:12], [others[0], others[6], *[[] for _ in range(10)]])


def shares(people: list) -> dict[str, Any]:
    return openpose([person / SIZE for person in people], 18)


def canvas(people: list) -> list[dict[str, Any]]:
    return [{**openpose([2 * person for person in people], 18), "canvas_width": 2 * SIZE, "canvas_height": 2 * SIZE}]


@pytest.mark.parametrize(
    "written",
    [
        openpose,
        shares,
        canvas,
        mmpose,
        lambda people: mmpose(people, 133),
        lambda people: {"meta_info": {}, "instance_info": [{"frame_id": 1, "instances": mmpose(people, 133)}]},
        lambda people: [mmpose(people)],
        lambda people: [{"keypoints": openpose([each], 17)["people"][0]["pose_keypoints_2d"]} for each in people],
    ],
)
def test_files_of_detectors_say_the_same(tmp_path: Path, written: Callable[[list], Any]) -> None:
    views = orbit(12, SIZE)
    ones, others = (seen(views, figure(seed)) for seed in (1, 2))
    documents = [written([one, other]) for one, other in zip(ones, others, strict=True)]
    folder = write_keypoints(tmp_path / "keypoints", NAMES, documents)
    (folder / f"{Path(NAMES[3]).stem}_keypoints.json").rename(folder / f"{Path(NAMES[3]).stem}.json")
    (folder / f"{Path(NAMES[4]).stem}_keypoints.json").unlink()
    read = read_keypoints(folder, NAMES, (SIZE, SIZE))
    assert [len(people) for people in read] == [2, 2, 2, 2, 0, *[2] * 7]
    kept = [index for index, name in enumerate(OPENPOSE_JOINTS) if name != "neck"]
    for view in (0, 3, 11):
        for person, truth in zip(read[view], (ones[view], others[view]), strict=True):
            torch.testing.assert_close(person[kept], truth[kept], equal_nan=True, atol=1e-3, rtol=1e-4)
            shoulders = [person[OPENPOSE_JOINTS.index(f"{side}_shoulder")] for side in "lr"]
            neck = person[OPENPOSE_JOINTS.index("neck")]
            assert float((neck - (shoulders[0] + shoulders[1]) / 2).norm()) < 6


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read as a detector's keypoints"),
        ({"persons": []}, "no people are listed"),
        ({"people": [{"face_keypoints_2d": []}]}, "a person has no keypoints"),
        ({"people": [{"pose_keypoints_2d": [1.0] * 21}]}, "a person has 7 keypoints, expected one of 17, 18, 25"),
        ({"people": [{"pose_keypoints_2d": ["a"] * 54}]}, "cannot be read as a detector's keypoints"),
        ({"people": [], "canvas_width": 640, "canvas_height": 360}, "show no person in any photo"),
        ({"people": [{"pose_keypoints_2d": [900.0, 10.0, 1.0] * 18}]}, "outside of its photo of 256x256 pixels"),
        (
            {"people": [{"pose_keypoints_2d": [9.0, 10.0, 1.0] * 18}], "canvas_width": 640, "canvas_height": 360},
            "an image of 640x360 pixels, the photo has 256x256",
        ),
        ([[]], "show no person in any photo"),
    ],
)
def test_files_that_are_none_are_told(tmp_path: Path, document: Any, message: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (tmp_path / "photo_0.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_keypoints(tmp_path, NAMES, (SIZE, SIZE))
    assert "\n" not in str(error.value)


def test_keypoints_of_other_photos_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_keypoints(tmp_path / "none", NAMES, (SIZE, SIZE))
    with pytest.raises(UserError, match="none of the 0 JSON files"):
        read_keypoints(tmp_path, NAMES, (SIZE, SIZE))
    (tmp_path / "IMG_1_keypoints.json").write_text("{}")
    with pytest.raises(UserError, match=r"none of the 1 JSON files in .*such as IMG_1_keypoints.json is of a photo"):
        read_keypoints(tmp_path, NAMES, (SIZE, SIZE))
    person = seen(orbit(1, SIZE), figure(1))
    (tmp_path / "photo_1.json").write_text(json.dumps(openpose(person)))
    assert [len(each) for each in read_keypoints(tmp_path, NAMES, (SIZE, SIZE))] == [0, 1, *[0] * 10]
    assert "1 files are of no photo and left out, such as IMG_1_keypoints.json" in capsys.readouterr().out
