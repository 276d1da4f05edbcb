"""A second device for machines that have none: tensors that say that they are on `meta` and refuse to meet others.

Their numbers lie on the CPU all the same. Inside `second_device()`, whatever is made on or moved to `meta` becomes such a tensor, and an
operation on tensors of both devices fails as on real ones, but for what PyTorch allows: numbers without dimensions, and indices on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from psr_lens.fitting.layerwise import lockstep
from psr_lens.models import forward

FAR = torch.device("meta")


class Far(torch.Tensor):
    """A tensor on the second device."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "Far":
        made = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=FAR, requires_grad=near.requires_grad
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Routing(TorchDispatchMode):
    """Sends what is made on the second device, or moved to it, to `run`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    """`torch.tensor` goes past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None and torch.device(kwargs["device"]) == FAR:
            return Far(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_", "to"}


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU, and say where its result is."""
    name = func.overloadpacket.__name__
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    far = any(isinstance(each, Far) for each in tensors)
    if far and name not in COPIES:
        met = [args[0]] if name in INDEXING else tensors
        others = [each for each in tensors if not isinstance(each, Far) and each.ndim]
        if name in INDEXING:  # indices may be on the CPU
            others = [] if isinstance(met[0], Far) else [met[0]]
        if others:
            raise RuntimeError(f"{name}: expected all tensors to be on one device, found two")
    device = kwargs.get("device")
    goes_far = device is not None and torch.device(device).type == FAR.type
    stays_far = far and device is None and (name not in COPIES or isinstance(args[0], Far))
    if goes_far:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map(lambda each: each.near if isinstance(each, Far) else each, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if name.endswith("_") and not name.endswith("__"):  # in place
        return args[0]
    if not (goes_far or stays_far):
        return result
    return tree_map(lambda each: Far(each) if isinstance(each, torch.Tensor) else each, result)


@contextmanager
def second_device() -> Iterator[None]:
    """A second device for the length of a `with` block."""
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

    def known(kind: str) -> str:  # to autocast, `meta` is no device
        return "cpu" if kind == FAR.type else kind

    def routed(*args: Any, **kwargs: Any) -> Any:  # modes are of one thread, and each pass in lockstep has its own
        with _Making(), _Routing():
            return forward(*args, **kwargs)

    with (
        _Making(),
        _Routing(),
        patch.object(lockstep, "forward", routed),
        patch.object(torch, "autocast", lambda kind, *args, **kwargs: autocast(known(kind), *args, **kwargs)),
        patch.object(torch, "is_autocast_enabled", lambda kind: is_enabled(known(kind))),
    ):
        yield


def _move(value: Any, device: torch.device) -> Any:
    return tree_map(lambda each: each.to(device) if isinstance(each, torch.Tensor) else each, value)


def spread(model: Any, first: int) -> None:
    """Put the blocks of a bridge from `first` on onto the second device, as accelerate does: what a module is given goes where it is.

    Only inside `second_device()`.
    """
    hf = model.original_model
    for index, block in enumerate(hf.model.layers):
        if index >= first:
            for module in block.modules():
                for name, parameter in list(module._parameters.items()):
                    if parameter is not None:
                        module._parameters[name] = torch.nn.Parameter(Far(parameter.detach()), requires_grad=False)
        device = FAR if index >= first else torch.device("cpu")
        block.register_forward_pre_hook(
            lambda module, args, kwargs, device=device: (_move(args, device), _move(kwargs, device)), with_kwargs=True, prepend=True
        )
    hf.model.norm.register_forward_pre_hook(lambda module, args: _move(args, torch.device("cpu")), prepend=True)
    model.cfg.n_devices, model.cfg.device = 2, "cpu"
