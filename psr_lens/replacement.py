"""The replacement: directions times token-wise coefficients at hook points, put in the prompt's place.

PSR and constant steering are one class; they differ only in the rule that gives a token its coefficient.

References:
    Heyman & Vandeputte, "Steer Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907, eq. 7 and 8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.artifacts import read_settings, read_tensors, write_artifact
from psr_lens.curve import LearningCurve
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, edit_fault, fingerprint, processing_differs
from psr_lens.notebook import table
from psr_lens.prompts import Span
from psr_lens.site import Rule, Site
from psr_lens.steering import Action, Position, Start, checked_start, steering_hooks

if TYPE_CHECKING:
    from psr_lens.composition import SteeringPlan

__all__ = ["LearningCurve", "Replacement", "Rule", "Site", "Tokens"]

Tokens = Literal["span", "last"]
"""`span`: the last prompt token (the question too, under `QR`) and every response token; `last`: the last prompt token alone."""

FORMAT: Final = 2
"""Version of the artifact's files. 2 added `offset`, `tokens` and `curve`; 1 can be read."""
WEIGHTS_FILE: Final = "replacement.safetensors"
SETTINGS_FILE: Final = "replacement.json"


@dataclass(frozen=True)
class Replacement:
    """A learned stand-in for an instruction in the prompt."""

    sites: Mapping[str, Site]
    """What is done at each hook point, by TransformerLens's name, in the model's order."""
    span: Span
    """Where it acts: `R`, the last prompt token and the response; `QR`, the question too."""
    method: str
    """Name of the method that made it, e.g. `A-PSR`."""
    model: Mapping[str, Any]
    """Fingerprint of the model that it was made for."""
    question_start: int | None = None
    """Under `QR`, the position of the question's first token, if it was the same in all training prompts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was made."""
    offset: float = 0.0
    """The learned `b_m`: what is added is `(α + b_m)·λ·z`. With another value than 0 a strength of 0 is not "no steering"."""
    tokens: Tokens = "span"
    """Whether it acts on its whole span, or on the last prompt token alone and at no decode step."""
    curve: LearningCurve | None = None
    """How the fit went, epoch by epoch, where it had epochs."""

    def __post_init__(self) -> None:
        """Refuse parts that cannot belong together."""
        if not self.sites:
            raise InputError("sites", "none", "at least one hook point")
        if self.span not in get_args(Span):
            raise InputError("span", repr(self.span), "'R' or 'QR'")
        if self.tokens not in get_args(Tokens):
            raise InputError("tokens", repr(self.tokens), "'span' or 'last'")
        if self.tokens == "last" and self.span != "R":
            raise InputError("span", repr(self.span), "'R', since tokens='last' steers the last prompt token alone")
        if isinstance(self.offset, bool) or not isinstance(self.offset, int | float) or not math.isfinite(self.offset):
            raise InputError("offset", repr(self.offset), "a finite number")

    def __repr__(self) -> str:
        """Method, sites and span in a line."""
        ranks = sorted({site.rank for site in self.sites.values()})
        return (
            f"Replacement({self.method}, {len(self.sites)} hook points from {next(iter(self.sites))}, "
            f"rank {'–'.join(map(str, ranks))}, span {self.span}{', last token only' if self.tokens == 'last' else ''}, "
            f"for {self.model.get('model_name')})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                site.rule,
                site.rank,
                float(torch.linalg.vector_norm(site.directions)),
                float(torch.linalg.vector_norm(site.weights)),
            )
            for name, site in self.sites.items()
        ]
        return table(("hook point", "rule", "rank", "‖z‖", "‖w‖"), rows, repr(self))

    # --- steering -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def steer(
        self, model: HookedModel, alpha: float | Float[Tensor, "batch"] = 1.0, *, start: Start | None = None
    ) -> Iterator[HookedModel]:
        """Steer `model` inside a `with` block: forward, `run_with_cache` and `generate`, with or without a KV cache.

        The first call with several tokens counts as the prompt; every token after it is steered. A call that repeats the sequence
        of the one before and adds one token to it (generation without a KV cache) continues it; anything else is a new prompt.

        Args:
            model: The model that the replacement was made for, or one with the same sizes and hook names.
            alpha: Strength, one number or one a sequence; with an `offset` of 0, 0 leaves every activation bit-identical.
            start: First steered position in the prompt, counted from the left with padding, one number or one a sequence; or a
                mapping with one such entry a span, of which the replacement's own counts. The default is the last position for
                the span `R`, and for `QR` the question's first token in an unpadded prompt.

        Raises:
            ArtifactError: the model has other sizes, its weights were processed otherwise, or it lacks one of the hook points.
            InputError: `alpha` is not finite, or `start` is needed and missing.
        """
        hooks = self.hooks(model, alpha, start=start)
        with model.hooks(fwd_hooks=hooks):
            yield model

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, "batch"] = 1.0, *, start: Start | None = None
    ) -> list[tuple[str, Any]]:
        """The forward hooks that `steer` adds, for `model.hooks(fwd_hooks=…)` or `run_with_hooks`."""
        self.check_model(model)
        return steering_hooks(model, {name: [action] for name, action in self.actions(alpha, start=start).items()})

    def actions(self, alpha: float | Float[Tensor, "batch"] = 1.0, *, start: Start | None = None) -> dict[str, Action]:
        """What is done at each hook point at one strength; arguments and errors as for `steer`."""
        if not bool(torch.isfinite(torch.as_tensor(alpha)).all()):
            raise InputError("alpha", alpha, "a finite number, or one a sequence")
        at, strength = self._start(start), alpha + self.offset
        return {name: Action(site, strength, at, self.tokens == "last") for name, site in self.sites.items()}

    def _start(self, given: Start | None) -> Position | None:
        start = given.get(self.span) if isinstance(given, Mapping) else given
        if start is None and self.span == "QR":
            if self.question_start is None:
                raise InputError(
                    "start", given, "the position of the question's first token", "The training prompts differed in it."
                )
            start = self.question_start
        return None if start is None else checked_start(start)

    def check_model(self, model: HookedModel) -> None:
        """Refuse a model that the replacement cannot act on.

        Raises:
            ArtifactError: sizes, hook names or the processing of the weights differ.
        """
        theirs = fingerprint(model)
        for key in ("d_model", "n_layers"):
            if key in self.model and self.model[key] != theirs[key]:
                raise ArtifactError(
                    f"model: this replacement was made for {self.model.get('model_name')} with {key}={self.model[key]}, "
                    f"this model ({theirs['model_name']}) has {key}={theirs[key]}. Load the model that it was made for, or fit a new one."
                )
        if reason := processing_differs(self.model, model):
            raise ArtifactError(f"model: this replacement cannot act on {theirs['model_name']}: {reason}")
        hook_dict = model.hook_dict
        for name, site in self.sites.items():
            if name not in hook_dict:
                raise ArtifactError(
                    f"model: it has no hook point {name!r}, where this replacement acts. "
                    "Load the model that it was made for; `psr_lens.hook_points(model)` lists what this one has."
                )
            if fault := edit_fault(model, name):
                raise ArtifactError(f"model: {fault}")
            self._check_width(name, site, model)

    def _check_width(self, name: str, site: Site, model: HookedModel) -> None:
        per_head = re.search(r"attn\.hook_(q|z)$", name) is not None
        if not per_head and not re.search(r"hook_(embed|resid_pre|resid_mid|resid_post|attn_out|mlp_out)$", name):
            return
        keys = ("n_heads", "d_head") if per_head else ("d_model",)
        wanted = tuple(int(getattr(model.cfg, key)) for key in keys)
        if site.width != wanted:
            raise ArtifactError(
                f"model: the directions at {name} are {' × '.join(map(str, site.width))} wide, this model "
                f"({fingerprint(model)['model_name']}) has {', '.join(f'{key}={size}' for key, size in zip(keys, wanted, strict=True))}. "
                "Load the model that they were made for, or fit a new replacement."
            )

    # --- composition --------------------------------------------------------------------------------------------------------

    def __add__(self, other: Replacement | SteeringPlan) -> SteeringPlan:
        """Both at once: `pirate + 0.5 * shout`."""
        return self._plan() + other

    def __radd__(self, other: object) -> SteeringPlan:
        """What is left for Python's `sum`, which starts from 0."""
        return other + self._plan()

    def __sub__(self, other: Replacement | SteeringPlan) -> SteeringPlan:
        """Both at once, the other with its strength reversed."""
        return self._plan() - other

    def __mul__(self, factor: float) -> SteeringPlan:
        """The same with its strength times a number."""
        return self._plan() * factor

    __rmul__ = __mul__

    def __neg__(self) -> SteeringPlan:
        """The same with its strength reversed."""
        return -self._plan()

    def _plan(self) -> SteeringPlan:
        from psr_lens.composition import SteeringPlan

        return SteeringPlan.of(self)

    # --- saving -------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a folder with `replacement.safetensors` and `replacement.json`; an older artifact there is replaced.

        Returns:
            The folder.
        """
        tensors = {
            f"{name}/{part}": getattr(site, part) for name, site in self.sites.items() for part in ("directions", "weights", "bias")
        }
        settings = {
            "format": FORMAT,
            "method": self.method,
            "span": self.span,
            "tokens": self.tokens,
            "offset": self.offset,
            "question_start": self.question_start,
            "model": dict(self.model),
            "settings": dict(self.settings),
            "curve": None if self.curve is None else self.curve.to_json(),
            "sites": [{"hook": name, "rule": site.rule} for name, site in self.sites.items()],
        }
        folder = Path(folder)
        write_artifact(folder, (SETTINGS_FILE, settings), (WEIGHTS_FILE, tensors))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Replacement:
        """Read an artifact that `save` wrote; no code in it is run.

        Raises:
            ArtifactError: a file is missing, damaged, of a newer format, or the two do not belong together.
        """
        folder = Path(folder)
        settings = read_settings(folder / SETTINGS_FILE, range(1, FORMAT + 1), "Replacement.save")
        tensors = read_tensors(folder / WEIGHTS_FILE, "Replacement.save")
        if settings["format"] == 1:
            settings |= {"tokens": "span", "offset": 0.0, "curve": None}
        try:
            sites = {each["hook"]: _site_from(tensors, each["hook"], each["rule"]) for each in settings["sites"]}
            start, curve = settings["question_start"], settings["curve"]
            if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
                raise ValueError(f"question_start is {start!r}")
            return cls(
                sites,
                settings["span"],
                str(settings["method"]),
                dict(settings["model"]),
                start,
                dict(settings["settings"]),
                settings["offset"],
                settings["tokens"],
                None if curve is None else LearningCurve.from_json(curve),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{folder}: the settings and the tensors do not belong together ({error}). Save it anew."
            ) from error


def _site_from(tensors: Mapping[str, Tensor], name: str, rule: str) -> Site:
    if rule not in get_args(Rule):
        raise ValueError(f"unknown rule {rule!r} at {name}")
    directions, weights, bias = (tensors[f"{name}/{part}"] for part in ("directions", "weights", "bias"))
    if directions.ndim not in (2, 3) or weights.shape != directions.shape or bias.shape != directions.shape[:-1]:
        raise ValueError(f"shapes at {name}: {tuple(directions.shape)}, {tuple(weights.shape)}, {tuple(bias.shape)}")
    if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in (directions, weights, bias)):
        raise ValueError(f"numbers at {name} are not all finite")
    return Site(directions, weights, bias, cast(Rule, rule))
