"""The procedural domain's part of the `qnerf` command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig


@dataclass
class Demo:
    """Edit a procedural capture from start to end: capture, edit, final NeRF, video, figures against the truth."""

    out: tyro.conf.Positional[Path] = Path("demo")
    """New folder for everything that the demo makes."""
    seed: int = 7
    """Seed of the capture."""

    def run(self, console: Console) -> None:
        """Run the demo."""
        from qnerf_nerfstudio.toy.demo import run_demo  # noqa: PLC0415 - nerfstudio

        run_demo(self.out, self.seed, console)


@dataclass
class ToyCapture:
    """Write a procedural capture of an articulated figure, an edit of its pose, and the true edited views."""

    out: tyro.conf.Positional[Path]
    """New folder for the dataset."""
    capture: Annotated[CaptureConfig, tyro.conf.arg(name="")] = field(default_factory=CaptureConfig)

    def run(self, console: Console) -> None:
        """Write the capture."""
        from qnerf_nerfstudio.toy.capture import write_capture  # noqa: PLC0415 - torch

        write_capture(self.out, self.capture)
        console.print(f"{self.capture.num_views} views in {self.out}, the true edited views in {self.out / 'truth'}")


@dataclass
class ToyTrain(TrainEditorConfig):
    """Train the bundled editor from the procedural domain, or measure it."""

    def run(self, console: Console) -> None:
        """Train and measure, or only measure."""
        from qnerf_nerfstudio.toy.training.train import evaluate_editor, train_editor  # noqa: PLC0415 - diffusers

        if not self.evaluate:
            train_editor(self, console)
        evaluate_editor(self, console)


@dataclass
class ToyScore:
    """Score a finished run on a procedural capture against the true edited views."""

    run_folder: tyro.conf.Positional[Path]
    """The run's folder, the one with config.yml."""
    data: tyro.conf.Positional[Path]
    """The procedural capture that was edited."""
    unedited: Path | None = None
    """Folder of novel views rendered by a field of the unedited capture, to compare with."""
    sheet: Path | None = None
    """Write a contact sheet here."""

    def run(self, console: Console) -> None:
        """Print the figures."""
        from qnerf_nerfstudio.toy.truth import score_run  # noqa: PLC0415 - nerfstudio

        score_run(self.run_folder, self.data, self.unedited, self.sheet, console)


@dataclass
class Toy:
    """The procedural domain: write a capture, train the bundled editor, or score a run against the truth."""

    command: (
        Annotated[ToyCapture, tyro.conf.subcommand("capture")]
        | Annotated[ToyTrain, tyro.conf.subcommand("train")]
        | Annotated[ToyScore, tyro.conf.subcommand("score")]
    )

    def run(self, console: Console) -> None:
        """Run the chosen command."""
        self.command.run(console)
