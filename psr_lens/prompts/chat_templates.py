"""Chat templates: the text of a prompt, its token ids, and the position of the question in it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

from jinja2 import TemplateError

from psr_lens.errors import InputError

Place = Literal["before", "after"]
"""Where an instruction outside the system role goes: before or after the question."""
Turn = tuple[str, str]
"""Role and content of one message."""

PROBE: Final = "psrlensprobe"
"""A word that occurs in no chat template."""
_ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatSettings:
    """How a prompt is put together around its question and its instruction."""

    system_role: bool | None = None
    """Whether the instruction is a system message; None lets the template decide."""
    system: str | None = None
    """A system message for both prompts; an instruction in the system role is appended to it after a blank line."""
    place: Place = "before"
    """Where an instruction outside the system role goes: `"before"` or `"after"` the question."""
    prefix: str = ""
    """Words that the response has to begin with; they end both prompts."""
    template_kwargs: str = "{}"
    """Variables of the template, such as Qwen3's `enable_thinking`, as JSON."""

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.system_role not in (None, True, False):
            raise InputError("system_role", repr(self.system_role), "True, False or None")
        if self.place not in get_args(Place):
            raise InputError("place", repr(self.place), "'before' or 'after'")
        if self.system_role and self.place == "after":
            raise InputError("place", "'after'", "'before' with system_role=True", "A system message comes before the question.")
        if self.system is not None and (not isinstance(self.system, str) or not self.system.strip()):
            raise InputError("system", repr(self.system), "a text with at least one word, or None")
        if not isinstance(self.prefix, str) or (self.prefix and not self.prefix.strip()):
            raise InputError("prefix", repr(self.prefix), "words for the response to begin with, or an empty text")

    @classmethod
    def of(
        cls,
        system_role: bool | None = None,
        system: str | None = None,
        place: Place = "before",
        prefix: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> ChatSettings:
        """Settings with the template's variables as a mapping.

        Raises:
            InputError: an invalid setting, or a variable that JSON cannot hold.
        """
        try:
            variables = json.dumps(dict(template_kwargs or {}), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise InputError("template_kwargs", f"{template_kwargs!r} ({error})", "a mapping of names to JSON values") from error
        return cls(system_role, system, place, prefix, variables)


@dataclass(frozen=True)
class Prompter:
    """Makes prompts with one tokenizer and one set of settings."""

    tokenizer: Any
    """The tokenizer, with or without a chat template."""
    settings: ChatSettings
    """How prompts are put together."""
    prepend_bos: bool
    """Whether plain text begins with the beginning-of-sequence token, if the tokenizer has one."""

    def __post_init__(self) -> None:
        """Refuse settings that the template does not allow."""
        if self.settings.system_role and not self.has_system_role:
            raise InputError(
                "system_role",
                True,
                "a chat template that has a system role",
                "Leave it at None: the instruction then goes before the question.",
            )
        if not self._variables:
            return
        reserved = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - {"tools", "documents", "kwargs"}
        for name in self._variables:
            if name in reserved or name == "messages":
                raise InputError("template_kwargs", f"the name {name!r}", "a variable of the chat template")

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template renders a system message."""
        if not self.tokenizer.chat_template:
            return False
        try:
            return PROBE in self._rendered([("system", PROBE), ("user", "x")])
        except TemplateError:  # templates refuse unknown roles this way
            return False

    @property
    def instruction_is_system(self) -> bool:
        """Whether the instruction goes into the system message."""
        if self.settings.system_role is None:
            return self.has_system_role and self.settings.place == "before"
        return self.settings.system_role

    def prompt(self, turns: Sequence[Turn], instruction: str | None, argument: str) -> tuple[int, ...]:
        """Token ids of a prompt, up to where the response begins; an error names `argument`.

        Raises:
            InputError: the template refuses these messages.
        """
        return self._encoded(self._text(turns, instruction, argument))[0]

    def question_at(self, turns: Sequence[Turn], argument: str) -> int:
        """Position of the question's first token in the prompt without the instruction."""
        text = self._text(turns, None, argument)
        ids, ends = self._encoded(text)
        at = self._question_in(text, turns, argument)
        if ends is not None:
            return next((position for position, end in enumerate(ends) if end > at), 0) if at >= 0 else 0
        # Without offsets: tokenise what precedes the question by itself, and see how far its tokens agree with the prompt's.
        alone = self._encoded(text[: max(at, 0)])[0]
        pairs = enumerate(zip(alone, ids, strict=False))
        return next((position for position, (one, other) in pairs if one != other), len(alone))

    def _question_in(self, text: str, turns: Sequence[Turn], argument: str) -> int:
        """Index of the question's first character. The template may contain its words too ("user"), so a probe word marks where it goes."""
        question = turns[-1][1].strip()
        at = self._text([*turns[:-1], ("user", PROBE)], None, argument).rfind(PROBE)
        at += len(text[at:]) - len(text[at:].lstrip())  # a template may keep the white space before the question
        return at if at >= 0 and text.startswith(question, at) else text.rfind(question)

    def _encoded(self, text: str) -> tuple[tuple[int, ...], list[int] | None]:
        """Token ids, and the end of each token in the text if the tokenizer gives offsets."""
        # The template has already added the special tokens.
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=self.tokenizer.is_fast)
        ids = tuple(int(token) for token in encoding["input_ids"])
        return ids, [end for _, end in encoding["offset_mapping"]] if self.tokenizer.is_fast else None

    def _text(self, turns: Sequence[Turn], instruction: str | None, argument: str) -> str:
        messages = self._messages(turns, instruction)
        if self.tokenizer.chat_template:
            try:
                text = self._rendered(messages, add_generation_prompt=True)
            except (TemplateError, TypeError) as error:
                raise InputError(
                    argument, f"messages that the chat template refuses ({error})", "messages that it accepts"
                ) from error
        else:
            text = "".join(f"{content}\n" for _, content in messages)
            if self.prepend_bos and self.tokenizer.bos_token:
                text = self.tokenizer.bos_token + text
        return text + self._prefix

    def _messages(self, turns: Sequence[Turn], instruction: str | None) -> list[Turn]:
        *earlier, (_, question) = turns
        system = self.settings.system
        if not self.tokenizer.chat_template:  # plain text: one line each, the system message first
            asked = [question, instruction] if self.settings.place == "after" else [instruction, question]
            lines = [system, *(content for _, content in earlier), *asked]
            return [("user", line) for line in lines if line is not None]
        if instruction is not None and self.instruction_is_system:
            system = instruction if system is None else f"{system}\n\n{instruction}"
        elif instruction is not None:
            parts = (question, instruction) if self.settings.place == "after" else (instruction, question)
            question = "\n\n".join(parts)
        messages = [*earlier, ("user", question)]
        if system is not None and self.has_system_role:
            messages.insert(0, ("system", system))
        elif system is not None:
            first = next(index for index, (role, _) in enumerate(messages) if role == "user")
            messages[first] = ("user", f"{system}\n\n{messages[first][1]}")
        return messages

    @cached_property
    def _prefix(self) -> str:
        """The prefix, preceded by the white space that the template puts before an answer, if any."""
        prefix = self.settings.prefix
        if not prefix or prefix[0].isspace() or not self.tokenizer.chat_template:
            return prefix
        asked = self._rendered([("user", "x")], add_generation_prompt=True)
        answered = self._rendered([("user", "x"), ("assistant", PROBE)])
        before = answered[len(asked) : answered.find(PROBE)] if answered.startswith(asked) else ""
        return before + prefix if before.isspace() else prefix

    @cached_property
    def _variables(self) -> dict[str, Any]:
        return dict(json.loads(self.settings.template_kwargs))

    def _rendered(self, messages: Sequence[Turn], **options: Any) -> str:
        told = [{"role": role, "content": content} for role, content in messages]
        return str(self.tokenizer.apply_chat_template(told, tokenize=False, **options, **self._variables))


def turn_end(tokenizer: Any) -> str:
    """What the chat template writes after an assistant's message; empty if it renders no such message."""
    if not tokenizer.chat_template:
        return ""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(PROBE)[2]
    except TemplateError:
        return ""


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
