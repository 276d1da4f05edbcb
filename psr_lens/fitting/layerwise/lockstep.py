"""Forward passes of several batches that wait for each other at every hook point.

A layerwise solver reads the activations of *all* the data at one layer, decides what to add, and lets the passes continue from there, so
that all layers together take one forward pass over the data. Each batch runs in a thread of its own; only one thread runs at a time, so the
result does not depend on timing.

Threads, because a pass that is halted in a hook has to keep its call stack: sites may lie within a block (`attn_out`, `z`), and
TransformerLens's bridge cannot start a pass at a layer (`start_at_layer` raises). Running each block again from the saved residual streams
would run every block twice, and greenlets would do the same as these threads with one more dependency.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from psr_lens.activations.batches import ContextBatch
from psr_lens.errors import FitError
from psr_lens.models import HookedModel, TemporaryHooks, forward, hooked

Visit = Callable[[str, list[Tensor]], list[Tensor]]
"""Takes a hook name and each batch's activation there, `[batch, position, *head, width]`; returns what the passes continue with."""


class _Stop(BaseException):
    """Ends a pass early. It is not an `Exception`, so that no handler in the model catches it."""


class _Pass(threading.Thread):
    """The forward pass of one batch, which halts at each hook point until it is told to continue."""

    def __init__(self, model: HookedModel, batch: ContextBatch, stop_at_layer: int) -> None:
        super().__init__(daemon=True)
        self.model, self.batch, self.stop_at_layer = model, batch, stop_at_layer
        self.name = ""
        self.activation: Tensor | None = None
        self.error: BaseException | None = None
        self.abandoned = False
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._go.acquire()
        if self.abandoned:
            return
        try:
            with torch.no_grad():  # gradients are switched per thread
                forward(self.model, self.batch.tokens, self.batch.mask, self.stop_at_layer)
        except _Stop:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again in the waiting thread)
            self.error = error
        self.activation = None
        self._halted.release()

    def advance(self) -> None:
        """Let the pass run to its next hook point or its end."""
        self._go.release()
        self._halted.acquire()
        if self.error is not None:
            raise self.error

    def halt(self, name: str, activation: Tensor) -> Tensor:
        """Called by a hook, in the thread of the pass: wait, and return the activation to continue with."""
        if self.abandoned:
            raise _Stop
        self.name, self.activation = name, activation
        self._halted.release()
        self._go.acquire()
        if self.abandoned or self.activation is None:
            raise _Stop
        return self.activation

    def abandon(self) -> None:
        """End the pass where it halts."""
        self.abandoned = True
        self._go.release()
        self.join()


def batch_of_this_pass() -> ContextBatch | None:
    """The batch whose pass this thread is, for hooks beside those of `lockstep`; None in other threads."""
    current = threading.current_thread()
    return current.batch if isinstance(current, _Pass) else None


def lockstep(model: HookedModel, batches: Sequence[ContextBatch], names: Sequence[str], stop_at_layer: int, visit: Visit) -> None:
    """Run one forward pass per batch. All of them halt at each of `names` in turn, where `visit` may change the activations.

    Args:
        model: The model, frozen by the caller.
        batches: The batches to run.
        names: Hook names in the order in which they fire; each fires once a pass.
        stop_at_layer: First layer that need not be run.
        visit: Called once for each name.

    Raises:
        FitError: a hook point did not fire, or not in this order.
    """
    passes = [_Pass(model, batch, stop_at_layer) for batch in batches]

    def hook_at(name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor | None:
            current = threading.current_thread()
            return current.halt(name, activation) if isinstance(current, _Pass) and current in passes else None

        return hook

    with hooked(model, TemporaryHooks((name, hook_at(name)) for name in names)):
        for each in passes:
            each.start()
        try:
            for name in names:
                for each in passes:
                    each.advance()
                arrived = [each.activation for each in passes if each.activation is not None and each.name == name]
                if len(arrived) < len(passes):
                    raise FitError(f"the hook point {name} did not fire, or fired out of order.")
                for each, activation in zip(passes, visit(name, arrived), strict=True):
                    each.activation = activation
        finally:
            for each in passes:
                each.abandon()
