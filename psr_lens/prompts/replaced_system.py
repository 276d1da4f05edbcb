"""Whether an instruction has replaced the system message that a chat template writes by itself."""

from __future__ import annotations

import re
from typing import Any

from psr_lens._utils.short_text import quoted
from psr_lens.prompts.chat_templates import ChatTemplate
from psr_lens.prompts.prompt_pair import PromptPair


def replaced_system(tokenizer: Any, pair: PromptPair) -> str:
    """A sentence on the template's own system message, if only the base prompt has it; otherwise empty.

    The difference between the prompts is then of two changes: the instruction came, and that message went.
    """
    own = ChatTemplate(tokenizer, pair.chat.variables).own_system
    if own is None:
        return ""
    base, prompted = (_bare(tokenizer.decode(list(ids), skip_special_tokens=False)) for ids in (pair.base_ids, pair.prompted_ids))
    if _bare(own) not in base or _bare(own) in prompted:
        return ""
    return (
        f"The instruction replaces the chat template's own system message, {quoted(own, 80)}, so the prompts differ in both; "
        "place='default_system' keeps that message in both."
    )


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text).lower()
