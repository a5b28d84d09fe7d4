"""Files that a thread writes while the run goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nerfstudio.utils import comms
from torch import Tensor

from qnerf_nerfstudio.run.tensor_file import TensorFile

MOST = 32
"""Files that wait to be written, at most; their tensors stay on the device until then."""


class BackgroundWriter:
    """Writes files one after another in a thread of its own.

    A checkpoint must not be ahead of the files that the run goes on with after a kill: `flush` comes before it. The
    checkpoints of a run of several processes are written by the first one, which does not know what the others still
    have to write; there files are written at once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "writer")
        self._waiting: dict[Path, tuple[dict[str, Tensor], Future[None]]] = {}

    def save(self, file: TensorFile, tensors: dict[str, Tensor]) -> None:
        """Have a file written.

        Raises:
            UserError: It, or one before it, cannot be written.
        """
        if comms.get_world_size() > 1:
            file.save(tensors)
            return
        done = [path for path, (_, future) in self._waiting.items() if future.done()]
        for path in done or list(self._waiting)[: max(0, len(self._waiting) - MOST + 1)]:
            self._waiting.pop(path)[1].result()
        kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        self._waiting[file.path] = kept, self._thread.submit(file.save, kept)

    def waiting(self, path: Path) -> dict[str, Tensor] | None:
        """The tensors of a file that is not written yet; None where it is, or where there is none."""
        return self._waiting[path][0] if path in self._waiting else None

    def flush(self) -> None:
        """Wait until all is written.

        Raises:
            UserError: A file cannot be written.
        """
        while self._waiting:
            self._waiting.pop(next(iter(self._waiting)))[1].result()


@dataclass(frozen=True)
class BackgroundFile(TensorFile):
    """A file that is written in the background, and is there as soon as that is asked for."""

    writer: BackgroundWriter
    """Writes it."""

    @property
    def exists(self) -> bool:
        """Whether it is written, or going to be."""
        return self.writer.waiting(self.path) is not None or super().exists

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Have it written whole or not at all."""
        self.writer.save(TensorFile(self.path), tensors)

    def load(self) -> dict[str, Tensor]:
        """Its tensors, on whatever device they are."""
        return self.writer.waiting(self.path) or super().load()
