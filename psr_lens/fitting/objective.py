"""What joint training makes small: the distance to the prompted activations (MSE), or −log p of the responses (LL).

Heyman & Vandeputte 2026, "Training". Both read the base context with the sites in force, and add the regulariser against dead probes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, context_batch, length_batches
from psr_lens.activations.paired_passes import collect, row_counts
from psr_lens.fitting.config import Joint
from psr_lens.fitting.parameters import Parameters
from psr_lens.models import HookedModel, device_of, forward, hooked
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site
from psr_lens.replacement.site import per_head

HELD_BYTES: Final = 2 * 2**30
"""Prompted activations up to this size are kept; larger ones are computed anew for every batch."""

SHARE_OF_FREE: Final = 0.25
"""Kept activations stay on the GPU if they take no more than this share of what is free there, else in the CPU's memory."""

EXPLODED: Final = 1e3
"""An error of so many times the unsteered one is an explosion."""

SURPRISED: Final = 10.0
"""So is a −log p of so many times that of a uniform guess."""


class Losses(NamedTuple):
    """The losses of some triplets as sums, so that parts of a batch add up to the whole."""

    error: Float[Tensor, ""]
    """MSE: squared error, summed over tokens and layers; LL: −log p, summed over response tokens."""
    penalty: Float[Tensor, ""]
    """Regulariser, summed over triplets and probes."""


class Objective(ABC):
    """Base of both objectives: the pass with the sites in force, and how it counts tokens."""

    scale: float = 1.0
    """What the mean error is divided by."""
    ceiling: float
    """A mean error above this, in units of the scale, means that training has gone astray."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Know model, data and parameters."""
        self.model, self.triplets, self.parameters, self.config = model, triplets, parameters, config
        self.device = device_of(model)

    def prepare(self, training: Sequence[int]) -> None:
        """Compute what stays the same while the sites change; nothing, unless an objective says otherwise."""
        return

    @abstractmethod
    def losses(self, indices: Sequence[int]) -> Losses:
        """Of some triplets, with gradients to the parameters."""

    @abstractmethod
    def count(self, indices: Sequence[int]) -> int:
        """How many tokens the mean error of some triplets is taken over."""

    def after_step(self) -> None:
        """Put back what must hold of the parameters after every step; nothing, unless an objective says otherwise."""
        return

    def sites(self) -> dict[str, Site]:
        """The result."""
        return self.parameters.finished()

    def where_it_broke(self, indices: Sequence[int]) -> str:
        """The first hook point whose activations are not finite; where all are, the one that has grown most by the sites."""
        batch, points = self._batch(indices), measured_points(self.model, self.parameters.names)
        sizes: dict[bool, list[Tensor]] = {False: [], True: []}
        for steered, found in sizes.items():
            hooks = self._steering(batch, indices, []) if steered else []
            hooks += [(name, _size_hook(batch, found)) for name in points]
            with torch.no_grad(), self.precision(), hooked(self.model, hooks):
                read_residuals(self.model, batch, points[-1])
        growth = torch.stack(sizes[True]) / torch.stack(sizes[False])
        astray = (~growth.isfinite()).nonzero().flatten()
        return points[int(astray[0] if len(astray) else growth.argmax())]

    def _batch(self, indices: Sequence[int]) -> ContextBatch:
        return context_batch([self.triplets[index] for index in indices], "base", self.config.span, self.device)

    def _steering(self, batch: ContextBatch, indices: Sequence[int], penalties: list[Tensor]) -> list[tuple[str, Any]]:
        """The hooks that let the sites act, at each triplet's trait score; each adds its share of the regulariser to `penalties`."""
        alpha = torch.tensor([self.triplets[index].trait / 100 for index in indices], device=self.device)
        strengths = alpha + self.parameters.offset
        return [(name, _steering_hook(site, strengths, batch.span, penalties)) for name, site in self.parameters.sites().items()]

    def precision(self) -> AbstractContextManager[Any]:
        """The type in which the model computes."""
        wanted = self.config.autocast == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)


class Imitation(Objective):
    """MSE: Σ_l mean ‖A_{l|AS} − A_{l|PS}‖² over the first site's layer and all later ones, on the span."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Know which layers are measured."""
        super().__init__(model, triplets, parameters, config)
        self.measured = measured_points(model, parameters.names)
        self._counts = row_counts(triplets, config.span)
        self._held: dict[str, tuple[Tensor, ...]] = {}

    def count(self, indices: Sequence[int]) -> int:
        """Tokens of the spans."""
        return sum(self._counts[index] for index in indices)

    def prepare(self, training: Sequence[int]) -> None:
        """Read the prompted activations, if there is room for them, and the unsteered error of the training triplets."""
        size = sum(self._counts) * int(self.model.cfg.d_model) * len(self.measured) * next(self.model.parameters()).itemsize
        if size <= HELD_BYTES:
            with self.precision():
                rows = collect(
                    self.model,
                    self.triplets,
                    self.measured,
                    "prompted",
                    self.config.span,
                    token_budget=self.config.token_budget,
                )
            kept_on = _where_to_keep(size, self.device)
            self._held = {name: values.to(kept_on).split(self._counts) for name, values in rows.items()}
        # Never quite 0, as it is for an instruction that changes nothing.
        unsteered = max(self._unsteered_error(training) / self.count(training), 1e-12)
        self.scale = unsteered if self.config.normalise else 1.0
        self.ceiling = EXPLODED * unsteered / self.scale

    def losses(self, indices: Sequence[int]) -> Losses:
        """Squared error and regulariser."""
        batch = self._batch(indices)
        penalties: list[Tensor] = []
        error = self._error(batch, indices, self._steering(batch, indices, penalties))
        return Losses(error, torch.stack(penalties).sum())

    def _error(self, batch: ContextBatch, indices: Sequence[int], hooks: Sequence[tuple[str, Any]]) -> Float[Tensor, ""]:
        """Squared error, summed over tokens and layers, with some hooks in force."""
        targets = self._targets(indices)
        errors: list[Tensor] = []
        comparing = [(name, _error_hook(targets.pop(name), batch, errors)) for name in self.measured]
        with self.precision(), hooked(self.model, [*hooks, *comparing]):
            read_residuals(self.model, batch, self.measured[-1])
        return torch.stack(errors).sum()

    def _targets(self, indices: Sequence[int]) -> dict[str, Sequence[Tensor]]:
        if self._held:
            return {name: [rows[index] for index in indices] for name, rows in self._held.items()}
        chosen = [self.triplets[index] for index in indices]
        with self.precision():
            rows = collect(self.model, chosen, self.measured, "prompted", self.config.span, token_budget=self.config.token_budget)
        return {name: [values] for name, values in rows.items()}

    def _unsteered_error(self, training: Sequence[int]) -> float:
        total = 0.0
        for places in length_batches([self.triplets[index] for index in training], self.config.token_budget):
            indices = [training[place] for place in places]
            with torch.no_grad():
                total += float(self._error(self._batch(indices), indices, ()))
        return total


