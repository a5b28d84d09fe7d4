"""Edits and controls that cannot be made: each ends ns-train with one sentence, before anything is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from helpers.mistakes import (
    DROP,
    NAN,
    SIZE,
    Case,
    Make,
    Mistakes,
    after,
    bomb,
    ends_in_one_sentence,
    grouped,
    knob,
    put,
    truncate,
    write,
)
from PIL import Image


def edit(key: str, value: Any) -> Make:
    return put("edit.json", key, value)


def with_edit(name: str) -> Make:
    """Use another of the capture's statements of the edit."""
    return lambda case: shutil.copy(case.data / name, case.data / "edit.json")


def control_images(change: Callable[[Path], object] = lambda path: None, kind: str = "openpose") -> Make:
    """An edit by ready-made control images, and something done to their target folder."""

    def make(case: Case) -> None:
        for name in ("source", "target"):
            shutil.copytree(case.data / "images", case.data / name)
        edit("control", {"type": "images", "source": "source", "target": "target", "kind": kind})(case)
        change(case.data / "target")

    return make


def mesh(content: bytes | str) -> Make:
    return after(with_edit("edit-mesh.json"), write("proxies/target.ply", content))


def masks(change: Callable[[Path], object]) -> Make:
    """White masks, and something done to their folder."""

    def make(case: Case) -> None:
        (case.data / "masks").mkdir()
        for path in case.photos:
            Image.new("L", (SIZE, SIZE), 255).save(case.data / "masks" / path.name)
        edit("masks", "masks")(case)
        change(case.data / "masks")

    return make


def blacken(folder: Path) -> None:
    for path in folder.iterdir():
        Image.new("L", (SIZE, SIZE)).save(path)


BOX = {"type": "box", "source": {"size": [1, 1, 1]}, "target": {"size": [1, 1, 1]}}

EDIT: Mistakes = {
    "file-missing": (knob("pipeline.edit", Path("nowhere.json")), ("nowhere.json does not exist", "--pipeline.edit")),
    "empty": (write("edit.json", ""), ("edit.json is empty", "source_prompt")),
    "no-json": (write("edit.json", "{prompt: x}"), ("edit.json is not valid JSON", "line 1")),
    "no-text": (write("edit.json", b"\xff\xfe\x00"), ("edit.json is not valid JSON",)),
    "no-object": (write("edit.json", "[]"), ("edit.json", "expected an object")),
    "too-deep": (write("edit.json", "[" * 100_000), ("edit.json is nested too deep",)),
    "duplicate-key": (
        write("edit.json", '{"prompt": "a", "prompt": "b"}'),
        ("edit.json", "prompt", "stated twice"),
    ),
    "no-prompt": (edit("prompt", DROP), ("edit.json: prompt: is missing",)),
    "empty-prompt": (edit("prompt", "  "), ("edit.json: prompt: is empty", "describe the edited scene")),
    "prompt-a-number": (edit("prompt", 3), ("edit.json: prompt", "string")),
    "no-source-prompt": (edit("source_prompt", DROP), ("edit.json: source_prompt: is missing",)),
    "misspelt-key": (edit("promt", "x"), ("edit.json: promt: unknown key", "did you mean 'prompt'")),
    "no-control": (edit("control", DROP), ("edit.json: control: is missing",)),
    "control-without-type": (edit("control.type", DROP), ("edit.json: control", "skeleton")),
    "control-of-unknown-type": (edit("control.type", "skelton"), ("edit.json: control", "skeleton")),
    "joint-missing": (edit("control.target.r_elbow", DROP), ("edit.json", "'r_elbow' is missing in target")),
    "joint-in-the-plane": (edit("control.target.neck", [0, 1]), ("edit.json: control.target.neck",)),
    "joint-not-finite": (edit("control.target.neck", [0, NAN, 1]), ("edit.json: control.target.neck", "finite")),
    "joint-far-away": (edit("control.target.neck", [0, 2e6, 1]), ("edit.json: control.target.neck", "1000000")),
    "unknown-bone": (edit("control.bones", [["neck", "tail"]]), ("edit.json: control", "unknown joint 'tail'")),
    "bone-without-length": (edit("control.bones", [["neck", "neck"]]), ("edit.json: control", "has no length")),
    "no-limb": (
        after(edit("control.source", {"a": [0, 0, 0]}), edit("control.target", {"a": [0, 0, 1]})),
        ("edit.json: control", 'list "bones"'),
    ),
    "box-without-size": (
        after(edit("control", BOX), edit("control.target.size", [1, 0, 1])),
        ("edit.json: control.target.size", "greater than"),
    ),
    "parts-of-two-kinds": (
        lambda case: edit(
            "control",
            {"type": "parts", "parts": [BOX, json.loads((case.data / "edit.json").read_text())["control"]]},
        )(case),
        ("edit.json: control", "part 1 is drawn as openpose", "draw them alike"),
    ),
    "region-without-radius": (
        edit("region", {"type": "sphere", "position": [0, 0, 1], "radius": -1}),
        ("edit.json: region.radius", "greater than"),
    ),
    "mesh-outside": (
        after(with_edit("edit-mesh.json"), edit("control.target.mesh", "../target.ply")),
        ("edit.json: control.target.mesh", "../target.ply", "--pipeline.outside-paths True"),
    ),
    "masks-outside": (edit("masks", "/tmp"), ("edit.json: masks", "/tmp", "--pipeline.outside-paths True")),
    "control-images-outside": (
        after(control_images(), edit("control.source", "../source")),
        ("edit.json: control.source", "../source", "--pipeline.outside-paths True"),
    ),
}

