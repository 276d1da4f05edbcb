"""Which positions of its sequences a call of a model holds, and where their prompts begin and end: facts, never guessed.

Positions are columns: they are counted from the left, with padding and cached tokens. `observed_calls.py` makes these records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from psr_lens.errors import InputError

Columns = int | Int[Tensor, " _"]
"""One column for all rows, or one per row, on the CPU."""

_FIRST_STEERED: Final = "the first steered position, counted from the left with padding and cached tokens"


@dataclass(eq=False)
class Sequences:
    """Sequences that a call begins and later calls may continue. What needs a look at the device is found out when it is asked for."""

    rows: int
    """Number of sequences, before beams and several answers to one prompt multiply them."""
    width: int
    """Number of columns of the prompts."""
    _: KW_ONLY
    ids: Tensor | None = None
    """Token ids of the prompts, `[row, column]`, if they are known."""
    mask: Any = None
    """Attention mask: `[row, column]`, `[row, 1, query, column]`, or several by kind of layer; None if there is none."""
    padding: Padding | None = None
    """The token that pads."""
    lengths: Sequence[int] | None = None
    """Number of tokens of each row, if the rows are padded on the right and the lengths known."""
    known_ends: Columns | None = None
    """The column of each prompt's last token, if it is known before a look at ids and mask."""
    unknown: str = ""
    """Why it cannot be known where the prompts end; empty if it can."""
    generated: bool = False
    """Whether a `generate` was given these prompts."""
    numbers: Tensor | None = None
    """Position ids, `[row or 1, column]`, if they were given."""
    spans: Mapping[str, Int[Tensor, " row"]] = field(default_factory=dict, init=False)
    """First column of each span in each row, where the caller has said so."""

    def also(self, ids: Tensor | None, mask: Tensor | None) -> None:
        """Add what the first call shows, unless it was known before."""
        self.ids = ids if self.ids is None else self.ids
        self.mask = mask if self.mask is None else self.mask

    @cached_property
    def ends(self) -> Columns:
        """The column of each prompt's last token.

        Raises:
            InputError: it cannot be known.
        """
        if self.known_ends is not None:
            return self.known_ends
        self._check_one_text_a_row()
        return self._found_ends()

    @cached_property
    def firsts(self) -> Columns:
        """The column of each row's first token after any padding.

        Raises:
            InputError: it cannot be known.
        """
        self._check_one_text_a_row()
        return self._found_firsts()

    def _check_one_text_a_row(self) -> None:
        """Refuse several texts packed into one row, seen by position ids that do not increase: each text would need its own start."""
        numbers = self.numbers
        if numbers is None or numbers.ndim != 2 or numbers.shape[1] != self.width:
            return
        is_token = torch.ones_like(numbers, dtype=torch.bool)
        if isinstance(self.mask, Tensor) and self.mask.shape == (self.rows, self.width):
            is_token = self.mask != 0
        elif (pads := None if self.padding is None else self.padding.of(self.ids)) is not None:
            is_token = ~pads
        if bool(((numbers.diff(dim=1) <= 0) & is_token[:, 1:] & is_token[:, :-1]).any()):
            raise InputError(
                "position_ids",
                "ids that do not increase along the sequence, as if several texts were packed into one row",
                "one text in each row",
                "Give each text a row of its own, or pass `start=`.",
            )

    def _found_ends(self) -> Columns:
        if self.unknown:
            raise start_needed(self.unknown)
        if self.lengths is not None:
            return _compact(torch.tensor(self.lengths) - 1)
        seen = _real_columns(self.mask)
        if seen is not None:
            return _compact(seen.shape[1] - 1 - seen.flip(1).int().argmax(1))
        if self.mask is not None and self.rows > 1:
            raise start_needed(f"a call with an attention mask of type {type(self.mask).__name__}, which cannot be read")
        pads = None if self.padding is None else self.padding.of(self.ids)
        if pads is None:
            return self.width - 1
        trailing = pads.flip(1).int().cumprod(1).sum(1)
        if self.padding is not None and self.padding.is_ambiguous:
            if self.generated or self.rows == 1 or not bool(trailing.any()):
                return self.width - 1
            raise start_needed(
                f"rows that end in token {self.padding.token}, which pads and also begins or ends texts, without an attention mask"
            )
        return _compact(self.width - 1 - trailing.clamp(max=self.width - 1))

    def _found_firsts(self) -> Columns:
        if self.lengths is not None:
            return 0
        seen = _real_columns(self.mask)
        if seen is not None:
            return _compact(seen.int().argmax(1))
        if self.mask is not None and (self.unknown or self.rows > 1):
            raise start_needed(f"a call with an attention mask of type {type(self.mask).__name__}, which cannot be read")
        pads = None if self.padding is None else self.padding.of(self.ids)
        if pads is None:  # without a mask, the model itself takes every column for a token
            return 0
        leading = pads.int().cumprod(1).sum(1)
        if self.padding is not None and self.padding.is_ambiguous:
            if bool((leading == leading[0]).all()) and int(leading[0]) <= 1:
                return 0
            raise start_needed(
                f"rows that begin with token {self.padding.token}, which pads and also begins or ends texts, without an attention mask"
            )
        return _compact(leading.clamp(max=self.width - 1))


