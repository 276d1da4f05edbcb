"""Whether one model's gates can be read from another's activations, on texts held out, and how they are read: by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import Rows, collect
from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, device_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Triplet
from psr_lens.replacement import Replacement, Site
from psr_lens.replacement.site import per_head
from psr_lens.results.bootstrap import Estimate, estimate, ratio
from psr_lens.transfer.layer_matching import LayerPairs, best_monotone_matching
from psr_lens.transfer.normal_equations import FOLDS, RIDGES, Ridge, Sums, cross_validated

_AT_ONCE: Final = 2**30
"""Most bytes of activations that are held at once; more layers than fit are read in several passes."""
_SEED: Final = 0
"""Seed of the shuffled control."""


@dataclass(frozen=True, eq=False, repr=False)
class Errors:
    """What regressions miss on texts held out, in sums over the tokens of each text."""

    error: Float[np.ndarray, "text gate reader"]
    """Σ of the squared error."""
    spread: Float[np.ndarray, "text gate reader"]
    """Σ of the squared distance from the mean over the other texts: what a constant misses."""

    def __repr__(self) -> str:
        """Sizes."""
        return f"Errors({' × '.join(map(str, self.error.shape))}: texts, gates, layers that they are read from)"

    @property
    def r2(self) -> Float[Tensor, "gate reader"]:
        """1 − error / spread; NaN where there is no spread."""
        error, spread = (torch.from_numpy(each.sum(0)) for each in (self.error, self.spread))
        return torch.where(spread > 0, 1 - error / spread, torch.nan).float()

    def at(self, gates: Sequence[int], readers: Sequence[int]) -> Estimate:
        """R² of some gates, each from one layer, with intervals over texts; the arguments are indices."""
        missed = ratio(self.error[:, gates, readers], self.spread[:, gates, readers])
        return estimate(lambda weights: 1 - missed(weights), len(self.error))

    def mean_at(self, gates: Sequence[int], readers: Sequence[int]) -> Estimate:
        """The mean of these R²."""
        missed = ratio(self.error[:, gates, readers], self.spread[:, gates, readers])
        return estimate(lambda weights: 1 - np.nanmean(missed(weights), axis=1), len(self.error))


@dataclass(frozen=True, eq=False, repr=False)
class GateReading:
    """How well the gates of one model's replacement are read from another model's activations.

    A gate is what a site adds to a token: the coefficients of its directions, in the coordinates of their span, so that R² is the share of
    the variance of what is added. The gates are those that really arise: the model is steered by its replacement, without the instruction.
    The other model reads the same text unsteered and without the instruction.

    Example:
        >>> found = psr.transfer.agreement(model, model, triplets[:4], pirate).gates
        >>> found.r2.shape, bool(found.r2.max() > found.control_r2.max())
        (torch.Size([6, 6]), True)
    """

    gate_layers: tuple[int, ...]
    """Layers of the gates."""
    reader_layers: tuple[int, ...]
    """Layers of the other model that they are read from."""
    errors: Errors
    """What is missed."""
    control: Errors
    """The same for gates that were shuffled over tokens."""
    gate: Float[Tensor, "pair gate"]
    """Length of what each site adds, in the activations' units; signed if there is a single direction."""
    read: Float[Tensor, "pair gate"]
    """The same as the other model's layer that `matching` gives to the gate reads it, on texts held out."""

    @property
    def r2(self) -> Float[Tensor, "gate reader"]:
        """R² on texts held out, of every gate from every layer; 0 is a constant. The ridge is the best of a few on these same texts."""
        return self.errors.r2

    @property
    def control_r2(self) -> Float[Tensor, "gate reader"]:
        """The same for gates that were shuffled over tokens."""
        return self.control.r2

    @cached_property
    def matching(self) -> LayerPairs:
        """For each gate the layer that reads it, `(gate, reader)`: the best monotone matching of R²; hopeless pairs all count as 0."""
        return tuple((self.gate_layers[gate], self.reader_layers[reader]) for gate, reader in _readers(self.r2))

    def matched(self) -> Estimate:
        """R² of each gate from the layer that `matching` gives to it, with its interval over texts.

        Example:
            >>> psr.transfer.agreement(model, model, triplets[:4], pirate).gates.matched().value.shape
            (6,)
        """
        return self.errors.at(*self._indices)

    def mean(self) -> Estimate:
        """Mean R² over the gates, each from the layer that `matching` gives to it, with its interval over texts.

        Example:
            >>> psr.transfer.agreement(model, model, triplets[:4], pirate).gates.mean()
            Estimate(0... [..., ...]; n=4)
        """
        return self.errors.mean_at(*self._indices)

    def control_mean(self) -> Estimate:
        """The same for gates that were shuffled over tokens.

        Example:
            >>> bool(psr.transfer.agreement(model, model, triplets[:4], pirate).gates.control_mean().value < 0.1)
            True
        """
        return self.control.mean_at(*self._indices)

    @checks_arguments
    def at(self, gate_layer: int, reader_layer: int) -> Estimate:
        """R² of one gate from one layer, with its interval over texts.

        Args:
            gate_layer: Layer of the gate.
            reader_layer: Layer of the other model.

        Raises:
            InputError: other layers.

        Example:
            >>> psr.transfer.agreement(model, model, triplets[:4], pirate).gates.at(2, 2)
            Estimate(0... [..., ...]; n=4)
        """
        for name, layer, known in (
            ("gate_layer", gate_layer, self.gate_layers),
            ("reader_layer", reader_layer, self.reader_layers),
        ):
            if layer not in known:
                raise InputError(name, layer, f"one of {', '.join(map(str, known))}")
        gates, readers = [self.gate_layers.index(gate_layer)], [self.reader_layers.index(reader_layer)]
        return self.errors.mean_at(gates, readers)  # of this one

    @property
    def _indices(self) -> tuple[list[int], list[int]]:
        return list(range(len(self.gate_layers))), [self.reader_layers.index(reader) for _, reader in self.matching]

    def __repr__(self) -> str:
        """Mean R² and that of the control, in one line."""
        mean, control = float(self.mean().value), float(self.control_mean().value)
        return f"GateReading({len(self.gate_layers)} gates from {len(self.reader_layers)} layers: R² {mean:.2f}, shuffled {control:.2f})"


