"""The `qnerf` command."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from qnerf_nerfstudio.common.errors import UserError, print_error
from qnerf_nerfstudio.common.quiet import ignore_third_party_warnings
from qnerf_nerfstudio.toy.commands import Demo, Toy


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
    keypoints: Path | None = None
    """Folder of 2D keypoints of a person, OpenPose's or MMPose's JSON, one file a photo: they place the source pose."""
    detect: bool = False
    """Find the person in the photos with MediaPipe (the extra "detect") instead of reading --keypoints."""
    person: int = 1
    """Which person, where there are several: 1 is the one that most photos agree on."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """A run of qnerf-edit on the same capture, whose field of the photos is shown as points where there are few."""
    field_iterations: int = 0
    """Training steps of a quick field that is shown as points instead of a run's; 500 are a minute or two on a CPU."""
    host: str = "127.0.0.1"
    """Address that the page listens at; 0.0.0.0 lets other machines in."""
    port: int = 7008
    """Port that the page listens at."""

    def run(self, console: Console) -> None:
        """Serve the page."""
        from qnerf_nerfstudio.edit.reading import edit_path  # noqa: PLC0415 - pydantic
        from qnerf_nerfstudio.pages.pose_page import PosePage, serve  # noqa: PLC0415 - viser, nerfstudio
        from qnerf_nerfstudio.pages.pose_start import open_document, seen_person  # noqa: PLC0415 - nerfstudio
        from qnerf_nerfstudio.proxies import field_points  # noqa: PLC0415 - nerfstudio

        if self.keypoints is not None and self.detect:
            raise UserError("--keypoints and --detect both say where the person is; leave one of them out")
        if self.person < 1:
            raise UserError(f"--person is {self.person}; expected 1 for the first person, 2 for the next, and so on")
        if self.person > 1 and self.keypoints is None and not self.detect:
            raise UserError("--person is one of those that --keypoints or --detect find; give one of these, too")
        person = None
        if self.keypoints is not None or self.detect:
            person = seen_person(self.data, self.keypoints, self.person, console)
        document = open_document(self.data, edit_path(self.data, self.edit), self.control, self.mesh, person)
        points = field_points(self.data, self.run_folder, self.field_iterations)
        serve(PosePage(self.data, document, self.host, self.port, points), console)


@dataclass
class Preview:
    """Edit a few views one by one and write photos, control images and edits beside each other, before a run."""

    data: Path
    """The capture, a nerfstudio dataset."""
    edit: Path | None = None
    """The edit; by default edit.json in the data folder."""
    out: Path = Path("preview.png")
    """The picture."""
    views: int = 3
    """Number of views, evenly spread over the capture."""
    method: Literal["qnerf-edit", "qnerf-edit-small", "qnerf-edit-xl", "qnerf-edit-tiny"] = "qnerf-edit"
    """Method whose settings are used."""
    model: str | None = None
    """Model set instead of the method's, as --pipeline.editor.model."""
    controlnet: tuple[str, ...] = ()
    """ControlNets instead of the method's, as --pipeline.editor.controlnet."""
    guidance_scale: tuple[float, ...] = ()
    """Classifier-free guidance scales to try; by default what edit.json or the method says."""
    controlnet_scale: tuple[float, ...] = ()
    """Weights of the ControlNet to try; by default what edit.json or the method says."""
    seed: tuple[int, ...] = ()
    """Seeds of fresh noise to begin from; by default views begin from their photos' inverted noise."""

    def run(self, console: Console) -> None:
        """Write the picture."""
        from qnerf_nerfstudio.previews import Request, preview  # noqa: PLC0415 - nerfstudio, diffusers

        scales = (self.guidance_scale, self.controlnet_scale, self.seed)
        preview(
            Request(self.data, self.edit, self.views, self.method, self.model, self.controlnet, *scales),
            self.out,
            console,
        )


@dataclass
class Proxy:
    """Make a mesh of the subject of a capture, for controls of the types rig and mesh."""

    data: Path | None = None
    """The capture; a field of its photos is trained first."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """A run of qnerf-edit that keeps its field of the photos, instead of --data."""
    out: Path | None = None
    """The mesh file; its suffix says the format. By default proxies/subject.ply in the data folder."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Where the subject is: centre and side lengths of a box, in the coordinates of transforms.json."""
    masks: Path | None = None
    """The same by masks: a folder with one image for each photo, white where the subject is."""
    edit: Path | None = None
    """The same by the skeleton of an edit.json; by default that in the data folder."""
    faces: int = 20_000
    """Number of triangles that the mesh is simplified to."""
    iterations: int = 1500
    """Training steps of the field of --data."""

    def run(self, console: Console) -> None:
        """Write the mesh."""
        from qnerf_nerfstudio.proxies import Subject, make_proxy  # noqa: PLC0415 - nerfstudio

        where = Subject(self.box, self.masks, self.edit)
        make_proxy(self.data, self.run_folder, where, self.out, self.faces, self.iterations, console)


@dataclass
class Report:
    """Write a run's report: one HTML page with pictures, query maps, curves and settings that opens without network."""

    run_folder: tyro.conf.Positional[Path]
    """The run's folder, the one with config.yml; the run need not be finished."""
    out: Path | None = None
    """The page; by default report.html in the run's folder."""

    def run(self, console: Console) -> None:
        """Write the page."""
        from qnerf_nerfstudio.pages.report import write_report  # noqa: PLC0415 - torch

        console.print(f"report: {write_report(self.run_folder, self.out)}", soft_wrap=True)


@dataclass
class Clean:
    """Remove latents and queries of finished runs, which they need no more; images, fields and reports stay."""

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    """The runs' folders, those with config.yml."""

    def run(self, console: Console) -> None:
        """Clean the runs, all or none."""
        from qnerf_nerfstudio.run.artifacts import EditArtifacts  # noqa: PLC0415 - torch
        from qnerf_nerfstudio.run.manifest import read_manifest  # noqa: PLC0415 - pydantic

        runs = [EditArtifacts(folder / "edit") for folder in self.run_folders]
        for run in runs:
            if not run.manifest.exists():
                raise UserError(f"{run.root.parent} is no run of qnerf-edit: it has no edit/manifest.json")
            if not read_manifest(run.manifest).finished:
                raise UserError(f"{run.root.parent} is not finished, and needs all of its files to go on")
        for run in runs:
            console.print(f"{run.root.parent}: {run.discard_work() / 2**20:.0f} MiB freed", soft_wrap=True)


@dataclass
class Doctor:
    """Check versions, methods, device, optional packages and model folders, and say what to do."""

    model: list[Path] = field(default_factory=list)
    """Local model folders to check, whole model sets or ControlNets."""

    def run(self, console: Console) -> None:
        """Print what was found; the exit code is 1 where an edit cannot run."""
        from qnerf_nerfstudio.doctor import examine, show  # noqa: PLC0415 - diffusers, nerfstudio

        if not show(examine(self.model), console):
            sys.exit(1)


Command = (
    Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Pose, tyro.conf.subcommand("pose")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Proxy, tyro.conf.subcommand("proxy")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Toy]], tyro.conf.subcommand("toy")]
)


def main() -> None:
    """Entry point of the `qnerf` command."""
    ignore_third_party_warnings()
    console = Console()
    command = tyro.cli(Command, description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        command.run(console)
    except UserError as error:
        print_error("qnerf", error, console)
        sys.exit(2)
