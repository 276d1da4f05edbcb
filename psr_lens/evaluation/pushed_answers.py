"""Answers token by token, with how hard each token was pushed where it was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.sequences import common_prefix
from psr_lens.activations.batches import length_batches
from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.evaluation.acting_sites import ActingSite, positions
from psr_lens.evaluation.methods import Plan, parts_of
from psr_lens.generation.sampling import Response
from psr_lens.models import HookedModel, device_of, tokenizer_of
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.prompts.token_text import decoded, is_special

_INCOMPLETE: Final = "\ufffd"
"""What a tokenizer writes for bytes that are no character yet."""


@dataclass(frozen=True, eq=False)
class PushedAnswer:
    """One answer token by token; `answers_by_method` makes it.

    Example:
        >>> side_by_side = psr.answers_by_method(model, pairs[:1], pirate, sampling=psr.SamplingConfig(max_new_tokens=4, temperature=0))
        >>> side_by_side.pushed["A-PSR"][0].pieces
        ('arr', ',', ' to', ' begin')
    """

    pieces: tuple[str, ...]
    """What each token adds to the answer, which they make up if they are joined: empty for a special token, and for one that ends within a
    character."""
    magnitudes: Float[Tensor, "token point"]
    """‖Δ‖ at the token before each, from which it was predicted, in the activation's units. Of a replacement: what it added at each hook
    point where it acts, its strength included. Of the prompt: the difference that the instruction makes to the residual stream after each
    layer, on the same tokens."""
    special: tuple[bool, ...] = ()
    """Whether each token is special and so has no text, unlike one that ends within a character; empty if none is."""


def pushed_answers(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    responses: Sequence[Response],
    plan: Plan | None,
    alpha: float,
    token_budget: int,
) -> tuple[PushedAnswer, ...]:
    """Read answers again without sampling: one pass with the plan in force, or two for the prompt; none for an adapter.

    Args:
        model: The model; it is not changed.
        pairs: The questions.
        responses: The answer to each.
        plan: What steered them; None for the prompt.
        alpha: Its strength.
        token_budget: Most tokens in a batch, padding included.

    Raises:
        ModelError: activations are not finite.
    """
    sites = [] if plan is None else ActingSite.all_of(plan, device_of(model))
    if plan is not None and not sites:
        return ()
    tokenizer = tokenizer_of(model)
    found: dict[int, PushedAnswer] = {}
    triplets = [Triplet(pair, response.ids, response.text) for pair, response in zip(pairs, responses, strict=True)]
    for indices in length_batches(triplets, token_budget):
        chosen = [triplets[index] for index in indices]
        rows = _of_prompt(model, chosen) if plan is None else _of_plan(model, chosen, plan, alpha, sites)
        lengths = [each.pair.span_length("R") + len(each.response_ids) for each in chosen]
        for index, triplet, own in zip(indices, chosen, rows.split(lengths), strict=True):
            before = own[len(own) - len(triplet.response_ids) - 1 : len(own) - 1]
            special = tuple(is_special(tokenizer, token) for token in triplet.response_ids)
            found[index] = PushedAnswer(answer_pieces(tokenizer, triplet.response_ids), before, special)
    return tuple(found[index] for index in range(len(triplets)))


def _of_prompt(model: HookedModel, triplets: Sequence[Triplet]) -> Float[Tensor, "token layer"]:
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(int(model.cfg.n_layers))]
    base, prompted = (read_batch(model, triplets, names, context, "R").rows for context in ("base", "prompted"))
    return torch.stack([_lengths(prompted[name].float() - base[name].float()) for name in names], dim=1)


def is_silent(plan: Plan, alpha: float) -> bool:
    """Whether steering with a plan is the same as none: at strength 0, without an offset."""
    return alpha == 0 and all(part.replacement.offset == 0 for part in parts_of(plan))


def _of_plan(
    model: HookedModel, triplets: Sequence[Triplet], plan: Plan, alpha: float, sites: Sequence[ActingSite]
) -> Float[Tensor, "token point"]:
    if is_silent(plan, alpha):  # no pass is needed to know
        return torch.zeros(len(positions(triplets, "R")), len(sites))
    steered = PassSteering(plan, alpha, [site.name for site in sites])
    arriving = read_batch(model, triplets, [], "base", "R", steered=steered).arriving
    position = positions(triplets, "R")
    return torch.stack([_lengths(site.added(arriving[site.name], position, alpha)[0]) for site in sites], dim=1)


def _lengths(vectors: Float[Tensor, "token *head width"]) -> Float[Tensor, " token"]:
    length: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return length.cpu()


def answer_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of an answer, cut where its tokens end: a character of several tokens comes with the last of them."""
    whole = decoded(tokenizer, ids)
    pieces, end = [], 0
    for count in range(1, len(ids) + 1):
        known = whole if count == len(ids) else decoded(tokenizer, ids[:count]).rstrip(_INCOMPLETE)
        # A tokenizer that removes spaces before punctuation may take back what it wrote before.
        upto = max(end, common_prefix(whole, known))
        pieces.append(whole[end:upto])
        end = upto
    return tuple(pieces)


def layer_relative(
    answers: Sequence[PushedAnswer], units: Sequence[PushedAnswer] | None = None
) -> tuple[Float[Tensor, " token"], ...]:
    """How hard each token is pushed, relative to others: ‖Δ‖ over the median of the hook point, mean over hook points.

    The median is that of the tokens that are pushed there at all, since many replacements are silent on most tokens. A hook point where
    none is pushed does not count.

    Args:
        answers: The answers.
        units: The answers that the medians are taken over; None for the same ones.

    Returns:
        For each answer one number a token: 1 is the median, 0 is not pushed, NaN if `units` are pushed nowhere or have no tokens.
    """
    rows = [each.magnitudes for each in (answers if units is None else units)]
    if not any(each.numel() for each in rows):
        return tuple(torch.full((len(each.magnitudes),), torch.nan, dtype=torch.float64) for each in answers)
    over = torch.cat(rows)
    medians = torch.where(over > 0, over, torch.nan).double().nanquantile(0.5, dim=0)
    return tuple((each.magnitudes.double() / medians).nanmean(dim=1) for each in answers)
