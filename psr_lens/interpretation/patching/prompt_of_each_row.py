"""Which known prompt is in each row of a batch, for hooks that treat prompts differently.

Hooks see activations, not tokens. `PromptRows` reads the token ids of each call of the model and matches them with known prompts, with
padding on either side, in any order, with or without a KV cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.models import Call, HookedModel, ModelCalls, observer_of


class _Read(threading.local):
    """What one thread's last call was, and the prompts of its rows."""

    call: Call | None = None
    numbers: list[int]
    starts: list[int]


class PromptRows:
    """Inside its `watch` block, the prompt of each row of this thread's current call, and where the row's tokens begin."""

    def __init__(self, prompts: Mapping[tuple[int, ...], int]) -> None:
        """Take the token ids of the known prompts, each with a number chosen by the caller."""
        self._known = dict(prompts)
        self._lengths = sorted({len(ids) for ids in self._known}, reverse=True)
        self._calls: ModelCalls | None = None
        self._read = _Read()

    @contextmanager
    def watch(self, model: HookedModel) -> Iterator[None]:
        """Read every call of the model inside a `with` block."""
        self._calls = observer_of(model)
        self._calls.start()
        try:
            yield
        finally:
            self._calls.stop()
            self._calls, self._read = None, _Read()

    @property
    def decoding(self) -> bool:
        """Whether the current call holds nothing but tokens after the prompts: one or more, behind a KV cache."""
        return self._call().first_column() > 0

    @property
    def length(self) -> int:
        """Number of positions so far, padding included."""
        call = self._call()
        return call.first_column() + call.length

    @property
    def numbers(self) -> list[int]:
        """The number of each row's prompt."""
        self._call()
        return self._read.numbers

    @property
    def starts(self) -> list[int]:
        """The position of each row's first token after any padding."""
        self._call()
        return self._read.starts

    def _call(self) -> Call:
        """The current call, with its prompts known."""
        call = None if self._calls is None else self._calls.current
        if call is None:
            raise _hidden("a call that cannot be seen")
        read = self._read
        if call is read.call:
            return call
        sequences = call.sequences
        if read.call is None or sequences is not read.call.sequences:
            if call.first_column() > 0:
                raise _hidden("a call behind a KV cache that was filled outside the block")
            ids, firsts = sequences.ids, sequences.firsts
            if ids is None:
                raise _hidden("a call whose token ids are hidden")
            read.starts = firsts.tolist() if isinstance(firsts, Tensor) else [firsts] * call.rows
            read.numbers = [self._number(row[start:]) for row, start in zip(ids.tolist(), read.starts, strict=True)]
        read.call = call
        return call

    def _number(self, ids: list[int]) -> int:
        for length in self._lengths:
            if (found := self._known.get(tuple(ids[:length]))) is not None and len(ids) >= length:
                return found
        raise InputError(
            "pairs",
            f"a call with a sequence of {len(ids)} tokens that does not begin with any of their prompts",
            "the pairs of every prompt that is read",
        )

    def index(self, columns: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Rows and positions, as an index into `[batch, position]`, of some columns of each row's prompt, given by prompt number."""
        at = [
            (row, start + column)
            for row, (number, start) in enumerate(zip(self.numbers, self.starts, strict=True))
            for column in columns[number]
        ]
        found = torch.tensor(at, dtype=torch.long, device=device).reshape(-1, 2)
        return found[:, 0], found[:, 1]


def _hidden(what: str) -> InputError:
    return InputError("model", what, "calls of the model itself", "Generate with `psr_lens.generate`.")
