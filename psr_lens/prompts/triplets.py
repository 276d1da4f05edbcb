"""Prompt pairs, and the two contexts in which one response is read.

A pair is a question without and with an instruction. A triplet adds a response, sampled under the instruction. Both contexts of a
triplet end with the *same response token ids*; nothing is ever tokenised again from decoded text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.models import HookedModel, context_length, tokenizer_of
from psr_lens.prompts.making_pairs import remade
from psr_lens.prompts.pairs import PromptPair, Span


@dataclass(frozen=True)
class Triplet:
    """A prompt pair and a response to the prompted context."""

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

    token_ids: Int[Tensor, " token"]
    """Vocabulary ids."""
    strings: tuple[str, ...]
    """The tokens as text."""
    triplet: Int[Tensor, " token"]
    """Index of the triplet that the token belongs to."""
    position: Int[Tensor, " token"]
    """Place in the response: 0 is the first response token, −1 the last prompt token, which predicts it."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.strings)

    def rows(self, triplet: int) -> Int[Tensor, " row"]:
        """Row numbers of one triplet's tokens, in order."""
        return (self.triplet == triplet).nonzero().flatten()


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
    pairs = remade(model, [triplet.pair for triplet in triplets], instructions=[instruction] * len(triplets))
    return [
        Triplet(pair, triplet.response_ids, triplet.response, triplet.trait, triplet.coherence)
        for pair, triplet in zip(pairs, triplets, strict=True)
    ]


def check_triplets(model: HookedModel, triplets: Sequence[Triplet]) -> None:
    """Refuse what a teacher-forced pass cannot read.

    Raises:
        InputError: `triplets` is not a list of triplets, or an empty one; or a triplet has an empty response, a score that is not from 0 to
            100, or more tokens than the model's context.
    """
    if isinstance(triplets, str) or not isinstance(triplets, Sequence):
        remedy = (
            "Put it in brackets." if isinstance(triplets, Triplet) else "`sample_responses` makes them; the model goes before them."
        )
        raise InputError("triplets", type(triplets).__name__, "a list of triplets", remedy)
    if not triplets:
        raise InputError(
            "triplets", "an empty list", "at least one triplet", "`sample_responses` makes them; see what its judge dropped."
        )
    limit = context_length(model)
    for index, triplet in enumerate(triplets):
        if not isinstance(triplet, Triplet):
            remedy = "`sample_responses` and `with_responses` make triplets of prompt pairs."
            raise InputError(f"triplets[{index}]", type(triplet).__name__, "a Triplet", remedy)
        if not triplet.response_ids:
            raise InputError(f"triplets[{index}]", "an empty response", "at least one response token", "Drop it.")
        length = max(len(triplet.pair.base_ids), len(triplet.pair.prompted_ids)) + len(triplet.response_ids)
        if length > limit:
            raise InputError(
                f"triplets[{index}]",
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
