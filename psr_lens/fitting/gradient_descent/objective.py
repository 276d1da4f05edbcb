"""The objectives of joint training: the distance to the prompted activations (MSE) or next-token distributions (KL), or −log p (LL).

MSE and LL are those of Heyman & Vandeputte 2026, "Training". All run the base context with the sites in force, and add the regulariser
against dead probes.
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
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.settings.solvers import Joint
from psr_lens.models import HookedModel, device_of, forward, hooked
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Context, Triplet
from psr_lens.replacement import Site
from psr_lens.replacement.site import per_head

HELD_BYTES: Final = 2 * 2**30
"""Prompted activations up to this size are kept; larger ones are computed again for every batch."""

SHARE_OF_FREE: Final = 0.25
"""Kept activations stay on the GPU if they take at most this share of its free memory, else in main memory."""

EXPLODED: Final = 1e3
"""MSE: an error this many times the unsteered one counts as an explosion."""

SURPRISED: Final = 10.0
"""LL and KL: so does a −log p, or a KL, this many times the −log p of a uniform guess."""


IMPOSSIBLE: Final = -1e4
"""KL: log-probabilities below this count as this."""


class Losses(NamedTuple):
    """Summed losses of some triplets, so that parts of a batch add up to the whole."""

    error: Float[Tensor, ""]
    """MSE: squared error, summed over tokens and layers; LL and KL: −log p or KL, summed over response tokens."""
    penalty: Float[Tensor, ""]
    """Regulariser, summed over triplets and probes."""


class Objective(ABC):
    """Base of the objectives: the pass with the sites in force, and how tokens are counted."""

    scale: float = 1.0
    """What the mean error is divided by."""
    ceiling: float
    """A mean error above this, in units of the scale, ends training as an explosion."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Keep model, data and parameters."""
        self.model, self.triplets, self.parameters, self.config = model, triplets, parameters, config
        self.device = device_of(model)

    def prepare(self, training: Sequence[int]) -> None:
        """Compute what does not depend on the sites; by default nothing."""
        return

    @abstractmethod
    def losses(self, indices: Sequence[int]) -> Losses:
        """Losses of some triplets, with gradients to the parameters."""

    @abstractmethod
    def count(self, indices: Sequence[int]) -> int:
        """Number of tokens over which the mean error of some triplets is taken."""

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name."""
        return self.parameters.trained

    def after_step(self) -> None:
        """Restore constraints on the parameters after a step; by default there are none."""
        return

    def sites(self) -> dict[str, Site]:
        """The sites as a result."""
        return self.parameters.finished()

    def where_it_broke(self, indices: Sequence[int]) -> str:
        """The first hook point with activations that are not finite; if there is none, the one whose norm the sites increase most."""
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
        """Hooks that apply the sites, with each triplet's trait score as strength; each appends its regulariser to `penalties`."""
        alpha = torch.tensor([self.triplets[index].trait / 100 for index in indices], device=self.device, dtype=torch.float32)
        strengths = alpha + self.parameters.offset
        return [(name, _steering_hook(site, strengths, batch.span, penalties)) for name, site in self.parameters.sites().items()]

    def precision(self) -> AbstractContextManager[Any]:
        """A context in which the model computes in the type of the settings."""
        wanted = self.config.autocast == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)


class Imitation(Objective):
    """MSE: Σ_l mean ‖A_{l|AS} − A_{l|PS}‖² over the first site's layer and all later ones, on the span."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Choose the layers that are compared."""
        super().__init__(model, triplets, parameters, config)
        self.measured = measured_points(model, parameters.names)
        self._counts = row_counts(triplets, config.span)
        self._held: dict[str, tuple[Tensor, ...]] = {}

    def count(self, indices: Sequence[int]) -> int:
        """Number of span tokens."""
        return sum(self._counts[index] for index in indices)

    def prepare(self, training: Sequence[int]) -> None:
        """Read the prompted activations, if there is room for them, and measure the unsteered error of the training triplets."""
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
        # An instruction that changes nothing has an error of 0.
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
        for batch in length_batches([self.triplets[index] for index in training], self.config.token_budget):
            indices = [training[number] for number in batch]
            with torch.no_grad():
                total += float(self._error(self._batch(indices), indices, ()))
        return total


