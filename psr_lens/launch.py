"""Where this process stands among those that `accelerate launch` or `torchrun` has started."""

from __future__ import annotations

import os

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


def own_device() -> torch.device:
    """The GPU that is this process's own, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank_and_world_size()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
