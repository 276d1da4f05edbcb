"""Whether a replacement will work, at which layers and with which rank, from the prompt's own activations, before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.errors import InputError
from psr_lens.evaluation.outlook_reading import LayerReader, Pair
from psr_lens.fitting.layerwise.rank import leading
from psr_lens.models import HookedModel
from psr_lens.prompts import Span, Triplet, check_triplets, instruction_label, rephrase, token_table
from psr_lens.results.bootstrap import Estimate, estimate, ratio

Acting = Literal["all", "one"]
"""Where a replacement acts: at all layers (A-PSR), or at one of them (S-PSR)."""

RANKS: Final = (1, 2, 4, 8, 16, 32)
"""Ranks that are looked at."""
ENOUGH: Final = 0.98
"""The suggested rank is the smallest that reaches this share of what the best rank reaches."""
FOLDS: Final = 4
"""Parts of the responses, each of which is predicted from the others."""
RIDGE: Final = 0.003
"""Ridge of the regressions, in units of the inputs' mean variance: the default of the layerwise solvers."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of squares over the tokens of each response, after each layer and by rank."""

    energy: Float[np.ndarray, "response layer"]
    """Σ‖Δ‖²."""
    within: Float[np.ndarray, "response layer rank"]
    """Σ‖Δ‖² along the leading directions of the other responses."""
    missed: Float[np.ndarray, "response layer rank"]
    """Σ (c − ĉ)² along these directions: c is the coefficient that the prompt calls for, ĉ the one that a linear probe reads from the
    activation, fitted on the other responses."""
    spread: Float[np.ndarray, "response layer rank"]
    """Σ (c − c̄)², where c̄ is the mean coefficient of the other responses: what a constant misses."""


