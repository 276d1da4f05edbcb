"""Fitting neurons: layer by layer as the sequential solver, in the form in which they become weights of the MLPs.

A neuron reads what the MLP reads, x after its norm, and writes to the MLP's output. `ReLU(x·w + b)·z` is fitted by the regression of
layerwise fits. Then it is put into the MLP's own form, and its directions are solved for again with what it really computes:

- without a gate: `act(β(x·w + b))/β · z`, where act is a GELU, which is near ReLU for a large β;
- with a gate: `silu(β(x·w + b·x·u))/β · (x·u) · z`. Gated MLPs have no biases, so a direction u with x·u ≈ 1 stands for one.

It acts at every position, so the tokens before the span count too: there, it is to give what the model gives without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import ContextBatch
from psr_lens.errors import FitError
from psr_lens.fitting.layerwise.data import LayerwiseData, RemainingError, fitted_site
from psr_lens.fitting.layerwise.lockstep import batch_of_this_pass, lockstep
from psr_lens.fitting.layerwise.regression import LEAST_DIAGONAL, solved
from psr_lens.fitting.layerwise.token_weights import row_weights
from psr_lens.fitting.settings.adapters import Neurons
from psr_lens.fitting.settings.solvers import Sequential
from psr_lens.models import ExtraNeurons, HookedModel, activation_name, frozen, mlp_layout, plain_with_mlps
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_python": torch.nn.functional.gelu,
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
}
"""Activation functions by transformers' names."""


@dataclass(frozen=True, eq=False)
class FittedNeurons:
    """The neurons of one layer, and what they stand for."""

    neurons: ExtraNeurons
    """As the MLP computes them, at a strength of 1."""
    site: Site
    """`ReLU(x·w + b)·z` on what the MLP reads, with the directions of the neurons."""


