"""An exact split of the difference that an instruction makes (Δ) over heads and MLPs: the parts sum to Δ."""

from __future__ import annotations

from psr_lens.interpretation.attribution.measure import attribute
from psr_lens.interpretation.attribution.result import PARTS, Attribution, HeadReading, Sources, Split

__all__ = ["PARTS", "Attribution", "HeadReading", "Sources", "Split", "attribute"]
