"""An exact split of the difference that an instruction makes (Δ) over heads and MLPs, and of heads' scores with the instruction."""

from __future__ import annotations

from psr_lens.interpretation.attribution.measure import attribute
from psr_lens.interpretation.attribution.result import PARTS, Attribution, HeadReading, Sources, Split
from psr_lens.interpretation.attribution.score_measure import score_attribution
from psr_lens.interpretation.attribution.score_result import ScoreAttribution, Source

__all__ = [
    "PARTS",
    "Attribution",
    "HeadReading",
    "ScoreAttribution",
    "Source",
    "Sources",
    "Split",
    "attribute",
    "score_attribution",
]
