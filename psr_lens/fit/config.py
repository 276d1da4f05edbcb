"""The settings of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from psr_lens.errors import InputError
from psr_lens.prompts import Span

Solver = Literal["sequential", "joint", "dim"]
Objective = Literal["mse"]
Start = Literal["random", "sequential"]
HookKind = Literal["resid_post"]


@dataclass(frozen=True)
class FitConfig:
    """What to learn and how. Defaults of the joint solver are the paper's (Heyman & Vandeputte 2026, persona setting)."""

    layers: str | int | Sequence[int] = "all"
    """Layers to act at: `"all"` (A-PSR), one number (S-PSR) or several; negative ones count from the end."""
    hook: HookKind = "resid_post"
    """Hook point within each layer."""
    objective: Objective = "mse"
    """`"mse"`: be close to the prompt-steered activations (prompt steering imitation)."""
    solver: Solver = "sequential"
    """`"sequential"`: layer by layer within one forward pass; `"joint"`: gradient descent through the model, as in the paper;
    `"dim"`: the constant difference in means (CAA on the span R)."""
    span: Span = "R"
    """Where it acts: `"R"`, the last prompt token and the response; `"QR"`, the question too."""
    start: Start = "random"
    """Joint: `"random"`, w ~ N(0, 0.01²) and b = 0 as in the paper; `"sequential"`, from the sequential solver's result."""
    rank: int = 1
    """Directions a site; the paper's is 1."""
    seed: int = 123
    """Seed of the start and of the shuffling."""
    epochs: int = 15
    """Joint: passes over the triplets."""
    batch_size: int = 16
    """Joint: triplets a step."""
    learning_rate: float = 1e-3
    """Joint: AdamW's, falling linearly to 0."""
    weight_decay: float = 1e-6
    """Joint: AdamW's."""
    regulariser: float = 0.1
    """Joint: weight of max(0, 1 − Σ_i λ_i), against probes that never fire."""
    normalise: bool = True
    """Joint: divide the error by the unsteered error, so that it balances against the regulariser."""
    ridge: float = 0.1
    """Sequential: ridge of the starting regression, times the mean variance of the inputs."""
    regression_steps: int = 300
    """Sequential: Adam steps a layer."""
    regression_learning_rate: float = 1e-2
    """Sequential: Adam's, falling to 0, in units of standardised inputs and targets."""
    token_budget: int = 8_192
    """Most tokens of a batch in a forward pass, padding included."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        for name, kind in (("solver", Solver), ("objective", Objective), ("hook", HookKind), ("start", Start), ("span", Span)):
            self._one_of(name, get_args(kind))
        for name in ("rank", "epochs", "batch_size", "token_budget"):
            self._whole(name, 1)
        for name in ("regression_steps", "seed"):
            self._whole(name, 0)
        for name in ("learning_rate", "weight_decay", "regulariser", "ridge", "regression_learning_rate"):
            self._not_negative(name)
        if self.solver == "dim" and self.rank != 1:
            raise InputError("rank", self.rank, "1 with solver='dim', which has a single direction")

    def _one_of(self, name: str, allowed: tuple[Any, ...]) -> None:
        if (value := getattr(self, name)) not in allowed:
            raise InputError(name, repr(value), f"one of {', '.join(map(repr, allowed))}")

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, repr(value), f"a whole number of at least {least}")

    def _not_negative(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise InputError(name, repr(value), "a finite number of at least 0")
