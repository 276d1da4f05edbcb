"""The directions of a target that another model's coefficients are to drive: by regression, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.finite import check_finite
from psr_lens.errors import FitError, InputError
from psr_lens.fitting.layerwise.data import LayerwiseData, last_layer, with_rows
from psr_lens.fitting.layerwise.lockstep import lockstep
from psr_lens.fitting.layerwise.regression import LEAST_DIAGONAL, solved
from psr_lens.fitting.layerwise.token_weights import row_weights
from psr_lens.fitting.negatives import check_no_negatives
from psr_lens.fitting.settings.solvers import Sequential
from psr_lens.models import HookedModel, fingerprint, frozen
from psr_lens.prompts import Triplet
from psr_lens.replacement import Replacement
from psr_lens.transfer.co_pilot import CoPilot
from psr_lens.transfer.driving_coefficients import coefficients_of_texts, sites_between
from psr_lens.transfer.layer_matching import checked_pairs, matched_by_depth
from psr_lens.transfer.origin import check_made_for
from psr_lens.transfer.pairing import PairedText


@checks_arguments
def copilot(
    source: HookedModel,
    target: HookedModel,
    paired: Sequence[PairedText],
    replacement: Replacement,
    config: Sequential | None = None,
    *,
    layers: Sequence[tuple[int, int]] | None = None,
) -> CoPilot:
    """Let a source run beside a target and drive it: the source's coefficients, with directions that are solved for on the target.

    Needs of the target: one pass with the instruction in its prompt and one without. No map, no probes, and no gradients; but the source
    has to read along whenever the target writes. Layer by layer, as in the sequential solver, each layer's directions mend what the
    earlier ones missed.

    A token of the target's gets the source's coefficients at the end of the text up to and including it, which the source encodes by
    itself. A token that ends inside a character, or has no text, gets those of the text before it.

    Args:
        source: The model whose coefficients are used.
        target: The model to be steered.
        paired: The texts, from `pair_texts`; the target reads them in both contexts.
        replacement: The source's replacement, on the span `R`.
        config: Ridge (in units of each coefficient's mean square), weights and budgets; its layers and rank are not used.
        layers: Pairs of a source and a target layer; by default every target layer with the source layer of equal relative depth.

    Returns:
        Both models with the directions; `.generate` samples from the target.

    Raises:
        InputError: no texts; another span, or `polish`; sites elsewhere than at `hook_resid_post`, or none at the source layers; texts
            without the trait; layers that the models do not have.
        ArtifactError: a replacement for another model than the source.
        FitError: an activation is not finite; names the hook point.

    Example:
        >>> driven = psr.transfer.copilot(model, model, psr.transfer.pair_texts(model, model, triplets), pirate, layers=[(2, 3)])
        >>> driven.directions[3].shape
        torch.Size([4, 128])
    """
    config = Sequential() if config is None else config
    if config.span != "R" or config.polish is not None:
        raise InputError(
            "config", repr(config), "psr.Sequential() on the span 'R' and without `polish`, since there are no probes to train"
        )
    if not paired:
        raise InputError("paired", "no texts", "at least one", "`pair_texts` makes them of triplets.")
    check_made_for(replacement, fingerprint(source))
    _check_read(replacement)
    depths = (int(source.cfg.n_layers), int(target.cfg.n_layers))
    pairs = matched_by_depth(*depths) if layers is None else checked_pairs(layers, *depths)
    driving = sites_between(replacement, pairs)
    if not driving:
        named = ", ".join(str(one) for one, _ in pairs)
        raise InputError("replacement", repr(replacement), f"a site at one of the source layers ({named})")
    triplets = [each.target for each in paired]
    check_no_negatives(triplets, f"psr.{config!r}")
    names = list(dict.fromkeys(driving.values()))
    coefficients = coefficients_of_texts(source, target, paired, replacement, names, config.token_budget)
    with torch.inference_mode(mode=False), torch.no_grad(), frozen(target):
        directions = _solved(target, triplets, {layer: coefficients[name] for layer, name in driving.items()}, config)
    return CoPilot(source, target, replacement, directions, tuple(pair for pair in pairs if pair[1] in driving))


def _check_read(replacement: Replacement) -> None:
    if replacement.span != "R" or replacement.tokens != "span":
        raise InputError("replacement", repr(replacement), "one that acts on the span 'R', as the source reads along")
    for name, site in replacement.sites.items():
        if not name.endswith("hook_resid_post"):
            raise InputError("replacement", f"a site {site!r} at {name}", "sites at hook_resid_post")


def _solved(
    model: HookedModel, triplets: Sequence[Triplet], coefficients: Mapping[int, Float[Tensor, "token rank"]], config: Sequential
) -> dict[int, Float[Tensor, "rank width"]]:
    """Directions by layer, each with those of all earlier layers in force; coefficients are in the order of the triplets."""
    data = LayerwiseData.of(model, triplets, config)
    begins = torch.tensor([0, *(1 + len(each.response_ids) for each in triplets)]).cumsum(0).tolist()
    rows = [torch.cat([torch.arange(begins[index], begins[index + 1]) for index in batch]) for batch in data.triplets]
    found: dict[int, Tensor] = {}

    def visit(name: str, arrived: list[Tensor]) -> list[Tensor]:
        layer, half = layers[name], len(data.base)
        base = [batch.rows_of(each).float() for batch, each in zip(data.base, arrived[:half], strict=True)]
        prompted = [batch.rows_of(each).float() for batch, each in zip(data.prompted, arrived[half:], strict=True)]
        device = base[0].device
        driven = [
            (alpha.to(device)[:, None] * coefficients[layer][at].to(device)) for alpha, at in zip(data.alpha, rows, strict=True)
        ]
        inputs, wanted = torch.cat(base), torch.cat(prompted) - torch.cat(base)
        check_finite({name: inputs})
        check_finite({name: wanted})
        alpha, weights = (torch.cat(each).to(device) for each in (data.alpha, data.weights))
        directions = _regression(torch.cat(driven), wanted, row_weights(inputs, wanted, alpha, weights, config), config.ridge)
        if not bool(directions.isfinite().all()):
            raise FitError(f"copilot: at {name} the regression has no finite solution. Raise `ridge`.")
        found[layer] = directions.cpu()
        moved = [
            with_rows(each, batch, before + one @ directions)
            for each, batch, before, one in zip(arrived[:half], data.base, base, driven, strict=True)
        ]
        bar.update()
        return [*moved, *arrived[half:]]

    layers = {f"blocks.{layer}.hook_resid_post": layer for layer in coefficients}
    with progress_bar(total=len(layers), desc="fit co-pilot", unit="layer") as bar:
        lockstep(model, [*data.base, *data.prompted], list(layers), last_layer(list(layers)) + 1, visit)
    return found


def _regression(
    x: Float[Tensor, "token rank"], y: Float[Tensor, "token width"], weights: Float[Tensor, " token"], ridge: float
) -> Float[Tensor, "rank width"]:
    """The Z for which `Σ k·|x Z − y|²`, plus the ridge times each coefficient's own Σ k·x² and its |z|², is smallest."""
    x, y, weights = x.double(), y.double(), weights.double()[:, None]
    return solved(x.T @ (weights * x), x.T @ (weights * y), max(ridge, LEAST_DIAGONAL)).float()
