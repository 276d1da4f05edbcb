"""The same text in two models: their tokens paired where both end at the same byte, each model with prompts of its own template.

At such a token both models have read exactly the same text, whatever pieces they read it in; so what they compute there can be compared.
Pairs are one to one. Where a token of one model covers several of the other's, only the last of these can be paired: at the others, one
model has read text that the other has not. Tokens without text of their own are not paired, except for the last prompt tokens, before which
the texts say the same and at which both models decide on the first token, and the tokens that end a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.short_text import quoted
from psr_lens.errors import InputError
from psr_lens.generation.sampling import stop_ids
from psr_lens.models import HookedModel, tokenizer_of
from psr_lens.prompts import PromptPair, Triplet, check_triplets, remade, response_ids
from psr_lens.prompts.chat_templates import carried_over, turn_end
from psr_lens.transfer.token_ends import token_ends

_PROMPT_TOKEN: Final = torch.tensor([-1])
"""Index of the last prompt token, counted from the response's first."""
_ANY: Final = "x"
"""An instruction for pairs that have none, whose prompt with the instruction is not used."""


class TokenPairs(NamedTuple):
    """Tokens of two tokenizations of one text that end at the same byte, in order."""

    source: Int[Tensor, " pair"]
    """Index of each pair's token in the source's tokens."""
    target: Int[Tensor, " pair"]
    """Index of each pair's token in the target's."""


class PairedRows(NamedTuple):
    """Rows of activations on the span `R` that belong together, all texts one after the other."""

    source: Int[Tensor, " pair"]
    """Row of each pair in what `collect` returns for the source's triplets."""
    target: Int[Tensor, " pair"]
    """Row in what it returns for the target's."""
    text: Int[Tensor, " pair"]
    """Index of each pair's text."""


@dataclass(frozen=True, eq=False, repr=False)
class PairedText:
    """One triplet as two models read it, and which of its tokens belong together.

    Example:
        >>> [paired] = psr.transfer.pair_texts(model, model, triplets[:1])
        >>> paired
        PairedText('...' → '...', ... source and ... target tokens, ... pairs)
        >>> bool((paired.source_positions == paired.target_positions).all())
        True
    """

    source: Triplet
    """The triplet as it was given."""
    target: Triplet
    """The same question, instruction and response with the target's template and tokenizer."""
    source_positions: Int[Tensor, " pair"]
    """Index within the source's response of each pair's token, ascending from −1, the last prompt token."""
    target_positions: Int[Tensor, " pair"]
    """The same within the target's response."""

    def __repr__(self) -> str:
        """Question, response and numbers of tokens, on one line."""
        texts = f"{quoted(self.source.pair.question)} → {quoted(self.source.response)}"
        tokens = f"{len(self.source.response_ids)} source and {len(self.target.response_ids)} target tokens"
        return f"PairedText({texts}, {tokens}, {len(self.source_positions)} pairs)"


@checks_arguments
def pair_tokens(source_ends: Sequence[int], target_ends: Sequence[int]) -> TokenPairs:
    """Pair the tokens of two tokenizations of one text that end at the same byte.

    Of several tokens of one tokenization that end at the same byte, the first is paired, which brings the text there; the others have no
    text of their own. So a byte has at most one pair, and every byte at which both have a token's end has one.

    Args:
        source_ends: How many bytes of the text have been read with each token of the source, never descending.
        target_ends: The same of the target.

    Returns:
        Indices of the tokens, both strictly ascending.

    Raises:
        InputError: ends that are negative or descend.

    Example:
        >>> psr.transfer.pair_tokens([2, 4, 7], [1, 2, 7, 7]).target  # "ab|cd|efg" and "a|b|cdefg|" with an empty last token
        tensor([1, 2])
    """
    first: list[dict[int, int]] = []
    for name, ends in (("source_ends", source_ends), ("target_ends", target_ends)):
        if any(before > end for before, end in pairwise((0, *ends))):
            raise InputError(name, repr(list(ends)), "numbers of bytes from 0 on, none smaller than the one before it")
        found: dict[int, int] = {}
        for index, end in enumerate(ends):
            found.setdefault(int(end), index)
        first.append(found)
    common = sorted((first[0].keys() & first[1].keys()) - {0})
    source, target = (torch.tensor([found[end] for end in common], dtype=torch.int64) for found in first)
    return TokenPairs(source, target)


