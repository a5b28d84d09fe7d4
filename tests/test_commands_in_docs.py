"""The commands in the manual: every option exists, and every command is run as it stands or listed with its need."""

import ctypes.util
import inspect
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import tyro
from helpers.captures import small_capture
from helpers.commands import SCRIPTS
from helpers.documented import ROOT, commands_of

from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg

NAMES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs/*.md", "examples/*.md", "examples/*.py")
PAGES = sorted(page for name in NAMES for page in ROOT.glob(name))
COMMANDS = sorted({line for page in PAGES for line in commands_of(page)})

OURS = ("qnerf ", "ns-", "python benchmarks/", "python examples/")
"""Beginnings of commands whose options are read here."""

MINUTES = "minutes: make release-check runs it"
WEIGHTS = "weights from the hub"
COLMAP = "COLMAP and ffmpeg, which it looks for before it reads its options"
CARRIED = "ns-train qnerf-edit-tiny --data scene/ --pipeline.editing carried"
NEEDS = {
    "pip install ": "a package registry",
    "make ": "minutes; these are the project's own tests and demo",
    CARRIED: MINUTES,
    "ns-train qnerf-edit-tiny ": "more minutes; the demo runs it",
    "ns-train qnerf-edit ": WEIGHTS,
    "ns-train qnerf-edit-small ": WEIGHTS,
    "ns-train qnerf-edit-xl ": WEIGHTS,
    "ns-train splatfacto ": "a GPU",
    "ns-train nerfacto ": "hours; tests/studio/test_commands.py trains three steps",
    "ns-process-data ": COLMAP,
    "ns-viewer ": "someone who stops it",
    "ns-render ": MINUTES,
    "ns-eval ": MINUTES,
    "ns-export ": MINUTES,
    "qnerf clean outputs": "a finished run; tests/studio/test_commands.py cleans one",
    "qnerf doctor --model ": WEIGHTS,
    "qnerf pose ": "someone who stops it; tests/pages open it",
    "qnerf preview ": WEIGHTS,
    "qnerf report outputs": "a run; tests/studio/test_commands.py has one",
    "qnerf proxy ": "minutes; tests/studio/test_proxies.py makes meshes",
    "qnerf toy capture ": "a minute; tests/toy/test_capture.py writes small captures",
    "qnerf toy train ": "hours",
    "python benchmarks/": "hours",
    "python examples/": "a capture; tests/examples runs them",
}
"""What commands need that are not run in `make test`, by how they begin; the longest beginning counts."""


class ParsedError(Exception):
    """Ends a command when its options are read."""


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in this process."""
    words = shlex.split(line)
    if words[0] == "python":
        script = ROOT / words[1]
        monkeypatch.syspath_prepend(script.parent)
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(script), run_name="__main__")
    else:
        (program,) = entry_points(group="console_scripts", name=words[0])
        monkeypatch.setattr(sys, "argv", words)
        program.load()()


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program itself read a command's options, and stop it there."""
    read_options = tyro.cli

    def read_and_stop(target: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise ParsedError

        # What is no function is a type, or a union of them, and only made.
        read_options(wraps(target)(stop) if inspect.isfunction(target) else target, *args, **kwargs)
        stop()

    monkeypatch.setattr(tyro, "cli", read_and_stop)
    with pytest.raises(ParsedError):
        run(line, monkeypatch)


def need(line: str) -> str | None:
    """What a command needs, None where it is run as it stands."""
    return NEEDS.get(max((beginning for beginning in NEEDS if line.startswith(beginning)), key=len, default=""))


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(OURS) and need(line) != COLMAP])
def test_options_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(line, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "qnerf doctor --modle a",
        "ns-train qnerf-edit-tiny --data a --pipeline.tua 3",
        "python examples/4_query_maps.py --data a --indx 3",
    ],
)
def test_an_option_that_does_not_exist_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse(line, monkeypatch)


def test_what_is_listed_is_in_the_manual() -> None:
    for beginning in NEEDS:
        assert any(line.startswith(beginning) for line in COMMANDS), beginning


@pytest.mark.parametrize("line", [line for line in COMMANDS if need(line) is None])
def test_commands_run_as_they_stand(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert line.startswith(OURS), f"{line!r} is not run by any test: state in NEEDS what it needs"
    monkeypatch.chdir(tmp_path)
    run(line, monkeypatch)


@pytest.mark.release
@pytest.mark.skipif(ctypes.util.find_library("usb-1.0") is None, reason="ns-export needs libusb-1.0")
def test_commands_of_minutes_run_as_they_stand(tmp_path: Path) -> None:
    def run_as_a_user(line: str) -> None:
        name, *words = shlex.split(line)
        subprocess.run([str(SCRIPTS / name), *words], cwd=tmp_path, env=environment_with_ffmpeg(tmp_path), check=True)

    # ns-eval asks for views that were held out.
    small_capture(tmp_path, num_views=20)
    run_as_a_user(f"{CARRIED} --viewer.quit-on-train-completion True")
    (made,) = (tmp_path / "outputs/scene/qnerf-edit-tiny").iterdir()
    for line in (line for line in COMMANDS if need(line) == MINUTES and line != CARRIED):
        # The manual names a run by its method and TIME, or by three dots.
        run_as_a_user(line.replace("outputs/scene/qnerf-edit/TIME", str(made)).replace("…", str(made)))
    assert (tmp_path / "video.mp4").exists() and (tmp_path / "points/point_cloud.ply").exists()
