"""Prompt pairs, and the two contexts in which one response is read.

A pair is a question without and with an instruction. A triplet adds a response, sampled under the instruction. Both contexts of a
triplet end with the *same response token ids*; nothing is ever tokenised again from decoded text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.models import HookedModel, context_length, tokenizer_of

Span = Literal["R", "QR"]
"""Where steering acts: `R`, the last prompt token and every response token; `QR`, the user's question too."""

_PROBE: Final = "psrlensprobe"
"""A word that stands in no chat template."""

Context = Literal["base", "steered"]
"""Which prompt a response is read after: without (`x`) or with the instruction (`x'`)."""


@dataclass(frozen=True)
class PromptPair:
    """One question without and with the instruction, as token ids."""

    question: str
    """The user's question."""
    instruction: str
    """What the steered prompt adds."""
    base_ids: tuple[int, ...]
    """Token ids of the base prompt `x`, up to where the response begins."""
    steered_ids: tuple[int, ...]
    """Token ids of the steered prompt `x'`."""
    question_length: int
    """How many tokens at the end of both prompts are the same, from the question's first token on."""

    def ids(self, context: Context) -> tuple[int, ...]:
        """The prompt's token ids in one context."""
        return self.base_ids if context == "base" else self.steered_ids

    def span_length(self, span: Span) -> int:
        """How many of the prompt's last tokens a span takes in."""
        if span not in get_args(Span):
            raise InputError("span", repr(span), "'R' or 'QR'")
        return 1 if span == "R" else self.question_length


@dataclass(frozen=True)
class Triplet:
    """A prompt pair and a response to the steered prompt."""

    pair: PromptPair
    """The two prompts."""
    response_ids: tuple[int, ...]
    """Token ids of the response `y'`, the end token included if it was reached."""
    response: str
    """The response as text, without special tokens."""
    trait: float = 1.0
    """The trait judge's score in [0, 1]; the `alpha` of training."""
    coherence: float = 1.0
    """The coherence judge's score in [0, 1]."""


@dataclass(frozen=True)
class TokenTable:
    """What each row of a captured activation is: one row a token of a span, triplet by triplet."""

    token_ids: Int[Tensor, "token"]
    """Vocabulary ids."""
    strings: tuple[str, ...]
    """The tokens as text."""
    triplet: Int[Tensor, "token"]
    """Index of the triplet that the token belongs to."""
    position: Int[Tensor, "token"]
    """Place in the response: 0 is the first response token, −1 the last prompt token, which predicts it."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.strings)

    def rows(self, triplet: int) -> Int[Tensor, "row"]:
        """Row numbers of one triplet's tokens, in order."""
        return (self.triplet == triplet).nonzero().flatten()


