"""What the directions of a replacement mean: the tokens they promote, their cosine similarities, and the tokens they act on most."""

from psr_lens.interpretation.directions.activating_tokens import TopToken, TopTokens, top_tokens
from psr_lens.interpretation.directions.jacobian import jacobian_lens
from psr_lens.interpretation.directions.lens import LensRow, LogitLens, logit_lens
from psr_lens.interpretation.directions.similarity import Cosines, cosines
from psr_lens.interpretation.directions.sources import Part, Source

__all__ = [
    "Cosines",
    "LensRow",
    "LogitLens",
    "Part",
    "Source",
    "TopToken",
    "TopTokens",
    "cosines",
    "jacobian_lens",
    "logit_lens",
    "top_tokens",
]
