"""Tensors in files that are written whole or not at all."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import atomic_write


@dataclass(frozen=True)
class TensorFile:
    """Named tensors in a safetensors file."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether it is written."""
        return self.path.exists()

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write it whole or not at all, on whatever device the tensors are."""
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        with atomic_write(self.path) as temporary:
            save_file(plain, temporary)

    def load(self) -> dict[str, Tensor]:
        """Read it back.

        Raises:
            FileNotFoundError: It was not written.
            UserError: It is damaged.
        """
        if not self.path.exists():
            raise FileNotFoundError(
                f"{self.path} is missing; the run's edit/ folder is incomplete, start the run afresh"
            )
        try:
            return load_file(self.path)
        except SafetensorError as error:
            raise UserError(
                f"{self.path} is damaged ({error}); put a copy of it back, or edit the scene again under another "
                f"--timestamp"
            ) from error
