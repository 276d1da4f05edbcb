"""Settings of gradient descent: of everything that is trained, of joint training, and of polishing a layerwise fit."""

from __future__ import annotations

from dataclasses import dataclass

from psr_lens.errors import InputError
from psr_lens.fitting.settings.base import Autocast, Objective, Settings, check_whole


@dataclass(frozen=True, kw_only=True, repr=False)
class GradientDescent(Settings):
    """Settings of everything that is trained by gradient descent through the model."""

    seed: int = 123
    """Seed of the random start, of the shuffling and of the validation split."""
    epochs: int = 15
    """Passes over the triplets."""
    batch_size: int = 16
    """Triplets a step; where they have more than `token_budget` tokens, their gradients are accumulated over parts."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW, which falls linearly to 0."""
    weight_decay: float = 1e-6
    """Weight decay of AdamW."""
    validation: float = 0.0
    """Share of the triplets that is left out of training; the loss on them is measured after every epoch."""
    patience: int | None = None
    """Stop after this many epochs without a lower validation loss, and take the best state; None trains to the end."""
    autocast: Autocast = "none"
    """Type in which the model computes; probes, directions and losses stay in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation >= 1:
            raise InputError("validation", self.validation, "a share of the triplets below 1")
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
            if not self.validation:
                raise InputError("validation", self.validation, "a share above 0 with `patience`", "Give e.g. `validation=0.1`.")


@dataclass(frozen=True, kw_only=True, repr=False)
class JointTraining(GradientDescent):
    """Settings of joint training, wherever it starts from."""

    objective: Objective = "mse"
    """What to minimise: `"mse"`, the distance to the prompted activations (prompt steering imitation); `"ll"`, −log p of the response; or
    `"kl"`, the KL divergence from the prompted model's next-token distributions, which takes a forward pass more a step."""
    regulariser: float = 0.1
    """Weight of max(0, 1 − Σ_i λ_i), against probes that never fire."""
    normalise: bool = True
    """With `objective="mse"`: divide the error by the unsteered error, so that it balances against the regulariser."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Polish(JointTraining):
    """Settings of joint training from the result of `Sequential` or `Local`; that has the layers, the hook, the span and the rank.

    Example:
        >>> polished = psr.fit(model, triplets[:4], psr.Sequential(layers=1, polish=psr.Polish(epochs=1)))
        >>> polished.method, len(polished.curve.train)
        ('S-PSR', 1)
    """