def prompt_pairs(
    model: HookedModel,
    questions: Sequence[str],
    instruction: str | Sequence[str],
    *,
    system_role: bool | None = None,
) -> list[PromptPair]:
    """Tokenise each question without and with an instruction.

    With a chat template the instruction is the system message where the template has that role, else it goes before the question.
    Without a template the prompts are plain text, the instruction on a line of its own.

    Args:
        model: Model whose tokenizer and chat template are used.
        questions: The users' questions.
        instruction: What the steered prompt adds; of several paraphrases, each question takes the next in turn.
        system_role: True or False to insist on the place of the instruction; None decides by the template.

    Returns:
        One pair a question, in order.

    Raises:
        InputError: no questions, an empty question or instruction, or a prompt as long as the model's context.
        ModelError: the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    questions = _checked_texts("questions", questions, "question")
    instructions = [instruction] if isinstance(instruction, str) else list(instruction)
    if not instructions or not all(isinstance(text, str) and text.strip() for text in instructions):
        raise InputError("instruction", repr(instruction), "a text, or a list of paraphrases, none of them empty")
    has_role = _has_system_role(tokenizer)
    if system_role and not has_role:
        raise InputError(
            "system_role", True, "a chat template that has a system role", "Leave it at None: the instruction then goes first."
        )
    system = has_role if system_role is None else system_role
    pairs = []
    for place, question in enumerate(questions):
        text = instructions[place % len(instructions)]
        base_ids, question_at = _prompt(model, tokenizer, question, None, system)
        steered_ids, _ = _prompt(model, tokenizer, question, text, system)
        shared = _common_suffix(base_ids, steered_ids)
        pair = PromptPair(question, text, base_ids, steered_ids, min(shared, len(base_ids) - question_at))
        _check_room(model, pair, f"questions[{place}]", "Shorten the question or the instruction.")
        pairs.append(pair)
    return pairs


def prompt_pairs_from_texts(model: HookedModel, base: Sequence[str], steered: Sequence[str]) -> list[PromptPair]:
    """Tokenise prompts that come in two versions, where the steered one is not simply an instruction and the question.

    With a chat template each text is the user's message, else plain text with a line's end. A pair's `question` is its base text, its
    `instruction` what the steered text has before or after that; the whole steered text where it does not contain the base one.

    Args:
        model: Model whose tokenizer and chat template are used.
        base: The prompts without the instruction, IFEval's `prompt_without_instruction` for one.
        steered: The same prompts with it, one for each.

    Returns:
        One pair a prompt, in order. Its span `QR` begins where both prompts go on alike to their ends, so it is hardly longer than `R`
        where the instruction comes last.

    Raises:
        InputError: no prompts, an empty one, not as many of one kind as of the other, or a prompt as long as the model's context.
        ModelError: the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    base, steered = _checked_texts("base", base, "prompt"), _checked_texts("steered", steered, "prompt")
    if len(base) != len(steered):
        raise InputError("steered", f"{len(steered)} of them", f"one for each of {len(base)} base prompts")
    pairs = []
    for place, (question, text) in enumerate(zip(base, steered, strict=True)):
        base_ids, question_at = _prompt(model, tokenizer, question, None, False)
        steered_ids, _ = _prompt(model, tokenizer, text, None, False)
        shared = min(_common_suffix(base_ids, steered_ids), len(base_ids) - question_at)
        # Where not even the last token is the same, R is still that token of each.
        pair = PromptPair(question, _added(question, text), base_ids, steered_ids, max(shared, 1))
        longer = "base" if len(base_ids) > len(steered_ids) else "steered"
        _check_room(model, pair, f"{longer}[{place}]", "Shorten the prompt.")
        pairs.append(pair)
    return pairs


def _checked_texts(argument: str, texts: Sequence[str], noun: str) -> list[str]:
    if isinstance(texts, str):
        raise InputError(argument, "one string", f"a list of {noun}s", "Put it in brackets.")
    if not texts:
        raise InputError(argument, "an empty list", f"at least one {noun}")
    for place, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{argument}[{place}]", repr(text), "a text with at least one word")
    return list(texts)


def _check_room(model: HookedModel, pair: PromptPair, argument: str, remedy: str) -> None:
    longest = max(len(pair.base_ids), len(pair.steered_ids))
    if longest >= context_length(model):
        raise InputError(
            argument,
            f"a prompt of {longest} tokens",
            f"fewer than the model's context of {context_length(model)}, so that a response fits",
            remedy,
        )


def _added(base: str, steered: str) -> str:
    """What the steered text has before or after the base one."""
    for rest in (steered.removeprefix(base), steered.removesuffix(base)):
        if rest != steered and rest.strip():
            return rest.strip()
    return steered


def _has_system_role(tokenizer: Any) -> bool:
    if not tokenizer.chat_template:
        return False
    messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}]
    try:
        return _PROBE in tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:  # how a template refuses a role that it does not know
        return False


def _prompt(
    model: HookedModel, tokenizer: Any, question: str, instruction: str | None, system: bool
) -> tuple[tuple[int, ...], int]:
    """Token ids of one prompt, and the index of the question's first token."""
    if tokenizer.chat_template:
        asked = question if instruction is None or system else f"{instruction}\n\n{question}"
        messages = [{"role": "user", "content": asked}]
        if instruction is not None and system:
            messages.insert(0, {"role": "system", "content": instruction})
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    else:
        text = "\n".join(part for part in (instruction, question) if part is not None) + "\n"
        if tokenizer.bos_token and getattr(model.cfg, "default_prepend_bos", True):
            text = tokenizer.bos_token + text
    # The template (or the line above) has placed the special tokens already.
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = tuple(int(token) for token in encoding["input_ids"])
    if not tokenizer.is_fast:
        return ids, 0
    at = _question_at(tokenizer, text, question.strip()) if instruction is None else -1
    inside = [index for index, (_, end) in enumerate(encoding["offset_mapping"]) if end > at]
    return ids, inside[0] if at >= 0 and inside else 0