class Likelihood(Objective):
    """LL: −log p_AS(y' | x), a mean over response tokens."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Know what a guess is worth."""
        super().__init__(model, triplets, parameters, config)
        self.ceiling = SURPRISED * math.log(int(model.cfg.d_vocab))

    def count(self, indices: Sequence[int]) -> int:
        """Response tokens."""
        return sum(len(self.triplets[index].response_ids) for index in indices)

    def losses(self, indices: Sequence[int]) -> Losses:
        """−log p and regulariser."""
        batch = self._batch(indices)
        penalties: list[Tensor] = []
        with self.precision(), hooked(self.model, self._steering(batch, indices, penalties)):
            error = self._surprise(batch, indices)
        return Losses(error, torch.stack(penalties).sum())

    def _surprise(self, batch: ContextBatch, indices: Sequence[int]) -> Float[Tensor, ""]:
        """−log p of the response tokens, each predicted one position before it."""
        logits = forward(self.model, batch.tokens, batch.mask)
        starts = torch.tensor([len(self.triplets[index].pair.base_ids) for index in indices], device=batch.tokens.device)
        places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        answers = (batch.mask.bool() & (places >= starts[:, None]))[:, 1:]
        predicted = logits[:, :-1][answers].float()
        return torch.nn.functional.cross_entropy(predicted, batch.tokens[:, 1:][answers], reduction="sum")


class _Read(BaseException):
    """Ends a pass whose logits nobody needs; not an `Exception`, so that nothing on the way catches it."""


def read_residuals(model: HookedModel, batch: ContextBatch, last: str) -> None:
    """A forward pass up to the hook point `last`, for what hooks see of it; the logits, the costliest tensor of all, are left out."""

    def stop(activation: Tensor, hook: Any) -> None:
        raise _Read

    try:
        with hooked(model, [(last, stop)]):
            forward(model, batch.tokens, batch.mask)
    except _Read:
        pass


def measured_points(model: HookedModel, names: Sequence[str]) -> list[str]:
    """The residual stream after the first site's layer and after every later one."""
    first = min(layer for name in names if (layer := layer_of(name)) is not None)
    return [f"blocks.{layer}.hook_resid_post" for layer in range(first, model.cfg.n_layers)]


def _steering_hook(
    site: Site, strengths: Float[Tensor, " batch"], span: Bool[Tensor, "batch position"], penalties: list[Tensor]
) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        device = activation.device
        here = site.to(device, site.weights.dtype)
        with torch.autocast(device.type, enabled=False):
            coefficients = here.coefficients(activation.to(here.weights.dtype))
            inside = span.to(device).reshape(*span.shape, *[1] * (coefficients.ndim - 2))
            coefficients = coefficients * inside
            penalties.append(torch.relu(1 - coefficients.sum(1)).sum().to(span.device))
            # The strength goes to the few coefficients: times the wide intervention, autograd would keep a copy of that.
            strength = strengths.to(device).reshape(-1, *[1] * (coefficients.ndim - 1))
            added = per_head(coefficients * strength, here.directions)
            return activation + added.to(activation.dtype)

    return hook


def _where_to_keep(size: int, device: torch.device) -> torch.device:
    """The model's GPU, the first of several, or the CPU where there is none or the activations are too large for it."""
    if device.type != "cuda":
        return torch.device("cpu")
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, and free for what comes
    free = torch.cuda.mem_get_info(device)[0] + cached
    return device if size <= SHARE_OF_FREE * free else torch.device("cpu")


def _size_hook(batch: ContextBatch, sizes: list[Tensor]) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        sizes.append(batch.rows_of(activation).double().norm().to(batch.rows.device))

    return hook


def _error_hook(targets: Sequence[Tensor], batch: ContextBatch, errors: list[Tensor]) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        with torch.autocast(activation.device.type, enabled=False):
            wanted = torch.cat(list(targets)).to(activation.device).float()  # `.to(device, dtype)` would convert on the CPU
            errors.append((batch.rows_of(activation).float() - wanted).square().sum().to(batch.rows.device))

    return hook
