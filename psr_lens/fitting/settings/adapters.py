"""Settings of what is learned into the weights, beside what steers activations: adapters, and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from psr_lens._utils.numbers import is_real
from psr_lens.errors import InputError
from psr_lens.fitting.settings.base import Settings, TokenWeights, values_of
from psr_lens.fitting.settings.gradient_descent import GradientDescent
from psr_lens.models.hook_points import Layers
from psr_lens.prompts import Span


@dataclass(frozen=True, kw_only=True, repr=False)
class LoRA(GradientDescent):
    """Settings of LoRA (Hu et al. 2021): a low-rank change of the weights of linear layers, trained to make the responses likely.

    Example:
        >>> psr.LoRA(rank=2, lora_alpha=4)
        LoRA(rank=2, lora_alpha=4)
    """

    solver: ClassVar[str] = "lora"
    """Its name in saved settings."""

    rank: int = 8
    """Rank of the change of each weight."""
    lora_alpha: float = 16.0
    """peft's `lora_alpha`: the change is lora_alpha / rank · B A. It is part of what is trained; the strength α multiplies all of it."""
    targets: str | Sequence[str] = "all-linear"
    """peft's `target_modules`: `"all-linear"`, every linear layer but the head, or names of layers such as `["q_proj", "v_proj"]`."""
    token_budget: int = 8_192
    """Most tokens of a batch in a forward pass, padding included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.lora_alpha) or not 0 < self.lora_alpha < float("inf"):
            raise InputError("lora_alpha", repr(self.lora_alpha), "a finite number above 0")
        if not len(self.targets) or not all(isinstance(each, str) and each for each in self.targets):
            raise InputError(
                "targets", repr(self.targets), "'all-linear', or names of linear layers", "Give e.g. ['q_proj', 'v_proj']."
            )

    def to_json(self) -> dict[str, Any]:
        """All settings as a mapping of JSON values.

        Example:
            >>> psr.LoRA().to_json()["targets"]
            'all-linear'
        """
        return {"solver": self.solver, **values_of(self)}


@dataclass(frozen=True, kw_only=True, repr=False)
class Neurons(Settings):
    """Settings of neurons: a replacement in the form in which it becomes weights of the MLPs, fitted layer by layer as `Sequential`.

    Example:
        >>> psr.Neurons(rank=2)
        Neurons(rank=2)
    """

    solver: ClassVar[str] = "neurons"
    """Its name in saved settings."""
    may_be_auto = ("rank",)

    rank: int | Literal["auto"] = 4
    """Neurons a layer; `"auto"` chooses at each layer the number, up to 32, that explains held-out tokens."""
    layers: Layers = "all"
    """Layers whose MLPs get neurons: `"all"`, one layer or several; negative numbers count from the end."""
    span: Span = "R"
    """Tokens on which they are to do what the instruction does: `"R"`, the last prompt token and the response; `"QR"`, the question too.
    They act on all tokens, and are fitted to change nothing before the span."""
    ridge: float = 0.003
    """Weight of Σ_i |w_i|²·|z_i|² in the regressions, as for `Sequential`."""
    prompt_weight: float = 0.1
    """How much the error of a token before the span counts, where one of the span counts 1."""
    sharpness: float = 100.0
    """β times the root mean square of a neuron's activation where it is active: the larger, the closer the activation function is to
    ReLU."""
    constant_ridge: float = 1e-3
    """Gated MLPs: weight of |u|² in the regression of 1 on what the MLP reads, in units of its mean square; x·u stands for the bias."""
    token_weights: TokenWeights = "uniform"
    """How much a token's error counts on the span, as for `Sequential`."""
    regression_steps: int = 40
    """Most steps of L-BFGS at a layer; 0 keeps the closed form."""
    regression_batch: int = 65_536
    """Most tokens of a regression on the device at once; where there are more, they are held in main memory."""
    token_budget: int = 8_192
    """Most tokens of a batch in a forward pass, padding included."""
    validation: float = 0.1
    """Share of the triplets that is left out of the fit, at least one, to measure `fidelity` on; 0 measures it on those fitted on."""
    seed: int = 123
    """Seed of the choice of these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.sharpness) or not 0 < self.sharpness < float("inf"):
            raise InputError("sharpness", repr(self.sharpness), "a finite number above 0")
        if self.validation >= 1:
            raise InputError("validation", self.validation, "a share of the triplets below 1")

    def to_json(self) -> dict[str, Any]:
        """All settings as a mapping of JSON values.

        Example:
            >>> psr.Neurons().to_json()["rank"]
            4
        """
        return {"solver": self.solver, **values_of(self)}
