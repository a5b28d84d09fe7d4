"""Edits that begin from carried views, or consist of them."""

import json
import signal
from pathlib import Path

import pytest
import trimesh
from helpers.captures import small_capture
from helpers.commands import KILLED_TRAIN, RUN, SHORT, command, edited_by, script, train, where, without_diffusion

from qnerf_nerfstudio.common.images import load_images

BOXES = ("--pipeline.start", "carried")


@pytest.fixture(scope="module")
def begun_carried(capture: Path, tiny_editor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit by boxes, which state a motion whatever the field of the photos looks like."""
    edit = capture / "edit-boxes.json"
    return train(capture, tmp_path_factory.mktemp("carried"), tiny_editor, "--pipeline.edit", edit, *BOXES)


def test_edited_views_begin_from_carried_ones(begun_carried: Path) -> None:
    edit = begun_carried / "edit"
    assert len(list((edit / "carried").glob("*.png"))) == len(list((edit / "images").glob("*.png"))) == 10
    # The noise at the start, five timesteps on the way to it, and the encoded views.
    assert len(list((edit / "latents/source").iterdir())) == 2 * 7


def test_a_run_that_is_killed_among_carried_views_ends_as_one_that_is_not(
    begun_carried: Path, capture: Path, tiny_editor: Path, tmp_path: Path
) -> None:
    options = [*edited_by(tiny_editor), "--pipeline.edit", capture / "edit-boxes.json", *BOXES]
    begin = ["qnerf-edit-tiny", "--data", capture, *where(tmp_path), "--steps-per-save", "5", *SHORT, *options]
    resume = [*begin, "--load-dir", tmp_path / RUN / "nerfstudio_models"]
    # 5 steps on the photos come first: step 6 carries the second chunk, 9 inverts it. Both times the run goes on from
    # the checkpoint of step 5, then with carried views that its field must not have seen at that step.
    for step, words in ((6, begin), (9, resume)):
        code, output = script(KILLED_TRAIN, list(map(str, (step, "write", *words))))
        assert code == -signal.SIGKILL, output[-2000:]
        # What it costs is told before it starts, not when it goes on.
        assert ("of memory beside the models" in " ".join(output.split())) == (words is begin)
    command("ns-train", *resume)
    for folder in ("carried", "images"):
        names = sorted(path.name for path in (begun_carried / "edit" / folder).glob("*.png"))
        assert len(names) == 10
        for name in names:
            before, after = (run / "edit" / folder / name for run in (begun_carried, tmp_path / RUN))
            assert before.read_bytes() == after.read_bytes()


def test_views_are_carried_without_diffusion_models(capture: Path, tmp_path: Path) -> None:
    options = ["--pipeline.editing", "carried", "--pipeline.edit", capture / "edit-boxes.json"]
    without_diffusion("ns-train", "qnerf-edit-tiny", "--data", capture, *where(tmp_path), *SHORT, *options)
    edit = tmp_path / RUN / "edit"
    frames = json.loads((edit / "transforms.json").read_text())["frames"]
    assert len(frames) == 10
    carried, edited = (load_images(sorted((edit / name).glob("*.png"))) for name in ("carried", "images"))
    assert all((before == after).all() for before, after in zip(carried, edited, strict=True))
    assert not (edit / "latents").exists()


def test_a_field_that_does_not_show_what_moves_is_not_carried(tiny_editor: Path, tmp_path: Path) -> None:
    capture = small_capture(tmp_path, num_views=4)
    begin = ["--data", capture, *where(tmp_path / "start"), *edited_by(tiny_editor), *SHORT, *BOXES]
    output = command("ns-train", "qnerf-edit-tiny", *begin, "--pipeline.keep-latents", "False")
    kept = tmp_path / "start" / RUN / "edit"
    assert (kept / "images").exists() and not (kept / "latents").exists() and not (kept / "queries").exists()
    assert "of the skeleton's 13 bones" in output and "begin from their photos' inverted noise" in output
    options = [*where(tmp_path / "alone"), *SHORT, "--pipeline.editing", "carried"]
    output = command("ns-train", "qnerf-edit-tiny", "--data", capture, *options, code=1)
    assert "of the skeleton's 13 bones" in output and "Traceback" not in output


def test_a_shape_swap_begins_from_its_photos(capture: Path, tmp_path: Path) -> None:
    trimesh.creation.icosphere().export(tmp_path / "ball.ply")
    trimesh.creation.box().export(tmp_path / "cube.ply")
    control = {"type": "mesh", "source": {"mesh": "ball.ply"}, "target": {"mesh": "cube.ply"}}
    (tmp_path / "edit.json").write_text(json.dumps({"prompt": "a", "source_prompt": "b", "control": control}))
    options = [*where(tmp_path), *SHORT, "--pipeline.edit", tmp_path / "edit.json", "--pipeline.editing", "carried"]
    output = command("ns-train", "qnerf-edit-tiny", "--data", capture, *options, code=2)
    assert "--pipeline.editing is carried, but meshes of other triangles" in output
