"""The training loop: AdamW on an objective, with validation, early stopping and checkpoints; several processes share the batches."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psr_lens._utils.distributed import rank_and_world_size, same_as_first, sum_over_processes, wait_for_all
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.errors import FitError, InputError
from psr_lens.fitting.gradient_descent.checkpoint import Checkpoint, identity
from psr_lens.fitting.gradient_descent.objective import Objective
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.settings.adapters import LoRA
from psr_lens.fitting.settings.solvers import FitConfig, Joint
from psr_lens.models import HookedModel, frozen, untold
from psr_lens.prompts import Triplet
from psr_lens.replacement import LearningCurve, Site


@dataclass(frozen=True, eq=False)
class Trained:
    """What a solver found."""

    sites: Mapping[str, Site]
    """The site of each hook point."""
    offset: float
    """b_m; 0 where none was learned."""
    curve: LearningCurve | None
    """Losses by epoch; None without gradient descent."""


def train(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: Joint,
    objective_of: Callable[[Parameters | None], Objective],
    *,
    asked: FitConfig | LoRA,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train for `config.epochs`, or resume from a checkpoint.

    Under `accelerate launch` or `torchrun` every process calls this with the same arguments, takes its share of each step's batch, and
    ends with the same sites.

    Args:
        model: The model.
        triplets: What to learn from.
        names: Hook points to act at.
        config: How to train.
        objective_of: Makes the objective from the parameters in a checkpoint; given None, with those to start from.
        asked: The config that the user gave. With it a checkpoint is told from those of other runs.
        checkpoint: Folder to keep the state in, and to resume from.

    Raises:
        InputError: too few triplets to leave some out for validation; the processes were given different arguments; or a checkpoint while
            hooks are on the model.
        ArtifactError: the checkpoint is damaged, or belongs to another run.
        FitError: the loss is no longer finite, or has exploded; its `partial` is what had been learned before.
    """
    if checkpoint is not None and (reason := untold(model)) is not None:
        raise InputError(
            "checkpoint",
            f"{checkpoint}, with {reason}",
            "a model without them, since a checkpoint does not record what they do",
            "Undo that, or fit without a checkpoint.",
        )
    alone = rank_and_world_size()[1] == 1
    wanted = {} if alone and checkpoint is None else identity(model, triplets, names, config, asked)
    if not alone:
        _check_agreement(wanted)
    kept = None if checkpoint is None else Checkpoint(checkpoint, wanted, model)
    begun = None if kept is None else kept.load()
    with torch.inference_mode(mode=False), torch.enable_grad(), frozen(model):
        known = Parameters.saved(model, names, config, _of_kinds(begun[0], "fixed", "trained")) if begun and names else None
        return _Run(triplets, config, objective_of(known), kept, begun).go()


def _of_kinds(tensors: Mapping[str, Tensor], *kinds: str) -> dict[str, Tensor]:
    """The tensors of some kinds in a checkpoint, without the kind in their names."""
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.partition("/")[0] in kinds}


def split(count: int, config: Joint) -> tuple[list[int], list[int]]:
    """Indices of the triplets to train on and of those to validate on, drawn by the seed.

    Raises:
        InputError: no triplet would be left to train on.
    """
    if not config.validation:
        return list(range(count)), []
    left_out = max(1, round(count * config.validation))
    if left_out >= count:
        raise InputError(
            "validation", config.validation, f"a share that leaves some of the {count} triplets to train on", "Give more triplets."
        )
    order = np.random.default_rng((config.seed, count)).permutation(count).tolist()
    return sorted(order[left_out:]), sorted(order[:left_out])


def _check_agreement(wanted: Mapping[str, Any]) -> None:
    _, processes = rank_and_world_size()
    own = float(int(hashlib.sha256(json.dumps(wanted, default=str).encode()).hexdigest()[:12], 16))
    total = torch.tensor([own], dtype=torch.float64)
    sum_over_processes([total])
    if total.item() != processes * own:
        raise InputError(
            "triplets",
            "other arguments than another process",
            "the same model, triplets and config in every process",
            "Use the same seeds in every process.",
        )


