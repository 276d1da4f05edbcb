"""How a fit went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LearningCurve:
    """Losses of a fit by gradient descent, one number an epoch."""

    train: tuple[float, ...]
    """Mean error of each epoch, measured while it trained; as a share of the unsteered error where that is set. No regulariser in it."""
    validation: tuple[float, ...]
    """The same error on the validation triplets, after each epoch; empty where none were left out."""
    seconds: tuple[float, ...]
    """Wall time of each epoch, in seconds."""
    kept: int | None
    """Index of the epoch whose state was kept; None where the state before the first epoch was."""

    def to_json(self) -> dict[str, Any]:
        """As lists and numbers, for `json.dumps`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> LearningCurve:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        losses = {name: found[name] for name in ("train", "validation", "seconds")}
        for name, values in losses.items():
            if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
                raise TypeError(f"{name} is no list of numbers")
        kept = found["kept"]
        if kept is not None and (type(kept) is not int or not 0 <= kept < len(losses["train"])):
            raise ValueError(f"kept is {kept!r}")
        return cls(**{name: tuple(map(float, values)) for name, values in losses.items()}, kept=kept)
