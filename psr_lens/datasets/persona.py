"""Trait files of persona_vectors: contrasting system prompts, questions, and the prompt with which a language model judges the answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psr_lens.datasets._files import json_object, shown, text_field, text_of
from psr_lens.errors import InputError


@dataclass(frozen=True)
class Contrast:
    """Two instructions that ask for opposite things."""

    pos: str
    """Asks for the trait."""
    neg: str
    """Asks for its opposite."""


@dataclass(frozen=True)
class PersonaTrait:
    """One trait of persona_vectors (Chen et al. 2025, arXiv 2507.21509)."""

    name: str
    """The file's name without its ending."""
    instructions: tuple[Contrast, ...]
    """Paraphrases of the instruction, each with its opposite; five in the published files."""
    questions: tuple[str, ...]
    """Questions; twenty in the published files."""
    eval_prompt: str
    """Prompt of the judge, with `{question}` and `{answer}` in it; the reply is a number from 0 to 100, or REFUSAL."""
    rest: Mapping[str, Any]
    """All other fields of the file, as they are."""

    @property
    def positive(self) -> list[str]:
        """The instructions that ask for the trait: what `prompt_pairs` takes as paraphrases."""
        return [contrast.pos for contrast in self.instructions]

    def judge_prompt(self, question: str, answer: str) -> str:
        """The judge's prompt for one answer; braces in question and answer stay as they are."""
        filled = {"{question}": question, "{answer}": answer}
        return re.sub(r"\{question\}|\{answer\}", lambda place: filled[place.group()], self.eval_prompt)


def read_persona(path: str | Path) -> PersonaTrait:
    """Read `{"instruction": [{"pos": …, "neg": …}, …], "questions": […], "eval_prompt": …}`.

    Raises:
        InputError: no such file, no JSON, a field missing or of another form, or a judge's prompt without its two places.
    """
    path = Path(path)
    where = str(path)
    found = json_object(text_of(path, "persona"), where, "persona")
    contrasts = [_contrast(each, f"{where}, instruction[{place}]") for place, each in enumerate(_list(found, "instruction", where))]
    questions = _list(found, "questions", where)
    for place, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise InputError("persona", f"{where}: questions[{place}] is {shown(question)}", "a text with at least one word")
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
        raise InputError("persona", f"{where}: {name} is {got}", f"a list of at least one as {name}")
    return value


def _contrast(found: Any, where: str) -> Contrast:
    if not isinstance(found, dict) or set(found) != {"pos", "neg"}:
        raise InputError("persona", f"{where}: {shown(found)}", '{"pos": …, "neg": …}')
    return Contrast(text_field(found, "pos", where, "persona"), text_field(found, "neg", where, "persona"))
