"""The state of an edit on disk: every slice writes its result under a temporary name, then renames it.

A result is keyed by what it is (trajectory, timestep index, chunk), never overwritten by a different one, so a run that
was killed finds all that its next slice needs.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qnerf_nerfstudio.errors import UserError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` at the end; a killed process leaves `path` as it was.

    Raises:
        UserError: It cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path} ({error}); earlier results are intact: free some space, or make the folder writable"
        ) from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_png(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """Write an image in [0, 1] whole or not at all."""
    pixels = (image.movedim(0, -1) * 255).round().clamp(0, 255).byte().cpu().numpy()
    with written_whole(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


class EditStore:
    """Tensors of a run's `edit/` folder.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write tensors under a key such as "latents/source/0007-000"."""
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with written_whole(self._path(key)) as temporary:
            save_file(on_cpu, temporary)

    def load(self, key: str) -> dict[str, Tensor]:
        """Read tensors back.

        Raises:
            FileNotFoundError: Nothing was written under this key.
        """
        path = self._path(key)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; the run's edit/ folder is incomplete, start the run afresh")
        return load_file(path)

    def save_latents(self, trajectory: str, index: int, chunk: int, latents: Tensor) -> None:
        """Write the latents of a chunk of views at a timestep index of a trajectory."""
        self.save(f"latents/{trajectory}/{index:04d}-{chunk:03d}", {"latents": latents})

    def load_latents(self, trajectory: str, index: int, chunk: int) -> Tensor:
        """Read latents back; see save_latents."""
        return self.load(f"latents/{trajectory}/{index:04d}-{chunk:03d}")["latents"]

    def has_latents(self, trajectory: str, index: int, chunk: int) -> bool:
        """Whether the latents were written."""
        return self.has(f"latents/{trajectory}/{index:04d}-{chunk:03d}")

    def has(self, key: str) -> bool:
        """Whether something was written under this key."""
        return self._path(key).exists()

    def discard(self, folder: str) -> None:
        """Remove a folder of results that nothing will read again."""
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.root / f"{key}.safetensors"


def load_images(paths: list[Path]) -> list[Tensor]:
    """Images in [0, 1], each [H, W, 3]."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            images.append(pixels.reshape(image.height, image.width, 3).float() / 255)
    return images
