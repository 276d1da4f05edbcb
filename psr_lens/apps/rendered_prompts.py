"""The prompts as the model reads them, for the report's provenance."""

from __future__ import annotations

from collections.abc import Sequence

from psr_lens.models import HookedModel, tokenizer_of
from psr_lens.prompts import PromptPair
from psr_lens.prompts.chat_templates import ChatTemplate


def rendered_prompts(model: HookedModel, pairs: Sequence[PromptPair]) -> dict[str, str]:
    """The chat template's text, and both prompts of the first question with their special tokens; by what the report calls them."""
    tokenizer, first = tokenizer_of(model), pairs[0]
    return {
        "chat template": ChatTemplate(tokenizer).text or "none: prompts are plain text",
        "first question without the instruction": str(tokenizer.decode(first.base_ids)),
        "first question with the instruction": str(tokenizer.decode(first.prompted_ids)),
    }
