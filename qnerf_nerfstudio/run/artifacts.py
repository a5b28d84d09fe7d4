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
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.common.files import atomic_write, write_json
from qnerf_nerfstudio.common.images import load_images, write_png
from qnerf_nerfstudio.diffusion.queries import QueryCodec, QueryMaps

SOURCE = "source"
"""The trajectory of the inverted source views."""


def edited_trajectory(attempt: int) -> str:
    """The trajectory of the edited views of an attempt."""
    return f"edited-{attempt}"


def look_ahead_trajectory(interval: int) -> str:
    """The trajectory on which an interval looks ahead."""
    return f"ahead-{interval}"


class EditArtifacts:
    """What a run keeps in its edit/ folder.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "manifest.json"
        self.dataset = root / "transforms.json"
        """The edited dataset; it exists where all views are edited."""
        self.images = root / "images"
        """The edited views, at the photos' resolution."""

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

    def control(self, kind: str, photo: Path) -> Path:
        """The control image of a photo; kind is "source" or "target"."""
        return self.view(self.root / "controls" / kind, photo)

    def write_controls(self, kind: str, photos: list[Path], images: Float[Tensor, "V 3 H W"]) -> None:
        """Write the control images of all photos; kind is "source" or "target"."""
        for photo, image in zip(photos, images, strict=True):
            write_png(self.control(kind, photo), image)

    def load_views(self, folder: Path, photos: list[Path]) -> Float[Tensor, "V H W 3"]:
        """Edited views or previews of photos, in [0, 1]."""
        return torch.stack(load_images([self.view(folder, photo) for photo in photos]))

    def has_latents(self, trajectory: str, index: int, chunk: int) -> bool:
        """Whether the latents of a chunk of views at a timestep index of a trajectory are there."""
        return self._path(_latents(trajectory, index, chunk)).exists()

    def save_latents(self, trajectory: str, index: int, chunk: int, latents: Tensor) -> None:
        """Write the latents of a chunk of views at a timestep index of a trajectory."""
        self._save(_latents(trajectory, index, chunk), {"latents": latents})

    def load_latents(self, trajectory: str, index: int, chunk: int) -> Tensor:
        """Read latents back; see save_latents."""
        return self._load(_latents(trajectory, index, chunk))["latents"]

    def has_codec(self, interval: int) -> bool:
        """Whether the queries of an interval are coded, all of them."""
        return self._path(f"queries/{interval}/codec").exists()

    def save_codec(self, interval: int, codec: QueryCodec) -> None:
        """Write an interval's codec, after its codes; the raw queries go."""
        self._save(f"queries/{interval}/codec", codec.tensors())
        shutil.rmtree(self.root / f"queries/raw-{interval}", ignore_errors=True)

    def load_codec(self, interval: int) -> QueryCodec:
        """The codec of an interval."""
        return QueryCodec.from_tensors(self._load(f"queries/{interval}/codec"))

    def save_queries(self, interval: int, chunk: int, queries: QueryMaps) -> None:
        """Write the raw query maps of a chunk, in half precision."""
        self._save(f"queries/raw-{interval}/{chunk:03d}", {name: maps.half() for name, maps in queries.items()})

    def load_queries(self, interval: int, chunk: int) -> QueryMaps:
        """Raw query maps of a chunk."""
        return {name: maps.float() for name, maps in self._load(f"queries/raw-{interval}/{chunk:03d}").items()}

    def save_codes(self, interval: int, chunk: int, codes: dict[str, Tensor]) -> None:
        """Write the extracted query codes of a chunk by layer, in half precision."""
        self._save(f"queries/{interval}/codes-{chunk:03d}", {name: code.half() for name, code in codes.items()})

    def load_codes(self, interval: int, chunk: int) -> dict[str, Float[Tensor, "V H W K"]]:
        """Extracted query codes of a chunk by layer, in the order of the codec."""
        stored = self._load(f"queries/{interval}/codes-{chunk:03d}")
        return {name: stored[name].float() for name in sorted(stored)}

    def load_joined_codes(self, interval: int, chunks: int) -> Float[Tensor, "V h w W"]:
        """Extracted query codes of all views, all layers side by side at the finest layer's resolution."""
        finest = self.load_codec(interval).finest
        joined = []
        for chunk in range(chunks):
            layers = [
                F.interpolate(code.movedim(-1, 1), finest, mode="bilinear").movedim(1, -1)
                for code in self.load_codes(interval, chunk).values()
            ]
            joined.append(torch.cat(layers, dim=-1))
        return torch.cat(joined)

    def has_rendered(self, interval: int, chunk: int) -> bool:
        """Whether what an interval's field renders for a chunk is there."""
        return self._path(_rendered(interval, chunk)).exists()

    def save_rendered(self, interval: int, chunk: int, rendered: dict[str, Tensor]) -> None:
        """Write what an interval's field renders for a chunk: codes by layer, "errors", and "clean" latents."""
        self._save(_rendered(interval, chunk), rendered)

    def load_rendered(self, interval: int, chunk: int) -> dict[str, Tensor]:
        """Read back what save_rendered wrote."""
        return self._load(_rendered(interval, chunk))

    def query_files(self) -> Iterator[tuple[int, list[Path], list[Path]]]:
        """The files of extracted codes and of renders by interval."""
        for folder in sorted((self.root / "queries").glob("[0-9]*"), key=lambda path: int(path.name)):
            extracted, rendered = (sorted(folder.glob(f"{kind}-*.safetensors")) for kind in ("codes", "rendered"))
            yield int(folder.name), extracted, rendered

    def has_source_field(self) -> bool:
        """Whether the field of the photos is kept."""
        return self._path("source_field").exists()

    def save_source_field(self, parameters: dict[str, Tensor]) -> None:
        """Keep the field of the photos, which later stages start from."""
        self._save("source_field", parameters)

    def load_source_field(self) -> dict[str, Tensor]:
        """The parameters of the field of the photos by name."""
        return self._load("source_field")

    def save_progress(self, seconds: dict[str, float], losses: list[dict[str, float]]) -> None:
        """Write the seconds of each stage and the points of the loss curves."""
        write_json(self.root / "seconds.json", dict(seconds))
        write_json(self.root / "curves.json", {"losses": losses})

    def load_progress(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Read back what save_progress wrote; empty where it wrote nothing yet."""
        seconds, curves = (_read_json(self.root / f"{name}.json") for name in ("seconds", "curves"))
        return seconds, curves.get("losses", [])

    def _save(self, key: str, tensors: dict[str, Tensor]) -> None:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_write(self._path(key)) as temporary:
            save_file(on_cpu, temporary)

    def _load(self, key: str) -> dict[str, Tensor]:
        path = self._path(key)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; the run's edit/ folder is incomplete, start the run afresh")
        return load_file(path)

    def _path(self, key: str) -> Path:
        return self.root / f"{key}.safetensors"


def _latents(trajectory: str, index: int, chunk: int) -> str:
    return f"latents/{trajectory}/{index:04d}-{chunk:03d}"


def _rendered(interval: int, chunk: int) -> str:
    return f"queries/{interval}/rendered-{chunk:03d}"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
