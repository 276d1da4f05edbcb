"""Carrying all of a replacement over: gates pulled back through one map, directions pushed forward through another.

Nothing of the instruction is read on the target. Which linear map a direction should be pushed through is an open question; four are here,
and `seen` says how much of a direction lies where the texts of a map could teach it anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens.activations.massive_finder import is_massive
from psr_lens.activations.paired_passes import TOKEN_BUDGET, collect
from psr_lens.activations.store.triplets import triplets_digest
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import Context, Triplet
from psr_lens.replacement import Replacement, Site
from psr_lens.transfer.activation_map import ActivationMap
from psr_lens.transfer.layer_matching import LayerPairs, checked_pairs, matched_by_depth
from psr_lens.transfer.model_check import SAME
from psr_lens.transfer.normal_equations import FOLDS, RIDGES, Ridge, Sums, cross_validated
from psr_lens.transfer.origin import SETTING, origin
from psr_lens.transfer.pairing import PairedText, paired_rows
from psr_lens.transfer.rungs import pulled_back

Push = Literal["ridge", "procrustes", "anchors", "differences"]
"""`ridge`: regression of the target's activations on the source's; `procrustes`: the rotation and the scale that bring them closest;
`anchors`: the direction whose cosines with the target's activations of some tokens are those of the source's direction with the source's;
`differences`: regression of what *other* instructions do in the target on what they do in the source."""

_AT_ONCE: Final = 2**30
"""Most bytes of a model's activations that are held at once; more layers than fit are read in several passes."""
_ANCHORS: Final = 256
"""Number of tokens that serve as anchors."""
_SEED: Final = 0


@dataclass(frozen=True, eq=False, repr=False)
class DirectionMap:
    """A linear map of directions from a source to a target, for each target layer; `fit_direction_map` makes it.

    Example:
        >>> paired = psr.transfer.pair_texts(model, model, triplets)
        >>> psr.transfer.fit_direction_map(model, model, paired, "anchors", layers=[(2, 2)]).matrices[2].shape
        torch.Size([128, 128])
    """

    kind: Push
    """How it was made."""
    matrices: Mapping[int, Float[Tensor, "target_width source_width"]]
    """M by target layer: a direction z of the source becomes M z."""
    components: Mapping[int, Float[Tensor, "component target_width"]]
    """By target layer, the principal components of the target's side of the texts that hold 95 % of its variance, as rows."""
    layers: LayerPairs
    """The pairs of a source and a target layer."""
    source_model: Mapping[str, Any]
    """Fingerprint of the model whose directions are pushed."""
    target_model: Mapping[str, Any]
    """Fingerprint of the model that they are for."""
    texts: str
    """xxh3_128 of the source's tokens of the texts, in hexadecimal."""

    def __repr__(self) -> str:
        """Kind and layers."""
        return f"DirectionMap({self.kind}, {counted(len(self.matrices), 'layer')})"

    @checks_arguments
    def seen(self, directions: Float[Tensor, "rank target_width"], target_layer: int) -> float:
        """Share of the squared length of directions of the target that lies in the span of `components`; by chance, their share of d_model.

        Args:
            directions: Directions of the target, such as those of its own fit.
            target_layer: Their layer.

        Raises:
            InputError: a layer without a map, or directions of another width.

        Example:
            >>> paired = psr.transfer.pair_texts(model, model, triplets)
            >>> forward = psr.transfer.fit_direction_map(model, model, paired, layers=[(2, 2)])
            >>> 0 < forward.seen(pirate.sites["blocks.2.hook_resid_post"].directions, 2) <= 1
            True
        """
        if target_layer not in self.components:
            raise InputError("target_layer", target_layer, f"one of {', '.join(map(str, self.components))}")
        width = self.components[target_layer].shape[1]
        if directions.ndim != 2 or directions.shape[1] != width:
            raise InputError(
                "directions", f"the shape {tuple(directions.shape)}", f"one direction per row, {width} wide as the target is"
            )
        within = directions.float() @ self.components[target_layer].T
        return float(within.square().sum() / directions.float().square().sum().clamp(min=1e-30))


