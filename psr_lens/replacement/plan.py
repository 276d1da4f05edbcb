"""Several replacements at once: `pirate + 0.5 * shout` is a plan that steers wherever a replacement does.

At one hook point every part reads the activation that arrives there, and what the parts add is summed (Heyman & Vandeputte 2026,
eq. 7, with a sum over replacements), so their order does not matter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens._utils.safe_files import brief, read_settings, remove_artifact, write_artifact
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, hooked
from psr_lens.replacement.files import FILES
from psr_lens.replacement.hooks import Action, Start, SteeringHooks, steering_hooks
from psr_lens.replacement.model_card import model_card
from psr_lens.replacement.on_transformers import Attached, attach
from psr_lens.replacement.replacement import Replacement
from psr_lens.replacement.saving import Portable

FORMAT: Final = 1
PLAN_FILE: Final = "plan.json"

_SAME: Final = ("d_model", "n_layers", "d_vocab", "architecture")
"""What must agree between the models of the parts; a fine-tuned model agrees in them with its base."""


@dataclass(frozen=True)
class Part:
    """One replacement within a plan."""

    replacement: Replacement
    """What steers."""
    factor: float
    """Its strength, times the plan's `alpha`; its own offset is added to the product."""


@dataclass(frozen=True)
class SteeringPlan(Portable):
    """Replacements that steer together, each at its own strength and on its own span; made with `+`, `-` and `*`."""

    FILES: ClassVar[tuple[str, ...]] = (PLAN_FILE, *(f"part-*/{name}" for name in FILES))

    parts: tuple[Part, ...]
    """What acts."""

    def __post_init__(self) -> None:
        """Refuse parts that cannot steer one model together."""
        if not self.parts:
            raise InputError("parts", "none", "at least one replacement")
        first = self.parts[0].replacement.model
        for part in self.parts:
            theirs = part.replacement.model
            for key in _SAME:
                if key in first and key in theirs and first[key] != theirs[key]:
                    raise InputError(
                        "parts",
                        f"replacements for {first.get('model_name')} with {key}={first[key]} and for {theirs.get('model_name')} "
                        f"with {key}={theirs[key]}",
                        "replacements for one model",
                        "Fit them on the model that is to be steered.",
                    )

    @classmethod
    def of(cls, steering: Replacement | SteeringPlan) -> SteeringPlan:
        """A replacement as a plan of one part; a plan as it is."""
        return cls((Part(steering, 1.0),)) if isinstance(steering, Replacement) else steering

    @property
    def method(self) -> str:
        """Names of the parts' methods with their factors, e.g. `A-PSR + 0.5 × A-PSR`."""
        text = ""
        for place, part in enumerate(self.parts):
            size = abs(part.factor)
            sign = ("−" if part.factor < 0 else "") if place == 0 else (" − " if part.factor < 0 else " + ")
            text += sign + ("" if size == 1 else f"{size:g} × ") + part.replacement.method
        return text

    def __repr__(self) -> str:
        """The parts with their factors in a line."""
        return f"SteeringPlan({', '.join(f'{part.factor:g} × {part.replacement!r}' for part in self.parts)})"

    # --- arithmetic ---------------------------------------------------------------------------------------------------------

    def __add__(self, other: Replacement | SteeringPlan) -> SteeringPlan:
        """All parts of both."""
        if not isinstance(other, Replacement | SteeringPlan):
            raise InputError(
                "+",
                f"{other!r} ({type(other).__name__})",
                "a replacement or a plan on either side",
                "To change the strength, multiply: `2 * plan`, or give `alpha` to `steer`.",
            )
        return SteeringPlan((*self.parts, *SteeringPlan.of(other).parts))

    def __radd__(self, other: object) -> SteeringPlan:
        """What is left for Python's `sum`, which starts from 0."""
        return self if isinstance(other, int) and other == 0 else self + other  # type: ignore[operator]

    def __sub__(self, other: Replacement | SteeringPlan) -> SteeringPlan:
        """All parts of both, the other's with their strength reversed."""
        return self + (-other if isinstance(other, Replacement | SteeringPlan) else other)

    def __mul__(self, factor: float) -> SteeringPlan:
        """The same parts with their strength times a number."""
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor) <= sys.float_info.max:
            raise InputError(
                "*",
                f"{factor!r} ({type(factor).__name__})",
                "a finite number on one side",
                "For one strength a sequence, give a tensor as `alpha` to `steer`.",
            )
        return SteeringPlan(tuple(replace(part, factor=part.factor * factor) for part in self.parts))

    __rmul__ = __mul__

    def __neg__(self) -> SteeringPlan:
        """The same parts with their strength reversed."""
        return self * -1

    def _repr_html_(self) -> str:
        rows = [(part.factor, repr(part.replacement)) for part in self.parts]
        return table(("strength", "replacement"), rows, f"SteeringPlan of {len(self.parts)} parts")

    # --- steering -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def steer(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
    ) -> Iterator[HookedModel]:
        """Steer `model` inside a `with` block, as `Replacement.steer` does, with all parts at once.

        Args:
            model: The model that the replacements were made for.
            alpha: Strength, one number or one a sequence; each part's is this times its factor.
            start: First steered position in the prompt, as for `Replacement.steer`; a mapping from span to position where the parts
                have different spans.

        Raises:
            ArtifactError: the model has other sizes, or lacks one of the hook points.
            InputError: `alpha` is not finite, `start` is needed and missing, or does not say which span it is for.
        """
        hooks = self.hooks(model, alpha, start=start)
        with hooked(model, hooks):
            yield model

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
    ) -> SteeringHooks:
        """The forward hooks that `steer` adds, for `model.hooks(fwd_hooks=…)` or `run_with_hooks`."""
        for part in self.parts:
            part.replacement.check_model(model)
        return steering_hooks(model, self.actions(alpha, start=start))

    def attach(self, model: Any, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None) -> Attached:
        """Steer a plain transformers model with all parts at once; arguments and errors as for `Replacement.attach`."""
        return attach(model, [part.replacement for part in self.parts], self.actions(alpha, start=start))

    def actions(self, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None) -> dict[str, list[Action]]:
        """What the parts do at each hook point at one strength; arguments and errors as for `steer`."""
        spans = sorted({part.replacement.span for part in self.parts})
        if start is not None and not isinstance(start, Mapping) and len(spans) > 1:
            raise InputError("start", start, "a mapping with a position for each span of the parts, {'R': …, 'QR': …}")
        actions: dict[str, list[Action]] = {}
        for part in self.parts:
            for name, action in part.replacement.actions(alpha * part.factor, start=start).items():
                actions.setdefault(name, []).append(action)
        return actions

    # --- saving -------------------------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Write `plan.json` and one artifact a part, `part-0` and so on.

        Parts that an older plan there had more of are taken away, but no file that this package did not write.
        """
        for place, part in enumerate(self.parts):
            part.replacement.write(folder / f"part-{place}")
        write_artifact(folder, (PLAN_FILE, {"format": FORMAT, "factors": [part.factor for part in self.parts]}), None)
        surplus = len(self.parts)
        while remove_artifact(folder / f"part-{surplus}", FILES):
            surplus += 1

    @classmethod
    def read(cls, folder: Path, root: Path) -> SteeringPlan:
        """Read what `write` wrote; see `Portable.read`."""
        factors = read_settings(folder / PLAN_FILE, [FORMAT], "SteeringPlan.save", root).get("factors")
        if not isinstance(factors, list):
            raise ArtifactError(f"{folder / PLAN_FILE}: factors is {brief(factors)}, no list. Save the plan anew.")
        loaded = [Replacement.read(folder / f"part-{place}", root) for place in range(len(factors))]
        try:
            return cls(tuple((SteeringPlan.of(each) * factor).parts[0] for each, factor in zip(loaded, factors, strict=True)))
        except InputError as error:
            raise ArtifactError(f"{folder}: the parts do not belong together ({error}). Save the plan anew.") from error

    def model_card(self, load: str = 'load("this-folder")') -> str:
        """The model card in Markdown; see `Portable.model_card`."""
        return model_card("SteeringPlan", self.parts, load)
