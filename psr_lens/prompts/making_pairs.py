"""Prompt pairs from questions and an instruction, or from texts that come in two versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psr_lens._utils.sequences import common_suffix
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, context_length, tokenizer_of
from psr_lens.prompts.chat_templates import ChatSettings, Place, Prompter, Turn, checked_turns
from psr_lens.prompts.pairs import PromptPair, PromptPairs

Question = str | Sequence[Mapping[str, str]]
"""A question, or a conversation: messages with a `role` and a `content`, of which the last is the user's."""


def prompt_pairs(
    model: HookedModel,
    questions: Sequence[Question],
    instruction: str | Sequence[str],
    *,
    system_role: bool | None = None,
    system: str | None = None,
    place: Place = "before",
    prefix: str = "",
    template_kwargs: Mapping[str, Any] | None = None,
) -> PromptPairs:
    """Tokenise each question without and with an instruction.

    With a chat template the instruction is the system message where the template has that role, else it goes before the question.
    Without a template the prompts are plain text, the instruction on a line of its own.

    A template may have a system message of its own where it is given none (Qwen2.5's); it then stands in the base prompt only. Give
    `system` to have one in both.

    Args:
        model: Model whose tokenizer and chat template are used.
        questions: The users' questions; each a text, or a conversation of messages such as `{"role": "user", "content": "Hello"}`, of which
            the last is the user's and is taken for the question. The first may be a system message, as if given by `system`.
        instruction: What the prompted context adds; of several paraphrases, each question takes the next in turn.
        system_role: True or False to insist on the place of the instruction; None decides by the template.
        system: A system message of both prompts. An instruction in the system role is joined to it; where the template has no such role,
            it goes before the conversation's first message.
        place: `"before"` or `"after"` the question, where the instruction is no system message; `"after"` makes it none. The two
            prompts then go on alike only behind it, so the span `QR` does not reach the question.
        prefix: Words that the response begins with. They are the end of both prompts and no part of the response: the span `R` begins at
            the last of their tokens, and a response's text and its judges do not have them.
        template_kwargs: Variables for the chat template, such as `{"enable_thinking": False}`.

    Returns:
        One pair a question, in order; `.show()` shows which tokens are steered.

    Raises:
        InputError: no questions, an empty question or instruction, a conversation that the template refuses, or a prompt as long as the
            model's context.
        ModelError: the model has no tokenizer.
    """
    conversations = _conversations(questions)
    instructions = [instruction] if isinstance(instruction, str) else list(instruction)
    if not instructions or not all(isinstance(text, str) and text.strip() for text in instructions):
        raise InputError("instruction", repr(instruction), "a text, or a list of paraphrases, none of them empty")
    maker = _PairMaker(model)
    pairs = []
    for place_of, (own, turns) in enumerate(conversations):
        if own is not None and system is not None:
            raise InputError("system", repr(system), f"None, since questions[{place_of}] begins with a system message")
        chat = ChatSettings.of(system_role, system if own is None else own, place, prefix, template_kwargs)
        pairs.append(maker.pair(turns, instructions[place_of % len(instructions)], chat, f"questions[{place_of}]"))
    return PromptPairs(tuple(pairs), maker.tokenizer)


def remade(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    *,
    questions: Sequence[str] | None = None,
    instructions: Sequence[str] | None = None,
) -> PromptPairs:
    """The same pairs with other questions or other instructions, put together as they were.

    Args:
        model: Model whose tokenizer and chat template are used.
        pairs: The pairs.
        questions: One for each pair, in the place of its own.
        instructions: One for each pair, in the place of its own.

    Raises:
        InputError: as for `prompt_pairs`.
    """
    maker = _PairMaker(model)
    made = []
    for place, pair in enumerate(pairs):
        question = pair.question if questions is None else questions[place]
        instruction = pair.instruction if instructions is None else instructions[place]
        made.append(maker.pair((*pair.earlier, ("user", question)), instruction, pair.chat, f"questions[{place}]"))
    return PromptPairs(tuple(made), maker.tokenizer)


