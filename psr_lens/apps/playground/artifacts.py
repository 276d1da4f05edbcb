"""Artifacts that a command was given: their names as columns, the instruction they learned, and the Python that loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Method, parts_of
from psr_lens.models.sources import EMBEDDED
from psr_lens.replacement import InWeights


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the names of their columns: those of the folders, with a number where two are the same.

    Raises:
        InputError: a folder does not exist.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError("artifacts", str(folder), "a folder that `Replacement.save` wrote")
        name = first = folder.resolve().name
        number = 2
        while name in found or name in (NONE, PROMPT):
            name, number = f"{first} {number}", number + 1
        found[name] = folder
    return found


def instruction_of(methods: Mapping[str, Method]) -> str:
    """The first instruction that is written in the settings of an artifact, where they are sorted.

    Raises:
        InputError: none has any.
    """
    for method in methods.values():
        records: list[Mapping[str, Any]] = [part.replacement.settings for part in parts_of(method)]
        if isinstance(method, InWeights):
            records.append(method.settings)
        for settings in records:
            texts = settings.get("instructions")
            if isinstance(texts, list | tuple) and texts and isinstance(texts[0], str):
                return texts[0]
    raise InputError("instruction", None, "a text, since no artifact records one", "Pass `--instruction`.")


def model_of(methods: Mapping[str, Method]) -> str:
    """Name of the model that the first artifact was made for.

    Raises:
        InputError: it does not say.
    """
    first = next(iter(methods.values()))
    made_for = first.model if isinstance(first, InWeights) else parts_of(first)[0].replacement.model
    name = made_for.get("model_name")
    if not isinstance(name, str) or not name:
        raise InputError("model", None, "a model, since the artifact does not name its own", "Pass `--model`.")
    return name


def question_for(model: str) -> str:
    """A question to begin with; the shipped models know few words."""
    return "what is a bear ?" if model in EMBEDDED else "What is a good way to spend a rainy day?"


def python_for(folders: Mapping[str, Path], methods: Mapping[str, Method]) -> dict[str, str]:
    """Python that loads each artifact, by its name."""
    return {name: f"psr.{type(methods[name]).__name__}.load({str(folder)!r})" for name, folder in folders.items()}
