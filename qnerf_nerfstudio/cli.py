"""The `qnerf` command."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from qnerf_nerfstudio.common.errors import UserError, print_error
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig


@dataclass
class Pose:
    """State an edit in the browser: drag the control among the capture's cameras and photos, and save edit.json."""

    data: Path
    """The capture, a nerfstudio dataset."""
    edit: Path | None = None
    """The edit, which need not exist yet; by default edit.json in the data folder."""
    control: Literal["skeleton", "box", "mesh"] = "skeleton"
    """What a new edit begins with: a standing figure, a box, or --mesh."""
    mesh: str | None = None
    """Mesh file of a new edit, relative to edit.json."""
    host: str = "127.0.0.1"
    """Address that the page listens at; 0.0.0.0 lets other machines in."""
    port: int = 7008
    """Port that the page listens at."""

    def run(self, console: Console) -> None:
        """Serve the page."""
        from qnerf_nerfstudio.pages.pose_page import PosePage, serve
        from qnerf_nerfstudio.pages.posing import open_document

        path = self.edit or (self.data.parent if self.data.suffix == ".json" else self.data) / "edit.json"
        document = open_document(self.data, path, self.control, self.mesh)
        serve(PosePage(self.data, document, self.host, self.port), console)


@dataclass
class Report:
    """Write a run's report: one HTML page with pictures, query maps, curves and settings that opens without network."""

    run_folder: tyro.conf.Positional[Path]
    """The run's folder, the one with config.yml; the run need not be finished."""
    out: Path | None = None
    """The page; by default report.html in the run's folder."""

    def run(self, console: Console) -> None:
        """Write the page."""
        from qnerf_nerfstudio.pages.report import write_report

        console.print(f"report: {write_report(self.run_folder, self.out)}", soft_wrap=True)


@dataclass
class Doctor:
    """Check versions, methods, device, optional packages and model folders, and say what to do."""

    model: list[Path] = field(default_factory=list)
    """Local model folders to check, whole model sets or ControlNets."""

    def run(self, console: Console) -> None:
        """Print what was found; the exit code is 1 where an edit cannot run."""
        from qnerf_nerfstudio.doctor import examine, show

        if not show(examine(self.model), console):
            sys.exit(1)


@dataclass
class Demo:
    """Edit a procedural capture from start to end: capture, edit, final NeRF, video, figures against the truth."""

    out: tyro.conf.Positional[Path] = Path("demo")
    """New folder for everything that the demo makes."""
    seed: int = 7
    """Seed of the capture."""

    def run(self, console: Console) -> None:
        """Run the demo."""
        from qnerf_nerfstudio.toy.demo import run_demo

        run_demo(self.out, self.seed, console)


@dataclass
class ToyCapture:
    """Write a procedural capture of an articulated figure, an edit of its pose, and the true edited views."""

    out: tyro.conf.Positional[Path]
    """New folder for the dataset."""
    capture: Annotated[CaptureConfig, tyro.conf.arg(name="")] = field(default_factory=CaptureConfig)

    def run(self, console: Console) -> None:
        """Write the capture."""
        from qnerf_nerfstudio.toy.capture import write_capture

        write_capture(self.out, self.capture)
        console.print(f"{self.capture.num_views} views in {self.out}, the true edited views in {self.out / 'truth'}")


@dataclass
class ToyTrain(TrainEditorConfig):
    """Train the bundled editor from the procedural domain, or measure it."""

    def run(self, console: Console) -> None:
        """Train and measure, or only measure."""
        from qnerf_nerfstudio.toy.training.train import evaluate_editor, train_editor

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
        from qnerf_nerfstudio.toy.truth import score_run

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


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Pose, tyro.conf.subcommand("pose")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Toy]], tyro.conf.subcommand("toy")]
)


def main() -> None:
    """Entry point of the `qnerf` command."""
    console = Console()
    command = tyro.cli(Command, description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        command.run(console)
    except (UserError, FileExistsError, ValueError) as error:
        print_error("qnerf", error, console)
        sys.exit(2)
