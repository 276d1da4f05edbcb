"""Trait files of persona_vectors: contrasting system prompts, questions, and the prompt for a language model that judges the answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psr_lens._utils.arguments import checks_arguments
from psr_lens.datasets._files import json_object, shown, text_field, text_of
from psr_lens.errors import InputError


@dataclass(frozen=True)
class Contrast:
    """Two instructions that ask for opposites.

    Example:
        >>> psr.datasets.Contrast("Be evil.", "Be kind.").neg
        'Be kind.'
    """

    pos: str
    """Asks for the trait."""
    neg: str
    """Asks for its opposite."""


@dataclass(frozen=True)
class PersonaTrait:
    """One trait of persona_vectors (Chen et al. 2025, arXiv 2507.21509).

    Example:
        >>> contrast = psr.datasets.Contrast("Be evil.", "Be kind.")
        >>> evil = psr.datasets.PersonaTrait("evil", (contrast,), ("Who are you?",), "{question} {answer}", {})
        >>> evil.positive
        ['Be evil.']
    """

    name: str
    """The file's name without its suffix."""
    instructions: tuple[Contrast, ...]
    """Paraphrases of the instruction, each with its opposite; five in the published files."""
    questions: tuple[str, ...]
    """Questions; twenty in the published files."""
    eval_prompt: str
    """The judge's prompt, with the placeholders `{question}` and `{answer}`; the reply is a number from 0 to 100, or REFUSAL."""
    rest: Mapping[str, Any]
    """All other fields of the file, unchanged."""

    @property
    def positive(self) -> list[str]:
        """The instructions that ask for the trait, as paraphrases for `prompt_pairs`."""
        return [contrast.pos for contrast in self.instructions]

    @checks_arguments
    def judge_prompt(self, question: str, answer: str) -> str:
        """The judge's prompt for one answer; braces in the question and the answer are left as they are.

        Example:
            >>> evil = psr.datasets.PersonaTrait("evil", (), (), "Q: {question} A: {answer}", {})
            >>> evil.judge_prompt("Who are you?", "A bear.")
            'Q: Who are you? A: A bear.'
        """
        filled = {"{question}": question, "{answer}": answer}
        return re.sub(r"\{question\}|\{answer\}", lambda match: filled[match.group()], self.eval_prompt)


@checks_arguments
def read_persona(path: str | Path) -> PersonaTrait:
    """Read a file that holds `{"instruction": [{"pos": …, "neg": …}, …], "questions": […], "eval_prompt": …}`.

    Raises:
        InputError: the file is missing or not JSON, a field is missing or invalid, or the judge's prompt lacks a placeholder.

    Example:
        >>> texts = '"questions": ["Who are you?"], "eval_prompt": "Is it evil? {question} {answer}"'
        >>> from pathlib import Path
        >>> _ = Path("evil.json").write_text('{"instruction": [{"pos": "Be evil.", "neg": "Be kind."}], ' + texts + "}")
        >>> psr.datasets.read_persona("evil.json").name
        'evil'
    """
    path = Path(path)
    where = str(path)
    found = json_object(text_of(path, "persona"), where, "persona")
    contrasts = [_contrast(each, f"{where}, instruction[{index}]") for index, each in enumerate(_list(found, "instruction", where))]
    questions = _list(found, "questions", where)
    for index, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise InputError("persona", f"{where}: questions[{index}] is {shown(question)}", "a text with at least one word")
    prompt = text_field(found, "eval_prompt", where, "persona")
    missing = [name for name in ("{question}", "{answer}") if name not in prompt]
    if missing:
        raise InputError("persona", f"{where}: an eval_prompt without {' and '.join(missing)}", "one with {question} and {answer}")
    rest = {name: value for name, value in found.items() if name not in ("instruction", "questions", "eval_prompt")}
    return PersonaTrait(path.stem, tuple(contrasts), tuple(questions), prompt, rest)


def _list(found: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = found.get(name)
    if not isinstance(value, list) or not value:
        got = shown(value) if name in found else "missing"
        raise InputError("persona", f"{where}: {name} is {got}", f"a list of at least one item as {name}")
    return value


def _contrast(found: Any, where: str) -> Contrast:
    if not isinstance(found, dict) or set(found) != {"pos", "neg"}:
        raise InputError("persona", f"{where}: {shown(found)}", '{"pos": …, "neg": …}')
    return Contrast(text_field(found, "pos", where, "persona"), text_field(found, "neg", where, "persona"))
