"""Triplets: a prompt pair with the response that is read after both of its prompts, and the table of their tokens.

Both prompts of a triplet are followed by the *same response token ids*; decoded text is never tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens._utils.arguments import CHECKS, checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.short_text import quoted
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, WithTokenizer, check_ids, context_length, tokenizer_of
from psr_lens.prompts.pair_builder import remade, response_ids
from psr_lens.prompts.pairs import check_pairs
from psr_lens.prompts.prompt_pair import PromptPair, Span
from psr_lens.prompts.token_text import token_strings


@dataclass(frozen=True, repr=False)
class Triplet:
    """A prompt pair with a response to the prompt with the instruction.

    Example:
        >>> psr.Triplet(pairs[0], (30, 31, 32), "arr , just wash", trait=80)
        Triplet('hello , what is the way to clean a room ?' → 'arr , just wash', 3 tokens, trait 80, coherence 100)
    """

    pair: PromptPair
    """The two prompts."""
    response_ids: tuple[int, ...]
    """Token ids of the response `y'`, including the end token if it was reached."""
    response: str
    """The response as text, without special tokens."""
    trait: float = 100.0
    """The judge's trait score, 0–100; a fit trains at the strength α = `trait` / 100."""
    coherence: float = 100.0
    """The judge's coherence score, 0–100."""

    def __repr__(self) -> str:
        """Question, response and scores, on one line."""
        texts = f"{quoted(self.pair.question)} → {quoted(self.response)}"
        return f"Triplet({texts}, {counted(len(self.response_ids), 'token')}, trait {self.trait:g}, coherence {self.coherence:g})"

    def _repr_html_(self) -> str:
        rows = [("question", self.pair.asked), ("instruction", self.pair.instruction), ("response", self.response)]
        return table(("triplet", ""), [*rows, ("trait", f"{self.trait:g}"), ("coherence", f"{self.coherence:g}")])


@dataclass(frozen=True, eq=False, repr=False)
class TokenTable:
    """Which token each row of a captured activation belongs to: one row per token of the span, triplet by triplet."""

    token_ids: Int[Tensor, " token"]
    """Vocabulary ids."""
    strings: tuple[str, ...]
    """The tokens as the vocabulary spells them."""
    triplet: Int[Tensor, " token"]
    """Index of each token's triplet."""
    position: Int[Tensor, " token"]
    """Position relative to the response: 0 is the first response token, −1 the last prompt token, which predicts it."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.strings)

    def rows(self, triplet: int) -> Int[Tensor, " row"]:
        """Row numbers of one triplet's tokens, in order."""
        return (self.triplet == triplet).nonzero().flatten()

    def __repr__(self) -> str:
        """Numbers of tokens and triplets."""
        return f"TokenTable({counted(len(self), 'token')} of {counted(len(self.triplet.unique()), 'triplet')})"

    def _repr_html_(self) -> str:
        rows = list(zip(self.strings, self.token_ids.tolist(), self.triplet.tolist(), self.position.tolist(), strict=True))
        return table(("token", "id", "triplet", "position"), rows, repr(self))


@checks_arguments
def with_responses(model: WithTokenizer, pairs: Sequence[PromptPair], responses: Sequence[str]) -> list[Triplet]:
    """Make triplets of responses that were written elsewhere.

    A response is encoded once, as what continues its prompt, and without special tokens: `"</s>"` in it is only characters.

    Args:
        model: Model whose tokenizer is used.
        pairs: Prompt pairs.
        responses: One response per pair.

    Raises:
        InputError: not one response per pair, an empty one, or one that cannot be encoded.
        ModelError: the model has no tokenizer.

    Example:
        >>> [triplet] = psr.with_responses(model, pairs[:1], ["arr , wash the cold stone ."])
        >>> len(triplet.response_ids)
        7
    """
    check_pairs(pairs, may_be_empty=True)
    if isinstance(responses, str) or not isinstance(responses, Sequence) or len(responses) != len(pairs):
        single = "one string" if isinstance(responses, str) else type(responses).__name__
        got = f"{len(responses)} responses" if isinstance(responses, list | tuple) else single
        raise InputError("responses", got, f"a list with one response for each of the {len(pairs)} pairs")
    for index, response in enumerate(responses):
        if not isinstance(response, str):
            raise InputError(f"responses[{index}]", repr(response), "a text")
    encoded = response_ids(model, pairs, responses)
    for index, ids in enumerate(encoded):
        if not ids:
            remedy = "Drop it with its pair."
            raise InputError(f"responses[{index}]", repr(responses[index]), "a text of at least one token", remedy)
    return [Triplet(pair, ids, response) for pair, ids, response in zip(pairs, encoded, responses, strict=True)]