@dataclass(frozen=True, eq=False)
class Gates:
    """What a replacement adds to each token, without the activations that it reads."""

    layers: tuple[int, ...]
    """Layers of its sites, ascending."""
    values: tuple[Float[Tensor, "token size"], ...]
    """What each site adds to each token, in coordinates of the span of its directions."""

    def lengths(self, rows: Int[Tensor, " pair"]) -> Float[Tensor, "pair gate"]:
        """How much is added to some tokens."""
        return torch.stack([length(each[rows]) for each in self.values], dim=1)


def length(gate: Float[Tensor, "token size"]) -> Float[Tensor, " token"]:
    """Length of what is added; signed if there is a single direction."""
    found: Tensor = gate[:, 0] if gate.shape[1] == 1 else torch.linalg.vector_norm(gate, dim=1)
    return found


def gates_of(model: HookedModel, triplets: Sequence[Triplet], replacement: Replacement, token_budget: int) -> Gates:
    """The gates of a replacement on the span `R`, while it steers the model without the instruction.

    Raises:
        InputError: a site outside the layers, or two in one layer.
    """
    names = sorted(replacement.sites, key=lambda name: -1 if (layer := layer_of(name)) is None else layer)
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    if len(set(layers)) < len(names):
        raise InputError("replacement", repr(replacement), "a replacement with one site in each layer where it acts")
    strength = 1 + replacement.offset  # at which it steers

    def added(site: Site, arriving: Tensor) -> Tensor:
        return strength * _added(site, arriving)

    found = read_at_sites(model, triplets, replacement, names, added, token_budget)
    return Gates(tuple(layers), tuple(found[name] for name in names))


def read_at_sites(
    model: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement,
    names: Sequence[str],
    value: Callable[[Site, Tensor], Tensor],
    token_budget: int,
) -> dict[str, Float[Tensor, "token size"]]:
    """What a function of a site and of what arrives there gives on the span `R`, while the replacement steers without the instruction."""
    rows = Rows(triplets, "R", torch.float32)
    steered = PassSteering(replacement, arriving=names)
    with progress_bar(total=len(triplets), desc="read gates", unit="triplet") as bar:
        for batch in length_batches(triplets, token_budget):
            found = read_batch(model, [triplets[index] for index in batch], [], "base", "R", steered=steered)
            take = rows.of(batch)
            for name in names:
                arriving = found.arriving[name].float()
                take(name, value(replacement.sites[name].to(arriving.device, torch.float32), arriving))
            bar.update(len(batch))
    return rows.tensors


def _added(site: Site, arriving: Float[Tensor, " token *width"]) -> Float[Tensor, " token size"]:
    """What a site adds, in orthonormal coordinates of the span of its directions: their signs and order mean nothing, lengths do."""
    coefficients = site.coefficients(arriving)
    if site.rank == 1:
        found: Tensor = (coefficients * torch.linalg.vector_norm(site.directions, dim=-1)).flatten(1)
        return found
    sizes, axes = torch.linalg.eigh(site.directions.double() @ site.directions.double().transpose(-1, -2))
    root = axes * sizes.clamp(min=0).sqrt().unsqueeze(-2)
    return per_head(coefficients.double(), root).flatten(1).float()


