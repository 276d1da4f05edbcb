"""The text of a comparison's section: its summary, the table of methods, and the settings to reproduce it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.sequences import ranges
from psr_lens.evaluation.comparison import Comparison, MethodTrace
from psr_lens.evaluation.distance import Distance
from psr_lens.evaluation.methods import NONE, PARAPHRASE, PROMPT
from psr_lens.evaluation.scores import Scores
from psr_lens.models.hook_points import point_of
from psr_lens.plots.style import PALETTE, method_styles, shown_name
from psr_lens.results.bootstrap import Interval

_ABSENT: Final = "–"
LEAST_CHANGE: Final = 0.1
"""Natural logarithm of the least factor by which massive tokens are said to change a relative RMSE."""


@dataclass(frozen=True)
class MethodRow:
    """One row of the table of methods."""

    name: str
    """Name of the method."""
    color: str
    """Its colour in the figures."""
    alpha: str
    """Strength α at which it was scored."""
    n: str
    """Number of scored answers."""
    missing: int
    """Number of answers without a score."""
    trait: str
    """Mean trait score."""
    trait_interval: str
    """Its 95 % interval."""
    coherence: str
    """Mean coherence score."""
    coherence_interval: str
    """Its 95 % interval."""
    rmse: str
    """Relative RMSE after the last layer."""
    without_massive: str
    """The same without massive tokens."""
    median: str
    """Relative error of the median token after the last layer."""


def lead_of(comparison: Comparison, among: Collection[str] | None = None) -> str:
    """The method closest to the prompt after the last layer, of all or some; constant steering counts only if there is nothing else."""
    styles = method_styles(comparison)
    considered = [name for name in comparison.methods if among is None or name in among]
    names = [name for name in considered if styles[name].role != "constant"] or considered
    return min(names, key=lambda name: float(comparison.methods[name].relative_rmse[-1]))


def summary(comparison: Comparison, lead: str) -> str:
    """The scores, the relative RMSE, and what massive tokens do to it, in sentences."""
    scores = {each.method: each for each in comparison.scores}
    words = (_scores_in_words(comparison, scores, lead), _rmse_in_words(comparison, lead), massive_in_words(comparison, lead))
    return " ".join(filter(None, words))


def _scores_in_words(comparison: Comparison, scores: Mapping[str, Scores], lead: str) -> str:
    if lead not in scores:
        return "" if scores else "No answers were scored for this comparison."
    others = [
        f"{subject} {number(scores[name].trait)} and {number(scores[name].coherence)}"
        for name, subject in ((PROMPT, "the prompt scores"), (NONE, "the unsteered model"))
        if name in scores
    ]
    sentences = [f"{lead} scores {_pair(scores[lead])}" + (f"; {', '.join(others)}" if others else "")]
    styles = method_styles(comparison)
    constants = [name for name in comparison.methods if name in scores and name != lead and styles[name].role == "constant"]
    if constants:
        best = max((scores[name] for name in constants), key=lambda each: (each.trait, each.coherence))
        sentences.append(f"Constant steering ({best.method}, α = {number(best.alpha, 2)}) reaches {_pair(best)}")
    missing = sum(each.missing for each in scores.values())
    if missing:
        sentences.append(f"The judge could not score {missing:,} answer{'s' if missing > 1 else ''}")
    return ". ".join(sentences) + "."


def _rmse_in_words(comparison: Comparison, lead: str) -> str:
    value = float(comparison.methods[lead].relative_rmse[-1])
    text = (
        f"After layer {comparison.layers[-1]} the relative RMSE of {lead} is {value:.2f}, where 0 is the prompt and 1 no steering"
    )
    if comparison.paraphrase_rmse is None:
        return f"{text}."
    baseline = float(comparison.paraphrase_rmse[-1])
    word = "closer than" if value < baseline else "not as close as"
    return f"{text}: {word} the paraphrase baseline, which is at {baseline:.2f}."


def massive_in_words(comparison: Comparison, lead: str) -> str:
    """How many tokens are massive, and the relative RMSE with and without them where they change it most; empty if there are none."""
    if comparison.massive is None or not comparison.massive.tokens:
        return ""
    distances = {name: found for name, found in comparison.distances.items() if name in (lead, PARAPHRASE)}
    found = f"{comparison.massive.summary}."
    factors = torch.stack([changed_by_massive(each) for each in distances.values()]).amax(dim=0)
    column = int(factors.argmax())
    if factors[column] < LEAST_CHANGE:
        return f"{found} They hardly change the relative RMSE."

    def both(name: str) -> list[str]:
        return [number(float(each[column]), 2) for each in (distances[name].relative_rmse, distances[name].without_massive)]

    with_them, without = both(lead)
    text = (
        f"{found} Where they change it most, after layer {comparison.layers[column]}, the relative RMSE of {lead} is {with_them} with "
        f"them and {without} without"
    )
    if PARAPHRASE not in distances:
        return f"{text}."
    with_them, without = both(PARAPHRASE)
    return f"{text}; that of the paraphrase baseline is {with_them} and {without}."


def changed_by_massive(found: Distance) -> Float[Tensor, " layer"]:
    """By what factor massive tokens change the relative RMSE after each layer, up or down, as a natural logarithm."""
    return (found.relative_rmse / found.without_massive).log().abs().nan_to_num(nan=0.0)


def _pair(scores: Scores) -> str:
    return f"trait {number(scores.trait)} and coherence {number(scores.coherence)}"


def number(value: float | None, digits: int = 1) -> str:
    """A number in running text, without trailing zeros."""
    text = _fixed(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _fixed(value: float | None, digits: int = 1) -> str:
    """A number in a column, with a fixed number of digits."""
    return _ABSENT if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def _interval(interval: Interval) -> str:
    return f"{_fixed(interval[0])} to {_fixed(interval[1])}" if all(map(math.isfinite, interval)) else ""


def method_rows(comparison: Comparison) -> list[MethodRow]:
    """Scored methods in the order of their scores, then replacements without scores, then the paraphrase baseline."""
    styles = method_styles(comparison)
    final = {PROMPT: (0.0, 0.0, 0.0), NONE: (1.0, 1.0, 1.0)}
    for name, found in comparison.distances.items():
        final[name] = (float(found.relative_rmse[-1]), float(found.without_massive[-1]), float(found.median[-1]))
    scores = {each.method: each for each in comparison.scores}
    unscored = [name for name in (*comparison.methods, PARAPHRASE) if name not in scores and name in final]
    return [
        _row(name, styles[name].color if name in styles else PALETTE["none"], scores.get(name), final.get(name))
        for name in (*scores, *unscored)
    ]


def _row(name: str, color: str, scores: Scores | None, last: tuple[float, float, float] | None) -> MethodRow:
    rmse, without, median = (_fixed(value, 2) for value in last or (None, None, None))
    return MethodRow(
        name=shown_name(name),
        color=color,
        alpha=number(scores.alpha if scores else None, 2),
        n=f"{scores.n:,}" if scores else _ABSENT,
        missing=scores.missing if scores else 0,
        trait=_fixed(scores.trait if scores else None),
        trait_interval=_interval(scores.trait_interval) if scores else "",
        coherence=_fixed(scores.coherence if scores else None),
        coherence_interval=_interval(scores.coherence_interval) if scores else "",
        rmse=rmse,
        without_massive=without,
        median=median,
    )


def _method_lines(name: str, trace: MethodTrace) -> list[tuple[str, str]]:
    """Where a method acts, and how each fit in it was made."""
    kinds = list(dict.fromkeys(point_of(hook) for hook in trace.hooks))
    where = f"{ranges(sorted(set(trace.site_layers)))}, at {' and '.join(kinds)}" if kinds else "none (weights)"
    fits = [", ".join(f"{key} {_setting(value)}" for key, value in fit.items()) for fit in trace.fits if fit]
    parts = [f"{name}, part {number}," for number in range(1, len(fits) + 1)] if len(fits) > 1 else [name]
    return [(f"{name} acts at layers", where), *((f"{part} was fitted with", fit) for part, fit in zip(parts, fits, strict=False))]


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def settings_of(comparison: Comparison) -> list[tuple[str, str]]:
    """The settings that reproduce a comparison, by name."""
    span = {"R": "the last prompt token and the response", "QR": "the question, the last prompt token and the response"}
    lines: list[tuple[str, Any]] = [
        ("instruction", comparison.instruction),
        *((f"model: {key}", value) for key, value in comparison.model.items()),
        ("span", f"{comparison.span}, {span[comparison.span]}"),
        ("compared", f"{len(comparison.tokens):,} tokens of {len(comparison.tokens.triplet.unique()):,} responses"),
        ("layers", ranges(comparison.layers)),
        ("α in the figures", comparison.strengths),
        ("massive activations", "not looked for" if comparison.massive is None else comparison.massive.summary),
        *(line for name, trace in comparison.methods.items() for line in _method_lines(name, trace)),
        *comparison.settings.items(),
    ]
    return [(str(key), _setting(value)) for key, value in lines]
