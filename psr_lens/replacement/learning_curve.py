"""The losses of a fit, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from psr_lens._utils.numbers import counted


@dataclass(frozen=True, repr=False)
class LearningCurve:
    """Losses of a fit by gradient descent, one number per epoch.

    Example:
        >>> psr.fit(model, triplets[:4], psr.Joint(layers=1, epochs=2)).curve
        LearningCurve(2 epochs, train ..., kept epoch 1)
    """

    train: tuple[float, ...]
    """Mean training error of each epoch, as a share of the unsteered error where the fit is set to that; without regularisation."""
    validation: tuple[float, ...]
    """The same error on the validation triplets after each epoch; empty without validation triplets."""
    seconds: tuple[float, ...]
    """Wall-clock time of each epoch, in seconds."""
    kept: int | None
    """Index of the epoch whose state was kept; None if the initial state was."""

    def __repr__(self) -> str:
        """Number of epochs, first and last losses, e.g. `LearningCurve(2 epochs, train 2 to 1, kept epoch 1)`."""
        named = {"train": self.train, "validation": self.validation}
        losses = [f", {name} {values[0]:.3g} to {values[-1]:.3g}" for name, values in named.items() if values]
        kept = "initial state" if self.kept is None else f"epoch {self.kept}"
        return f"LearningCurve({counted(len(self.train), 'epoch')}{''.join(losses)}, kept {kept})"

    def to_json(self) -> dict[str, Any]:
        """The curve as lists and numbers, for `json.dumps`.

        Example:
            >>> psr.fit(model, triplets[:4], psr.Joint(layers=1, epochs=1)).curve.to_json()["kept"]
            0
        """
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> LearningCurve:
        """Read what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: `found` is not a learning curve.

        Example:
            >>> curve = {"train": [2.0, 1.0], "validation": [], "seconds": [0.1, 0.1], "kept": 1}
            >>> psr.replacement.LearningCurve.from_json(curve)
            LearningCurve(2 epochs, train 2 to 1, kept epoch 1)
        """
        losses = {name: found[name] for name in ("train", "validation", "seconds")}
        for name, values in losses.items():
            if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
                raise TypeError(f"{name} is not a list of numbers")
        kept = found["kept"]
        if kept is not None and (type(kept) is not int or not 0 <= kept < len(losses["train"])):
            raise ValueError(f"kept is {kept!r}")
        return cls(**{name: tuple(map(float, values)) for name, values in losses.items()}, kept=kept)
