"""Where this process stands among those that `accelerate launch` or `torchrun` has started."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process and how many there are: of the caller's process group, else of a launcher's environment, else 0 and 1."""
    if not torch.distributed.is_available():
        return 0, 1
    if not torch.distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return 0, 1
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())  # makes the process group that fits the machine
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def wait_for_all() -> None:
    """Return when every process has come this far."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Add up tensors over all processes, in place: every process gets the same sums. All of one type."""
    if rank_and_world_size()[1] < 2:
        return
    device = own_device() if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    flat = torch.cat([tensor.detach().flatten().to(device) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(total.view_as(tensor))


def same_as_first(tensors: Sequence[torch.Tensor]) -> None:
    """Give tensors in every process the values that they have in the first one, in place."""
    if rank_and_world_size()[0] > 0:
        for tensor in tensors:
            tensor.detach().zero_()
    sum_over_processes(tensors)


def own_device() -> torch.device:
    """The GPU that is this process's own, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank_and_world_size()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
