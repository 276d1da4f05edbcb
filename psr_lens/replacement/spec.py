"""What a replacement consists of: what it adds and where, and the record of how it was made.

`saved_files.py` writes and reads this, `steering_hooks.py` acts on it and `model_card.py` describes it. `Replacement`, in
`replacement.py`, adds the methods that users call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from psr_lens._utils.arguments import check_fields
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError
from psr_lens.prompts import Span
from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.site import Site
from psr_lens.results.table import ResultTable

Tokens = Literal["span", "last"]
"""`span`: the last prompt token (under `QR` the question too) and every response token; `last`: the last prompt token alone."""


@dataclass(frozen=True, eq=False)
class ReplacementSpec:
    """The fields of a `Replacement`."""

    sites: Mapping[str, Site]
    """What is done at each hook point, by TransformerLens's name, in the model's order."""
    span: Span
    """Where it acts: `R`, the last prompt token and the response; `QR`, the question too."""
    method: str
    """Name of the method that made it, e.g. `A-PSR`."""
    model: Mapping[str, Any]
    """Fingerprint of the model that it was made for: name, sizes, architecture, and how its weights were processed."""
    question_start: int | None = None
    """Under `QR`, the position of the question's first token, if it was the same in all training prompts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the fit, and the instructions that it learned from."""
    offset: float = 0.0
    """The learned `b_m`: `(α + b_m)·λ·z` is added. If it is not 0, a strength of 0 still steers."""
    tokens: Tokens = "span"
    """Whether it acts on its whole span, or only on the last prompt token and at no decode step."""
    curve: LearningCurve | None = None
    """Losses of the fit, epoch by epoch; None for fits without epochs."""
    data: str | None = None
    """xxh3_128 of the training triplets' tokens (`psr_lens.activations.store.triplets_digest`), in hexadecimal; None if unknown."""
    metrics: ResultTable | None = None
    """Measured results, kept in the artifact and shown in its model card."""
    recommended_alpha: float | None = None
    """The strength that `psr.calibrate` found best; None if none was looked for. Nothing uses it unless it is passed as `alpha`."""

    @property
    def origin(self) -> tuple[str, str] | None:
        """How it was carried over from another model, and the name of that model; None if it was fitted on its own.

        Example:
            >>> print(pirate.origin)
            None
        """
        record = self.settings.get("transfer")
        if not isinstance(record, Mapping):
            return None
        source = record.get("source_model")
        name = source.get("model_name") if isinstance(source, Mapping) else None
        said = record.get("rung") or "transfer", name or "an unknown model"
        return " ".join(str(said[0]).split())[:80], " ".join(str(said[1]).split())[:80]

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together."""
        if not isinstance(self.sites, Mapping) or not all(isinstance(site, Site) for site in self.sites.values()):
            raise InputError("sites", brief(self.sites), "a mapping from names of hook points to `Site`s")
        if not self.sites:
            raise InputError("sites", "none", "at least one hook point")
        if not isinstance(self.model, Mapping):
            raise InputError(
                "model", brief(self.model), "the model's fingerprint", "`psr_lens.models.fingerprint(model)` makes it."
            )
        check_fields(self)
        if self.tokens == "last" and self.span != "R":
            raise InputError("span", repr(self.span), "'R', since tokens='last' steers the last prompt token alone")
        if not isinstance(self.offset, int | float) or finite_number(self.offset) is None:
            raise InputError("offset", brief(self.offset), "a finite number")
        if self.recommended_alpha is not None:
            strength = finite_number(self.recommended_alpha)
            if strength is None:
                raise InputError("recommended_alpha", brief(self.recommended_alpha), "a finite number, or None")
            object.__setattr__(self, "recommended_alpha", strength)


def finite_number(value: Any) -> float | None:
    """A value as a float if it is a finite real number of Python or NumPy, but not a bool; else None."""
    number = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return float(number) if is_number and abs(number) <= sys.float_info.max else None