def read_gates(
    gates: Gates,
    gate_rows: Int[Tensor, " pair"],
    reader: HookedModel,
    triplets: Sequence[Triplet],
    reader_rows: Int[Tensor, " pair"],
    text: Int[Tensor, " pair"],
    token_budget: int,
) -> GateReading:
    """Read gates from another model's activations, each from each layer, on texts held out.

    Args:
        gates: The gates.
        gate_rows: The tokens that are used, as rows of the gates.
        reader: The model that they are read from.
        triplets: The same texts, for that model.
        reader_rows: The same tokens, as rows of its activations.
        text: Index of each one's text.
        token_budget: Most tokens in a batch, padding included.
    """
    device = device_of(reader)
    wanted = torch.cat([each[gate_rows] for each in gates.values], dim=1).to(device, torch.float64)
    shuffled = wanted[torch.randperm(len(wanted), generator=torch.Generator().manual_seed(_SEED)).to(device)]
    sizes = [each.shape[1] for each in gates.values]
    owner, count = text.to(device), int(text.max()) + 1
    errors: tuple[list[_Held], list[_Held]] = ([], [])
    for rows in _activations(reader, triplets, reader_rows, token_budget):
        folds = [owner % FOLDS == fold for fold in range(FOLDS)]
        sums = [Sums.of(rows[fold].to(device), torch.cat([wanted, shuffled], dim=1)[fold]) for fold in folds]
        for found, values, side in zip(errors, (wanted, shuffled), (0, 1), strict=True):
            columns = slice(side * wanted.shape[1], (side + 1) * wanted.shape[1])
            found.append(_held_out(rows.to(device), values, [_columns(each, columns) for each in sums], folds, sizes))
    layers = tuple(range(int(reader.cfg.n_layers)))
    real, control = (_summed(found, owner, count) for found in errors)
    read = [errors[0][reader].lengths[:, gate] for gate, reader in _readers(real.r2)]
    return GateReading(gates.layers, layers, real, control, gates.lengths(gate_rows), torch.stack(read, dim=1).float().cpu())


def _readers(r2: Float[Tensor, "gate reader"]) -> LayerPairs:
    """For each gate the index of the layer that reads it; R² below 0 all count as 0."""
    return tuple((gate, reader) for reader, gate in best_monotone_matching(r2.clamp(min=0).T.contiguous()))


def _activations(
    model: HookedModel, triplets: Sequence[Triplet], at: Int[Tensor, " pair"], token_budget: int
) -> Iterator[Float[Tensor, "pair width"]]:
    """Activations of some tokens after every layer, in the base context."""
    tokens = sum(1 + len(each.response_ids) for each in triplets)
    size = max(1, _AT_ONCE // (4 * tokens * int(model.cfg.d_model)))
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(int(model.cfg.n_layers))]
    for first in range(0, len(names), size):
        some = names[first : first + size]
        found = collect(model, triplets, some, "base", "R", token_budget=token_budget)
        for name in some:
            yield found.pop(name)[at]


@dataclass(frozen=True, eq=False)
class _Held:
    """What the regressions from one layer say on texts held out."""

    error: Float[Tensor, "pair gate"]
    spread: Float[Tensor, "pair gate"]
    lengths: Float[Tensor, "pair gate"]


def _held_out(
    x: Float[Tensor, "pair width"],
    y: Float[Tensor, "pair output"],
    sums: Sequence[Sums],
    folds: Sequence[Tensor],
    sizes: Sequence[int],
) -> _Held:
    """Predict each fold from the others; each gate with the ridge that suits it best."""
    total = sums[0]
    for each in sums[1:]:
        total = total + each
    x = x.double()
    fitted = [Ridge.of(total - fold) for fold in sums]
    by_output = cross_validated(sums, total, RIDGES).error.sum(0)
    by_gate = torch.stack([each.sum(1) for each in by_output.split(list(sizes), dim=1)], dim=1)
    ridges = by_gate.argmin(0)
    predicted, mean = torch.zeros_like(y), torch.zeros_like(y)
    for ridge in ridges.unique().tolist():
        columns = torch.repeat_interleave(ridges == ridge, torch.tensor(sizes, device=ridges.device))
        for one, rows in zip(fitted, folds, strict=True):
            matrix, offset = one.weights(RIDGES[ridge])
            some = x[rows] @ matrix[columns].T + offset[columns]
            predicted[rows] = predicted[rows].masked_scatter(columns.expand(len(some), -1), some)
    for one, rows in zip(fitted, folds, strict=True):
        mean[rows] = one.centre[1]
    error, spread = (
        torch.stack([part.square().sum(1) for part in (y - guess).split(list(sizes), dim=1)], dim=1) for guess in (predicted, mean)
    )
    return _Held(error, spread, torch.stack([length(each) for each in predicted.split(list(sizes), dim=1)], dim=1))


def _columns(sums: Sums, columns: slice) -> Sums:
    """The sums of some outputs."""
    return Sums(sums.count, sums.x, sums.y[columns], sums.xx, sums.xy[:, columns], sums.yy[columns])


def _summed(found: Sequence[_Held], owner: Int[Tensor, " pair"], texts: int) -> Errors:
    """Errors and spreads summed by text."""
    parts = []
    for name in ("error", "spread"):
        by_layer = torch.stack([getattr(each, name) for each in found], dim=2)
        total = by_layer.new_zeros(texts, *by_layer.shape[1:]).index_add_(0, owner, by_layer)
        parts.append(total.cpu().numpy())
    return Errors(*parts)
