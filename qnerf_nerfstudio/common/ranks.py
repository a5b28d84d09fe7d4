"""What the processes of a distributed run share. In a run of one process nothing happens here."""

from typing import TypeVar

import torch
import torch.distributed as dist
from nerfstudio.utils import comms

Value = TypeVar("Value")


def barrier() -> None:
    """Go on when every process has come here."""
    if comms.get_world_size() > 1:
        comms.synchronize()


def broadcast(value: Value, device: torch.device) -> Value:
    """The main process's value, in every process; NCCL sends it from the process's own `device`."""
    if comms.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]
