"""Carrying a replacement over to another model, by how much of it is carried: only its texts, its gates, or all of it (`directions.py`).

A replacement decides *which tokens are pushed, and how hard* (the gates: probes and biases) and *where to* (the directions). Each function
says what it needs of the target: whether the instruction is ever in its prompt, and whether gradients go through it.

References:
    Heyman & Vandeputte, "Steer Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907, which leaves the
    transfer between families of models open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.store.triplets import triplets_digest
from psr_lens.errors import InputError
from psr_lens.fitting.fit import fit
from psr_lens.fitting.given_probes import solve_for_directions, train_directions
from psr_lens.fitting.negatives import check_no_negatives
from psr_lens.fitting.settings.solvers import FitConfig, Joint, Sequential
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Triplet, check_triplets
from psr_lens.replacement import LearningCurve, Replacement, Site
from psr_lens.transfer.activation_map import ActivationMap
from psr_lens.transfer.origin import SETTING, check_source, origin
from psr_lens.transfer.pairing import pair_texts

THROUGH_TEXT: Final = Joint(objective="ll", rank=4, epochs=8, batch_size=4, learning_rate=1e-2, regulariser=0.0)
"""Settings of `through_text`. With 60 texts, steps of 16 were too few."""
GATES_THROUGH_TEXT: Final = Joint(objective="ll", epochs=8, batch_size=4, learning_rate=1e-2, regulariser=0.0)
"""Settings of `gates_through_text`."""


@checks_arguments
def through_text(source: HookedModel, target: HookedModel, triplets: Sequence[Triplet], config: Joint | None = None) -> Replacement:
    """Carry over the texts alone: the target learns by likelihood from the source's responses, and is never prompted.

    Needs of the target: gradients through it, on the questions *without* the instruction. No map, and no replacement of the source's.
    A response's end is carried over as the target's own end token and has to be learned like any token.

    Args:
        source: The model whose responses these are.
        target: The model to be steered.
        triplets: The source's responses to prompts with the instruction.
        config: How to train, with `objective="ll"`; by default rank 4 at all layers.

    Returns:
        A replacement for the target.

    Raises:
        InputError: another objective; or as `pair_texts` and `psr.fit`.
        FitError: as `psr.fit`.

    Example:
        >>> few = psr.Joint(objective="ll", layers=2, epochs=1)
        >>> psr.transfer.through_text(model, psr.load_model("organism-gpt2"), triplets[:4], few)
        Replacement(S-PSR LL, blocks.2.hook_resid_post, rank 1, span R, for organism-gpt2, through text from organism)
    """
    config = THROUGH_TEXT if config is None else config
    _check_likelihood(config)
    texts = unprompted([each.target for each in pair_texts(source, target, triplets)])
    found = fit(target, texts, config)
    record = origin("through text", fingerprint(source), target, triplets=texts)
    return replace(found, settings={**found.settings, SETTING: record})


@checks_arguments
def gates(
    target: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement,
    mapped: ActivationMap,
    config: Sequential | None = None,
) -> Replacement:
    """Carry over the gates: the source's probes are read through the map, and directions are solved for on the target.

    Needs of the target: one pass with the instruction in its prompt and one without. No probes are learned, and no gradients go through it.
    Layer by layer, as in the sequential solver, each site's directions mend what the earlier ones missed.

    Args:
        target: The model to be steered.
        triplets: The target's texts: of `pair_texts`, or its own responses.
        replacement: The source's replacement, of the rule `relu` and on the span `R`.
        mapped: The map between both, from `fit_activation_map`; its layers say which site goes where.
        config: Ridge, weights and budgets of the regression; layers and rank are those of the map and the replacement.

    Returns:
        A replacement for the target.

    Raises:
        InputError: another span or `polish`, triplets that the target cannot read or without the trait, a replacement without gates to
            carry over, or none at the map's layers.
        ArtifactError: the map was made for another target, or the replacement for another source.
        FitError: the regression has no finite solution.

    Example:
        >>> mapped = psr.transfer.fit_activation_map(model, model, psr.transfer.pair_texts(model, model, triplets))
        >>> psr.transfer.gates(model, triplets, pirate, mapped)
        Replacement(A-PSR gates, 6 hook points from blocks.0.hook_resid_post, rank 4, span R, for organism, gates from organism)
    """
    config = Sequential() if config is None else config
    if config.span != "R" or config.polish is not None:
        raise InputError(
            "config", repr(config), "psr.Sequential() on the span 'R' and without `polish`, since the probes stay as they are"
        )
    _check_texts(target, triplets, mapped, config)
    probes = pulled_back(replacement, mapped)
    sites = solve_for_directions(target, triplets, probes, config)
    return _carried(
        target, triplets, replacement, sites, config.to_json(), origin_of("gates", target, triplets, replacement, mapped)
    )


@checks_arguments
def gates_through_text(
    target: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement,
    mapped: ActivationMap,
    config: Joint | None = None,
) -> Replacement:
    """Carry over the gates, and learn directions by likelihood from the source's responses: the target is never prompted.

    Needs of the target: gradients through it, on the questions *without* the instruction. No probes are learned.

    Args:
        target: The model to be steered.
        triplets: The source's responses as the target reads them, `[each.target for each in pair_texts(…)]`; prompts with the instruction
            are not read.
        replacement: The source's replacement, of the rule `relu` and on the span `R`.
        mapped: The map between both, from `fit_activation_map`.
        config: How to train, with `objective="ll"`; layers and rank are those of the map and the replacement.

    Returns:
        A replacement for the target.

    Raises:
        InputError: another objective, another rule or a learned offset; or as `gates`.
        ArtifactError: as `gates`.
        FitError: the loss is no longer finite, or has exploded.

    Example:
        >>> mapped = psr.transfer.fit_activation_map(model, model, psr.transfer.pair_texts(model, model, triplets))
        >>> few = psr.Joint(objective="ll", epochs=1)
        >>> psr.transfer.gates_through_text(model, triplets[:4], pirate, mapped, few).settings["transfer"]["rung"]
        'gates, directions through text'
    """
    config = GATES_THROUGH_TEXT if config is None else config
    _check_likelihood(config)
    if config.learned_offset or config.rule != "relu":
        raise InputError("config", repr(config), "the rule 'relu' without a learned offset, as the gates that are carried over")
    _check_texts(target, triplets, mapped, config)
    probes = pulled_back(replacement, mapped)
    texts = unprompted(triplets)
    with torch.inference_mode(mode=False):
        trained = train_directions(target, texts, probes, config)
    record = origin_of("gates, directions through text", target, texts, replacement, mapped)
    return _carried(target, texts, replacement, trained.sites, config.to_json(), record, trained.curve)


def pulled_back(replacement: Replacement, mapped: ActivationMap) -> dict[str, Site]:
    """Sites for the target with the source's gates, read through the map; their directions are 0.

    A target layer gets the gates of the source layer that the map gives to it; one whose source layer has no site gets none.

    Raises:
        InputError: a replacement without gates to carry over, with another span, or with no site at the map's layers.
        ArtifactError: a replacement for another model than the map's source.
    """
    check_source(replacement, mapped)
    for name, site in replacement.sites.items():
        if site.rule != "relu" or not name.endswith("hook_resid_post"):
            raise InputError(
                "replacement",
                f"the rule {site.rule!r} at {name}",
                "sites of the rule 'relu' at hook_resid_post, whose gates the map can carry over",
            )
    found = {}
    for source_layer, target_layer in mapped.layers:
        own = replacement.sites.get(f"blocks.{source_layer}.hook_resid_post")
        if own is not None:
            weights, bias = mapped.pull_back(own.weights, own.bias, target_layer=target_layer)
            found[f"blocks.{target_layer}.hook_resid_post"] = Site(torch.zeros_like(weights), weights, bias, "relu")
    if not found:
        layers = ", ".join(str(source) for source, _ in mapped.layers)
        raise InputError("replacement", repr(replacement), f"a site at one of the map's source layers ({layers})")
    return found


def unprompted(triplets: Sequence[Triplet]) -> list[Triplet]:
    """The triplets with the base prompt in place of the one with the instruction, so that nothing can read that."""
    return [replace(each, pair=replace(each.pair, prompted_ids=each.pair.base_ids)) for each in triplets]


def origin_of(
    rung: str, target: HookedModel, triplets: Sequence[Triplet], replacement: Replacement, mapped: ActivationMap
) -> dict[str, Any]:
    """The record of a rung that uses the source's replacement and a map."""
    return origin(rung, replacement.model, target, replacement=replacement, mapped=mapped, triplets=list(triplets))


def _check_texts(target: HookedModel, triplets: Sequence[Triplet], mapped: ActivationMap, config: FitConfig) -> None:
    mapped.check(target=target)
    check_triplets(target, triplets)
    check_no_negatives(triplets, f"psr.{config!r}")


def _carried(
    target: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement,
    sites: Mapping[str, Site],
    settings: Mapping[str, Any],
    record: Mapping[str, Any],
    curve: LearningCurve | None = None,
) -> Replacement:
    method = f"{'S' if len(sites) == 1 else 'A'}-PSR {'gates' if curve is None else 'gates LL'}"
    layers = [layer_of(name) for name in sites]
    further = {"layers": layers, "rank": max(site.rank for site in sites.values()), "triplets": len(triplets)}
    further |= {"instructions": sorted({each.pair.instruction for each in triplets}), SETTING: record}
    return Replacement(
        sites,
        "R",
        method,
        fingerprint(target),
        settings={**settings, **further},
        curve=curve,
        data=triplets_digest(triplets),
    )


def _check_likelihood(config: Joint) -> None:
    if config.objective != "ll" or config.span != "R":
        raise InputError(
            "config", repr(config), "psr.Joint(objective='ll') on the span 'R', since other objectives read the target's own prompt"
        )
