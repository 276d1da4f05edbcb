"""The calls of a model while it is steered: where actions start in each, in which threads they act, and what deserves a warning."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.models import Call, Columns, HookedModel, hook_tables, observer_of
from psr_lens.replacement.actions import Action

LONG: Final = 16
"""A text of at least this many tokens may well be more than a prompt."""


def least(columns: Columns) -> int:
    """The smallest of them."""
    return int(columns.min()) if isinstance(columns, Tensor) else columns


def most(columns: Columns) -> int:
    """The largest of them."""
    return int(columns.max()) if isinstance(columns, Tensor) else columns


def start_in(action: Action, call: Call) -> Columns:
    """The first column that an action steers in each row of a call.

    Raises:
        InputError: it was not given, and the call does not show it.
    """
    sequences = call.sequences
    if action.start is not None:
        return _for_each_row(action.start, call)
    if action.span in sequences.spans:
        return _for_each_row(sequences.spans[action.span], call)
    if action.span == "R":
        if not sequences.unknown and call.past is not None and call.past >= sequences.width:
            return sequences.width - 1  # the prompts are behind
        return _for_each_row(sequences.ends, call)
    firsts = sequences.firsts
    question = 0 if action.question_start is None else action.question_start
    return _for_each_row(question + firsts, call)


def _for_each_row(columns: Columns, call: Call) -> Columns:
    """One column for all rows or one for each, with the rows of a prompt's beams and answers next to each other."""
    if not isinstance(columns, Tensor) or columns.numel() in (1, call.rows):
        return int(columns) if not isinstance(columns, Tensor) or columns.numel() == 1 else columns
    if call.sequences.generated and columns.numel() == call.sequences.rows:
        return columns.repeat_interleave(call.rows // columns.numel())
    if call.past is not None and call.past > most(columns):  # whatever rows were chosen or repeated
        return most(columns)
    raise InputError("start", f"None, where {columns.numel()} sequences have become {call.rows}", "one position for each sequence")


class _State(threading.local):
    """What one thread's current call is like."""

    call: Call | None = None
    is_alone: bool | None = None
    ids: Tensor | None = None


class _Entered(threading.local):
    """How many `steer` blocks a thread is in, by model."""

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}


_entered = _Entered()