class _Run:
    """One training run."""

    def __init__(
        self,
        triplets: Sequence[Triplet],
        config: Joint,
        objective: Objective,
        checkpoint: Checkpoint | None,
        begun: tuple[dict[str, Tensor], dict[str, Any]] | None,
    ) -> None:
        self.triplets, self.config, self.objective, self.checkpoint, self.begun = triplets, config, objective, checkpoint, begun
        self.training, self.validation = split(len(triplets), config)
        self.rank, self.processes = rank_and_world_size()
        self.tensors = objective.trained
        self.good = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.best: dict[str, Tensor] = {}
        self.optimiser = torch.optim.AdamW(list(self.tensors.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.train_losses: list[float] = []
        self.validation_losses: list[float] = []
        self.seconds: list[float] = []
        self.kept: int | None = None
        self.finished = False

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.training) // self.config.batch_size)

    def go(self) -> Trained:
        """Train to the end."""
        same_as_first(list(self.tensors.values()))
        resumed = self._resume()
        wait_for_all()  # before the first process writes
        if not self.finished:
            if not resumed:
                self._save()
            self.objective.prepare(self.training)
            total = self.steps_per_epoch * self.config.epochs
            at = len(self.train_losses) * self.steps_per_epoch
            with progress_bar(total=total, initial=at, desc="fit joint", unit="step") as bar:
                while not self.finished:
                    self._epoch(bar)
                    self._save()
        self._put(self.best)
        return self._result()

    def _epoch(self, bar: Any) -> None:
        began, epoch = time.perf_counter(), len(self.train_losses)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(self.training).tolist()
        error = 0.0
        for at in range(0, len(order), self.config.batch_size):
            chosen = order[at : at + self.config.batch_size]
            found, penalty = self._step(chosen, epoch * self.steps_per_epoch + at // self.config.batch_size)
            error += found * self.objective.count(chosen) / self.objective.count(self.training)
            shown = {"error": f"{found:.4f}", "dead": f"{penalty:.3f}"}
            if self.validation_losses:
                shown["validation"] = f"{self.validation_losses[-1]:.4f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()
        if self.validation:
            self.validation_losses.append(self._validate((epoch + 1) * self.steps_per_epoch))
        self.train_losses.append(error)
        self.seconds.append(time.perf_counter() - began)
        self._keep(epoch)

    def _step(self, chosen: Sequence[int], step: int) -> tuple[float, float]:
        """One step of AdamW; the error and the regulariser before it."""
        config, objective = self.config, self.objective
        total = self.steps_per_epoch * config.epochs
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * (1 - step / total)
        sums = torch.zeros(2, device=objective.device, dtype=torch.float32)
        self.optimiser.zero_grad(set_to_none=False)
        for part in self._parts(chosen):
            losses = objective.losses(part)
            means = torch.stack([losses.error / (objective.count(chosen) * objective.scale), losses.penalty / len(chosen)])
            (means[0] + config.regulariser * means[1]).backward()
            sums += means.detach()
        gradients = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in self.tensors.values()]
        sum_over_processes([*gradients, sums])
        for tensor, gradient in zip(self.tensors.values(), gradients, strict=True):
            tensor.grad = gradient
        error, penalty, *norms = torch.stack([*sums, *(gradient.norm() for gradient in gradients)]).tolist()
        self._check(error, step, chosen, [penalty, *norms])
        for name, tensor in self.tensors.items():
            self.good[name].copy_(tensor.detach())
        self.optimiser.step()
        objective.after_step()
        return error, penalty

    def _parts(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """The share of this process in a batch, in parts within the token budget."""
        share = chosen[self.rank :: self.processes]
        for part in length_batches([self.triplets[index] for index in share], self.config.token_budget):
            yield [share[number] for number in part]

    def _validate(self, step: int) -> float:
        total = torch.zeros(1, device=self.objective.device, dtype=torch.float32)
        with torch.no_grad():
            for part in self._parts(self.validation):
                total += self.objective.losses(part).error
        sum_over_processes([total])
        error = total.item() / (self.objective.count(self.validation) * self.objective.scale)
        self._check(error, step - 1, self.validation, [])
        return error

    def _check(self, error: float, step: int, chosen: Sequence[int], others: Sequence[float]) -> None:
        finite = all(map(math.isfinite, (error, *others)))
        if finite and error <= self.objective.ceiling:
            return
        what = f"exploded to {error:.3g}" if math.isfinite(error) and finite else "is no longer finite"
        layer = self.objective.where_it_broke(next(iter(self._parts(chosen)), [chosen[0]]))
        self._put(self.good)
        total = self.steps_per_epoch * self.config.epochs
        raise FitError(
            f"joint: the loss {what} at step {step + 1} of {total}, first at {layer}. "
            "Lower `learning_rate`; this error's `partial` is the last good replacement.",
            self._result(),
        )

    def _keep(self, epoch: int) -> None:
        """Decide whether to stop, and which state to keep."""
        if self.config.patience is None:
            self.kept = epoch
        elif self.kept is None or self.validation_losses[epoch] < self.validation_losses[self.kept]:
            self.kept = epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        stop = self.config.patience is not None and self.kept is not None and epoch - self.kept >= self.config.patience
        self.finished = stop or epoch + 1 == self.config.epochs

    def _curve(self) -> LearningCurve:
        return LearningCurve(tuple(self.train_losses), tuple(self.validation_losses), tuple(self.seconds), self.kept)

    def _result(self) -> Trained:
        return Trained(self.objective.sites(), self.objective.parameters.offset.item(), self._curve())

    def _put(self, state: Mapping[str, Tensor]) -> None:
        for name, values in state.items():
            self.tensors[name].detach().copy_(values)

    def _save(self) -> None:
        if self.checkpoint is None or self.rank > 0:
            return
        fixed = {name: tensor for name, tensor in self.objective.parameters.tensors.items() if name not in self.tensors}
        held = {"fixed": fixed, "trained": self.tensors, "best": self.best}
        state = {f"{kind}/{name}": tensor for kind, tensors in held.items() for name, tensor in tensors.items()}
        for name, tensor in self.tensors.items():
            state |= {f"adam/{name}/{key}": value for key, value in self.optimiser.state.get(tensor, {}).items()}
        self.checkpoint.save(state, {"curve": self._curve().to_json(), "finished": self.finished})

    def _resume(self) -> bool:
        """Load the checkpoint, if there is one; returns whether there was."""
        if self.begun is None:
            return False
        tensors, state = self.begun
        curve = LearningCurve.from_json(state["curve"])
        self.train_losses, self.validation_losses, self.seconds = list(curve.train), list(curve.validation), list(curve.seconds)
        self.kept, self.finished = curve.kept, bool(state["finished"])
        self._put({name: tensors[f"trained/{name}"] for name in self.tensors})
        self.best = _of_kinds(tensors, "best")
        moments = {
            index: {key.rpartition("/")[2]: value for key, value in tensors.items() if key.startswith(f"adam/{name}/")}
            for index, name in enumerate(self.tensors)
        }
        held = {index: values for index, values in moments.items() if values}
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": held})
        return True
