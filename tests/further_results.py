"""One result of each type that a report can show beside a comparison, made-up or of a tiny random model."""

from typing import Any

from helpers import random_replacement, random_triplets, replacement_at
from test_plots_attribution import attribution, grid
from test_plots_meaning import captured, lens
from test_plots_pareto import TABLE

import psr_lens as psr
from psr_lens.interpretation.directions import TopToken, TopTokens
from psr_lens.replacement import LearningCurve


def further_results(model: Any) -> list[object]:
    """All that can be had without training, two of patching, in no order."""
    triplets = random_triplets(model, 6)
    methods = {
        "A-PSR": random_replacement(model, size=0.1),
        "S-PSR": random_replacement(model, layers=[1], size=0.1),
        "CAA": replacement_at(model, "hook_resid_post", [1], rule="constant", rank=1),
    }
    return [
        LearningCurve((1.0, 0.5, 0.3), (1.1, 0.7, 0.6), (1.0, 1.0, 1.0), 2),
        psr.cosines(methods),
        TopTokens("blocks.1.hook_resid_post", 1, None, (TopToken(9.0, "<b>arr</b>", ("a",), ("c",), 0, 2),), 50, 7),
        lens(),
        grid("token"),
        grid("all", heads=4),
        attribution(),
        captured(),
        psr.capture(model, triplets, ["resid_post", "mlp_out", "attn_out"], to=psr.Statistics(rank=4)),
        psr.faithfulness(model, triplets, methods, paraphrases="be a pirate ."),
        TABLE,
    ]
