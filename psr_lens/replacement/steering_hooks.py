"""The hooks that steer: which positions of a call they act on, and what they add there, at next to no cost.

Where a call's positions lie in their sequences comes from `steered_calls.py`, and is never guessed.
At a decode step a hook costs two small matrix products and its rule; the strength is multiplied into the directions beforehand.
Nothing here waits for a GPU at a decode step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.models import Call, Columns, OwnHook, TemporaryHooks
from psr_lens.replacement.actions import Action
from psr_lens.replacement.steered_calls import SteeredCalls, least, most, start_in

FRESH: Final = ".hook_resid_post"
"""Ending of the hook points whose activation is a newly computed sum, which the model itself keeps nowhere else."""


class SteeringHooks(TemporaryHooks):
    """Names and hooks that steer, for `model.hooks(fwd_hooks=…)`; empty if nothing is to be done."""

    def __init__(self, hooks: Iterable[tuple[str, Any]] = (), calls: SteeredCalls | None = None) -> None:
        """Keep the hooks, and what they know of the model's calls."""
        super().__init__(hooks)
        self.calls = calls

    def __repr__(self) -> str:
        """The hook points in a line."""
        return f"SteeringHooks({', '.join(name for name, _ in self)})"

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch, as the KV cache does; each keeps its own strength and start."""
        rows = rows.cpu()  # starts and strengths are mostly on the CPU, and a CPU index works on any device
        if self.calls is not None:
            self.calls.select(rows)
        for _, hook in self:
            hook.select(rows)

    def record(self, into: dict[str, Float[Tensor, "batch width"]]) -> None:
        """From now on, keep what is added to the last token of each call: one vector per sequence, in float32 at least, by hook point.

        When a call begins, `into` is emptied, so that it holds what the last call added, and nothing of one before that. Where a call adds
        nothing at a hook point, it has no entry; after an exception in a call, it has those of the points before.
        """
        if self.calls is not None:
            self.calls.at_each_call(into.clear)
        for name, hook in self:
            hook.added = partial(into.__setitem__, name)

    def begin(self) -> None:
        """From now on steer calls of this thread alone; others may be about to run a hook that has just been removed."""
        if self.calls is not None:
            self.calls.owner = get_ident()

    @contextmanager
    def in_block(self) -> Iterator[None]:
        """Refuse calls of other threads inside a `with` block, and stop reading calls at its end: the hooks are used up."""
        if self.calls is None:
            yield
            return
        self.calls.enter()
        try:
            yield
        finally:
            self.calls.leave()
            self.close()

    def close(self) -> None:
        """Stop reading the model's calls; the hooks cannot be used any more."""
        if self.calls is not None:
            self.calls.close()


def steering_hooks(model: Any, actions: Mapping[str, Sequence[Action]]) -> SteeringHooks:
    """Forward hooks, one per hook point, for `model.hooks(fwd_hooks=…)`.

    All actions at one point read the activation that arrives there, and what they add is summed: their order does not matter.

    Args:
        model: The model that is to be steered, of TransformerLens or of plain transformers. Its calls are observed until the hooks are
            closed or no longer referred to.
        actions: What is done at each hook point. Idle actions are left out.

    Returns:
        Names and hooks, in the order in which they have to be added.
    """
    busy = {name: [each for each in at if not each.is_idle] for name, at in actions.items()}
    busy = {name: at for name, at in busy.items() if at}
    if not busy:
        return SteeringHooks()
    torch.compiler.reset()  # what torch.compile made of the model before would run without them
    calls = SteeredCalls(model, [each for at in busy.values() for each in at], hooks=len(busy))
    return SteeringHooks(((name, _Steering(name, at, calls)) for name, at in busy.items()), calls)


class _Starts:
    """Where the actions at one point start in the sequences of a call."""

    def __init__(self, at: Sequence[Columns]) -> None:
        self.at = at
        self.first = min(least(each) for each in at)
        self.latest = max(most(each) for each in at)


