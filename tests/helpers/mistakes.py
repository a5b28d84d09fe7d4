"""Mistakes of users: what they are made of, and how they have to end."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from nerfstudio.scripts import train as train_script

from helpers.images import png_bomb

VIEWS, SIZE = 4, 64
"""Number of photos of a case, and their width and height."""


@dataclass
class Case:
    """A capture of its own, the settings of an edit of it, and a model set to make mistakes in copies of."""

    data: Path
    config: Any
    editor: Path

    @property
    def photos(self) -> list[Path]:
        return sorted((self.data / "images").iterdir())

    def find(self, file: str) -> Path:
        """A file of the capture, or one of the editor where its name starts with "model/"."""
        return self.give_model().parent / file if file.startswith("model/") else self.data / file

    def give_model(self) -> Path:
        """A copy of a model set, which the edit then uses."""
        folder = self.data.parent / "model"
        if not folder.exists():
            shutil.copytree(self.editor, folder)
            editor = self.config.pipeline.editor
            editor.model, editor.controlnet = str(folder), (str(folder / "controlnet"),)
        return folder


Make = Callable[[Case], object]


Mistakes = dict[str, tuple[Make, tuple[str, ...]]]
"""By name: what a user gets wrong, and words of the sentence that names it."""

DROP = object()

NAN = float("nan")


def put(file: str, key: str, value: Any) -> Make:
    """Set a field of a JSON file, or drop it; `key` is a path of keys and indices."""

    def make(case: Case) -> None:
        path = case.find(file)
        document = json.loads(path.read_text())
        *way, last = [int(each) if each.isdigit() else each for each in key.split(".")]
        holder = reduce(lambda inner, each: inner[each], way, document)
        if value is DROP:
            del holder[last]
        else:
            holder[last] = value
        path.write_text(json.dumps(document))

    return make


def write(file: str, content: str | bytes) -> Make:
    """Write a file of the capture or of the model."""

    def make(case: Case) -> None:
        path = case.find(file)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def knob(key: str, value: Any) -> Make:
    """Set an option of ns-train."""

    def make(case: Case) -> None:
        *way, last = key.split(".")
        setattr(reduce(getattr, way, case.config), last, value)

    return make


def after(*makes: Make) -> Make:
    """Make several mistakes, one after the other."""

    def make(case: Case) -> None:
        for each in makes:
            each(case)

    return make


def truncate(path: Path) -> None:
    """Cut off the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path: Path) -> None:
    """Write a PNG whose header states 20000 x 20000 pixels."""
    path.write_bytes(png_bomb(20000, 20000))


def grouped(**tables: Mistakes) -> Mistakes:
    """One table of several, whose names begin with their table's."""
    return {f"{group}-{name}": mistake for group, table in tables.items() for name, mistake in table.items()}


def ends_in_one_sentence(case: Case, words: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    """Run ns-train, which has to end with one sentence of culprit and remedy, before anything is computed."""
    with pytest.raises(SystemExit) as stop:
        train_script.main(case.config)
    output = capsys.readouterr().out
    assert stop.value.code == 2, output
    _, begin, sentence = output.rpartition("qnerf-edit: ")
    assert begin, output
    assert not [each for each in words if each not in sentence], sentence
    assert "\n" not in sentence.strip() and "Traceback" not in output
    assert not list(case.config.output_dir.rglob("*.safetensors"))
