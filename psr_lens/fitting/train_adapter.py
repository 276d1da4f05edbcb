"""Learning what acts through the weights: LoRA, by the likelihood of the responses under the base prompt, as LoReFT and CLAS; and neurons.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. peft puts its layers into the plain transformers
model whose weights the user's model computes with; that model's modules are copies, so the user's own stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from psr_lens._utils.arguments import CHECKS, checks_arguments, described
from psr_lens._utils.optional import package
from psr_lens.activations.batches import ContextBatch
from psr_lens.activations.store import triplets_digest
from psr_lens.errors import FitError, InputError
from psr_lens.fitting.gradient_descent.objective import Likelihood, Losses
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.gradient_descent.training import Trained, train
from psr_lens.fitting.negatives import check_no_negatives
from psr_lens.fitting.neuron_fidelity import learned_neurons
from psr_lens.fitting.settings.adapters import LoRA, Neurons
from psr_lens.fitting.settings.solvers import Joint, as_joint
from psr_lens.models import HookedModel, LowRank, fingerprint, linear_weight, plain_with_shared_weights
from psr_lens.prompts import Triplet, check_triplets
from psr_lens.replacement import Adapter, AddedNeurons


@overload
def adapt(
    model: HookedModel, triplets: Sequence[Triplet], config: LoRA | None = ..., *, checkpoint: str | Path | None = ...
) -> Adapter: ...


@overload
def adapt(model: HookedModel, triplets: Sequence[Triplet], config: Neurons, *, checkpoint: None = ...) -> AddedNeurons: ...


@checks_arguments
def adapt(
    model: HookedModel, triplets: Sequence[Triplet], config: LoRA | Neurons | None = None, *, checkpoint: str | Path | None = None
) -> Adapter | AddedNeurons:
    """Learn weights that do without the instruction of `triplets`. The model's own weights stay frozen and unchanged.

    The base prompt is read with them in force, all of it. A `LoRA` is trained to make the prompted response likely; `Neurons` are fitted
    layer by layer to the prompted activations, as a replacement is, and can be written into an ordinary checkpoint.

    Args:
        model: The model, as `load_model` gives it.
        triplets: What `sample_responses` gave.
        config: Settings, a `LoRA` or `Neurons`; None for those of `LoRA()`.
        checkpoint: Folder for the state after every epoch of a LoRA, as for `fit`.

    Returns:
        The adapter, or the neurons, which functions that take a method take as they take a replacement.

    Raises:
        InputError: no triplets, an empty response or one too long, a response without the trait (below 50), `targets` or a layer that
            the model does not have, or a `checkpoint` with neurons, which have no epochs.
        ModelError: the model does not compute with the weights of a transformers model as that has them; its MLPs cannot get more neurons.
        MissingPackageError: peft is not installed.
        ArtifactError: the checkpoint is damaged, or belongs to another run.
        FitError: the loss is no longer finite, or has exploded, and `partial` is the last good adapter; or a layer of neurons is not
            finite.

    Example:
        >>> adapter = psr.adapt(model, triplets[:4], psr.LoRA(rank=2, targets=["q_proj", "v_proj"], epochs=1))
        >>> len(adapter.layers), adapter.trained_parameters
        (12, 6144)
        >>> psr.adapt(model, triplets[:4], psr.Neurons(rank=2))
        AddedNeurons(6 layers, 2 neurons a layer, for organism)
    """
    config = LoRA() if config is None else config
    check_triplets(model, triplets)
    check_no_negatives(triplets, f"psr.{config!r}")
    if isinstance(config, LoRA):
        return _lora(model, triplets, config, checkpoint)
    if checkpoint is not None:
        raise InputError("checkpoint", checkpoint, f"None with psr.{config!r}, which has no epochs to resume from")
    with torch.inference_mode(mode=False):  # as in `fit`
        return learned_neurons(model, triplets, config)


def _lora(model: HookedModel, triplets: Sequence[Triplet], config: LoRA, checkpoint: str | Path | None) -> Adapter:
    plain = plain_with_shared_weights(model)
    layers: dict[str, LowRank] = {}
    joint = as_joint(config, objective="ll", rule="linear", rank=1, regulariser=0.0, normalise=False)

    def objective(_known: Parameters | None) -> Likelihood:
        layers.update(_with_lora(plain, config))
        return _Adapting(model, triplets, plain, layers, joint)

    def finished(trained: Trained) -> Adapter:
        return Adapter(
            {name: _result(each) for name, each in layers.items()},
            float(config.lora_alpha / config.rank),
            fingerprint(model),
            str(cast(Any, plain).name_or_path),
            config.to_json() | {"triplets": len(triplets), "instructions": sorted({each.pair.instruction for each in triplets})},
            trained.curve,
            triplets_digest(triplets),
            _is_transposed(plain),
        )

    with torch.inference_mode(mode=False), _gradients_kept(plain):
        try:
            return finished(train(model, triplets, [], joint, objective, asked=config, checkpoint=checkpoint))
        except FitError as error:
            if isinstance(error.partial, Trained):
                error.partial = finished(error.partial)
            raise


def _check_config(config: object, argument: str) -> None:
    if not isinstance(config, LoRA | Neurons):
        raise InputError(
            argument,
            described(config),
            "the settings of what is learned into weights: psr.LoRA or psr.Neurons",
            "`psr.fit` takes those of the solvers.",
        )


CHECKS[LoRA | Neurons] = _check_config


class _Adapting(Likelihood):
    """−log p(y' | x) under the adapted transformers model; it has no sites, its layers hold what is trained."""

    def __init__(
        self, model: HookedModel, triplets: Sequence[Triplet], plain: nn.Module, layers: Mapping[str, LowRank], config: Joint
    ) -> None:
        super().__init__(model, triplets, Parameters.none(), config)
        self._plain, self._layers = plain, layers

    @property
    def trained(self) -> dict[str, Tensor]:
        """A and B of every layer."""
        return {f"{name}.{part}": getattr(each, part) for name, each in self._layers.items() for part in ("a", "b")}

    def losses(self, indices: Sequence[int]) -> Losses:
        """−log p; there is no regulariser."""
        with self.precision():
            predicted = self._predicted(self._batch(indices), indices, "base")
        return Losses(self._error(predicted, indices), predicted.new_zeros(()))

    def where_it_broke(self, indices: Sequence[int]) -> str:
        """The layer whose weight is changed most, relative to its size."""
        sizes = {
            name: float((each.b @ each.a).detach().norm() / _base_weight(self._plain, name).float().norm())
            for name, each in self._layers.items()
        }
        return max(sizes, key=lambda name: float("inf") if sizes[name] != sizes[name] else sizes[name])

    def _logits(self, batch: ContextBatch) -> Float[Tensor, "batch position d_vocab"]:
        found: Tensor = cast(Any, self._plain)(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits
        return found


def _base_weight(plain: nn.Module, name: str) -> Tensor:
    return linear_weight(plain, f"{name}.base_layer")


def _is_transposed(plain: nn.Module) -> bool:
    """Whether linear layers keep their weights as `[in, out]`, as GPT-2's do."""
    return any(isinstance(each, Conv1D) for each in plain.modules())


def _with_lora(plain: nn.Module, config: LoRA) -> dict[str, LowRank]:
    """Put peft's layers into a transformers model; returns what they train, in float32, by the names of the layers that they replace."""
    peft = package("peft", "peft")
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        fan_in_fan_out=_is_transposed(plain),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            peft.inject_adapter_in_model(lora, plain)
        except ValueError as error:
            remedy = "`targets='all-linear'` takes every linear layer but the head."
            raise InputError("targets", repr(config.targets), "names of linear layers of the model", remedy) from error
    found = {}
    for name, layer in plain.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            a, b = (getattr(layer, part)["default"].weight for part in ("lora_A", "lora_B"))
            for each in (a, b):
                each.data = each.data.float()
            _base_weight(plain, name)  # refuses what it cannot act on later
            found[name] = LowRank(a, b)
    return found


def _result(change: LowRank) -> LowRank:
    """A copy on the CPU, without gradients."""
    return LowRank(*(each.detach().cpu().clone().contiguous() for each in (change.a, change.b)))


@contextmanager
def _gradients_kept(plain: nn.Module) -> Iterator[None]:
    """Put back, at the end, whether the weights have gradients: peft switches them off, and some are the user's."""
    before = {each: each.requires_grad for each in plain.parameters()}
    try:
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