CONTROLS: Mistakes = {
    "no-folder": (control_images(shutil.rmtree), ("target is not a folder", "edit.json names it")),
    "image-missing": (
        control_images(lambda folder: (folder / "frame_00002.png").unlink()),
        ("target has 3 images for 4 photos", "none for frame_00002.png", "one image per photo"),
    ),
    "image-too-many": (
        control_images(lambda folder: shutil.copy(folder / "frame_00002.png", folder / "other.png")),
        ("target has 5 images for 4 photos",),
    ),
    "image-broken": (
        control_images(lambda folder: truncate(folder / "frame_00002.png")),
        ("target/frame_00002.png cannot be read as an image", "export it again"),
    ),
    "image-bomb": (
        control_images(lambda folder: bomb(folder / "frame_00002.png")),
        ("target/frame_00002.png has more than 100 megapixels", "scale it down"),
    ),
    "kind-not-read": (control_images(kind="normal"), ("reads openpose and depth", "drawn as normal", "qnerf-edit")),
    "mesh-missing": (
        after(with_edit("edit-mesh.json"), lambda case: (case.data / "proxies/target.ply").unlink()),
        ("target.ply does not exist", "edit.json"),
    ),
    "mesh-empty": (mesh(""), ("target.ply", "export it again")),
    "mesh-broken": (mesh("ply\nformat ascii 1.0\nelement vertex 9\n"), ("target.ply cannot be read",)),
    "mesh-of-points": (
        mesh(trimesh.PointCloud(np.eye(3)).export(file_type="ply")),
        ("target.ply has no triangles", "export a surface"),
    ),
    "mesh-of-unknown-format": (
        after(with_edit("edit-mesh.json"), write("x.blend", "BLENDER"), edit("control.target.mesh", "x.blend")),
        ("x.blend", "ply, obj"),
    ),
    "masks-missing": (masks(shutil.rmtree), ("masks is not a folder", "edit.json names it")),
    "mask-broken": (
        masks(lambda folder: truncate(folder / "frame_00003.png")),
        ("masks/frame_00003.png cannot be read as an image",),
    ),
    "masks-black": (masks(blacken), ("masks leave no pixel", "white where the edit may be")),
    "region-elsewhere": (
        edit("region", {"type": "sphere", "position": [0, 0, 90], "radius": 0.1}),
        ("edit.json: region", "move or grow it"),
    ),
}


MISTAKES = grouped(edit=EDIT, controls=CONTROLS)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name: str, case: Case, capsys: pytest.CaptureFixture) -> None:
    make, words = MISTAKES[name]
    make(case)
    ends_in_one_sentence(case, words, capsys)
