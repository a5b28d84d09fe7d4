"""The state of an edit on disk: every slice writes its result under a temporary name, then renames it.

A result is keyed by what it is (trajectory, timestep index, chunk), never overwritten by a different one, so a run that
was killed finds all that its next slice needs.
"""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from qnerf_nerfstudio.common.files import written_whole


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