@checks_arguments
def rephrase(model: HookedModel, triplets: Sequence[Triplet], instruction: str) -> list[Triplet]:
    """The same questions, response ids and scores under another instruction: the paraphrase baseline.

    Args:
        model: Model whose tokenizer and chat template are used.
        triplets: The triplets.
        instruction: The other instruction.

    Raises:
        InputError: an empty instruction, or triplets that no pass can read.

    Example:
        >>> [other] = psr.rephrase(model, triplets[:1], "speak as a pirate would .")
        >>> other.pair.instruction, other.response_ids == triplets[0].response_ids
        ('speak as a pirate would .', True)
    """
    check_triplets(model, triplets)
    pairs = remade(model, [triplet.pair for triplet in triplets], instructions=[instruction] * len(triplets))
    return [replace(triplet, pair=pair) for pair, triplet in zip(pairs, triplets, strict=True)]


def are_triplets(given: object, argument: str = "triplets") -> None:
    """Refuse what is not a list of triplets.

    Raises:
        InputError: it is not.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        remedy = (
            "Put it in brackets." if isinstance(given, Triplet) else "`sample_responses` makes them; the model goes before them."
        )
        raise InputError(argument, type(given).__name__, "a list of triplets", remedy)
    for index, triplet in enumerate(given):
        if not isinstance(triplet, Triplet):
            remedy = "`sample_responses` and `with_responses` make triplets of prompt pairs."
            raise InputError(f"{argument}[{index}]", type(triplet).__name__, "a Triplet", remedy)


CHECKS[Sequence[Triplet]] = are_triplets


def check_triplets(model: HookedModel, triplets: Sequence[Triplet], argument: str = "triplets") -> None:
    """Refuse what a teacher-forced pass cannot read.

    Raises:
        InputError: `triplets` is not a list of triplets, or an empty one; or a triplet has an empty response, a score that is not from 0 to
            100, an id that the model does not have, or more tokens than the model's context.
    """
    are_triplets(triplets, argument)
    if not triplets:
        raise InputError(
            argument, "an empty list", "at least one triplet", "`sample_responses` makes them; see what its judge dropped."
        )
    limit = context_length(model)
    for index, triplet in enumerate(triplets):
        if not triplet.response_ids:
            raise InputError(f"{argument}[{index}]", "an empty response", "at least one response token", "Drop it.")
        for name in ("trait", "coherence"):
            score = getattr(triplet, name)
            if not isinstance(score, Real) or not 0 <= float(score) <= 100:
                raise InputError(
                    f"{argument}[{index}].{name}", score, "a score from 0 to 100", "Drop the triplet, or score it again."
                )
        check_ids(model, (*triplet.pair.base_ids, *triplet.pair.prompted_ids, *triplet.response_ids), f"{argument}[{index}]")
        length = max(len(triplet.pair.base_ids), len(triplet.pair.prompted_ids)) + len(triplet.response_ids)
        if length > limit:
            raise InputError(
                f"{argument}[{index}]",
                f"prompt and response of {length} tokens",
                f"at most the model's context of {limit}",
                "Shorten the response (`max_new_tokens`) or drop it.",
            )


def token_table(model: HookedModel, triplets: Sequence[Triplet], span: Span) -> TokenTable:
    """Which token each row belongs to that a pass over `triplets` collects on `span`."""
    ids: list[int] = []
    owner: list[int] = []
    position: list[int] = []
    for index, triplet in enumerate(triplets):
        kept = triplet.pair.span_length(span)
        ids += [*triplet.pair.base_ids[len(triplet.pair.base_ids) - kept :], *triplet.response_ids]
        owner += [index] * (kept + len(triplet.response_ids))
        position += range(-kept, len(triplet.response_ids))
    strings = token_strings(tokenizer_of(model), ids)
    return TokenTable(torch.tensor(ids), strings, torch.tensor(owner), torch.tensor(position))
