"""A judge that is a language model behind an OpenAI-compatible address."""

from __future__ import annotations

from psr_lens.judges.llm.judge import LLMJudge, llm
from psr_lens.judges.llm.settings import Backoff, LLMSettings, LLMUsage
from psr_lens.judges.llm.template import COHERENCE_PROMPT

__all__ = ["COHERENCE_PROMPT", "Backoff", "LLMJudge", "LLMSettings", "LLMUsage", "llm"]
