"""Which heads and MLPs make the difference that an instruction makes, exactly: the parts sum to it with nothing left over."""

from __future__ import annotations

from psr_lens.interpretation.attribution.measure import attribute
from psr_lens.interpretation.attribution.result import PARTS, Attribution, HeadReading, Sources, Split

__all__ = ["PARTS", "Attribution", "HeadReading", "Sources", "Split", "attribute"]
