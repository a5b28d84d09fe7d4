"""Commands run as a user runs them, and a short edit's options."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qnerf_nerfstudio.toy.demo import environment_with_ffmpeg

SCRIPTS = Path(sys.executable).parent

SHORT = [
    *("--pipeline.editor.num-steps", "6"),
    *("--pipeline.editor.resolution", "64"),
    # A field that a few steps fill with matter.
    *("--pipeline.model.num-levels", "8"),
    *("--pipeline.model.log2-hashmap-size", "15"),
    *("--pipeline.model.max-res", "512"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "256"),
    *("--pipeline.start", "inverted"),
    *("--pipeline.tau", "2"),
    *("--pipeline.source-iterations", "5"),
    *("--pipeline.fit-iterations", "6"),
    *("--pipeline.final-iterations", "12"),
    *("--viewer.quit-on-train-completion", "True"),
]


RUN = Path("e/qnerf-edit-tiny/t")
"""Folder of a run below its --output-dir, see `where`."""


def command(name: str, *arguments: object, code: int = 0, **variables: object) -> str:
    """Run a command that ends with an exit code; its output. Nothing may reach for a model hub."""
    environment = {**os.environ, "COLUMNS": "300", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
    environment |= {key: str(value) for key, value in variables.items()}
    done = subprocess.run(
        [str(SCRIPTS / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output[-4000:]
    return output


NO_DIFFUSION = """
import sys, runpy
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("diffusers", "qnerf_nerfstudio.diffusion.editor"):
            raise ImportError(f"{name} must not be loaded here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_diffusion(name: str, *arguments: object) -> str:
    """Run a command in a process where diffusers cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", NO_DIFFUSION, str(SCRIPTS / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**environment_with_ffmpeg(Path(tempfile.mkdtemp())), "COLUMNS": "300"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def where(out: Path) -> list[object]:
    """Options of ns-train that name a run's folder."""
    return ["--output-dir", out, "--experiment-name", "e", "--timestamp", "t"]


def train(capture: Path, out: Path, *options: object) -> Path:
    """A short edit; the run's folder."""
    command("ns-train", "qnerf-edit-tiny", "--data", capture, *where(out), *SHORT, *options)
    return out / RUN
