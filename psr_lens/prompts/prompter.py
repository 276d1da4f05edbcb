"""Prompts as token ids, and the position of the question in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from psr_lens.errors import InputError
from psr_lens.prompts.chat_templates import PROBE, ChatSettings, ChatTemplate, Turn
from psr_lens.prompts.text_encoding import TextEncoder


@dataclass(frozen=True)
class Prompter:
    """Makes prompts with one tokenizer and one set of settings.

    Texts are rendered and searched in the masked form of `TextEncoder`, so that special tokens in them stay text.
    """

    tokenizer: Any
    """The tokenizer, with or without a chat template."""
    settings: ChatSettings
    """How prompts are put together."""
    prepend_bos: bool
    """Whether plain text begins with the beginning-of-sequence token, if the tokenizer has one."""

    def __post_init__(self) -> None:
        """Refuse settings that the template does not allow."""
        if self.settings.system_role and not self.template.has_system_role:
            raise InputError(
                "system_role",
                True,
                "a chat template that has a system role",
                "Leave it at None: the instruction then goes before the question.",
            )
        if self.settings.place == "default_system" and self.template.default_system is None:
            remedy = "Leave `place` out: nothing is replaced then, or give `system` a message for both prompts."
            raise InputError("place", "'default_system'", "a chat template with a system message of its own", remedy)
        self.template.check_variables()

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return ChatTemplate(self.tokenizer, self.settings.variables)

    @cached_property
    def encoder(self) -> TextEncoder:
        """What makes token ids of text."""
        return TextEncoder(self.tokenizer)

    @property
    def instruction_is_system(self) -> bool:
        """Whether the instruction goes into the system message."""
        if self.settings.system_role is None:
            return self.template.has_system_role and self.settings.place != "after"
        return self.settings.system_role

    def prompt(self, turns: Sequence[Turn], instruction: str | None, argument: str) -> tuple[int, ...]:
        """Token ids of a prompt, up to where the response begins; an error names `argument`.

        Raises:
            InputError: the template refuses these messages, or the tokenizer turns the question or the instruction into no tokens.
        """
        for text in (turns[-1][1], *([] if instruction is None else [instruction])):
            if not self.encoder.encode(self.encoder.masked(text), argument).ids:
                which = f"{type(self.tokenizer).__name__} ({getattr(self.tokenizer, 'name_or_path', '') or 'without a name'})"
                raise InputError(
                    argument,
                    f"the text {text!r}, which the tokenizer {which} turns into no tokens",
                    "at least one token",
                    "Is this the tokenizer that the model was trained with? Try `model.tokenizer.tokenize(text)`.",
                )
        return self._encoded(self._text(turns, instruction, argument), argument)[0]

    def response(
        self, turns: Sequence[Turn], instruction: str | None, prompt: tuple[int, ...], response: str, argument: str
    ) -> tuple[int, ...]:
        """Token ids of a response given as text, as they are where it continues its prompt.

        Args:
            turns: The conversation of the prompt.
            instruction: Its instruction, if it has one.
            prompt: Its token ids.
            response: The text.
            argument: What errors name.
        """
        try:
            before = self._text(turns, instruction, argument)
        except InputError:  # a pair that another template has made
            before = None
        return self.encoder.continued(before, prompt[self._begins(prompt) :], self.encoder.masked(response), argument)

    def question_at(self, turns: Sequence[Turn], argument: str) -> int:
        """Position of the question's first token in the prompt without the instruction."""
        text = self._text(turns, None, argument)
        ids, ends = self._encoded(text, argument)
        at = self._question_in(text, turns, argument)
        if ends is not None:
            return next((position for position, end in enumerate(ends) if end > at), 0) if at >= 0 else 0
        # Without offsets: tokenise what precedes the question by itself, and see how far its tokens agree with the prompt's.
        alone = self._encoded(text[: max(at, 0)], argument)[0]
        pairs = enumerate(zip(alone, ids, strict=False))
        return next((position for position, (one, other) in pairs if one != other), len(alone))

    def _question_in(self, text: str, turns: Sequence[Turn], argument: str) -> int:
        """Index of the question's first character. The template may contain its words too ("user"), so a probe word marks where it goes."""
        question = self.encoder.masked(turns[-1][1].strip())
        at = self._text([*turns[:-1], ("user", PROBE)], None, argument).rfind(PROBE)
        at += len(text[at:]) - len(text[at:].lstrip())  # a template may keep the white space before the question
        return at if at >= 0 and text.startswith(question, at) else text.rfind(question)

    @property
    def _bos(self) -> tuple[int, ...]:
        """The beginning-of-sequence token of plain text. A template writes its own."""
        if self.template or not self.prepend_bos or self.tokenizer.bos_token is None:
            return ()
        return (int(self.tokenizer.bos_token_id),)

    def _begins(self, prompt: tuple[int, ...]) -> int:
        """How many tokens of a prompt come before its text."""
        return len(self._bos) if prompt[: len(self._bos)] == self._bos else 0

    def _encoded(self, text: str, argument: str) -> tuple[tuple[int, ...], list[int] | None]:
        """Token ids, and the end of each token in the text if the tokenizer gives offsets."""
        # The token goes before the ids, not the text: SentencePiece adds a space to the first word of a text only if nothing precedes it.
        ids, ends = self.encoder.encode(text, argument)
        return self._bos + ids, None if ends is None else [0 for _ in self._bos] + ends

    def _text(self, turns: Sequence[Turn], instruction: str | None, argument: str) -> str:
        """The prompt, masked. Templates may look for tokens in an assistant's words, as Qwen3's does for `</think>`, to change them."""
        masked, plain = self.encoder.masked, self._whole(turns, instruction, str, str, argument)
        for of_assistant in (masked, str):
            found = self._whole(turns, instruction, masked, of_assistant, argument)
            if self.encoder.unmasked(found) == plain:
                return found
        raise InputError(
            argument,
            "a text with special tokens on which the chat template acts",
            "a text without them",
            "Take them out of the text, or spell them differently.",
        )

    def _whole(
        self,
        turns: Sequence[Turn],
        instruction: str | None,
        of_user: Callable[[str], str],
        of_assistant: Callable[[str], str],
        argument: str,
    ) -> str:
        """The prompt's text, with every text of the user's and of the assistant's changed."""
        told = [(role, (of_assistant if role == "assistant" else of_user)(content)) for role, content in turns]
        messages = self._messages(told, None if instruction is None else of_user(instruction), of_user)
        if not self.template:
            return "".join(f"{content}\n" for _, content in messages) + of_user(self._prefix)
        try:
            text = self.template.rendered(messages, add_generation_prompt=True)
        except TemplateError as error:
            raise InputError(argument, f"messages that the chat template refuses ({error})", "messages that it accepts") from error
        return text + of_user(self._prefix)

    def _messages(self, turns: Sequence[Turn], instruction: str | None, of_user: Callable[[str], str]) -> list[Turn]:
        *earlier, (_, question) = turns
        given = self.template.default_system if self.settings.place == "default_system" else self.settings.system
        system = None if given is None else of_user(given)
        if not self.template:  # plain text: one line each, the system message first
            asked = [question, instruction] if self.settings.place == "after" else [instruction, question]
            lines = [system, *(content for _, content in earlier), *asked]
            return [("user", line) for line in lines if line is not None]
        if instruction is not None and self.instruction_is_system:
            system = instruction if system is None else f"{system}\n\n{instruction}"
        elif instruction is not None:
            parts = (question, instruction) if self.settings.place == "after" else (instruction, question)
            question = "\n\n".join(parts)
        messages = [*earlier, ("user", question)]
        if system is not None and self.template.has_system_role:
            messages.insert(0, ("system", system))
        elif system is not None:
            first = next(index for index, (role, _) in enumerate(messages) if role == "user")
            messages[first] = ("user", f"{system}\n\n{messages[first][1]}")
        return messages

    @cached_property
    def _prefix(self) -> str:
        """The prefix, preceded by the white space that the template puts before an answer, if any."""
        prefix = self.settings.prefix
        if not prefix or prefix[0].isspace() or not self.template:
            return prefix
        asked = self.template.rendered([("user", "x")], add_generation_prompt=True)
        answered = self.template.rendered([("user", "x"), ("assistant", PROBE)])
        before = answered[len(asked) : answered.find(PROBE)] if answered.startswith(asked) else ""
        return before + prefix if before.isspace() else prefix
