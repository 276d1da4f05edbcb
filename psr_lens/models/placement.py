"""Where a model's weights go: one device, several GPUs, or a device map of accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from psr_lens._utils.distributed import own_device
from psr_lens.errors import InputError

_STRATEGIES: Final = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate makes itself."""


@dataclass(frozen=True)
class Placement:
    """Where the weights go."""

    device: torch.device
    """The device, or the kind of device if there are several; where a device map says it, of no meaning."""
    device_map: str | dict[str, str | int] | None = None
    """accelerate's device map, if any."""
    n_devices: int = 1
    """Number of GPUs that the layers are split over."""

    @classmethod
    def of(
        cls, device: str | torch.device, device_map: str | Mapping[str, str | int] | None = None, n_devices: int = 1
    ) -> Placement:
        """The placement that the arguments of `load_model` ask for.

        Raises:
            InputError: torch has no such devices, or the arguments contradict each other.
        """
        gpus = torch.cuda.device_count()
        if not isinstance(n_devices, int) or n_devices < 1 or (n_devices > 1 and gpus < n_devices):
            raise InputError("n_devices", repr(n_devices), f"1, or at most the number of GPUs ({gpus})")
        if device_map is not None:
            if str(device) != "auto" or n_devices > 1:
                raise InputError(
                    "device_map", repr(device_map), "only one of `device_map`, `device` and `n_devices`", "Leave the others out."
                )
            targets = [device_map] if isinstance(device_map, str) else list(device_map.values())
            for target in targets:
                if target not in _STRATEGIES:
                    _check_device("device_map", torch.device("cuda", target) if isinstance(target, int) else target)
            return cls(torch.device("cpu"), device_map if isinstance(device_map, str) else dict(device_map))
        if n_devices > 1:
            return cls(torch.device("cuda"), n_devices=n_devices)
        return cls(own_device() if str(device) == "auto" else _check_device("device", device))

    @property
    def is_spread(self) -> bool:
        """Whether transformers places the weights itself."""
        return self.device_map is not None or self.n_devices > 1

    def for_transformers(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`; a model for a single device is moved there afterwards."""
        if self.device_map is not None:
            return {"device_map": self.device_map}
        if self.n_devices == 1:
            return {}
        from transformer_lens.utilities.multi_gpu import resolve_device_map

        device_map, max_memory = resolve_device_map(self.n_devices, None, None, None)
        return {"device_map": device_map, "max_memory": max_memory}


def _check_device(argument: str, device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch was built without CUDA
        raise InputError(
            argument,
            repr(device if device is None else str(device)),
            "a device that torch can use",
            f"Use 'cpu', or 'auto' to take a GPU if there is one. ({error})",
        ) from error
    return found
