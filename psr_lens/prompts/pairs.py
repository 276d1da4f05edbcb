"""One question in two prompts, without and with an instruction, and how it shows itself before anything costly runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

from psr_lens.errors import InputError
from psr_lens.prompts.chat_templates import ChatSettings, Turn
from psr_lens.prompts.view import PromptView, prompt_view

Span = Literal["R", "QR"]
"""Where steering acts: `R`, the last prompt token and every response token; `QR`, the user's question too."""

Context = Literal["base", "prompted"]
"""Which prompt a response is read after: without (`x`) or with the instruction (`x'`)."""


@dataclass(frozen=True)
class PromptPair:
    """One question without and with the instruction, as token ids."""

    question: str
    """The user's question; of a conversation the last message."""
    instruction: str
    """What the prompted context adds."""
    base_ids: tuple[int, ...]
    """Token ids of the base prompt `x`, up to where the response begins."""
    prompted_ids: tuple[int, ...]
    """Token ids of the prompted context `x'`."""
    question_length: int
    """How many tokens at the end of both prompts are the same, from the question's first token on."""
    earlier: tuple[Turn, ...] = ()
    """Role and content of the messages before the question, where it ends a conversation."""
    chat: ChatSettings = ChatSettings()  # noqa: RUF009 (frozen)
    """How both prompts were put together."""

    @property
    def asked(self) -> str:
        """What a judge is told was asked: the question, or the whole conversation, a line a message."""
        if not self.earlier:
            return self.question
        return "\n".join(f"{role}: {content}" for role, content in (*self.earlier, ("user", self.question)))

    def ids(self, context: Context) -> tuple[int, ...]:
        """The prompt's token ids in one context."""
        return self.base_ids if context == "base" else self.prompted_ids

    def span_length(self, span: Span) -> int:
        """How many of the prompt's last tokens a span takes in."""
        if span not in get_args(Span):
            raise InputError("span", repr(span), "'R' or 'QR'")
        return 1 if span == "R" else self.question_length


@dataclass(frozen=True, eq=False, repr=False)
class PromptPairs(Sequence[PromptPair]):
    """Prompt pairs as a sequence that can show itself; equal to any list of the same pairs."""

    pairs: tuple[PromptPair, ...]
    """The pairs."""
    tokenizer: Any = None
    """What tells the tokens' texts; None where nothing was tokenised here."""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> PromptPairs: ...
    def __getitem__(self, index: int | slice) -> PromptPair | PromptPairs:
        """One pair, or a part of them."""
        return PromptPairs(self.pairs[index], self.tokenizer) if isinstance(index, slice) else self.pairs[index]

    def __add__(self, other: Iterable[PromptPair]) -> PromptPairs:
        """These pairs and others behind them."""
        return PromptPairs((*self.pairs, *other), self.tokenizer or getattr(other, "tokenizer", None))

    def __radd__(self, other: Iterable[PromptPair]) -> PromptPairs:
        """Other pairs and these behind them."""
        return PromptPairs((*other, *self.pairs), self.tokenizer)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a sequence of the same pairs."""
        return isinstance(other, PromptPairs | list | tuple) and self.pairs == tuple(other)

    def __hash__(self) -> int:
        """That of the pairs."""
        return hash(self.pairs)

    def __repr__(self) -> str:
        """How many there are."""
        return f"PromptPairs({len(self)} pairs; `.show()` shows one with its spans)"

    def _repr_html_(self) -> str:
        return self.show()._repr_html_() if self.pairs and self.tokenizer is not None else f"<p>{len(self)} prompt pairs</p>"

    def show(self, index: int = 0, span: Span = "R") -> PromptView:
        """One pair's prompts as coloured text: the instruction, the question, and the tokens that `span` takes in.

        Args:
            index: Which pair.
            span: `"R"` or `"QR"`.

        Returns:
            An object that a notebook shows as HTML and `print` as text.

        Raises:
            InputError: there is no such pair, or nothing to tell the tokens' texts.
        """
        return shown(self.tokenizer, self.pairs, index, span)


def shown(tokenizer: Any, pairs: Sequence[PromptPair], index: int, span: Span, response_ids: Sequence[int] = ()) -> PromptView:
    """See `PromptPairs.show`; with the tokens of a response behind both prompts, if there is one."""
    if not -len(pairs) <= index < len(pairs):
        raise InputError("index", index, f"0 to {len(pairs) - 1}" if pairs else "at least one pair to show")
    if tokenizer is None:
        raise InputError("tokenizer", None, "what tells the tokens' texts", "Show the pairs that `prompt_pairs` returned.")
    pair = pairs[index]
    return prompt_view(
        tokenizer,
        {"base": pair.base_ids, "prompted": pair.prompted_ids},
        response_ids,
        question=pair.question,
        instruction=pair.instruction,
        prefix=pair.chat.prefix,
        question_length=pair.question_length,
        span=span,
        span_length=pair.span_length(span),
        caption=f"pair {index % len(pairs)} of {len(pairs)}",
    )


def check_pairs(pairs: object, *, may_be_empty: bool = False) -> None:
    """Refuse what is not a list of prompt pairs.

    Args:
        pairs: What was given as `pairs`.
        may_be_empty: Whether a list without pairs is allowed.

    Raises:
        InputError: `pairs` is not a list of prompt pairs, or an empty one.
    """
    expected = "a list of prompt pairs"
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        remedy = (
            "Put it in brackets." if isinstance(pairs, PromptPair) else "`prompt_pairs` makes them; the model goes before them."
        )
        raise InputError("pairs", type(pairs).__name__, expected, remedy)
    if not pairs and not may_be_empty:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, PromptPair):
            of_triplets = isinstance(getattr(pair, "pair", None), PromptPair)
            remedy = "The pair of a triplet is `triplet.pair`." if of_triplets else "`prompt_pairs` makes them of questions."
            raise InputError(f"pairs[{index}]", type(pair).__name__, "a PromptPair", remedy)
