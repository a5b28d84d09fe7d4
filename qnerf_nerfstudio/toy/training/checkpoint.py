"""Training state in safetensors: weights, optimizer moments and the step, written whole or not at all."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from qnerf_nerfstudio.common.files import atomic_write


def save_state(path: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write trained weights, their moving average and the optimizer's moments to one file."""
    tensors = {f"modules.{name}": value for name, value in modules.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    with atomic_write(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"step": str(step)})


def load_state(path: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what save_state wrote; returns the number of steps done, 0 where there is no file."""
    if not path.exists():
        return 0
    tensors = load_file(path)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    modules.load_state_dict(part("modules."))
    average.load_state_dict(part("average."))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in part("optimizer.").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])
