"""How much a token's error counts in the regressions of layerwise fits.

Two things have to be said of it. *What the token decides*: most tokens of a response are as likely without the instruction as with it, and
a few, mostly the first, settle whether it has the trait; a mean over tokens hides those. *Massive activations* (Sun et al. 2024,
arXiv 2402.17762): a few tokens have activations many times as large as the others', by which the next block's normalisation divides, and
whether a token has one can differ between the contexts. In squared errors such a token outweighs all others together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import length_batches
from psr_lens.activations.massive_finder import RATIO, is_massive
from psr_lens.activations.next_token import divergence
from psr_lens.activations.teacher_forced_pass import logits_budget, read_batch
from psr_lens.fitting.settings.solvers import Layerwise
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet

MASSIVE: Final = RATIO
"""What `is_massive` takes for massive."""
FLOOR: Final = 0.5
"""With `token_weights="kl"`, weight of a token that decides nothing; the mean weight is 1."""


def decisive(model: HookedModel, triplets: Sequence[Triplet], config: Layerwise) -> list[Float[Tensor, " token"]]:
    """Weights by what the tokens decide, one tensor per triplet, for the tokens of its span.

    A token's weight is `FLOOR` plus a share of KL(prompted ‖ base), the divergence between the distributions of the response token that it
    predicts. The question's tokens and the last response token predict none. The mean over all tokens is 1.
    """
    found: dict[int, Tensor] = {}
    for indices in length_batches(triplets, logits_budget(model, config.token_budget, 2)):
        chosen = [triplets[index] for index in indices]
        base, prompted = (read_batch(model, chosen, [], context, "R", logits=True).logits for context in ("base", "prompted"))
        if base is not None and prompted is not None:
            parts = divergence(prompted, base).cpu().split([len(each.response_ids) for each in chosen])
            for index, triplet, part in zip(indices, chosen, parts, strict=True):
                found[index] = torch.nn.functional.pad(part, (triplet.pair.span_length(config.span) - 1, 1))
    every = torch.cat(list(found.values()))
    scale = (1 - FLOOR) / every.mean().clamp(min=1e-12)
    return [(FLOOR + scale * found[index]).float() for index in range(len(triplets))]


def row_weights(
    inputs: Float[Tensor, "token width"],
    targets: Float[Tensor, "token width"],
    alpha: Float[Tensor, " token"],
    given: Float[Tensor, " token"],
    config: Layerwise,
) -> Float[Tensor, " token"]:
    """The weight of each token's squared error: the given one, less for large activations of the residual stream.

    With `relative` it is divided by the prompted activation's norm to that power. The error of a token that is massive in either context
    counts in proportion to its norm, so that it weighs as much as another token's; a `relative` of 2 sees to that by itself.
    """
    if config.hook != "resid_post":
        return given
    parts = [each.split(config.regression_batch) for each in (inputs, targets)]
    counts = given * alpha.square()

    def largest(context: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Norms in one context, and those of massive tokens in units of the median; 1 for the others."""
        norms = torch.cat([context(*each).norm(dim=1) for each in zip(*parts, strict=True)])
        typical = float(_median(norms, counts))
        massive = torch.cat([is_massive(context(*each), MASSIVE, typical) for each in zip(*parts, strict=True)])
        return norms, torch.where(massive, norms / max(typical, 1e-12), 1.0)

    _, in_base = largest(lambda ours, added: ours.double())
    norms, in_prompted = largest(lambda ours, added: ours.double() + added)
    return (
        given.double()
        * torch.maximum(in_base, in_prompted) ** -max(0.0, 2 - config.relative)
        * norms.clamp(min=1e-12) ** -config.relative
    )


def _median(values: Float[Tensor, " token"], counts: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """The median of values that count differently."""
    ordered, at = values.sort()
    below = counts.double()[at].cumsum(0)
    return ordered[int((below < below[-1] / 2).sum().clamp(max=len(values) - 1))]