class _Steering(OwnHook):
    """The hook at one point; see `steering_hooks`."""

    def __init__(self, name: str, actions: Sequence[Action], calls: SteeredCalls) -> None:
        self._actions, self._calls = actions, calls
        self._lasting = dict.fromkeys(index for index, each in enumerate(actions) if not each.last_only)
        self._fresh = name.endswith(FRESH)
        self._ready: dict[tuple[torch.device, torch.dtype], list[_Fused]] = {}
        self._resolved: tuple[Any, int, _Starts] | None = None
        self.added: Callable[[Tensor], None] | None = None
        """Is told what is added to the last token of each call; see `SteeringHooks.record`."""

    def acts_here(self) -> bool:
        """Whether calls of this thread are steered."""
        return self._calls.owner in (None, get_ident())

    def refuses_here(self) -> bool:
        """Whether calls of this thread are refused, since another is in a `steer` block."""
        return self._calls.refuses_here()

    def select(self, rows: Tensor) -> None:
        """Steer these sequences of the batch."""
        self._actions = [each.select(rows) for each in self._actions]
        self._resolved = None
        if any(isinstance(each.strength, Tensor) for each in self._actions):
            self._ready.clear()

    def __call__(self, activation: Tensor, hook: Any) -> Tensor | None:
        call = self._calls.current(activation)
        if call is None:
            return None
        starts = self._starts(call)
        past, length = call.past if call.past is not None else call.first_column(), call.length
        if self.added is not None:
            self._tell(activation, starts, past, length)
        if past > starts.latest:
            return self._at_a_step(activation) if self._lasting else None
        first = max(0, starts.first - past)
        stop = length if self._lasting else min(length, starts.latest - past + 1)
        if first >= stop:
            return None
        masks = {
            index: _mask(start - past, self._actions[index].last_only, first, stop, activation.device)
            for index, start in enumerate(starts.at)
        }
        if stop - first == length:
            return self._changed(activation, masks)
        rows = activation[:, first:stop]
        changed = self._changed(rows, masks)
        if self._fresh and not activation._is_view() and activation.is_contiguous() and self._calls.is_alone():
            rows.copy_(changed)
            return activation
        return torch.cat([activation[:, :first], changed, activation[:, stop:]], dim=1)

    def _starts(self, call: Call) -> _Starts:
        """Found once for all calls that continue the same sequences."""
        known = self._resolved
        if known is not None and known[0] is call.sequences and known[1] == call.rows:
            return known[2]
        starts = _Starts([start_in(each, call) for each in self._actions])
        self._resolved = (call.sequences, call.rows, starts)
        return starts

    def _at_a_step(self, activation: Tensor) -> Tensor:
        """Every decode step comes here: `_changed` without masks, and with as little as possible around its matrix products."""
        ready = self._ready.get((activation.device, activation.dtype))
        if ready is None or activation.ndim != 3 or torch.is_autocast_enabled(activation.device.type):
            return self._changed(activation, self._lasting)
        total = arriving = activation.flatten(0, 1)
        for index in self._lasting:
            total = ready[index].onto(total, arriving, activation.shape, None)
        return total.view_as(activation)

    def _changed(self, rows: Tensor, masks: Mapping[int, Tensor | None]) -> Tensor:
        """The activation that the model continues with, of the dtype that arrived."""
        kind = rows.device.type
        if not torch.is_autocast_enabled(kind):
            return self._summed(rows, masks)
        with torch.autocast(kind, enabled=False):  # autocast would round the whole residual stream
            return self._summed(rows, masks)

    def _summed(self, rows: Tensor, masks: Mapping[int, Tensor | None]) -> Tensor:
        arriving = _as_probes_read(rows)
        total = self._onto(arriving, arriving, rows.shape, masks)
        return total if total.dtype == rows.dtype else total.to(rows.dtype)

    def _onto(self, total: Tensor, arriving: Tensor, shape: torch.Size, masks: Mapping[int, Tensor | None]) -> Tensor:
        """`total` plus what is added for the tokens `arriving`, in the shape of the activation."""
        fused = self._fused(arriving.device, arriving.dtype)
        for index, mask in masks.items():
            total = fused[index].onto(total, arriving, shape, mask)
        if len(shape) == 4:
            total = total.transpose(0, 1)
        return total.reshape(shape)

    def _tell(self, activation: Tensor, starts: _Starts, past: int, length: int) -> None:
        """Tell what is added to the last token of the call."""
        last = past + length - 1
        busy = self._lasting if last > starts.latest else dict.fromkeys(range(len(self._actions)))
        if self.added is None or last < starts.first or not busy:
            return
        rows = activation[:, -1:]
        masks = {index: _mask(starts.at[index] - last, self._actions[index].last_only, 0, 1, activation.device) for index in busy}
        with torch.autocast(rows.device.type, enabled=False):
            arriving = _as_probes_read(rows)
            self.added(self._onto(torch.zeros_like(arriving), arriving, rows.shape, masks).flatten(1).detach())

    def _fused(self, device: torch.device, dtype: torch.dtype) -> list[_Fused]:
        ready = self._ready.get((device, dtype))
        if ready is not None:
            return ready
        if any(_learns(each) for each in self._actions):  # a graph serves one backward pass
            return [_Fused(each, device, dtype) for each in self._actions]
        with torch.inference_mode(False), torch.no_grad():  # later calls may want gradients
            ready = self._ready[device, dtype] = [_Fused(each, device, dtype) for each in self._actions]
        return ready


