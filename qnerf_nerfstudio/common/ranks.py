"""What the processes of a distributed run share. In a run of one process nothing happens here."""

from typing import TypeVar

import torch
import torch.distributed as dist
from nerfstudio.utils import comms

Value = TypeVar("Value")


def rank() -> int:
    """Number of this process, from 0."""
    return comms.get_rank()


def count() -> int:
    """Number of processes."""
    return comms.get_world_size()


def is_main() -> bool:
    """Whether this process prints and writes for all of them."""
    return comms.is_main_process()


def barrier() -> None:
    """Go on when every process has come here."""
    if count() > 1:
        comms.synchronize()


def broadcast(value: Value, device: torch.device) -> Value:
    """The main process's value, in every process.

    Args:
        value: The value of this process, which only counts in the main one.
        device: The process's own device, which NCCL sends from.
    """
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]