class _PairMaker:
    """Makes pairs with one model; prompts that are put together alike share what is known of the template."""

    def __init__(self, model: HookedModel) -> None:
        self.tokenizer = tokenizer_of(model)
        self._model = model
        self._prompters: dict[ChatSettings, Prompter] = {}

    def prompter(self, chat: ChatSettings) -> Prompter:
        if chat not in self._prompters:
            prepend = bool(getattr(self._model.cfg, "default_prepend_bos", True))
            self._prompters[chat] = Prompter(self.tokenizer, chat, prepend)
        return self._prompters[chat]

    def pair(self, turns: tuple[Turn, ...], instruction: str, chat: ChatSettings, argument: str) -> PromptPair:
        if not isinstance(instruction, str) or not instruction.strip():  # `remade` gives them as they came
            raise InputError("instruction", repr(instruction), "a text that is not empty")
        prompter = self.prompter(chat)
        base, prompted = (prompter.prompt(turns, text, argument) for text in (None, instruction))
        shared = min(common_suffix(base, prompted), len(base) - prompter.question_at(turns, argument))
        # Where not even the last token is the same, R is still that token of each.
        pair = PromptPair(turns[-1][1], instruction, base, prompted, max(shared, 1), turns[:-1], chat)
        _check_room(self._model, pair, argument, "Shorten the question or the instruction.")
        return pair


def prompt_pairs_from_texts(model: HookedModel, base: Sequence[str], prompted: Sequence[str]) -> PromptPairs:
    """Tokenise prompts that come in two versions, where the prompted one is not simply an instruction and the question.

    With a chat template each text is the user's message, else plain text with a line's end. A pair's `question` is its base text, its
    `instruction` what the prompted text has before or after that; the whole prompted text where it does not contain the base one.

    Args:
        model: Model whose tokenizer and chat template are used.
        base: The prompts without the instruction, IFEval's `prompt_without_instruction` for one.
        prompted: The same prompts with it, one for each.

    Returns:
        One pair a prompt, in order. Its span `QR` begins where both prompts go on alike to their ends, so it is hardly longer than `R`
        where the instruction comes last.

    Raises:
        InputError: no prompts, an empty one, not as many of one kind as of the other, or a prompt as long as the model's context.
        ModelError: the model has no tokenizer.
    """
    base, prompted = _checked_texts("base", base), _checked_texts("prompted", prompted)
    if len(base) != len(prompted):
        raise InputError("prompted", f"{len(prompted)} of them", f"one for each of {len(base)} base prompts")
    maker = _PairMaker(model)
    prompter = maker.prompter(ChatSettings())
    pairs = []
    for place, (question, text) in enumerate(zip(base, prompted, strict=True)):
        asked: tuple[Turn, ...] = (("user", question),)
        base_ids = prompter.prompt(asked, None, f"base[{place}]")
        prompted_ids = prompter.prompt((("user", text),), None, f"prompted[{place}]")
        shared = min(common_suffix(base_ids, prompted_ids), len(base_ids) - prompter.question_at(asked, f"base[{place}]"))
        # Where not even the last token is the same, R is still that token of each.
        pair = PromptPair(question, _added(question, text), base_ids, prompted_ids, max(shared, 1))
        longer = "base" if len(base_ids) > len(prompted_ids) else "prompted"
        _check_room(model, pair, f"{longer}[{place}]", "Shorten the prompt.")
        pairs.append(pair)
    return PromptPairs(tuple(pairs), maker.tokenizer)


def _conversations(questions: Sequence[Question]) -> list[tuple[str | None, tuple[Turn, ...]]]:
    if isinstance(questions, str):
        raise InputError("questions", "one string", "a list of questions", "Put it in brackets.")
    if not questions:
        raise InputError("questions", "an empty list", "at least one question")
    if isinstance(questions[0], Mapping):
        raise InputError("questions", "one conversation", "a list of questions or conversations", "Put it in brackets.")
    return [checked_turns(f"questions[{place}]", question) for place, question in enumerate(questions)]


def _checked_texts(argument: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError(argument, "one string", "a list of prompts", "Put it in brackets.")
    if not texts:
        raise InputError(argument, "an empty list", "at least one prompt")
    for place, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{argument}[{place}]", repr(text), "a text with at least one word")
    return list(texts)


def _check_room(model: HookedModel, pair: PromptPair, argument: str, remedy: str) -> None:
    longest = max(len(pair.base_ids), len(pair.prompted_ids))
    if longest >= context_length(model):
        raise InputError(
            argument,
            f"a prompt of {longest} tokens",
            f"fewer than the model's context of {context_length(model)}, so that a response fits",
            remedy,
        )


def _added(base: str, prompted: str) -> str:
    """What the prompted text has before or after the base one."""
    for rest in (prompted.removeprefix(base), prompted.removesuffix(base)):
        if rest != prompted and rest.strip():
            return rest.strip()
    return prompted