@dataclass(frozen=True, eq=False, repr=False)
class Outlook:
    """What a token-wise replacement can reach, on responses that it has not seen, as `outlook` estimates it.

    All shares are of Σ‖Δ‖², the energy of the prompt's differences in the residual stream after a layer: 1 is all of the prompt's effect, 0
    is no steering, and below 0 steering does harm. Tokens with massive activations are left out.

    Example:
        >>> found = psr.outlook(model, triplets, paraphrase="speak as a pirate would .")
        >>> bool(found.reachable("all", rank=4).value[-1] > found.reachable("one", rank=4).value[-1])
        True
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    ranks: tuple[int, ...]
    """The ranks that were looked at, in ascending order."""
    tokens: int
    """Number of tokens that were read."""
    massive: int
    """Number of tokens left out, because they have a massive activation after some layer in the base or the prompted context."""
    accumulated: Sums
    """Of Δ, read from base activations: for a replacement that acts at one layer."""
    local: Sums
    """Of what each layer adds to Δ by itself, read from what reaches its end if the stream before it is the prompted one: for a
    replacement that acts at all layers."""
    paraphrase_error: Float[np.ndarray, "response layer"] | None
    """Σ‖Δ − Δ′‖², where Δ′ is the difference that a paraphrase of the instruction makes; None without one."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers: all of the model."""
        return tuple(range(self.accumulated.energy.shape[1]))

    @checks_arguments
    def ceiling(self, acting: Acting = "all", rank: int | None = None) -> Estimate:
        """Share that lies along the leading directions of other responses: what perfect coefficients would reach.

        Args:
            acting: At all layers, or at that layer alone.
            rank: One of `ranks`; the suggested one if left out.

        Returns:
            One number per layer, with its interval over responses.

        Raises:
            InputError: another rank.

        Example:
            >>> found = psr.outlook(model, triplets)
            >>> bool((found.ceiling(rank=8).value >= found.ceiling(rank=1).value).all())
            True
        """
        sums, at = self._sums(acting), self._index(rank)
        return self._left(acting, sums.energy - sums.within[..., at])

    @checks_arguments
    def reachable(self, acting: Acting = "all", rank: int | None = None) -> Estimate:
        """Share that directions and linear probes of other responses reproduce: what a fit can be expected to reach.

        For a replacement at all layers it is assumed that what one layer misses stays missing, neither mended nor made worse later. In
        a deep model, whose residual stream grows, early errors grow with it, and the number is too high after late layers.
        Arguments and errors are those of `ceiling`.

        Example:
            >>> found = psr.outlook(model, triplets)
            >>> bool((found.reachable("one", 4).value <= found.ceiling("one", 4).value).all())
            True
        """
        sums, at = self._sums(acting), self._index(rank)
        return self._left(acting, sums.energy - sums.within[..., at] + sums.missed[..., at])

    @checks_arguments
    def readable(self, acting: Acting = "all", rank: int | None = None) -> Estimate:
        """R² of the coefficients on responses held out: how far the strength of the push can be read from the token. 0 is a constant.

        Arguments and errors are those of `ceiling`.

        Example:
            >>> bool((psr.outlook(model, triplets).readable().value < 1).all())
            True
        """
        sums, at = self._sums(acting), self._index(rank)
        return self._share(sums.spread[..., at] - sums.missed[..., at], sums.spread[..., at])

    def paraphrase(self) -> Estimate:
        """Share that a paraphrase of the instruction reproduces: the prompt's own tolerance.

        Raises:
            InputError: `outlook` was given no paraphrase.

        Example:
            >>> psr.outlook(model, triplets, paraphrase="speak as a pirate would .").paraphrase().value.shape
            (6,)
        """
        if self.paraphrase_error is None:
            raise InputError("paraphrase", None, "the instruction in other words, given to `psr.outlook`")
        return self._share(self.accumulated.energy - self.paraphrase_error, self.accumulated.energy)

    @property
    def rank(self) -> int:
        """The smallest rank with which a replacement at all layers reaches nearly as much as with any, on the mean over layers."""
        reached = {rank: float(np.nan_to_num(self.reachable("all", rank).value).clip(min=0).mean()) for rank in self.ranks}
        most = max(reached.values())
        return next((rank for rank, each in reached.items() if each >= ENOUGH * most), self.ranks[-1])

    @property
    def best_layers(self) -> tuple[int, ...]:
        """The layers in descending order of what a replacement at that layer alone can reach there."""
        order = np.argsort(-np.nan_to_num(self.reachable("one").value, nan=-np.inf), kind="stable")
        return tuple(map(int, order))

    @property
    def summary(self) -> str:
        """What to expect at all layers and at one, and with which rank, in sentences."""
        everywhere, alone, best = self.reachable(), self.reachable("one"), self.best_layers[0]
        text = (
            f"{self.instruction!r}, {len(self.accumulated.energy)} responses, rank {self.rank}: at all layers, "
            f"{_percent(everywhere, -1)} of what the prompt does can be expected after the last layer; perfect coefficients would reach "
            f"{_percent(self.ceiling(), -1)}; errors of early layers that grow later are not counted. "
            f"At one layer, the most is {_percent(alone, best)}, after layer {best}."
        )
        if self.paraphrase_error is not None:
            text += f" A paraphrase of the instruction reproduces {_percent(self.paraphrase(), -1)} after the last layer."
        return text

    def __repr__(self) -> str:
        """Size, rank and what can be expected, in one line."""
        size = f"{counted(len(self.accumulated.energy), 'response')}, {counted(self.tokens, 'token')}, {counted(len(self.layers), 'layer')}"
        return f"Outlook({self.instruction!r}, {size}: at rank {self.rank}, {_percent(self.reachable(), -1)} can be expected)"

    def _repr_html_(self) -> str:
        columns = {
            "at all layers": self.reachable("all"),
            "its ceiling": self.ceiling("all"),
            "its R²": self.readable("all"),
            "at this layer alone": self.reachable("one"),
            "ceiling": self.ceiling("one"),
            "R²": self.readable("one"),
        }
        if self.paraphrase_error is not None:
            columns["paraphrase"] = self.paraphrase()
        rows = [(layer, *(_with_interval(each, layer) for each in columns.values())) for layer in self.layers]
        return table(["layer", *columns], rows, self.summary)

    def _sums(self, acting: Acting) -> Sums:
        return self.local if acting == "all" else self.accumulated

    def _left(self, acting: Acting, error: Float[np.ndarray, "response layer"]) -> Estimate:
        """1 − error / energy; errors of all layers up to each add up for a replacement at all of them."""
        error = error.cumsum(1) if acting == "all" else error
        return self._share(self.accumulated.energy - error, self.accumulated.energy)

    def _share(self, above: Float[np.ndarray, "response layer"], below: Float[np.ndarray, "response layer"]) -> Estimate:
        return estimate(ratio(above, below), len(self.accumulated.energy))

    def _index(self, rank: int | None) -> int:
        wanted = self.rank if rank is None else rank
        if wanted not in self.ranks:
            raise InputError(
                "rank", repr(rank), f"one of {', '.join(map(str, self.ranks))}", "Give it to `psr.outlook` in `ranks`."
            )
        return self.ranks.index(wanted)


