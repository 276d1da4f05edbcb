"""Neurons as `adapt` returns them: fitted on most of the triplets, and measured on the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, context_batch, length_batches
from psr_lens.activations.next_token import divergence
from psr_lens.activations.store import triplets_digest
from psr_lens.activations.teacher_forced_pass import logits_budget, predicting
from psr_lens.fitting.mlp_neurons import fit_neurons
from psr_lens.fitting.settings.adapters import Neurons
from psr_lens.models import ExtraNeurons, HookedModel, device_of, fingerprint, forward, frozen, neurons_added
from psr_lens.models.hook_points import check_layers
from psr_lens.prompts import Triplet
from psr_lens.replacement import AddedNeurons, NeuronFidelity, Site


def learned_neurons(model: HookedModel, triplets: Sequence[Triplet], config: Neurons) -> AddedNeurons:
    """Fit neurons, and measure how close they are to what they stand for.

    Raises:
        InputError: a layer that the model does not have.
        FitError, ModelError: as for `fit_neurons`.
    """
    layers = check_layers(model, config.layers)
    training, held_back = _split(triplets, config)
    found = fit_neurons(model, training, sorted(layers), config)
    neurons = {layer: each.neurons for layer, each in found.items()}
    sites = {layer: each.site for layer, each in found.items()}
    measured = _fidelity(model, held_back or training, sites, neurons, config, bool(held_back))
    said = {"triplets": len(training), "instructions": sorted({each.pair.instruction for each in triplets})}
    return AddedNeurons(neurons, fingerprint(model), config.to_json() | said, measured, triplets_digest(triplets))


def _split(triplets: Sequence[Triplet], config: Neurons) -> tuple[list[Triplet], list[Triplet]]:
    """The triplets to fit on, and those to measure on: none if there is but one, or if none are asked for."""
    if not config.validation or len(triplets) < 2:
        return list(triplets), []
    count = min(max(1, round(config.validation * len(triplets))), len(triplets) - 1)
    order = torch.randperm(len(triplets), generator=torch.Generator().manual_seed(config.seed)).tolist()
    out = set(order[:count])
    return [each for index, each in enumerate(triplets) if index not in out], [triplets[index] for index in sorted(out)]


def _fidelity(
    model: HookedModel,
    triplets: Sequence[Triplet],
    sites: Mapping[int, Site],
    neurons: Mapping[int, ExtraNeurons],
    config: Neurons,
    held_back: bool,
) -> NeuronFidelity:
    """The divergences, as means over tokens."""
    sums, responses, prompts = torch.zeros(4, dtype=torch.float64), 0, 0
    for indices in length_batches(triplets, logits_budget(model, config.token_budget, 4)):
        chosen = [triplets[index] for index in indices]
        base, prompted = (context_batch(chosen, context, config.span, device_of(model)) for context in ("base", "prompted"))
        at, before = predicting(chosen, "base", base.tokens.shape[1]).to(base.tokens.device), _before(base)
        with torch.no_grad(), frozen(model):
            wanted = _logits(model, prompted, nullcontext())[predicting(chosen, "prompted", prompted.tokens.shape[1])]
            free = _logits(model, base, nullcontext())
            ruled = _logits(model, base, _by_the_rule(model, sites))
            ours = _logits(model, base, neurons_added(model, neurons))
        pairs = (ruled[at], ours[at]), (wanted, ours[at]), (wanted, free[at]), (free[before], ours[before])
        sums += torch.stack(
            [divergence(*pair).sum().cpu() if len(pair[0]) else torch.zeros((), dtype=torch.float64) for pair in pairs]
        )
        responses, prompts = responses + len(at), prompts + len(before)
    form, to_prompted, unsteered = (float(each) / responses for each in sums[:3])
    return NeuronFidelity(form, to_prompted, unsteered, float(sums[3]) / max(prompts, 1), len(triplets), held_back)


def _before(batch: ContextBatch) -> Tensor:
    """The tokens before the spans."""
    return (batch.mask.bool() & ~batch.span).flatten().nonzero().flatten()


def _logits(model: HookedModel, batch: ContextBatch, acting: AbstractContextManager[Any]) -> Float[Tensor, "token d_vocab"]:
    with acting:
        return forward(model, batch.tokens, batch.mask).flatten(0, 1)


@contextmanager
def _by_the_rule(model: HookedModel, sites: Mapping[int, Site]) -> Iterator[None]:
    """The MLPs' outputs plus what sites give for what the MLPs read, at all positions."""

    def hook_of(site: Site) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            read = arguments[0]
            precise = torch.promote_types(read.dtype, torch.float32)
            return output + site.to(read.device, precise).intervention(read.to(precise)).to(output)

        return hook

    handles = [cast(Any, model).blocks[layer].mlp.register_forward_hook(hook_of(site)) for layer, site in sites.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
