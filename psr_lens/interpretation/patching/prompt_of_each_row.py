"""Which known prompt is in each row of a batch, for hooks that treat prompts differently.

Hooks see activations, not tokens. `PromptRows` reads the token ids of each call of the model and matches them with known prompts, with
padding on either side, in any order, with or without a KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.models import HookedModel, called_module, hooked
from psr_lens.replacement import FIRST_POINT


class PromptRows:
    """Inside its `watch` block, the prompt of each row of the current call, and where the row's tokens begin."""

    def __init__(self, prompts: Mapping[tuple[int, ...], int]) -> None:
        """Take the token ids of the known prompts, each with a number chosen by the caller."""
        self._known = dict(prompts)
        self._lengths = sorted({len(ids) for ids in self._known}, reverse=True)
        self._noted = False
        self.decoding = False
        """Whether the current call is a decode step: a single token after a prompt."""
        self.length = 0
        """Number of positions so far, padding included."""
        self.numbers: list[int] = []
        """The number of each row's prompt."""
        self.starts: list[int] = []
        """The position of each row's first token after any padding."""

    @contextmanager
    def watch(self, model: HookedModel) -> Iterator[None]:
        """Record every call of the model inside a `with` block."""
        handle = called_module(model).register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            with hooked(model, [(FIRST_POINT, self._check)]):
                yield
        finally:
            handle.remove()

    def _note(self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = next((each for each in (*arguments, named.get("input"), named.get("input_ids")) if each is not None), None)
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 2:
            raise InputError("model", f"a call with {type(tokens).__name__}", "token ids, [batch, position]")
        self._noted = True
        self.decoding = tokens.shape[1] == 1 and len(tokens) == len(self.numbers)
        if self.decoding:
            self.length += 1
            return
        mask = named.get("attention_mask")
        if mask is None or mask.shape != tokens.shape:
            mask = torch.ones_like(tokens)
        self.length = tokens.shape[1]
        self.starts = mask.argmax(1).tolist()
        self.numbers = [self._number(tokens[row][mask[row].bool()].tolist()) for row in range(len(tokens))]

    def _number(self, ids: list[int]) -> int:
        for length in self._lengths:
            if (found := self._known.get(tuple(ids[:length]))) is not None and len(ids) >= length:
                return found
        raise InputError(
            "pairs",
            f"a call with a sequence of {len(ids)} tokens that begins with none of their prompts",
            "the pairs of every prompt that is read",
        )

    def _check(self, activation: Tensor, hook: Any) -> None:
        if not self._noted:
            raise InputError(
                "model",
                "a call whose token ids are hidden",
                "calls of the model itself",
                "Generate with `psr_lens.generate`.",
            )
        self._noted = False

    def index(self, columns: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Rows and positions, as an index into `[batch, position]`, of some columns of each row's prompt, given by prompt number."""
        at = [
            (row, start + column)
            for row, (number, start) in enumerate(zip(self.numbers, self.starts, strict=True))
            for column in columns[number]
        ]
        found = torch.tensor(at, dtype=torch.long, device=device).reshape(-1, 2)
        return found[:, 0], found[:, 1]
