"""Settings of adapters: of what is trained into the weights, beside what steers activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from psr_lens._utils.numbers import is_real
from psr_lens.errors import InputError
from psr_lens.fitting.settings.base import values_of
from psr_lens.fitting.settings.gradient_descent import GradientDescent


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
