"""Several processes: rank and world size under `accelerate launch` or `torchrun`, barriers, sums over all processes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed


def rank_and_world_size() -> tuple[int, int]:
    """Rank and world size: from the process group if there is one, else from the launcher's environment, else 0 and 1."""
    if not torch.distributed.is_available():
        return 0, 1
    if not torch.distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return 0, 1
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())  # creates the process group that suits the machine
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def wait_for_all() -> None:
    """Block until every process has reached this point."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Sum tensors over all processes, in place; every process gets the same sums. All tensors have one dtype."""
    if rank_and_world_size()[1] < 2:
        return
    device = own_device() if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    flat = torch.cat([tensor.detach().flatten().to(device) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(total.view_as(tensor))


def same_as_first(tensors: Sequence[torch.Tensor]) -> None:
    """Broadcast the first process's values of some tensors to all processes, in place."""
    if rank_and_world_size()[0] > 0:
        for tensor in tensors:
            tensor.detach().zero_()
    sum_over_processes(tensors)


def own_device() -> torch.device:
    """The GPU of this process, or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank_and_world_size()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