@checks_arguments
def outlook(
    model: HookedModel,
    triplets: Sequence[Triplet],
    *,
    paraphrase: str | None = None,
    ranks: Sequence[int] = RANKS,
    span: Span = "R",
    token_budget: int = TOKEN_BUDGET,
) -> Outlook:
    """Estimate what a token-wise replacement can reach, before it is fitted: will it work, at which layers, with which rank?

    After each layer, the leading directions of Δ and a linear probe for the coefficient along each are taken from three quarters of the
    responses and checked against the rest, four times in turn; once with Δ itself, for a replacement at one layer, and once with what the
    layer adds to it, for one at all layers. Forward passes and linear algebra alone: no sampling, no gradient descent.

    Args:
        model: The model; it is not changed.
        triplets: Responses to the prompt; at least four, better dozens.
        paraphrase: The instruction in other words, for the prompt's own tolerance.
        ranks: Numbers of directions to try.
        span: Which tokens are read.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        A typed result; `.summary` says it in sentences, `psr.plots.outlook` draws it.

    Raises:
        InputError: fewer than four triplets, no ranks or one below 1, or a paraphrase of another span.
        ModelError: activations are not finite; names the hook point.

    Example:
        >>> psr.outlook(model, triplets, ranks=[1, 4])
        Outlook('talk like a pirate', ... responses, ... tokens, 6 layers: at rank ..., ... can be expected)
    """
    if len(triplets) < FOLDS:
        raise InputError("triplets", f"{len(triplets)} of them", f"at least {FOLDS}", "Sample more with `psr.sample_responses`.")
    if not len(ranks) or min(ranks) < 1:
        raise InputError("ranks", repr(list(ranks)), "whole numbers of at least 1, in a list that is not empty")
    check_triplets(model, triplets)
    tried = tuple(sorted({min(int(rank), int(model.cfg.d_model)) for rank in ranks}))
    tokens = token_table(model, triplets, span)
    read = LayerReader(model, triplets, None if paraphrase is None else rephrase(model, triplets, paraphrase), span, token_budget)
    by_layer = [_layer(*each, ~read.massive, tokens.triplet, len(triplets), tried) for each in read.layers(len(tokens))]
    accumulated, local, other = zip(*by_layer, strict=True)
    return Outlook(
        instruction_label(each.pair for each in triplets),
        tried,
        len(tokens),
        int(read.massive.sum()),
        _stacked(accumulated),
        _stacked(local),
        None if paraphrase is None else np.stack(other, axis=1),
    )


def _layer(
    accumulated: Pair,
    local: Pair,
    rephrased: Tensor | None,
    left: Bool[Tensor, " token"],
    owner: Int[Tensor, " token"],
    responses: int,
    ranks: Sequence[int],
) -> tuple[Sums, Sums, np.ndarray]:
    """The sums of one layer over the tokens that are left, and the error of the paraphrase."""
    delta = accumulated[1]
    both = [_sums(inputs[left], missing[left], owner[left], responses, ranks) for inputs, missing in (accumulated, local)]
    error = delta if rephrased is None else delta - rephrased
    return both[0], both[1], _by_response(error[left].double().square().sum(1), owner[left], responses)


def _sums(
    inputs: Float[Tensor, "token width"],
    delta: Float[Tensor, "token width"],
    owner: Int[Tensor, " token"],
    responses: int,
    ranks: Sequence[int],
) -> Sums:
    found = torch.zeros(3, len(delta), ranks[-1], dtype=torch.float64)
    for fold in range(FOLDS):
        held_out = owner % FOLDS == fold
        coefficients, predicted, mean = _predicted(inputs, delta, held_out, ranks[-1])
        found[:, held_out] = torch.stack([coefficients, coefficients - predicted, coefficients - mean])
    squares = found.square().cumsum(2)[..., [rank - 1 for rank in ranks]]
    energy = _by_response(delta.double().square().sum(1), owner, responses)
    return Sums(energy[:, None], *(_by_response(each, owner, responses)[:, None] for each in squares))


def _predicted(
    inputs: Float[Tensor, "token width"], delta: Float[Tensor, "token width"], held_out: Bool[Tensor, " token"], rank: int
) -> tuple[Float[Tensor, "held_out rank"], Float[Tensor, "held_out rank"], Float[Tensor, " rank"]]:
    """Coefficients of the tokens held out, what probes of the others predict, and the others' mean coefficients."""
    known, targets = inputs[~held_out].double(), delta[~held_out].double()
    centre = known.mean(0)
    known = known - centre
    directions = leading(targets.T @ targets, rank)
    wanted = targets @ directions
    mean = wanted.mean(0)
    gram = known.T @ known
    gram.diagonal().add_(max(RIDGE * float(gram.trace()) / len(gram), 1e-9))
    probes = torch.cholesky_solve(known.T @ (wanted - mean), torch.linalg.cholesky(gram))
    return delta[held_out].double() @ directions, (inputs[held_out].double() - centre) @ probes + mean, mean


def _by_response(squares: Float[Tensor, " token *rank"], owner: Int[Tensor, " token"], responses: int) -> np.ndarray:
    sums: np.ndarray = torch.zeros(responses, *squares.shape[1:], dtype=torch.float64).index_add_(0, owner, squares).numpy()
    return sums


def _stacked(layers: Sequence[Sums]) -> Sums:
    return Sums(
        *(np.concatenate([getattr(each, part) for each in layers], axis=1) for part in ("energy", "within", "missed", "spread"))
    )


def _percent(found: Estimate, layer: int) -> str:
    low, high = found.interval(layer)
    return f"{100 * found.value[layer]:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _with_interval(found: Estimate, layer: int) -> str:
    low, high = found.interval(layer)
    return f"{found.value[layer]:.2f} [{low:.2f}, {high:.2f}]"