@dataclass(frozen=True)
class Padding:
    """The token that pads, as far as the model and its tokenizer say."""

    token: int
    """Its id."""
    is_ambiguous: bool
    """Whether it also begins or ends texts."""

    def of(self, ids: Tensor | None) -> Bool[Tensor, "row column"] | None:
        """Where it is; None where token ids are not known."""
        return None if ids is None or ids.ndim != 2 or ids.is_floating_point() else ids == self.token


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call of a model."""

    sequences: Sequences
    """What it reads or continues; one object for all calls that continue the same sequences."""
    past: int | None
    """Number of columns before its own, in the cache; None if the cache does not say."""
    rows: int
    """Number of sequences, with beams."""
    length: int
    """Number of columns of its own."""
    is_whole: bool
    """Whether it was given no cache: it reads its sequences from their beginning, and no call continues it."""
    is_announced: bool
    """Whether a `generate`, or psr_lens itself, has said where the prompts are."""

    def first_column(self) -> int:
        """`past`, if it is known.

        Raises:
            InputError: the length of the cache is unknown.
        """
        if self.past is None:
            raise InputError(
                "model",
                "a call behind a cache whose length is unknown and that was filled elsewhere",
                "a cache that was filled inside the block",
                "Read the prompt inside the block too.",
            )
        return self.past


def start_needed(reason: str) -> InputError:
    """The error where the position of the prompt's end is needed and cannot be known."""
    return InputError("start", f"None for {reason}", _FIRST_STEERED, "Pass `start=`, one position or one for each row.")


def cached_elsewhere(past: int | None) -> str:
    """Why the prompts' ends are not known behind a cache that no observed call filled."""
    held = "tokens" if past is None else f"{past} tokens"
    return f"a call behind {held} in a cache that was filled elsewhere or cut back into the prompt"


def _compact(columns: Tensor) -> Columns:
    """One number if it is the same for all rows."""
    here = columns.cpu()
    return int(here[0]) if bool((here == here[0]).all()) else here


def _real_columns(mask: Any) -> Bool[Tensor, "row column"] | None:
    """Which columns hold a token, as the last query of each row sees them; None if the mask does not say."""
    if isinstance(mask, Mapping):  # one mask for each kind of layer; only full attention sees the beginning
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    last = mask if mask.ndim == 2 else mask[:, 0, -1]
    if mask.ndim == 4 and last.is_floating_point():  # added to the scores: 0 where a key is seen
        return last > torch.finfo(last.dtype).min / 2
    return last != 0
