"""Models that think before they answer: the thought becomes the end of both prompts, so that only the answer is steered and measured.

A prompt that ends in a thought needs no span of its own: the span `R` begins at the thought's last token, in training, in sampling and in
every measurement, and judges see the response alone, which is the answer.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.generation.sampled_triplets import Dropped, Triplets
from psr_lens.generation.sampling import SamplingConfig, checked_sampling, generate
from psr_lens.models import HookedModel, context_length, tokenizer_of
from psr_lens.prompts import Context, PromptPair, PromptPairs, Triplet, check_pairs, with_thought
from psr_lens.prompts.token_text import decoded

THINK: Final = "</think>"
"""What ends the thoughts of DeepSeek-R1, Qwen3 and others."""


@checks_arguments
def think(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    after: str = THINK,
    *,
    context: Context = "base",
    sampling: SamplingConfig | None = None,
) -> PromptPairs:
    """Let a model think about each question, and make pairs whose prompts both end in that thought.

    Everything that takes these pairs is about the answer alone: responses begin after the thought, replacements act from its last token
    on, and judges see the answer. Both prompts and all methods have the same thought, so that the instruction, or what replaces it, is all
    that differs.

    Args:
        model: The model; it thinks without steering.
        pairs: The prompts.
        after: The text that ends a thought; it stays in the prompts. It must not contain special tokens of the tokenizer.
        context: The prompt that is thought about: `"base"`, without the instruction, or `"prompted"`.
        sampling: How thoughts are sampled; `max_new_tokens` has to leave room for whole ones.

    Returns:
        The pairs whose thought has ended, in order. A warning says how many had none that did, and were left out.

    Raises:
        InputError: no thought has ended, or `after` is empty or a special token.
        ModelError: the model has no tokenizer.

    Example:
        >>> thinking = psr.think(model, pairs[:2], after=",", context="prompted", sampling=psr.SamplingConfig(temperature=0))
        >>> [model.tokenizer.decode(pair.thought_ids) for pair in thinking]
        ['arr,', 'arr,']
        >>> psr.generate(model, thinking[:1], context="prompted", sampling=psr.SamplingConfig(temperature=0))[0].text
        'to begin, carry the cold water. ...'
    """
    check_pairs(pairs)
    tokenizer = tokenizer_of(model)
    _check_marker(tokenizer, after)
    config = checked_sampling(sampling)
    found = generate(model, pairs, context=context, sampling=replace(config, stop=(*config.stop, after)))
    made = []
    for pair, response in zip(pairs, found, strict=True):
        length = _thought_length(tokenizer, response.ids, after)
        if length and _fits(model, thoughtful := with_thought(pair, response.ids[:length])):
            made.append(thoughtful)
    if not made:
        raise InputError(
            "after",
            f"{after!r}, which ended none of {len(pairs)} thoughts of up to {config.max_new_tokens} tokens",
            "the text that ends the model's thoughts",
            "Look at what `psr.generate` gives, and raise `max_new_tokens`.",
        )
    if left_out := len(pairs) - len(made):
        warnings.warn(
            f"{left_out} of {len(pairs)} thoughts did not end in {after!r} within {config.max_new_tokens} tokens and the model's context, "
            "and their questions were left out. Raise `max_new_tokens`.",
            UserWarning,
            stacklevel=3,
        )
    return PromptPairs(tuple(made), tokenizer)


@checks_arguments
def answers_after(model: HookedModel, triplets: Sequence[Triplet], after: str = THINK) -> Triplets:
    """Triplets of whole responses as triplets of answers: what comes before an answer becomes the end of both prompts.

    The response's ids are split, not re-tokenised: the answer begins with the token after the one that completes the marker.

    Args:
        model: Model whose tokenizer is used.
        triplets: Triplets whose responses contain thoughts.
        after: The text after which the answer begins, at its first occurrence. It must not contain special tokens of the tokenizer.

    Returns:
        The triplets of answers, with their scores as they were. Dropped are responses `"without the marker"`, and those that are `"empty"`
        after it; `.summary()` counts them.

    Raises:
        InputError: `after` is empty or a special token.
        ModelError: the model has no tokenizer.

    Example:
        >>> answers = psr.answers_after(model, triplets, after=",")
        >>> triplets[0].response[:17], answers[0].response[:12], len(answers)
        ('aye, first, carry', 'first, carry', 16)
    """
    tokenizer = tokenizer_of(model)
    _check_marker(tokenizer, after)
    kept: list[Triplet] = []
    dropped = list(triplets.dropped) if isinstance(triplets, Triplets) else []
    for triplet in triplets:
        length = _thought_length(tokenizer, triplet.response_ids, after)
        answer = triplet.response_ids[length:]
        text = decoded(tokenizer, answer)
        if length and text.strip():
            pair = with_thought(triplet.pair, triplet.response_ids[:length])
            kept.append(replace(triplet, pair=pair, response_ids=answer, response=text))
        else:
            dropped.append(Dropped(triplet.pair.asked, triplet.response, "empty" if length else "without the marker"))
    return Triplets(tuple(kept), tuple(dropped), tokenizer)


def _check_marker(tokenizer: Any, after: str) -> None:
    if not after.strip():
        raise InputError("after", repr(after), "the text that ends a thought, such as '</think>'")
    added = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    if found := [each for each in {*added, *tokenizer.all_special_tokens} if each.strip() and each in after]:
        raise InputError(
            "after", repr(after), f"a text without the special token {found[0]!r}, which never occurs in the text of a response"
        )


def _thought_length(tokenizer: Any, ids: Sequence[int], after: str) -> int:
    """Number of tokens up to the one that completes the marker; 0 if it does not occur."""
    if after not in decoded(tokenizer, ids):
        return 0
    return bisect_left(range(len(ids)), 1, lo=1, key=lambda length: int(after in decoded(tokenizer, ids[:length])))


def _fits(model: HookedModel, pair: PromptPair) -> bool:
    """Whether the model's context has room for a response."""
    return max(len(pair.base_ids), len(pair.prompted_ids)) < context_length(model)
