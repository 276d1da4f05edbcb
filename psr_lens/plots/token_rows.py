"""Which rows and columns of a result a figure shows, and readable labels for tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from psr_lens._utils.numbers import is_whole
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison, MethodTrace
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.style import MUTED, escaped
from psr_lens.prompts import TokenTable
from psr_lens.prompts.token_text import readable_text

Word = Literal["read", "predicted"]
"""Which word stands for an activation: the token whose reading left it, or the next token, which is predicted from it."""

_WORDS: Final[dict[Word, str]] = {
    "read": "A token stands for the activation after it was read, which decides the next token.",
    "predicted": "A token stands for the activation that decided it, which comes from reading the token before.",
}


@runtime_checkable
class Tokened(Protocol):
    """A result whose rows are tokens, such as a `Comparison` or a `Captured`."""

    @property
    def tokens(self) -> TokenTable:
        """The token of each row."""


def rows_of(result: Tokened, triplet: int) -> Int[Tensor, " row"]:
    """Row numbers of one response's tokens, in reading order.

    Raises:
        InputError: there is no such response.
    """
    rows = result.tokens.rows(int(triplet)) if is_whole(triplet) else ()
    if len(rows) == 0:
        count = int(result.tokens.triplet.max()) + 1 if len(result.tokens) else 0
        raise InputError(
            "triplet",
            repr(triplet),
            f"0 to {count - 1}, one of the {count} responses" if count else "a result with at least one response",
        )
    return rows  # type: ignore[return-value]  # empty tuples were refused


def rows_and_words(result: Tokened, triplet: int, word: Word) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Row numbers of one response's activations, and of the tokens that stand for them.

    What the last token of a response decides was not read, so `predicted` has one row less.

    Raises:
        InputError: there is no such response.
    """
    rows = rows_of(result, triplet)
    return (rows, rows) if word == "read" else (rows[:-1], rows[1:])


def word_note(word: Word) -> str:
    """What a token stands for, for the note below a figure."""
    return _WORDS[word]


def trace_of(result: Comparison, method: str, argument: str = "method") -> MethodTrace:
    """The trace of one replacement.

    Raises:
        InputError: no replacement has that name.
    """
    if method not in result.methods:
        names = ", ".join(repr(name) for name in result.methods)
        remedy = "The prompt is always shown." if method == PROMPT else ""
        raise InputError(argument, repr(method), f"one of {names}", remedy)
    return result.methods[method]


def trace_with_sites(result: Comparison, method: str) -> MethodTrace:
    """The trace of one replacement, which acts along directions.

    Raises:
        InputError: no replacement has that name, or it is an adapter, which changes weights.
    """
    trace = trace_of(result, method)
    if not trace.site_layers:
        raise InputError("method", repr(method), "a replacement or a plan", "An adapter changes weights, and has no coefficients.")
    return trace


def traces_of(result: Comparison, methods: Sequence[str] | None) -> dict[str, MethodTrace]:
    """The named replacements, or all of them.

    Raises:
        InputError: no replacement has one of the names.
    """
    if isinstance(methods, str):
        raise InputError("methods", f"the text {methods!r}", "a list of names", f"Write [{methods!r}].")
    names = result.methods if methods is None else methods
    return {name: trace_of(result, name, "methods") for name in names}


def row_labels(result: Tokened, rows: Int[Tensor, " row"], width: int = 14) -> list[str]:
    """One label per token with its position in the response; tokens of the prompt are marked."""
    texts = readable_text([result.tokens.strings[row] for row in rows.tolist()], result.tokens.strings)
    labels = []
    for text, position in zip(texts, result.tokens.position[rows].tolist(), strict=True):
        shown = escaped(shortened(text, width))
        if position < 0:
            shown = f'<span style="color:{MUTED}">prompt:</span> <i>{shown}</i>'
        labels.append(f'{shown} <span style="color:{MUTED}">{signed(position)}</span>')
    return labels


def signed(number: int) -> str:
    """A whole number with a typographic minus sign."""
    return str(number).replace("-", "−")
