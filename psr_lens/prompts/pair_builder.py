"""Builds prompt pairs from questions and an instruction, or from texts that come in two versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.sequences import common_suffix
from psr_lens.errors import InputError
from psr_lens.models import WithTokenizer, context_length, tokenizer_of
from psr_lens.prompts.chat_templates import ChatSettings, Place, Turn, settled
from psr_lens.prompts.conversations import checked_turns
from psr_lens.prompts.pairs import PromptPairs, check_pairs
from psr_lens.prompts.prompt_pair import PromptPair
from psr_lens.prompts.prompter import Prompter
from psr_lens.prompts.token_text import decoded

Question = str | Sequence[Mapping[str, str]]
"""A question, or a conversation: messages with a `role` and a `content`, the last of them the user's."""


@checks_arguments
def prompt_pairs(
    model: WithTokenizer,
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

    With a chat template, the instruction is the system message if the template has that role; otherwise it goes before the question.
    Without a template, the prompts are plain text and the instruction has a line of its own.

    Some templates write a system message of their own if they are given none (those of Qwen2.5 and SmolLM2 do). An instruction in the
    system role then replaces that message, and the difference between the prompts is of both; `.show()` says so. With
    `place="default_system"` the message stands in both prompts, and the instruction is appended to it.

    Texts are encoded as text: a special token that a question or an instruction contains (`"</s>"`) is only characters there.

    Args:
        model: Model whose tokenizer and chat template are used.
        questions: The questions. Each is a text, or a conversation: messages such as `{"role": "user", "content": "Hello"}`, the last of
            which is the user's and is taken as the question. The first may be a system message, with the effect of `system`.
        instruction: What the prompt with the instruction adds. A list of paraphrases is used in turn, question by question.
        system_role: Whether the instruction is a system message; None lets the template decide.
        system: A system message for both prompts. An instruction in the system role is appended to it; if the template has no such role,
            the system message goes before the conversation's first message.
        place: Where the instruction goes. `"before"` or `"after"` the question, if it is not a system message; `"after"` implies that it
            is none. The prompts then only share what follows the instruction, so the span `QR` does not include the question.
            `"default_system"`: at the end of the template's own system message, which both prompts then have.
        prefix: Words that the response has to begin with. They end both prompts and are not part of the response: the span `R` begins at
            their last token, and neither the response's text nor its judge sees them.
        template_kwargs: Variables of the chat template, such as `{"enable_thinking": False}`. A template that asks for the time is told the
            same one for all prompts: when psr_lens was loaded, or what `{"strftime_now": "2026-01-31T12:00:00"}` says.

    Returns:
        One pair per question, in order; `.show()` shows which tokens are steered.

    Raises:
        InputError: no questions, an empty question or instruction, one that the tokenizer turns into no tokens, a conversation that the
            template refuses, a variable that it does not read, or a prompt as long as the model's context.
        ModelError: the model has no tokenizer.

    Example:
        >>> psr.prompt_pairs(model, ["what is a bear ?"], "talk like a pirate .")[0]
        PromptPair('what is a bear ?', instruction='talk like a pirate .', 9 base and 16 prompted tokens)
    """
    conversations = _conversations(questions)
    instructions = [instruction] if isinstance(instruction, str) else list(instruction)
    if not instructions or not all(isinstance(text, str) and text.strip() for text in instructions):
        raise InputError("instruction", repr(instruction), "a text, or a list of paraphrases, none of them empty")
    builder = _PairBuilder(model)
    pairs = []
    for index, (own, turns) in enumerate(conversations):
        if own is not None and system is not None:
            raise InputError("system", repr(system), f"None, since questions[{index}] begins with a system message")
        chat = builder.settings(system_role, system if own is None else own, place, prefix, template_kwargs)
        pairs.append(builder.pair(turns, instructions[index % len(instructions)], chat, f"questions[{index}]"))
    return PromptPairs(tuple(pairs), builder.tokenizer)


def remade(
    model: WithTokenizer,
    pairs: Sequence[PromptPair],
    *,
    questions: Sequence[str] | None = None,
    instructions: Sequence[str] | None = None,
) -> PromptPairs:
    """The same pairs with other questions or other instructions, put together in the same way; thoughts keep their token ids.

    Args:
        model: Model whose tokenizer and chat template are used.
        pairs: The pairs.
        questions: One per pair, to replace its question.
        instructions: One per pair, to replace its instruction.

    Raises:
        InputError: as for `prompt_pairs`.
    """
    check_pairs(pairs, may_be_empty=True)
    builder = _PairBuilder(model)
    made = []
    for index, pair in enumerate(pairs):
        question = pair.question if questions is None else questions[index]
        instruction = pair.instruction if instructions is None else instructions[index]
        again = builder.pair((*pair.earlier, ("user", question)), instruction, pair.chat, f"questions[{index}]")
        made.append(builder.with_thought(again, pair.thought_ids, f"questions[{index}]"))
    return PromptPairs(tuple(made), builder.tokenizer)


def response_ids(model: WithTokenizer, pairs: Sequence[PromptPair], responses: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of responses that were written elsewhere, as they are where each continues the prompt of its pair.

    That is where the prompt and the response are encoded as one text. Special tokens in a response stay text.

    Args:
        model: Model whose tokenizer is used.
        pairs: One pair per response.
        responses: The texts; an empty one has no ids.

    Raises:
        InputError: a response that cannot be encoded.
        ModelError: the model has no tokenizer.
    """
    builder = _PairBuilder(model)
    found = []
    for index, (pair, response) in enumerate(zip(pairs, responses, strict=True)):
        turns = (*pair.earlier, ("user", pair.question))
        thought = decoded(builder.tokenizer, pair.thought_ids)
        prompter = builder.prompter(replace(pair.chat, prefix=pair.chat.prefix + thought) if thought.strip() else pair.chat)
        found.append(prompter.response(turns, None, pair.base_ids, response, f"responses[{index}]") if response else ())
    return found


class _PairBuilder:
    """Builds pairs with one model; prompts with the same settings share a `Prompter`."""

    def __init__(self, model: WithTokenizer) -> None:
        self.tokenizer = tokenizer_of(model)
        self._model = model
        self._prompters: dict[ChatSettings, Prompter] = {}

    def settings(self, *given: Any) -> ChatSettings:
        """Settings of new pairs, from the arguments of `ChatSettings.of`."""
        return settled(ChatSettings.of(*given), self.tokenizer)

    def prompter(self, chat: ChatSettings) -> Prompter:
        if chat not in self._prompters:
            prepend = bool(getattr(self._model.cfg, "default_prepend_bos", True))
            self._prompters[chat] = Prompter(self.tokenizer, chat, prepend)
        return self._prompters[chat]

    def pair(self, turns: tuple[Turn, ...], instruction: str, chat: ChatSettings, argument: str) -> PromptPair:
        if not isinstance(instruction, str) or not instruction.strip():  # `remade` does not check them
            raise InputError("instruction", repr(instruction), "a text that is not empty")
        prompter = self.prompter(chat)
        base, prompted = (prompter.prompt(turns, text, argument) for text in (None, instruction))
        shared = min(common_suffix(base, prompted), len(base) - prompter.question_at(turns, argument))
        # If not even the last token is shared, the span is still the last token of each prompt.
        pair = PromptPair(turns[-1][1], instruction, base, prompted, max(shared, 1), turns[:-1], chat)
        _check_room(self._model, pair, argument, "Shorten the question or the instruction.")
        return pair

    def with_thought(self, pair: PromptPair, thought: Sequence[int], argument: str) -> PromptPair:
        longer = with_thought(pair, thought)
        _check_room(self._model, longer, argument, "Shorten the question, the instruction or the thought.")
        return longer


def with_thought(pair: PromptPair, thought: Sequence[int]) -> PromptPair:
    """A pair whose prompts both go on with a thought of the model's, as the token ids that it wrote."""
    return replace(
        pair,
        base_ids=(*pair.base_ids, *thought),
        prompted_ids=(*pair.prompted_ids, *thought),
        question_length=pair.question_length + len(thought),
        thought_ids=(*pair.thought_ids, *thought),
    )


@checks_arguments
def prompt_pairs_from_texts(
    model: WithTokenizer, base: Sequence[str], prompted: Sequence[str], *, template_kwargs: Mapping[str, Any] | None = None
) -> PromptPairs:
    """Tokenise prompts that come in two versions, where the second is not simply an instruction plus the question.

    With a chat template, each text is the user's message; otherwise it is plain text followed by a line end. A pair's `question` is its
    base text. Its `instruction` is what the prompted text has before or after the base text, or the whole prompted text if that does not
    contain the base text.

    Args:
        model: Model whose tokenizer and chat template are used.
        base: The prompts without the instruction, such as IFEval's `prompt_without_instruction`.
        prompted: The same prompts with the instruction, one per base prompt.
        template_kwargs: Variables of the chat template, as for `prompt_pairs`.

    Returns:
        One pair per prompt, in order. The span `QR` begins where the two prompts agree up to their ends, so it is hardly longer than `R`
        if the instruction comes last.

    Raises:
        InputError: no prompts, an empty prompt, lists of different lengths, a variable that the template does not read, or a prompt as long
            as the model's context.
        ModelError: the model has no tokenizer.

    Example:
        >>> psr.prompt_pairs_from_texts(model, ["what is a bear ?"], ["what is a bear ? be brief ."])[0].instruction
        'be brief .'
    """
    base, prompted = _checked_texts("base", base), _checked_texts("prompted", prompted)
    if len(base) != len(prompted):
        raise InputError("prompted", f"{len(prompted)} prompts", f"one for each of the {len(base)} base prompts")
    builder = _PairBuilder(model)
    chat = builder.settings(None, None, "before", "", template_kwargs)
    prompter = builder.prompter(chat)
    pairs = []
    for index, (question, text) in enumerate(zip(base, prompted, strict=True)):
        asked: tuple[Turn, ...] = (("user", question),)
        base_ids = prompter.prompt(asked, None, f"base[{index}]")
        prompted_ids = prompter.prompt((("user", text),), None, f"prompted[{index}]")
        shared = min(common_suffix(base_ids, prompted_ids), len(base_ids) - prompter.question_at(asked, f"base[{index}]"))
        # If not even the last token is shared, the span is still the last token of each prompt.
        pair = PromptPair(question, _added(question, text), base_ids, prompted_ids, max(shared, 1), chat=chat)
        longer = "base" if len(base_ids) > len(prompted_ids) else "prompted"
        _check_room(model, pair, f"{longer}[{index}]", "Shorten the prompt.")
        pairs.append(pair)
    return PromptPairs(tuple(pairs), builder.tokenizer)


def _conversations(questions: Sequence[Question]) -> list[tuple[str | None, tuple[Turn, ...]]]:
    given = _checked_list("questions", questions, "a list of questions", "question")
    if isinstance(given[0], Mapping):
        raise InputError("questions", "one conversation", "a list of questions or conversations", "Put it in brackets.")
    return [checked_turns(f"questions[{index}]", question) for index, question in enumerate(given)]


def _checked_texts(argument: str, texts: Sequence[str]) -> list[str]:
    given = _checked_list(argument, texts, "a list of prompts", "prompt")
    for index, text in enumerate(given):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{argument}[{index}]", repr(text), "a text with at least one word")
    return given


def _checked_list(argument: str, given: object, expected: str, item: str) -> list[Any]:
    if isinstance(given, str):
        raise InputError(argument, "one string", expected, "Put it in brackets.")
    if not isinstance(given, Sequence):
        raise InputError(argument, type(given).__name__, expected, f"The model goes first: `(model, {argument}, …)`.")
    if not given:
        raise InputError(argument, "an empty list", f"at least one {item}")
    return list(given)


def _check_room(model: WithTokenizer, pair: PromptPair, argument: str, remedy: str) -> None:
    longest = max(len(pair.base_ids), len(pair.prompted_ids))
    if longest >= context_length(model):
        raise InputError(
            argument,
            f"a prompt of {longest} tokens",
            f"fewer than the model's context of {context_length(model)}, so that a response fits",
            remedy,
        )


def _added(base: str, prompted: str) -> str:
    """What the prompted text has before or after the base text."""
    for rest in (prompted.removeprefix(base), prompted.removesuffix(base)):
        if rest != prompted and rest.strip():
            return rest.strip()
    return prompted
