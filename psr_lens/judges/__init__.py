"""Judges: called with texts and the questions that they answer, they return scores from 0 to 100 with reasons."""

from __future__ import annotations

from psr_lens.judges.answer_only_judge import AnswerOnlyJudge, answer_only
from psr_lens.judges.classifier_judge import ClassifierJudge, classifier
from psr_lens.judges.combined_judge import CombinedJudge, combine
from psr_lens.judges.fraction_judge import FractionJudge, fraction
from psr_lens.judges.ifeval_judge import IfevalAccuracy, IfevalJudge, ifeval
from psr_lens.judges.language_judge import LanguageJudge, language
from psr_lens.judges.llm_judge import Backoff, LLMJudge, LLMSettings, LLMUsage, llm
from psr_lens.judges.organism_judge import OrganismJudge, organism
from psr_lens.judges.perplexity_judge import PerplexityJudge, perplexity
from psr_lens.results.judgement import Judge, Judgement

__all__ = [
    "AnswerOnlyJudge",
    "Backoff",
    "ClassifierJudge",
    "CombinedJudge",
    "FractionJudge",
    "IfevalAccuracy",
    "IfevalJudge",
    "Judge",
    "Judgement",
    "LLMJudge",
    "LLMSettings",
    "LLMUsage",
    "LanguageJudge",
    "OrganismJudge",
    "PerplexityJudge",
    "answer_only",
    "classifier",
    "combine",
    "fraction",
    "ifeval",
    "language",
    "llm",
    "organism",
    "perplexity",
]
