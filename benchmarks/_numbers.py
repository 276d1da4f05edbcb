"""Files of numbers that are added to, cell by cell."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from _models import machine


def opened(file: Path, empty: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """The numbers that a file holds so far, or those of an empty one, and what saves them."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else copy.deepcopy(empty)

    def save() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    return content, save


def opened_for(file: Path, settings: dict[str, Any], rest: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """The same for numbers that were measured with some settings, which stand beside them.

    Raises:
        typer.BadParameter: the file's numbers were measured with others.
    """
    content, save = opened(file, settings | rest)
    if (held := {key: content.get(key) for key in settings}) != settings:
        raise typer.BadParameter(f"got {settings}, expected those of the file, {held}. Give another --json.")
    return content, save


def traits_of(content: dict[str, Any], model: str) -> dict[str, Any]:
    """The traits of a model, or of a pair of them, in the numbers."""
    return content["models"].setdefault(model, {"machine": machine(), "traits": {}})["traits"]  # type: ignore[no-any-return]


def scores_cell(found: dict[str, Any]) -> str:
    """Trait with its interval / coherence, or the share of repetition where there is none, for a table."""
    low, high = found["interval"]
    beside = f"{found['coherence']:.0f}" if "coherence" in found else f"{found['repeated']:.1f} %"
    return f"{found['trait']:.0f} [{low:.0f}, {high:.0f}] / {beside}"


def kl_cell(found: list[float] | None) -> str:
    """KL divergences by position, for a table."""
    return "–" if found is None else " / ".join(f"{value:.2g}" for value in found)
