"""How well methods do what the prompt did: trait and coherence of sampled answers, at one strength or at a target coherence."""

from __future__ import annotations

from psr_lens.evaluate.bootstrap import bootstrap_interval
from psr_lens.evaluate.calibration import Outcome
from psr_lens.evaluate.evaluation import Calibrated, Evaluation, Point
from psr_lens.evaluate.run import Calibration, evaluate
from psr_lens.evaluate.scores import Scores, best_alpha, best_layer, score, scores_at
from psr_lens.results import Interval

__all__ = [
    "Calibrated",
    "Calibration",
    "Evaluation",
    "Interval",
    "Outcome",
    "Point",
    "Scores",
    "best_alpha",
    "best_layer",
    "bootstrap_interval",
    "evaluate",
    "score",
    "scores_at",
]
