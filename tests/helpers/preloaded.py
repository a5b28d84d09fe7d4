"""Processes that are forked from one that has nerfstudio and diffusers imported.

These imports take about 15 seconds of a core, more than most of the commands that tests run.
"""

import multiprocessing
import os
import runpy
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

QUIET = {"COLUMNS": "300", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
"""Environment of every command: nothing may reach for a model hub. Libraries read it when they are imported."""

NO_DIFFUSION = ("diffusers", "qnerf_nerfstudio.diffusion.editor")


class Refuse(MetaPathFinder):
    """Makes imports of diffusion models fail."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in NO_DIFFUSION:
            raise ImportError(f"{fullname} must not be loaded here")


@cache
def ensure_server() -> ForkServerContext:
    """What starts the processes; its server inherits this environment and never computes, so that forks are safe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.imports"])
    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    with patch.dict(os.environ, {**QUIET, "PYTHONPATH": path}):
        forkserver.ensure_running()
    return context


def run_script(
    script: Path, arguments: list[str], variables: dict[str, str], log: Path, diffusion: bool = True
) -> int | None:
    """Run a Python script in a process of its own.

    Args:
        script: The script.
        arguments: Its arguments.
        variables: What to add to the environment.
        log: Gets what the process writes to its terminal.
        diffusion: Whether diffusion models may be imported.

    Returns:
        Its exit code, or minus the number of the signal that ended it.
    """
    process = start_script(script, arguments, variables, log, diffusion)
    process.join(600)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(log.read_text()[-4000:])
    return process.exitcode


def start_script(
    script: Path, arguments: list[str], variables: dict[str, str], log: Path, diffusion: bool = True
) -> ForkServerProcess:
    """The process of `run_script`, which runs."""
    process = ensure_server().Process(target=_run, args=(str(script), arguments, variables, str(log), diffusion))
    process.start()
    return process


def _run(script: str, arguments: list[str], variables: dict[str, str], log: str, diffusion: bool) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    if not diffusion:
        for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
            del sys.modules[name]
        assert NO_DIFFUSION[1] not in sys.modules
        sys.meta_path.insert(0, Refuse())
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
