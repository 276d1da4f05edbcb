"""Prompt templates with the placeholders {question} and {answer}."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter
from typing import Final

from psr_lens.errors import InputError

COHERENCE_PROMPT: Final = """\
Rate how coherent an answer is. Whether it is friendly, polite, right or in an unusual style does not matter.

Question:
<question>
{question}
</question>

Answer:
<answer>
{answer}
</answer>

An answer is coherent if its sentences are well formed, if they follow from one another without contradicting or repeating themselves, and \
if it is about the question. Declining to answer in clear words is coherent. 0 is text that cannot be understood or has nothing to do with \
the question, 50 is text that can be followed with effort, 100 is text without any such fault.

Reply with one whole number from 0 to 100 and nothing else."""
"""The default prompt for coherence."""

_PLACEHOLDER: Final = re.compile(r"\{(question|answer)\}")
_NAMES: Final = frozenset({"question", "answer"})


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with placeholders for the question and the answer.

    Braces other than those of {question} and {answer} are literal, so a template may show an example in JSON. A template that is valid
    for `str.format`, with doubled braces and no other placeholders, is read as `str.format` would read it.
    """

    pieces: tuple[str, ...]
    """Literal texts with the placeholders' names between them: text, name, text, …, text."""

    @classmethod
    def of(cls, argument: str, template: object) -> PromptTemplate:
        """Read a template.

        Args:
            argument: The argument that the error names.
            template: The template.

        Raises:
            InputError: the template is not a string, or lacks {answer}.
        """
        if not isinstance(template, str):
            raise InputError(argument, type(template).__name__, "a text with {answer} and optionally {question}")
        pieces = _PLACEHOLDER.split(template)
        if "answer" not in pieces[1::2]:
            raise InputError(
                argument,
                "a template without {answer}",
                "a text with {answer} and optionally {question}",
                "Write {answer} where the text to be judged goes.",
            )
        if _is_format_string(template):
            pieces[::2] = [piece.replace("{{", "{").replace("}}", "}") for piece in pieces[::2]]
        return cls(tuple(pieces))

    def fill(self, question: str, answer: str) -> str:
        """The prompt for one answer; placeholders within the question or the answer are not filled."""
        values = {"question": question, "answer": answer}
        return "".join(values[piece] if index % 2 else piece for index, piece in enumerate(self.pieces))


def _is_format_string(template: str) -> bool:
    try:
        fields = list(Formatter().parse(template))
    except ValueError:
        return False
    return all(name is None or (name in _NAMES and not spec and not conversion) for _, name, spec, conversion in fields)
