"""One question in two prompts, without and with an instruction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from psr_lens._utils.arguments import fits
from psr_lens._utils.html_table import table
from psr_lens._utils.short_text import quoted
from psr_lens.errors import InputError
from psr_lens.prompts.chat_templates import ChatSettings, Turn

Span = Literal["R", "QR"]
"""Which tokens are steered: `R`, the last prompt token and every response token; `QR`, the tokens from the question on as well."""

Context = Literal["base", "prompted"]
"""Which prompt a response is read after: the one without the instruction (`x`) or the one with it (`x'`)."""


@dataclass(frozen=True, repr=False)
class PromptPair:
    """One question without and with the instruction, as token ids; made by `prompt_pairs`.

    Example:
        >>> pairs[0].question, pairs[0].instruction
        ('hello , what is the way to clean a room ?', 'talk like a pirate')
        >>> len(pairs[0].base_ids), len(pairs[0].prompted_ids)
        (15, 21)
    """

    question: str
    """The user's question; in a conversation, the last message."""
    instruction: str
    """What the prompt with the instruction adds."""
    base_ids: tuple[int, ...]
    """Token ids of the base prompt `x`, up to where the response begins."""
    prompted_ids: tuple[int, ...]
    """Token ids of the prompt with the instruction, `x'`."""
    question_length: int
    """Number of tokens that both prompts share at their ends, from the question's first token on."""
    earlier: tuple[Turn, ...] = ()
    """Role and content of the messages before the question, if it ends a conversation."""
    chat: ChatSettings = ChatSettings()  # noqa: RUF009 (frozen)
    """How both prompts were put together."""
    thought_ids: tuple[int, ...] = ()
    """Token ids of the model's own thought, which ends both prompts (see `think`). They are never re-tokenised from text."""

    @property
    def asked(self) -> str:
        """What a judge sees as the question: the question itself, or the whole conversation with one message per line."""
        if not self.earlier:
            return self.question
        return "\n".join(f"{role}: {content}" for role, content in (*self.earlier, ("user", self.question)))

    def ids(self, context: Context) -> tuple[int, ...]:
        """The prompt's token ids in one context.

        Raises:
            InputError: `context` is neither `"base"` nor `"prompted"`.

        Example:
            >>> pairs[0].ids("prompted") == pairs[0].prompted_ids
            True
        """
        if not fits(context, Context):
            raise InputError("context", repr(context), "'base' or 'prompted'")
        return self.base_ids if context == "base" else self.prompted_ids

    def span_length(self, span: Span) -> int:
        """Number of prompt tokens in a span; they are the last ones of the prompt.

        Raises:
            InputError: `span` is neither `"R"` nor `"QR"`.

        Example:
            >>> pairs[0].span_length("R"), pairs[0].span_length("QR")
            (1, 13)
        """
        if not fits(span, Span):
            raise InputError("span", repr(span), "'R' or 'QR'")
        return 1 if span == "R" else self.question_length

    def __repr__(self) -> str:
        """Question, instruction and lengths, on one line."""
        lengths = f"{len(self.base_ids)} base and {len(self.prompted_ids)} prompted tokens"
        return f"PromptPair({quoted(self.question)}, instruction={quoted(self.instruction)}, {lengths})"

    def _repr_html_(self) -> str:
        rows = [("question", self.asked), ("instruction", self.instruction)]
        rows += [("base tokens", str(len(self.base_ids))), ("prompted tokens", str(len(self.prompted_ids)))]
        return table(("prompt pair", ""), rows)


def instruction_label(pairs: Iterable[PromptPair]) -> str:
    """The instruction that pairs share; of several, the first and how many others there are."""
    first, *others = dict.fromkeys(pair.instruction for pair in pairs)
    return f"{first} (and {len(others)} other{'s' if len(others) > 1 else ''})" if others else first
