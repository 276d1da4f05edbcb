"""A language model behind an OpenAI-compatible address as a judge."""

from __future__ import annotations

from psr_lens.judges.llm_judge.judge import LLMJudge, check_settings, llm
from psr_lens.judges.llm_judge.settings import Backoff, LLMSettings, LLMUsage
from psr_lens.judges.llm_judge.template import COHERENCE_PROMPT

__all__ = ["COHERENCE_PROMPT", "Backoff", "LLMJudge", "LLMSettings", "LLMUsage", "check_settings", "llm"]
