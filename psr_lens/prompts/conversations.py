"""Questions as conversations: their messages, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from psr_lens.errors import InputError
from psr_lens.prompts.chat_templates import Turn

_ROLES: Final = ("system", "user", "assistant")


def checked_turns(argument: str, question: str | Sequence[Mapping[str, str]]) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message of a conversation, if it begins with one, and its turns, the last of which is the question.

    Raises:
        InputError: the question is empty, or the conversation does not end with the user's message.
    """
    if isinstance(question, str):
        if not question.strip():
            raise InputError(argument, repr(question), "a text with at least one word")
        return None, (("user", question),)
    remedy = 'For example [{"role": "user", "content": "Hello"}].'
    if not isinstance(question, Sequence) or not question:
        expected = "a text with at least one word, or a list of messages that ends with the user's"
        raise InputError(argument, repr(question), expected, remedy)
    turns: list[Turn] = []
    for index, message in enumerate(question):
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, Mapping) else (None, None)
        if role not in _ROLES or not isinstance(content, str) or not content.strip():
            raise InputError(f"{argument}[{index}]", repr(message), "a message with a role (user or assistant) and content", remedy)
        if role == "system" and index > 0:
            raise InputError(f"{argument}[{index}]", "a system message", "a system message only at the beginning")
        turns.append((str(role), content))
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    if not turns or turns[-1][0] != "user":
        last = turns[-1][0] if turns else "system"
        raise InputError(argument, f"a conversation whose last message is the {last}'s", "one that ends with the user's", remedy)
    return system, tuple(turns)
