"""The numbers of a comparison as JSON, for `results.json` of `psr-lens demo` and `psr-lens run`."""

from __future__ import annotations

import math
from typing import Any, Final

from psr_lens.activations.massive_activations import MassiveActivations
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.scores import Scores

RESULTS_FORMAT: Final = 2
"""Version of `results.json`; 1 had `strength` for `magnitude`."""


def comparison_json(result: Comparison) -> dict[str, Any]:
    """The scores of each method, the magnitude of what the instruction adds by layer, and the distance of each method by layer."""

    def numbers(values: Any) -> list[float | None]:
        return [_rounded(value, 4) for value in values.tolist()]

    distances, without = result.distances, result.rank1_share_without_massive
    return {
        "methods": {each.method: _score_json(each) for each in result.scores},
        "magnitude": {
            "median": numbers(result.quantile(0.5)),
            "p99": numbers(result.quantile(0.99)),
            "rank1_share": numbers(result.rank1_share),
            "rank1_share_without_massive": None if without is None else numbers(without),
        },
        "relative_rmse": {name: numbers(found.relative_rmse) for name, found in distances.items()},
        "relative_rmse_without_massive": {name: numbers(found.without_massive) for name, found in distances.items()},
        "median_relative_error": {name: numbers(found.median) for name, found in distances.items()},
        "massive_activations": None if result.massive is None else _massive_json(result.massive),
    }


def _massive_json(found: MassiveActivations) -> dict[str, Any]:
    """How many tokens were searched, how many of them are massive, and how many after each layer, in each context and in any."""
    by_layer = {context: found.count(context).tolist() for context in found.typical}
    return {"searched": found.searched, "tokens": len(found), "by_layer": {**by_layer, "any": found.count().tolist()}}


def _score_json(scores: Scores) -> dict[str, Any]:
    return {
        "trait": _rounded(scores.trait, 2),
        "coherence": _rounded(scores.coherence, 2),
        "alpha": scores.alpha,
        "n": scores.n,
        "missing": scores.missing,
        "trait_interval": [_rounded(bound, 2) for bound in scores.trait_interval],
        "coherence_interval": [_rounded(bound, 2) for bound in scores.coherence_interval],
    }


def _rounded(value: float, digits: int) -> float | None:
    """The number for JSON, which has no NaN: null for what could not be measured."""
    return round(value, digits) if math.isfinite(value) else None