@checks_arguments
def pair_texts(source: HookedModel, target: HookedModel, triplets: Sequence[Triplet]) -> list[PairedText]:
    """Let two models read the same texts: prompts of each one's own template, and tokens paired where both end at the same byte.

    The target's triplets have the same questions, instructions and scores. Their response is the same text, encoded as what continues
    the target's prompt, and ends with the target's own end token if the source's does; the end tokens are a pair too, as are the last
    prompt tokens. Of the template's variables (`template_kwargs`), those that the target's template does not read are left out.

    Args:
        source: The model whose triplets these are.
        target: Another model.
        triplets: The texts. A triplet whose instruction is empty has the same prompt twice.

    Returns:
        One for each triplet, in order.

    Raises:
        InputError: prompts that the source's template does not make of the question and the instruction, such as ready token ids or a
            thought whose text is encoded otherwise; a system message or role that the target's template does not have; a prompt or a
            response that is too long for the target; no triplets.
        ModelError: a model has no tokenizer.

    Example:
        >>> other = psr.load_model("organism-gpt2")
        >>> psr.transfer.pair_texts(model, other, triplets[:2])[1].target.response_ids == triplets[1].response_ids
        True
    """
    check_triplets(source, triplets)
    from_, to = tokenizer_of(source), tokenizer_of(target)
    pairs = counterparts(source, target, [each.pair for each in triplets], "triplets[{}].pair")
    texts = response_ids(target, pairs, [each.response for each in triplets])
    stops, end = stop_ids(source, from_), _end_token(target)
    paired = []
    for index, (triplet, pair, ids) in enumerate(zip(triplets, pairs, texts, strict=True)):
        argument = f"triplets[{index}].response"
        ended = triplet.response_ids[-1] in stops
        own = triplet.response_ids[:-1] if ended else triplet.response_ids
        ends = token_ends(from_, own, triplet.response, argument), token_ends(to, ids, triplet.response, argument)
        at = TokenPairs(*(torch.cat([_PROMPT_TOKEN, each]) for each in pair_tokens(*ends)))
        if ended and end is not None:
            at = TokenPairs(*(torch.cat([each, torch.tensor([len(of)])]) for each, of in zip(at, (own, ids), strict=True)))
            ids = (*ids, end)
        if not ids:
            raise InputError(argument, repr(triplet.response), "a text of at least one token of the target", "Drop the triplet.")
        paired.append(PairedText(triplet, replace(triplet, pair=pair, response_ids=ids), *at))
    check_triplets(target, [each.target for each in paired])
    return paired


def paired_rows(paired: Sequence[PairedText]) -> PairedRows:
    """The rows of all pairs on the span `R`, whose first row in each text is the last prompt token."""
    rows: list[list[Tensor]] = [[], []]
    begins = [0, 0]
    for each in paired:
        sides = ((each.source, each.source_positions), (each.target, each.target_positions))
        for side, (triplet, positions) in enumerate(sides):
            rows[side].append(begins[side] + 1 + positions)
            begins[side] += 1 + len(triplet.response_ids)
    text = torch.cat([torch.full((len(each),), index) for index, each in enumerate(rows[0])])
    return PairedRows(torch.cat(rows[0]), torch.cat(rows[1]), text)


def counterparts(source: HookedModel, target: HookedModel, pairs: Sequence[PromptPair], argument: str) -> list[PromptPair]:
    """The same prompts for another model, of its own template.

    Args:
        source: The model whose prompts these are.
        target: Another model.
        pairs: The prompts.
        argument: What errors name, with `{}` for the index.

    Raises:
        InputError: prompts that the source's template does not make of their texts, or that the target's cannot make.
    """
    _check_rendered(source, pairs, argument)
    to = tokenizer_of(target)
    chats = {each.chat: carried_over(each.chat, to) for each in pairs}
    return _prompts(target, [replace(each, chat=chats[each.chat]) for each in pairs])


def _check_rendered(model: HookedModel, pairs: Sequence[PromptPair], argument: str) -> None:
    """Refuse prompts that are not what the model's template makes of their texts: these cannot be made for another model."""
    made: list[PromptPair | None]
    try:
        made = list(_prompts(model, pairs))
    except InputError:  # of one of them, such as an empty question; which one is seen below
        made = [_prompt_if_any(model, each) for each in pairs]
    for index, (pair, found) in enumerate(zip(pairs, made, strict=True)):
        if found is None or (found.base_ids, found.prompted_ids) != (pair.base_ids, pair.prompted_ids):
            raise InputError(
                argument.format(index),
                f"{pair!r}, whose tokens are not those that {model.cfg.model_name}'s chat template and tokenizer make of its texts",
                "a pair of texts, since another model needs prompts of its own",
                "Make the pairs with `prompt_pairs`; ready token ids and thoughts (`think`) belong to one model.",
            )


def _prompt_if_any(model: HookedModel, pair: PromptPair) -> PromptPair | None:
    try:
        return _prompts(model, [pair])[0]
    except InputError:
        return None


def _prompts(model: HookedModel, pairs: Sequence[PromptPair]) -> list[PromptPair]:
    """The pairs with a model's own prompts; one without an instruction has the base prompt twice."""
    bare = [not pair.instruction.strip() for pair in pairs]
    instructions = [_ANY if is_bare else pair.instruction for pair, is_bare in zip(pairs, bare, strict=True)]
    made = remade(model, pairs, instructions=instructions)
    return [
        replace(each, instruction=pair.instruction, prompted_ids=each.base_ids) if is_bare else each
        for pair, each, is_bare in zip(pairs, made, bare, strict=True)
    ]


def _end_token(model: HookedModel) -> int | None:
    """The token with which a model ends a response; None if it has none."""
    tokenizer: Any = tokenizer_of(model)
    stops = stop_ids(model, tokenizer)
    following = tokenizer(turn_end(tokenizer).strip(), add_special_tokens=False)["input_ids"]
    candidates = [*following[:1], tokenizer.eos_token_id, *sorted(stops)]
    return next((int(each) for each in candidates if each in stops), None)
