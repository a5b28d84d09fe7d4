"""Commands run as a user runs them, and a short edit's options."""

import io
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from helpers.preloaded import QUIET, run_script
from qnerf_nerfstudio import cli
from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg

SCRIPTS = Path(sys.executable).parent
SECOND_DEVICE = Path(__file__).with_name("second_device.py")
"""Runs a script with a second device, "cuda"."""
KILLED_TRAIN = Path(__file__).resolve().parents[2] / "benchmarks/killed_train.py"
"""ns-train that ends itself."""

SHORT = [
    *("--pipeline.editor.num-steps", "6"),
    *("--pipeline.editor.resolution", "64"),
    # A field that a few steps fill with matter.
    *("--pipeline.model.num-levels", "8"),
    *("--pipeline.model.log2-hashmap-size", "15"),
    *("--pipeline.model.max-res", "512"),
    # Rendering is most of a short run's time; so few steps make no surface that needs more samples.
    *("--pipeline.model.num-proposal-samples-per-ray", "16"),
    *("--pipeline.model.num-nerf-samples-per-ray", "12"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "256"),
    *("--pipeline.datamanager.pixel-sampler.region-share", "0"),
    *("--pipeline.start", "inverted"),
    *("--pipeline.tau", "2"),
    *("--pipeline.consolidation", "progressive"),
    *("--pipeline.stop", "0.4"),
    *("--pipeline.source-iterations", "5"),
    *("--pipeline.fit-iterations", "6"),
    *("--pipeline.final-iterations", "12"),
    *("--viewer.quit-on-train-completion", "True"),
]


RUN = Path("e/qnerf-edit-tiny/t")
"""Folder of a run below its --output-dir, see `where`."""


def command(name: str, *arguments: object, code: int = 0, fresh: Path | None = None, **variables: object) -> str:
    """Run a command that ends with an exit code; its output.

    Args:
        name: Its name.
        *arguments: Its arguments.
        code: The exit code.
        fresh: Start it as a user does in this folder, not from a process with its libraries imported.
        **variables: What to add to the environment.
    """
    words = list(map(str, arguments))
    added = {key: str(value) for key, value in variables.items()}
    if fresh is None:
        ended, output = script(SCRIPTS / name, words, added)
    else:
        environment = {**os.environ, **QUIET, **added}
        done = subprocess.run(
            [str(SCRIPTS / name), *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
            check=False,
            cwd=fresh,
        )
        ended, output = done.returncode, done.stdout + done.stderr
    assert ended == code, output[-4000:]
    return output


def script(
    path: Path, arguments: list[str], variables: dict[str, str] | None = None, diffusion: bool = True
) -> tuple[int | None, str]:
    """Exit code and output of a Python script, see `run_script`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        code = run_script(path, arguments, variables or {}, log, diffusion)
        return code, log.read_text()


def on_second_device(path: Path, *arguments: object, code: int = 0, **variables: str) -> str:
    """Run a script on the second device, which ends with an exit code; its output."""
    ended, output = script(SECOND_DEVICE, [str(path), *map(str, arguments)], variables)
    assert ended == code, output[-4000:]
    return output


def without_diffusion(name: str, *arguments: object) -> str:
    """Run a command in a process where diffusers cannot be imported."""
    with tempfile.TemporaryDirectory() as folder:
        variables = environment_with_ffmpeg(Path(folder))
        code, output = script(SCRIPTS / name, list(map(str, arguments)), {"PATH": variables["PATH"]}, diffusion=False)
    assert code == 0, output[-4000:]
    return output


def where(out: Path) -> list[object]:
    """Options of ns-train that name a run's folder."""
    return ["--output-dir", out, "--experiment-name", "e", "--timestamp", "t"]


def qnerf(*arguments: object) -> str:
    """Run `qnerf` in this process, where a test can make a method smaller than options can; what it prints."""
    with patch("sys.argv", ["qnerf", *map(str, arguments)]), redirect_stdout(io.StringIO()) as output:
        cli.main()
    return output.getvalue()


def edited_by(editor: Path) -> list[object]:
    """Options of ns-train that name another model set than the bundled one."""
    return ["--pipeline.editor.model", editor, "--pipeline.editor.controlnet", editor / "controlnet"]


def train(capture: Path, out: Path, editor: Path, *options: object, fresh: bool = False) -> Path:
    """A short edit by a model set; the run's folder. One that starts `fresh` has the viewer, and relative paths."""
    viewer = () if fresh else ("--vis", "tensorboard")
    data, folder = (capture.name, os.path.relpath(out, capture.parent)) if fresh else (capture, out)
    words = ["qnerf-edit-tiny", "--data", data, *where(Path(folder)), *edited_by(editor), *SHORT, *viewer, *options]
    command("ns-train", *words, fresh=capture.parent if fresh else None)
    return out / RUN