def fit_neurons(
    model: HookedModel, triplets: Sequence[Triplet], layers: Sequence[int], config: Neurons
) -> dict[int, FittedNeurons]:
    """Fit the neurons of some layers one after the other, each with those of the earlier layers in force.

    Args:
        model: The model.
        triplets: What to learn from.
        layers: The layers, in ascending order.
        config: The settings.

    Raises:
        FitError: an activation or the result of a regression is not finite; names the hook point.
        ModelError: the model's MLPs cannot get more neurons.
    """
    plain = plain_with_mlps(model)
    gated, act = mlp_layout(plain).is_gated, ACTIVATIONS[activation_name(plain)]
    asked = _regression(config)
    data = LayerwiseData.of(model, triplets, asked)
    rows = [_Rows.of(*each) for each in zip(data.base, data.weights, strict=True)]
    scores = [torch.tensor([triplets[index].trait / 100 for index in indices], dtype=torch.float32) for indices in data.triplets]
    alphas = [
        score[each.everywhere.cpu() // batch.tokens.shape[1]] for score, each, batch in zip(scores, rows, data.base, strict=True)
    ]
    free = [replace(batch) for batch in data.base]
    count, found = len(data.base), cast(dict[int, FittedNeurons], {})
    names = {f"blocks.{layer}.hook_resid_post": layer for layer in layers}
    bar = progress_bar(total=len(layers), desc="fit neurons", unit="layer")

    def visit(name: str, arrived: list[Tensor]) -> list[Tensor]:
        ours, unsteered, prompted = arrived[:count], arrived[count : 2 * count], arrived[2 * count :]
        here = ours[0].device
        store = here if sum(map(len, alphas)) <= config.regression_batch else torch.device("cpu")
        parts: list[tuple[Tensor, ...]] = []
        for index, batch in enumerate(data.base):
            each = rows[index]
            at = each.everywhere.to(here)
            now = ours[index].flatten(0, 1)[at].float()
            wanted = unsteered[index].flatten(0, 1)[at].float()
            wanted[each.in_span.to(here)] = data.prompted[index].rows_of(prompted[index]).float()
            read = reads.pop(id(batch)).flatten(0, 1)[at].float()
            parts.append(tuple(part.to(store) for part in (read, now, wanted - now, alphas[index], each.weight(config))))
        inputs, residuals, targets, alpha, given = (torch.cat(each) for each in zip(*parts, strict=True))
        weights = row_weights(residuals, targets, alpha, given, replace(asked, hook="resid_post")).to(targets)
        site = fitted_site(name, inputs, targets, alpha, weights, asked, here)
        regression = _Regression(inputs, targets, alpha, weights)
        fitted = found[names[name]] = regression.neurons(site, act, gated, config)
        error, changed = RemainingError(), []
        for index, each in enumerate(rows):
            read, now, missing, strength, _ = parts[index]
            added = strength[:, None] * output_of(fitted.neurons, act, read)
            error.add(now, now + added, now + missing)
            at = each.everywhere.to(here)
            flat = ours[index].flatten(0, 1).index_add(0, at, added.to(ours[index]))
            changed.append(flat.view_as(ours[index]))
        if not all(bool(each.isfinite().all()) for each in changed):
            raise FitError(f"neurons: at {name} the regression has no finite solution. Raise `ridge`.")
        bar.set_postfix(hook=name, error=error, refresh=False)
        bar.update()
        return [*changed, *unsteered, *prompted]

    wanted_by = {id(batch) for batch in data.base}
    with bar, frozen(model), _reading_mlps(model, layers, wanted_by) as reads:
        lockstep(model, [*data.base, *free, *data.prompted], list(names), max(layers) + 1, visit)
    return found


def output_of(
    neurons: ExtraNeurons, act: Callable[[Tensor], Tensor], read: Float[Tensor, "token width"]
) -> Float[Tensor, "token width"]:
    """What neurons add to an MLP's output."""
    added: Tensor = _activations(neurons, act, read) @ neurons.write.to(read)
    return added


def _activations(
    neurons: ExtraNeurons, act: Callable[[Tensor], Tensor], read: Float[Tensor, "token width"]
) -> Float[Tensor, "token neuron"]:
    before = read @ neurons.read.to(read).T
    if neurons.bias is not None:
        before = before + neurons.bias.to(read)
    return act(before) if neurons.up is None else act(before) * (read @ neurons.up.to(read).T)


def _regression(config: Neurons) -> Sequential:
    """The settings of the regressions, which do not know that the targets are of the residual stream: weights are given."""
    shared = ("rank", "ridge", "regression_steps", "regression_batch", "token_budget", "span", "token_weights")
    return Sequential(hook="mlp_out", **{name: getattr(config, name) for name in shared})


@dataclass(frozen=True, eq=False)
class _Rows:
    """The tokens of a batch that count: all real ones of the base context."""

    everywhere: Int[Tensor, " token"]
    """Their indices in the flattened batch."""
    in_span: Bool[Tensor, " token"]
    """Which of them are of the span, in the order of the prompted context's span."""
    span_weights: Float[Tensor, " _"]
    """Weights of those."""

    @classmethod
    def of(cls, base: ContextBatch, weights: Float[Tensor, " _"]) -> _Rows:
        """Those of a batch, with the weights of its span's tokens."""
        everywhere = base.mask.flatten().nonzero().flatten()
        return cls(everywhere, base.span.flatten()[everywhere], weights)

    def weight(self, config: Neurons) -> Float[Tensor, " token"]:
        """The weight of each token's error."""
        found = torch.full((len(self.everywhere),), float(config.prompt_weight), dtype=torch.float32)
        found[self.in_span.cpu()] = self.span_weights.cpu().float()
        return found


@contextmanager
def _reading_mlps(model: HookedModel, layers: Sequence[int], batches: set[int]) -> Iterator[dict[int, Tensor]]:
    """What the MLPs read in the passes of some batches, by the batch's id: that of the last one that ran."""
    found: dict[int, Tensor] = {}

    def read(module: Any, arguments: tuple[Any, ...]) -> None:
        batch = batch_of_this_pass()
        if id(batch) in batches:
            found[id(batch)] = arguments[0].detach()

    handles = [cast(Any, model).blocks[layer].mlp.register_forward_pre_hook(read) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class _Regression:
    """The tokens of one layer's regression."""

    inputs: Float[Tensor, "token width"]
    """What the MLP reads."""
    targets: Float[Tensor, "token width"]
    """What is to be added to its output."""
    alpha: Float[Tensor, " token"]
    """Strengths."""
    weights: Float[Tensor, " token"]
    """Weight of each token's squared error."""

    def neurons(self, site: Site, act: Callable[[Tensor], Tensor], gated: bool, config: Neurons) -> FittedNeurons:
        """The neurons that compute what a site does, with the directions that fit what they really compute."""
        wide = self.inputs.double()
        probes, offset = site.weights.to(wide), site.bias.to(wide)
        coefficients = (wide @ probes.T + offset).relu()
        counts = self.weights.double() * self.alpha.double().square()
        typical = ((counts @ coefficients.square()) / (counts @ (coefficients > 0).double()).clamp(min=1e-12)).sqrt()
        sharpness = config.sharpness / typical.clamp(min=1e-12)
        sharpness = torch.where(typical > 0, sharpness, 1.0)  # of a neuron that is never active
        up: Tensor | None = None
        bias: Tensor | None = None
        if gated:
            one = self._one(wide, counts, config.constant_ridge)
            read, up = (probes + offset[:, None] * one) * sharpness[:, None], one.expand_as(probes).clone()
        else:
            read, bias = probes * sharpness[:, None], offset * sharpness
        raw = ExtraNeurons(read, torch.zeros_like(read), bias, up)
        outputs = self.alpha.double()[:, None] * _activations(raw, act, wide)
        weighted = self.weights.double()[:, None] * outputs
        spread = (counts @ (wide - counts @ wide / counts.sum()).square()).sum() / counts.sum() / wide.shape[1]
        # As in the regression: ridge · |w|²·|z|², where w is in standard units and z belongs to a coefficient of 1.
        penalty = config.ridge * counts.sum() * spread * probes.square().sum(1) * sharpness.square()
        write = solved(weighted.T @ outputs + penalty.diag(), weighted.T @ self.targets.double(), LEAST_DIAGONAL)
        parts = [None if each is None else each.float().cpu().contiguous() for each in (read, write, bias, up)]
        stands_for = Site((write * sharpness[:, None]).float().cpu(), site.weights, site.bias, "relu")
        return FittedNeurons(ExtraNeurons(*cast(Any, parts)), stands_for)

    def _one(self, wide: Tensor, counts: Tensor, ridge: float) -> Float[Tensor, " width"]:
        """U with x·u ≈ 1 on all tokens, by ridge regression."""
        gram = wide.T @ (counts[:, None] * wide) / counts.sum()
        eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
        found: Tensor = torch.linalg.solve(gram + ridge * gram.trace() / len(gram) * eye, counts @ wide / counts.sum())
        return found
