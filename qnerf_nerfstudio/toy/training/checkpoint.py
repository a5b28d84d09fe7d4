"""Training state in safetensors: weights, optimizer moments and the step, written whole or not at all."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from qnerf_nerfstudio.common.files import atomic_write


@dataclass(frozen=True)
class Progress:
    """How far training has come, over all calls with the same --work."""

    steps: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent."""


def save_state(
    path: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write trained weights, their moving average, the optimizer's moments and the progress to one file."""
    tensors = {f"modules.{name}": value for name, value in modules.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    metadata = {"steps": str(progress.steps), "seconds": str(progress.seconds)}
    with atomic_write(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def load_state(path: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore what save_state wrote; where there is no file, nothing is done yet."""
    if not path.exists():
        return Progress()
    tensors = load_file(path)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    modules.load_state_dict(part("modules."))
    average.load_state_dict(part("average."))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in part("optimizer.").items():
        index, key = name.split(".")
        if value.ndim:
            # In the memory format of their parameter: the optimizer is slow where the two differ.
            value = torch.empty_like(parameters[int(index)]).copy_(value)  # noqa: PLW2901
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return Progress(int(metadata["steps"]), float(metadata["seconds"]))
