"""The tokens that directions promote by way of the later layers.

The Jacobian lens (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models", Transformer Circuits
Thread) transports a direction `z` at layer `l` to the last layer before it is unembedded, by

    J_l = mean over texts of  1/|V| · Σ_{t ∈ V} Σ_{t′ ∈ V, t′ ≥ t} ∂h_{last,t′} / ∂h_{l,t} .

Effects on the same token and on all later ones are summed, and averaged over the token at which they begin, as in the source. `J_l z` is
therefore one directional derivative: of Σ_{t′} h_{last,t′}, when the stream moves along `z` at all tokens of V at once. Forward-mode
differentiation gives it exactly in one pass, so that the d_model × d_model matrix, for which d_model backward passes are needed, is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import context_batch, length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.activations.teacher_forced_pass import layers_needed
from psr_lens.errors import ModelError
from psr_lens.interpretation.directions.lens import LogitLens, readable, rows_of
from psr_lens.interpretation.directions.sources import Part, Source
from psr_lens.models import HookedModel, device_of, forward, frozen, hooked
from psr_lens.models.hook_names import edit_fault
from psr_lens.prompts import Triplet, check_triplets

_AT_ONCE: Final = 16
"""Most directions of one pass."""


@checks_arguments
def jacobian_lens(
    model: HookedModel, triplets: Sequence[Triplet], source: Source, k: int = 10, *, part: Part = "directions"
) -> LogitLens:
    """The tokens that each direction promotes and suppresses by way of the later layers: the Jacobian lens (Gurnee et al. 2026).

    Each direction is transported to the last layer by the average Jacobian over the responses, after their base prompts: from the tokens
    that predict a response token to themselves and to all later ones of these. It is then read as `logit_lens` reads it.
    Each direction costs two to three forward passes over the texts; on a CPU, begin with a few of both.

    Args:
        model: The model that the directions belong to; it is not changed.
        triplets: Texts to average over, the more the steadier. `with_responses` makes triplets of any texts.
        source: A replacement, statistics of Δ, or tensors, as for `logit_lens`.
        k: Number of promoted, and of suppressed, tokens.
        part: Of a replacement, the directions `z` or the probes `w`.

    Returns:
        What `logit_lens` returns, with `lens="jacobian"`.

    Raises:
        InputError: no triplets, `k` is out of range, or a direction is not in the residual stream or has another width.
        ArtifactError: the replacement was made for another model.
        ModelError: derivatives do not reach through the model (mixtures of experts), or begin at `hook_resid_mid` of a bridge.

    Example:
        >>> psr.jacobian_lens(model, triplets[:4], pirate, k=4)
        LogitLens(directions through the Jacobian lens: 24 at 6 hook points)
    """
    check_triplets(model, triplets)
    found = readable(model, source, k, part)
    for name in found:
        if fault := edit_fault(model, name):
            raise ModelError(fault)
    if getattr(model.cfg, "num_experts", None):
        raise ModelError("The Jacobian lens does not reach through mixtures of experts. Use `logit_lens`.")
    named = progress_bar(found.items(), desc="Jacobian lens", unit="hook point")
    return LogitLens(part, rows_of(model, {name: transported(model, triplets, name, each) for name, each in named}, k), "jacobian")


def transported(
    model: HookedModel, triplets: Sequence[Triplet], name: str, vectors: Float[Tensor, "vector d_model"]
) -> Float[Tensor, "vector d_model"]:
    """`J z` of directions at a hook point, averaged over triplets.

    Raises:
        ModelError: forward-mode differentiation does not reach through the model, or derivatives are not finite.
    """
    last = f"blocks.{int(model.cfg.n_layers) - 1}.hook_resid_post"
    lengths = torch.linalg.vector_norm(vectors.double(), dim=1, keepdim=True)
    # Half precision has no room for long ones.
    units = (vectors.double() / lengths.clamp(min=torch.finfo(torch.float32).tiny)).float()
    parts = [_transported(model, triplets, (name, last), some) for some in units.split(_AT_ONCE)]
    return torch.as_tensor(torch.cat(parts) * lengths).float()


def _transported(
    model: HookedModel, triplets: Sequence[Triplet], names: tuple[str, str], vectors: Float[Tensor, "vector d_model"]
) -> Float[Tensor, "vector d_model"]:
    total = torch.zeros(vectors.shape, dtype=torch.double)
    for indices in length_batches(triplets, TOKEN_BUDGET // len(vectors)):
        batch = context_batch([triplets[index] for index in indices], "base", "R", device_of(model))
        ends = batch.mask.sum(1, keepdim=True) - 1  # the last token of a response predicts none of it
        predicting = batch.span & (torch.arange(batch.mask.shape[1], device=ends.device) < ends)
        found: list[Tensor] = []

        def move(activation: Tensor, hook: Any, predicting: Tensor = predicting) -> Tensor:
            tangent = predicting[None, :, :, None] * vectors.to(predicting.device)[:, None, None, :]
            dual: Tensor = forward_ad.make_dual(activation, tangent.flatten(0, 1).to(activation))
            return dual

        def arrive(activation: Tensor, hook: Any, predicting: Tensor = predicting, found: list[Tensor] = found) -> None:
            tangent = forward_ad.unpack_dual(activation).tangent
            share = predicting.double() / predicting.sum(1, keepdim=True)
            effects = tangent.to(share).unflatten(0, (len(vectors), -1))
            found.append(torch.einsum("vbpd,bp->vd", effects, share).cpu())

        repeated = (len(vectors), 1)
        hooks = list(zip(names, (move, arrive), strict=True))
        try:
            with (
                torch.inference_mode(mode=False),
                torch.no_grad(),
                frozen(model),
                forward_ad.dual_level(),
                hooked(model, hooks),
            ):
                forward(model, batch.tokens.repeat(repeated), batch.mask.repeat(repeated), layers_needed([names[1]]))
        except NotImplementedError as error:
            raise ModelError(f"The Jacobian lens does not reach through this model ({error}). Use `logit_lens`.") from error
        total += found[0]
    if not bool(total.isfinite().all()):
        raise ModelError(
            f'{names[0]}: derivatives are not all finite. Load the model with dtype="float32" or "bfloat16", or use `logit_lens`.'
        )
    return total / len(triplets)
