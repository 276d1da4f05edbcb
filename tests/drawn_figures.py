"""A figure of each public function of `psr.plots`, from made-up results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import plotly.graph_objects as go
from helpers import pairs_of, random_replacement, random_triplets
from made_up_results import TABLE, agreement, attribution, captured, comparison, frozen_attention, grid, lens, score_attribution

import psr_lens as psr
from psr_lens import plots
from psr_lens.interpretation.directions import TopToken, TopTokens, cosines
from psr_lens.replacement import LearningCurve

NOT_FIGURES = {"Look", "write_images"}
"""Public names that draw nothing."""


def calls_of(model: Any) -> dict[Callable[..., go.Figure], Callable[..., go.Figure]]:
    """A call of each public function that draws a figure, to which its look can be added."""
    result, parts, found = comparison(), attribution(), captured()
    statistics = psr.capture(model, random_triplets(model, 3), "resid_post", to=psr.Statistics(rank=2))
    replacement = random_replacement(model, size=0.1)
    close = psr.faithfulness(model, random_triplets(model, 3), {"A-PSR": replacement})
    values = {"random map": 9.0, "gates": 92.0, "native": 99.0}
    one_row_each = psr.ResultTable(tuple(psr.Result(name, "trait", each, 40, (each, each)) for name, each in values.items()))
    token = TopToken(3.5, "aye", ("<assistant>",), (",",), 0, 0)
    return {
        plots.agreement: partial(plots.agreement, agreement()),
        plots.gates_by_family: partial(plots.gates_by_family, agreement()),
        plots.by_response: partial(plots.by_response, plots.magnitude_strips, result),
        plots.coefficient_correlation: partial(plots.coefficient_correlation, close),
        plots.coefficient_scatter: partial(plots.coefficient_scatter, result, "A-PSR"),
        plots.cosine_matrix: partial(plots.cosine_matrix, cosines({"A-PSR": replacement})),
        plots.explained_energy: partial(plots.explained_energy, close),
        plots.head_map: partial(plots.head_map, parts),
        plots.learning_curve: partial(plots.learning_curve, LearningCurve((1.0, 0.0), (), (1.0, 1.0), 1)),
        plots.logit_lens: partial(plots.logit_lens, lens()),
        plots.magnitude_by_kind: partial(plots.magnitude_by_kind, found, kinds=["resid_post"]),
        plots.magnitude_distribution: partial(plots.magnitude_distribution, result),
        plots.magnitude_heatmap: partial(plots.magnitude_heatmap, result),
        plots.magnitude_strips: partial(plots.magnitude_strips, result),
        plots.next_token: partial(plots.next_token, close),
        plots.outlook: partial(plots.outlook, psr.outlook(model, random_triplets(model, 4), ranks=[1])),
        plots.pareto: partial(plots.pareto, TABLE),
        plots.parts_by_layer: partial(plots.parts_by_layer, parts),
        plots.patch_map: partial(plots.patch_map, grid()),
        plots.rank_energy: partial(plots.rank_energy, statistics),
        plots.reach: partial(plots.reach, psr.reach(model, random_triplets(model, 3), {"A-PSR": replacement})),
        plots.relative_dose: partial(
            plots.relative_dose,
            psr.collateral(model, pairs_of(model, 2), {"A-PSR": replacement}, sampling=psr.SamplingConfig(max_new_tokens=4)),
        ),
        plots.relative_rmse: partial(plots.relative_rmse, result),
        plots.rungs: partial(plots.rungs, one_row_each, "native", "random map"),
        plots.frozen_attention: partial(plots.frozen_attention, frozen_attention()),
        plots.score_parts: partial(plots.score_parts, score_attribution()),
        plots.source_map: partial(plots.source_map, parts),
        plots.top_tokens: partial(plots.top_tokens, TopTokens("blocks.2.hook_resid_post", 2, None, (token,), 9, 1)),
    }