def _as_probes_read(rows: Tensor) -> Tensor:
    """Activations as `[token, width]` or `[head, token, width]`, in float32 at least."""
    arriving = rows.flatten(0, 1)
    if rows.dtype not in (torch.float32, torch.float64):
        arriving = arriving.to(torch.float32)
    return arriving.transpose(0, 1) if rows.ndim == 4 else arriving


def _learns(action: Action) -> bool:
    tensors = (action.site.directions, action.site.weights, action.site.bias, action.strength)
    return any(isinstance(each, Tensor) and each.requires_grad for each in tensors)


def _mask(start: Columns, last_only: bool, first: int, stop: int, device: torch.device) -> Tensor | None:
    """Which positions from `first` to `stop` an action steers, `[batch or 1, position]`; None if all."""
    if least(start) == first == most(start) and (not last_only or stop == first + 1):
        return None
    if not last_only and most(start) <= first:
        return None
    at = torch.as_tensor(start, device=device).reshape(-1, 1)
    positions = torch.arange(first, stop, device=device)[None]
    return positions == at if last_only else positions >= at


class _Fused:
    """An action on one device and in one dtype, with everything multiplied that can be multiplied beforehand."""

    def __init__(self, action: Action, device: torch.device, dtype: torch.dtype) -> None:
        site = action.site.to(device, dtype)
        constant = site.rule == "constant"
        directions = site.bias.unsqueeze(-2) @ site.directions if constant else site.directions
        self.alpha: Tensor | None = None
        if isinstance(action.strength, Tensor):
            self.alpha = action.strength.to(device, dtype)[:, None]
        else:
            directions = action.strength * directions
        self._rule = site.rule
        self._directions = directions
        # A tensor of its own: rounding depends on alignment in memory, which differs for loaded ones.
        self._probe = (-site.directions if site.rule == "projection" else site.weights.clone()).transpose(-1, -2)
        self._bias = site.bias if site.bias.ndim == 1 else site.bias[:, None]

    def onto(self, total: Tensor, arriving: Tensor, shape: torch.Size, mask: Tensor | None) -> Tensor:
        """`total` plus what is added for the tokens `arriving`, both `[token, width]` or `[head, token, width]`."""
        weight = None if mask is None and self.alpha is None else self._weight(shape, mask)
        product = torch.addmm if total.ndim == 2 else torch.baddbmm
        if self._rule == "constant":
            if weight is None:
                return total + self._directions
            return total + weight * self._directions
        coefficients = product(self._bias, arriving, self._probe)
        if self._rule == "relu":
            coefficients = coefficients.relu_()
        elif self._rule == "sigmoid":
            coefficients = coefficients.sigmoid_()
        if weight is not None:
            coefficients = coefficients * weight
        return product(total, coefficients, self._directions)

    def _weight(self, shape: torch.Size, mask: Tensor | None) -> Tensor | None:
        """Strength of each token beyond that in the directions, `[token, 1]`; None if there is none."""
        alpha = self.alpha
        if alpha is not None and len(alpha) not in (1, shape[0]):  # beams, or several answers to one prompt
            alpha = alpha.repeat_interleave(shape[0] // len(alpha), dim=0)
        weight = mask if alpha is None else alpha if mask is None else alpha * mask
        return None if weight is None else weight.expand(shape[:2]).reshape(-1, 1)
