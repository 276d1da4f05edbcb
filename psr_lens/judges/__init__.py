"""Judges: texts and the questions that they answer go in, scores from 0 to 100 with reasons come out."""

from __future__ import annotations

from psr_lens.judges.classifier import ClassifierJudge, classifier
from psr_lens.judges.combine import CombinedJudge, combine
from psr_lens.judges.ifeval import IfevalAccuracy, IfevalJudge, ifeval
from psr_lens.judges.llm import Backoff, LLMJudge, LLMUsage, llm
from psr_lens.judges.perplexity import PerplexityJudge, perplexity
from psr_lens.judges.protocol import Judge, Judgement
from psr_lens.judges.rules import OrganismJudge, organism

__all__ = [
    "Backoff",
    "ClassifierJudge",
    "CombinedJudge",
    "IfevalAccuracy",
    "IfevalJudge",
    "Judge",
    "Judgement",
    "LLMJudge",
    "LLMUsage",
    "OrganismJudge",
    "PerplexityJudge",
    "classifier",
    "combine",
    "ifeval",
    "llm",
    "organism",
    "perplexity",
]
