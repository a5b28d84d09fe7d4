"""The files of a run's edit/ folder: the only place that knows their names.

A result is keyed by what it is (trajectory, timestep index, chunk) and never overwritten by a different one, so a run
that was killed finds all that its next slice needs. Everything is written under a temporary name, then renamed.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import load_bytes, write_png
from qnerf_nerfstudio.run.background import BackgroundFile, BackgroundWriter
from qnerf_nerfstudio.run.tensor_file import TensorFile

SOURCE = "source"
"""The trajectory of the inverted views that editing begins from: the source views, or the carried ones."""


def edited_trajectory(attempt: int) -> str:
    """The trajectory of the edited views of an attempt."""
    return f"edited-{attempt}"


def look_ahead_trajectory(interval: int) -> str:
    """The trajectory on which an interval looks ahead."""
    return f"ahead-{interval}"


class EditArtifacts:
    """What a run keeps in its edit/ folder, `root`, which the first write makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writer = BackgroundWriter()
        """Writes latents, which are the many files."""
        self.manifest = root / "manifest.json"
        self.dataset = root / "transforms.json"
        """The edited dataset; it exists where all views are edited."""
        self.images = root / "images"
        """The edited views, at the photos' resolution."""
        self.source_field = TensorFile(root / "source_field.safetensors")
        """The field of the photos, which later stages start from."""
        self.anatomy = TensorFile(root / "anatomy.safetensors")
        """What of the captured scene moves with which part of the control."""
        self.brought = TensorFile(root / "brought.safetensors")
        """Where the motion brings matter ("points" [N, 3]), in scene coordinates."""
        self.carried_views = root / "carried"
        """The carried views, at the photos' resolution."""

    def note_quality(self, step: int, quality: float) -> list[tuple[int, float]]:
        """Keep the PSNR of the field of the photos at a training step; what is kept of the steps up to it."""
        known = {int(number): value for number, value in read_json(self.root / "quality.json").items()}
        known = {number: value for number, value in known.items() if number < step} | {step: quality}
        write_json(self.root / "quality.json", {str(number): value for number, value in known.items()})
        return sorted(known.items())

    def previews(self, interval: int) -> Path:
        """Folder of the edited views as they looked when an interval extracted their queries."""
        return self.root / f"previews/{interval}"

    def latest_views(self) -> Path | None:
        """Folder of the edited views, or of their latest previews; None where there are none yet."""
        if self.images.exists():
            return self.images
        return max((self.root / "previews").glob("*"), key=lambda path: int(path.name), default=None)

    def set_aside_images(self, attempt: int) -> None:
        """Keep the edited views of an attempt beside those that the next one will write."""
        if self.images.exists():
            self.images.rename(self.root / f"images-{attempt}")

    @staticmethod
    def view(folder: Path, photo: Path) -> Path:
        """The picture in a folder of edited views or control images that belongs to a photo."""
        return folder / f"{photo.stem}.png"

    def load_views(self, folder: Path, photos: list[Path]) -> UInt8[Tensor, "V H W 3"]:
        """Edited views or previews of photos, in bytes."""
        return torch.stack([load_bytes(self.view(folder, photo)) for photo in photos])

    def controls(self, kind: str) -> Path:
        """Folder of the control images; kind is "source" or "target"."""
        return self.root / "controls" / kind

    def write_controls(self, kind: str, photos: list[Path], images: Float[Tensor, "V C H W"]) -> None:
        """Write the control images of all photos, several of a view beside each other; kind is "source" or "target"."""
        for photo, image in zip(photos, images, strict=True):
            write_png(self.view(self.controls(kind), photo), torch.cat(image.split(3), dim=-1))

    def latents(self, trajectory: str, index: int, chunk: int) -> BackgroundFile:
        """The latents ("latents") of a chunk of views at a timestep index of a trajectory."""
        return BackgroundFile(self.root / f"latents/{trajectory}/{index:04d}-{chunk:03d}.safetensors", self.writer)

    def carried(self, chunk: int) -> TensorFile:
        """The carried views ("images" [V, 3, h, w]) of a chunk, at the resolution of edited images."""
        return TensorFile(self.root / f"carried/{chunk:03d}.safetensors")

    def raw_queries(self, interval: int, chunk: int) -> TensorFile:
        """The query maps of a chunk by layer, in half precision, until they are coded."""
        return TensorFile(self.root / f"queries/raw-{interval}/{chunk:03d}.safetensors")

    def discard_raw_queries(self, interval: int) -> None:
        """Remove the query maps of an interval, which is coded."""
        shutil.rmtree(self.root / f"queries/raw-{interval}", ignore_errors=True)

    def codes(self, interval: int, chunk: int) -> TensorFile:
        """The extracted query codes of a chunk by layer, in half precision."""
        return TensorFile(self.root / f"queries/{interval}/codes-{chunk:03d}.safetensors")

    def codec(self, interval: int) -> TensorFile:
        """The codec of an interval; where it exists, the interval's codes are complete."""
        return TensorFile(self.root / f"queries/{interval}/codec.safetensors")

    def heads(self, interval: int) -> TensorFile:
        """The weights ("weight" [W, F]) of the query heads at the end of an interval's fit."""
        return TensorFile(self.root / f"queries/{interval}/heads.safetensors")

    def rendered(self, interval: int, chunk: int) -> TensorFile:
        """What an interval's field renders for a chunk: codes by layer, "errors" [V], and "clean" latents."""
        return TensorFile(self.root / f"queries/{interval}/rendered-{chunk:03d}.safetensors")

    def query_files(self) -> Iterator[tuple[int, list[Path], list[Path]]]:
        """The files of extracted codes and of renders by interval."""
        for folder in sorted((self.root / "queries").glob("[0-9]*"), key=lambda path: int(path.name)):
            extracted, rendered = (sorted(folder.glob(f"{kind}-*.safetensors")) for kind in ("codes", "rendered"))
            yield int(folder.name), extracted, rendered

    def discard_work(self) -> int:
        """Remove what a finished run needs no more: latents, queries, and carried views at the editor's resolution.

        Returns:
            Bytes that were freed.
        """
        folders = [self.root / "latents", self.root / "queries"]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        files += self.carried_views.glob("*.safetensors")
        freed = sum(path.stat().st_size for path in files)
        for path in files:
            path.unlink()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def save_progress(self, seconds: dict[str, float], losses: list[dict[str, float]]) -> None:
        """Write the seconds of each stage and the points of the loss curves."""
        write_json(self.root / "seconds.json", dict(seconds))
        write_json(self.root / "curves.json", {"losses": losses})

    def load_progress(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Read back what save_progress wrote; empty where it wrote nothing yet."""
        return read_json(self.root / "seconds.json"), read_json(self.root / "curves.json").get("losses", [])


def read_json(path: Path) -> dict[str, Any]:
    """A document beside the run, empty where there is none.

    Raises:
        UserError: It is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(document, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it: an edit goes on without what it notes") from error
    return document