def _question_at(tokenizer: Any, text: str, question: str) -> int:
    """Where the question begins in a base prompt. Its words may stand in the template too ("user"), so a probe shows its place."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": _PROBE}]
        at = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)).find(_PROBE)
        at += len(text[at:]) - len(text[at:].lstrip())  # a template may keep the space before the question
        if text.startswith(question, max(at, 0)):
            return max(at, 0)
    return text.rfind(question)


def _common_suffix(left: Sequence[int], right: Sequence[int]) -> int:
    length = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        length += 1
    return length


def with_responses(model: HookedModel, pairs: Sequence[PromptPair], responses: Sequence[str]) -> list[Triplet]:
    """Triplets of responses that were written elsewhere, tokenised here once, without special tokens.

    Raises:
        InputError: not one response a pair, or an empty one.
        ModelError: the model has no tokenizer.
    """
    if isinstance(responses, str) or len(responses) != len(pairs):
        got = "one string" if isinstance(responses, str) else f"{len(responses)} of them"
        raise InputError("responses", got, f"one for each of {len(pairs)} pairs")
    triplets = []
    for place, (pair, response) in enumerate(zip(pairs, responses, strict=True)):
        ids = response_ids(model, response)
        if not ids:
            raise InputError(f"responses[{place}]", repr(response), "a text of at least one token", "Drop it with its pair.")
        triplets.append(Triplet(pair, ids, response))
    return triplets


def response_ids(model: HookedModel, response: str) -> tuple[int, ...]:
    """Token ids of a response that was written elsewhere, without special tokens.

    Raises:
        ModelError: the model has no tokenizer.
    """
    return tuple(int(token) for token in tokenizer_of(model)(response, add_special_tokens=False)["input_ids"])


def rephrase(model: HookedModel, triplets: Sequence[Triplet], instruction: str) -> list[Triplet]:
    """The same questions and the same response ids under another instruction: the yardstick of two paraphrases."""
    pairs = prompt_pairs(model, [triplet.pair.question for triplet in triplets], instruction)
    return [
        Triplet(pair, triplet.response_ids, triplet.response, triplet.trait, triplet.coherence)
        for pair, triplet in zip(pairs, triplets, strict=True)
    ]


def check_triplets(model: HookedModel, triplets: Sequence[Triplet]) -> None:
    """Refuse what no teacher-forced pass can read.

    Raises:
        InputError: no triplets, an empty response, or one that does not fit the model's context.
    """
    if not triplets:
        raise InputError(
            "triplets", "an empty list", "at least one triplet", "`sample_responses` makes them; see what its judge dropped."
        )
    limit = context_length(model)
    for place, triplet in enumerate(triplets):
        if not triplet.response_ids:
            raise InputError(f"triplets[{place}]", "an empty response", "at least one response token", "Drop it.")
        length = max(len(triplet.pair.base_ids), len(triplet.pair.steered_ids)) + len(triplet.response_ids)
        if length > limit:
            raise InputError(
                f"triplets[{place}]",
                f"prompt and response of {length} tokens",
                f"at most the model's context of {limit}",
                "Shorten the response (`max_new_tokens`) or drop it.",
            )


def token_table(model: HookedModel, triplets: Sequence[Triplet], span: Span) -> TokenTable:
    """Which token stands in each row of what a pass over `triplets` collects on `span`."""
    ids: list[int] = []
    owner: list[int] = []
    position: list[int] = []
    for index, triplet in enumerate(triplets):
        kept = triplet.pair.span_length(span)
        ids += [*triplet.pair.base_ids[len(triplet.pair.base_ids) - kept :], *triplet.response_ids]
        owner += [index] * (kept + len(triplet.response_ids))
        position += range(-kept, len(triplet.response_ids))
    strings = tuple(tokenizer_of(model).convert_ids_to_tokens(ids))
    return TokenTable(torch.tensor(ids), strings, torch.tensor(owner), torch.tensor(position))
