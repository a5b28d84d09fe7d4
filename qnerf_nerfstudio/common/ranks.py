"""What the processes of a distributed run share. In a run of one process nothing happens here."""

from typing import TypeVar

import torch
import torch.distributed as dist
from nerfstudio.utils import comms
from torch import Tensor

Value = TypeVar("Value")


def barrier() -> None:
    """Go on when every process has come here."""
    if comms.get_world_size() > 1:
        comms.synchronize()


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set in any process; all of them have to ask."""
    if comms.get_world_size() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def total(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, in every process."""
    if comms.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def broadcast(value: Value, device: torch.device) -> Value:
    """The main process's value, in every process; NCCL sends it from the process's own `device`."""
    if comms.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]