class SteeredCalls:
    """What the hooks of one replacement know of the model's calls."""

    def __init__(self, model: Any, actions: Sequence[Action], hooks: int) -> None:
        """Observe the model's calls from now on.

        Args:
            model: The model, of TransformerLens or of plain transformers.
            actions: Everything that is done.
            hooks: Number of forward hooks that do it.
        """
        self._actions = list(actions)
        self._model, self._hooks = model, hooks
        self._tables: list[Any] | None = None
        self._state = _State()
        self._warned = False
        self._strict: int | None = None
        self.owner: int | None = None
        """The one thread whose calls are steered; None for all."""
        self._observer = observer_of(model)
        self._observer.start()
        self.close = weakref.finalize(self, self._observer.stop)
        self._at_each_call: list[Callable[[], None]] = []

    def __deepcopy__(self, memo: Any) -> SteeredCalls:
        """A copy of the model that was made inside the block is steered as the model is."""
        return self

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Expect these sequences of the batch."""
        self._actions = [each.select(rows) for each in self._actions]
        self._state.call = None

    def at_each_call(self, act: Callable[[], None]) -> None:
        """From now on, do this whenever a call that is steered begins, before anything in it is computed."""
        self._at_each_call.append(act)
        self._observer.tell(self._begins)

    def _begins(self) -> None:
        if self.owner in (None, threading.get_ident()):
            for act in self._at_each_call:
                act()

    # --- threads ------------------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """A `steer` block begins: calls of other threads are refused, unless those are in a block of their own."""
        self._strict = id(self._model)
        _entered.blocks[self._strict] = _entered.blocks.get(self._strict, 0) + 1

    def leave(self) -> None:
        """The block ends."""
        if self._strict is not None:
            _entered.blocks[self._strict] -= 1
            self._strict = None

    def refuses_here(self) -> bool:
        """Whether calls of this thread are refused."""
        elsewhere = self.owner is not None and self.owner != threading.get_ident()
        return elsewhere and self._strict is not None and not _entered.blocks.get(self._strict)

    def _check_thread(self) -> None:
        if not self.refuses_here():
            return
        raise InputError(
            "model",
            "a call of another thread while a `steer` block is open",
            "calls of the thread that opened it",
            "Open a block in each thread, or use `attach`, which steers the calls of all threads.",
        )

    # --- calls --------------------------------------------------------------------------------------------------------------

    def current(self, activation: Tensor) -> Call | None:
        """The call that an activation belongs to; None if it is not to be steered.

        Raises:
            InputError: the call's arguments could not be seen, there is not one strength or start per sequence, or it is a call of
                another thread than the one in the `steer` block.
        """
        if self.owner is not None and self.owner != threading.get_ident():
            self._check_thread()
            return None
        call = self._observer.current
        if call is None or activation.shape[0] != call.rows or activation.shape[1] != call.length:
            raise InputError(
                "model",
                f"an activation of shape {tuple(activation.shape)} outside of the calls that can be seen",
                "a call of the model itself",
                "Call the model or its `generate`, not its layers.",
            )
        if self._state.call is not call:
            self._begin(call)
        return call

    def is_alone(self) -> bool:
        """Whether no other hooks are registered, which could hold an activation, and no gradients: it may be edited in place."""
        if self._state.is_alone is None:
            self._state.is_alone = not torch.is_grad_enabled() and self._no_other_hooks()
        return self._state.is_alone

    def _no_other_hooks(self) -> bool:
        if not hasattr(self._model, "cfg"):
            return False
        if self._tables is None:
            model: HookedModel = self._model
            self._tables = hook_tables(model)
        return sum(map(len, self._tables)) == self._hooks + self._observer.forward_hooks

    def _begin(self, call: Call) -> None:
        for each in self._actions:
            for name, given in (("start", each.start), ("alpha", each.strength)):
                if isinstance(given, Tensor):
                    _check_count(name, given.numel(), call)
        if self._strict is not None and call.sequences.spans:
            self._check_batch_of_our_own(call)
        self._state.call, self._state.is_alone = call, None
        if not self._warned and not call.is_announced and (reason := self._doubt(call)):
            self._warned = True
            warnings.warn(
                f"{reason} If this is not intended, pass `start=`, the first steered position.", UserWarning, stacklevel=2
            )

    def _check_batch_of_our_own(self, call: Call) -> None:
        """Refuse a start or strengths that were meant for another batch than psr_lens makes of the prompts."""
        for each in self._actions:
            several = isinstance(each.strength, Tensor) and each.strength.numel() > 1
            unlike = each.start is not None and any(
                least(columns) != most(columns) for columns in (call.sequences.firsts, call.sequences.ends)
            )
            if several or unlike:
                raise InputError(
                    "alpha" if several else "start",
                    "one per sequence" if several else f"a position for prompts of {call.rows} different lengths",
                    "one number in a block around functions that build their own batches" if several else "None",
                    "Give the replacement to the function instead.",
                )

    def _doubt(self, call: Call) -> str | None:
        """Why it may not be meant what a call outside of `generate` does; None if there is no reason."""
        default = any(each.start is None and each.span == "R" for each in self._actions)
        if call.past and default and call.length >= LONG and not call.sequences.unknown:
            return (
                f"All {call.length} tokens of a call behind a KV cache are steered, since the prompt counts as what was read into the "
                "empty cache."
            )
        if call.past != 0 or not call.is_whole:
            return None
        if default and (call.length >= LONG or self._grows(call)):
            return (
                f"Only the last token of each sequence is steered in a call with {call.length} tokens, since all of them count as the "
                "prompt."
            )
        if all(least(start_in(each, call)) >= call.length for each in self._actions):
            return f"Nothing is steered in a call with {call.length} tokens: each sequence ends before the first steered position."
        return None

    def _grows(self, call: Call) -> bool:
        """Whether a call repeats the tokens of the call before and adds some."""
        before, ids = self._state.ids, call.sequences.ids
        self._state.ids = ids
        if before is None or ids is None or len(before) != len(ids) or before.shape[1] >= ids.shape[1]:
            return False
        return torch.equal(before, ids[:, : before.shape[1]])


def _check_count(name: str, count: int, call: Call) -> None:
    repeated = call.sequences.generated and count == call.sequences.rows and call.rows % count == 0
    if count not in (1, call.rows) and not repeated:
        raise InputError(name, f"{count} numbers", f"one, or one for each of the {call.rows} sequences of a call")