@checks_arguments
def fit_direction_map(
    source: HookedModel,
    target: HookedModel,
    paired: Sequence[PairedText],
    kind: Push = "ridge",
    *,
    layers: Sequence[tuple[int, int]] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> DirectionMap:
    """Learn to push directions forward from a source to a target, on texts that both read.

    Pairs of tokens at which either model has a massive activation are left out.

    Args:
        source: The model whose directions are pushed.
        target: The model that they are for.
        paired: The texts, from `pair_texts`; with `differences`, of other instructions, which both models then have in their prompts.
        kind: `ridge`, `procrustes`, `anchors` or `differences`.
        layers: Pairs of a source and a target layer; by default as for `fit_activation_map`.
        token_budget: Most tokens in a batch, padding included.

    Raises:
        InputError: an unknown kind, fewer than four texts, layers that the models do not have.

    References:
        Relative representations by similarities to anchors: Moschella et al. 2023, arXiv 2209.15430. Directions rebuilt from their
        coordinates over anchors in another family of models: Kim & Han 2026, "Cross-Family Universality of Behavioral Axes via
        Anchor-Projected Representations", arXiv 2605.09875, which averages the directions of several sources.

    Example:
        >>> paired = psr.transfer.pair_texts(model, model, triplets)
        >>> psr.transfer.fit_direction_map(model, model, paired, "procrustes", layers=[(2, 2)])
        DirectionMap(procrustes, 1 layer)
    """
    if kind not in get_args(Push):
        raise InputError("kind", repr(kind), f"one of {', '.join(map(repr, get_args(Push)))}")
    if len(paired) < FOLDS:
        raise InputError("paired", f"{len(paired)} texts", f"at least {FOLDS}", "`pair_texts` makes them of triplets.")
    depths = (int(source.cfg.n_layers), int(target.cfg.n_layers))
    pairs = matched_by_depth(*depths) if layers is None else checked_pairs(layers, *depths)
    rows = paired_rows(paired)
    matrices, components = {}, {}
    sides = (source, [each.source for each in paired]), (target, [each.target for each in paired])
    tokens = sum(1 + len(triplet.response_ids) for _, triplets in sides for triplet in triplets)
    size = max(1, _AT_ONCE // (8 * tokens * max(int(model.cfg.d_model) for model, _ in sides)))
    for first in range(0, len(pairs), size):
        some = pairs[first : first + size]
        x, y = (_read(*side, layers, kind, token_budget) for side, layers in zip(sides, zip(*some, strict=True), strict=True))
        for source_layer, target_layer in some:
            (ours, massive), (theirs, also) = x[source_layer], y[target_layer]
            left = ~(massive[rows.source] | also[rows.target])
            ours, theirs = ours[rows.source][left].double(), theirs[rows.target][left].double()
            matrices[target_layer] = _matrix(ours, theirs, rows.text[left], kind).float()
            components[target_layer] = _components(theirs).float()
    texts = triplets_digest([each.source for each in paired])
    return DirectionMap(kind, matrices, components, pairs, fingerprint(source), fingerprint(target), texts)


@checks_arguments
def whole(target: HookedModel, replacement: Replacement, mapped: ActivationMap, forward: DirectionMap) -> Replacement:
    """Carry over gates and directions: nothing is fitted on the target, and no text of the instruction is read on it.

    Needs of the target: no pass at all beyond those of the maps.

    Args:
        target: The model to be steered.
        replacement: The source's replacement, of the rule `relu` and on the span `R`.
        mapped: The map that gates are pulled back through.
        forward: The map that directions are pushed through, with the same layers.

    Returns:
        A replacement for the target.

    Raises:
        InputError: `forward` is between other models or layers than `mapped`; or as `gates`.
        ArtifactError: as `gates`.

    Example:
        >>> paired = psr.transfer.pair_texts(model, model, triplets)
        >>> mapped = psr.transfer.fit_activation_map(model, model, paired)
        >>> psr.transfer.whole(model, pirate, mapped, psr.transfer.fit_direction_map(model, model, paired)).origin
        ('whole, ridge', 'organism')
    """
    mapped.check(target=target)
    _check_beside(forward, mapped)
    probes, sites = pulled_back(replacement, mapped), {}
    for source_layer, target_layer in mapped.layers:
        name, of = f"blocks.{target_layer}.hook_resid_post", replacement.sites.get(f"blocks.{source_layer}.hook_resid_post")
        if of is None:
            continue
        directions = of.directions.float() @ forward.matrices[target_layer].T
        sites[name] = Site(directions, probes[name].weights, probes[name].bias, "relu")
    record = origin(
        f"whole, {forward.kind}", replacement.model, target, replacement=replacement, mapped=mapped, forward_texts=forward.texts
    )
    instructions = replacement.settings.get("instructions", [])
    method = f"{'S' if len(sites) == 1 else 'A'}-PSR whole"
    settings = {"instructions": instructions, SETTING: record}
    return Replacement(sites, "R", method, fingerprint(target), offset=replacement.offset, settings=settings)


def _check_beside(forward: DirectionMap, mapped: ActivationMap) -> None:
    """Refuse a map of directions between other models, or other layers, than the map of activations is.

    Raises:
        InputError: the models differ, or a pair of layers is missing.
    """
    for role in ("source", "target"):
        ours, theirs = getattr(forward, f"{role}_model"), getattr(mapped, f"{role}_model")
        if any(ours.get(key) != theirs.get(key) for key in SAME):
            wanted = f"{theirs.get('model_name')}, as in `mapped`"
            raise InputError("forward", f"one with {ours.get('model_name')} as the {role}", wanted)
    if missing := [pair for pair in mapped.layers if pair not in forward.layers]:
        raise InputError("forward", f"one between the layers {forward.layers}", f"one between {missing[0]} too, as in `mapped`")


def _read(
    model: HookedModel, triplets: Sequence[Triplet], layers: Sequence[int], kind: Push, token_budget: int
) -> dict[int, tuple[Float[Tensor, "token width"], Bool[Tensor, " token"]]]:
    """By layer the activations in the base context, or with `differences` what the prompt changes of them; and which are massive."""
    names = {layer: f"blocks.{layer}.hook_resid_post" for layer in sorted(set(layers))}

    def rows(context: Context) -> dict[str, Tensor]:
        return collect(model, triplets, list(names.values()), context, "R", token_budget=token_budget)

    base = rows("base")
    if kind != "differences":
        return {layer: (base[name], is_massive(base[name])) for layer, name in names.items()}
    prompted, found = rows("prompted"), {}
    for layer, name in names.items():
        before, after = base.pop(name), prompted.pop(name)
        found[layer] = (after.double() - before.double(), is_massive(before) | is_massive(after))
    return found


def _matrix(x: Float[Tensor, "pair source_width"], y: Float[Tensor, "pair target_width"], text: Tensor, kind: Push) -> Tensor:
    matrix: Tensor
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    if kind in ("ridge", "differences"):
        folds = [Sums.of(x[text % FOLDS == fold], y[text % FOLDS == fold]) for fold in range(FOLDS)]
        total = folds[0]
        for fold in folds[1:]:
            total = total + fold
        matrix = Ridge.of(total).weights(RIDGES[cross_validated(folds, total, RIDGES).best])[0]
    elif kind == "procrustes":
        left, sizes, right = torch.linalg.svd(centred_y.T @ centred_x, full_matrices=False)
        matrix = left @ right * (sizes.sum() / centred_x.square().sum())
    else:
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(_SEED))[:_ANCHORS]
        ours, theirs = (torch.nn.functional.normalize(each[chosen], dim=1) for each in (centred_x, centred_y))
        scale = (centred_y.square().sum() / centred_x.square().sum()).sqrt()  # cosines say nothing of lengths
        matrix = scale * torch.linalg.pinv(theirs, rtol=1e-2) @ ours
    return matrix


def _components(y: Float[Tensor, "pair width"]) -> Float[Tensor, "component width"]:
    variance, axes = torch.linalg.eigh(torch.cov(y.T))
    share = variance.flip(0).clamp(min=0).cumsum(0) / variance.clamp(min=0).sum()
    found: Tensor = axes.flip(1).T[: int((share < 0.95).sum()) + 1]
    return found