class Likelihood(Objective):
    """LL: −log p_AS(y' | x), a mean over response tokens."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Set the ceiling from the size of the vocabulary."""
        super().__init__(model, triplets, parameters, config)
        self.ceiling = SURPRISED * math.log(int(model.cfg.d_vocab))

    def count(self, indices: Sequence[int]) -> int:
        """Number of response tokens."""
        return sum(len(self.triplets[index].response_ids) for index in indices)

    def losses(self, indices: Sequence[int]) -> Losses:
        """−log p and regulariser."""
        batch = self._batch(indices)
        penalties: list[Tensor] = []
        with self.precision(), hooked(self.model, self._steering(batch, indices, penalties)):
            predicted = self._predicted(batch, indices, "base")
        return Losses(self._error(predicted, indices), torch.stack(penalties).sum())

    def _error(self, predicted: Float[Tensor, "token d_vocab"], indices: Sequence[int]) -> Float[Tensor, ""]:
        """−log p of the response tokens."""
        answers = torch.tensor([token for index in indices for token in self.triplets[index].response_ids], device=predicted.device)
        return torch.nn.functional.cross_entropy(predicted, answers, reduction="sum")

    def _predicted(self, batch: ContextBatch, indices: Sequence[int], context: Context) -> Float[Tensor, "token d_vocab"]:
        """The logits of the response tokens, each predicted one position before it."""
        logits = self._logits(batch)
        starts = torch.tensor([len(self.triplets[index].pair.ids(context)) for index in indices], device=batch.tokens.device)
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        answers = (batch.mask.bool() & (positions >= starts[:, None]))[:, 1:]
        return logits[:, :-1][answers].float()

    def _logits(self, batch: ContextBatch) -> Float[Tensor, "batch position d_vocab"]:
        return forward(self.model, batch.tokens, batch.mask)


class Divergence(Likelihood):
    """KL: KL(p_PS ‖ p_AS) of the next token, a mean over response tokens.

    The likelihood of one sampled response says of each token only which one came; the prompted distribution says what else could have. Not
    in the paper.
    """

    def _error(self, predicted: Float[Tensor, "token d_vocab"], indices: Sequence[int]) -> Float[Tensor, ""]:
        """KL of the prompted distributions, which are computed again: those of all data would not fit in memory."""
        chosen = [self.triplets[index] for index in indices]
        batch = context_batch(chosen, "prompted", self.config.span, self.device)
        with torch.no_grad(), self.precision():
            wanted = self._predicted(batch, indices, "prompted").log_softmax(-1)
        # Tokens that are impossible (−∞), as those beyond the tokenizer's may be, would make it NaN.
        found, wanted = (each.clamp(min=IMPOSSIBLE) for each in (predicted.log_softmax(-1), wanted))
        return torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)


class _Read(BaseException):
    """Ends a pass before the logits. It is not an `Exception`, so that no handler in the model catches it."""


def read_residuals(model: HookedModel, batch: ContextBatch, last: str) -> None:
    """A forward pass up to the hook point `last`, for hooks to read; the logits, the largest tensor of all, are not computed."""

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
            # Multiplied into the few coefficients: multiplied into the wide intervention, autograd would keep a copy of that.
            strength = strengths.to(device).reshape(-1, *[1] * (coefficients.ndim - 1))
            added = per_head(coefficients * strength, here.directions)
            return activation + added.to(activation.dtype)

    return hook


def _where_to_keep(size: int, device: torch.device) -> torch.device:
    """The model's (first) GPU, or the CPU if there is none or the activations are too large for it."""
    if device.type != "cuda":
        return torch.device("cpu")
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, free to be used
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
