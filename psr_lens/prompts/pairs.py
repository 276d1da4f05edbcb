"""A sequence of prompt pairs that can show which tokens are steered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, overload

from psr_lens._utils.arguments import CHECKS, checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError
from psr_lens.prompts.prompt_pair import PromptPair, Span
from psr_lens.prompts.prompt_view import PromptView, prompt_view


@dataclass(frozen=True, eq=False, repr=False)
class PromptPairs(Sequence[PromptPair]):
    """A sequence of prompt pairs that can show itself; equal to any list or tuple of the same pairs.

    Example:
        >>> pairs
        PromptPairs(16 pairs; `.show()` shows one with its spans)
        >>> len(pairs[:4] + pairs[8:])
        12
    """

    pairs: tuple[PromptPair, ...]
    """The pairs."""
    tokenizer: Any = None
    """The tokenizer that gives the tokens' texts; None if there is none."""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> PromptPairs: ...
    def __getitem__(self, index: int | slice) -> PromptPair | PromptPairs:
        """One pair, or a slice of them."""
        return PromptPairs(self.pairs[index], self.tokenizer) if isinstance(index, slice) else self.pairs[index]

    def __add__(self, other: Iterable[PromptPair]) -> PromptPairs:
        """These pairs followed by others."""
        return PromptPairs((*self.pairs, *other), self.tokenizer or getattr(other, "tokenizer", None))

    def __radd__(self, other: Iterable[PromptPair]) -> PromptPairs:
        """Other pairs followed by these."""
        return PromptPairs((*other, *self.pairs), self.tokenizer)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a sequence of the same pairs."""
        return isinstance(other, PromptPairs | list | tuple) and self.pairs == tuple(other)

    def __hash__(self) -> int:
        """The hash of the pairs."""
        return hash(self.pairs)

    def __repr__(self) -> str:
        """How many there are."""
        return f"PromptPairs({counted(len(self), 'pair')}; `.show()` shows one with its spans)"

    def _repr_html_(self) -> str:
        return self.show()._repr_html_() if self.pairs and self.tokenizer is not None else f"<p>{len(self)} prompt pairs</p>"

    @checks_arguments
    def show(self, index: int = 0, span: Span = "R") -> PromptView:
        """Show one pair's prompts as coloured text: the instruction, the question, and the tokens in `span`.

        Args:
            index: Which pair.
            span: `"R"` or `"QR"`.

        Returns:
            A view that a notebook shows as HTML and `print` as text.

        Raises:
            InputError: there is no such pair, or no tokenizer to give the tokens' texts.

        Example:
            >>> view = pairs.show(0, span="QR")
            >>> view
            PromptView(pair 0 of 16, span QR; `print` shows it)
            >>> sum(token.steered for token in view.rows["base"])
            13
        """
        return shown(self.tokenizer, self.pairs, index, span)


def shown(tokenizer: Any, pairs: Sequence[PromptPair], index: int, span: Span, response_ids: Sequence[int] = ()) -> PromptView:
    """See `PromptPairs.show`; a response's tokens, if there are any, follow both prompts."""
    given: object = index
    if not isinstance(given, Integral) or not -len(pairs) <= index < len(pairs):
        raise InputError("index", repr(index), f"0 to {len(pairs) - 1}" if pairs else "at least one pair to show")
    if tokenizer is None:
        raise InputError("tokenizer", None, "a tokenizer to give the tokens' texts", "Show the pairs that `prompt_pairs` returned.")
    return prompt_view(tokenizer, pairs[index], span, response_ids, f"pair {index % len(pairs)} of {len(pairs)}")


def check_pairs(pairs: object, argument: str = "pairs", *, may_be_empty: bool = False) -> None:
    """Refuse what is not a list of prompt pairs.

    Args:
        pairs: What was given.
        argument: What the error calls it.
        may_be_empty: Whether a list without pairs is allowed.

    Raises:
        InputError: `pairs` is not a list of prompt pairs, or is empty.
    """
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        remedy = (
            "Put it in brackets." if isinstance(pairs, PromptPair) else "`prompt_pairs` makes them; the model goes before them."
        )
        raise InputError(argument, type(pairs).__name__, "a list of prompt pairs", remedy)
    if not pairs and not may_be_empty:
        raise InputError(argument, "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, PromptPair):
            of_triplets = isinstance(getattr(pair, "pair", None), PromptPair)
            remedy = "The pair of a triplet is `triplet.pair`." if of_triplets else "`prompt_pairs` makes them of questions."
            raise InputError(f"{argument}[{index}]", type(pair).__name__, "a PromptPair", remedy)
        if not pair.base_ids or not pair.prompted_ids:
            which = "base" if not pair.base_ids else "prompted"
            raise InputError(
                f"{argument}[{index}].{which}_ids", "no tokens", "at least one token", "`prompt_pairs` makes pairs of questions."
            )


CHECKS[Sequence[PromptPair]] = partial(check_pairs, may_be_empty=True)
