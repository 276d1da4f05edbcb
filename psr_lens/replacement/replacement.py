"""The replacement: directions times token-wise coefficients at hook points, put in the prompt's place.

PSR and constant steering are one class; they differ only in the rule that gives a token its coefficient.

References:
    Heyman & Vandeputte, "Steer Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907, eq. 7 and 8.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, edit_fault, fingerprint, hooked, processing_differs
from psr_lens.prompts import Span
from psr_lens.replacement.files import FILES, read_replacement, unfit, write_replacement
from psr_lens.replacement.gguf_export import write_control_vector
from psr_lens.replacement.hooks import Action, Position, Start, SteeringHooks, checked_start, steering_hooks
from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.model_card import model_card
from psr_lens.replacement.on_transformers import Attached, attach
from psr_lens.replacement.saving import Portable
from psr_lens.replacement.site import Site
from psr_lens.results.table import ResultTable

if TYPE_CHECKING:
    from psr_lens.replacement.plan import SteeringPlan


Tokens = Literal["span", "last"]
"""`span`: the last prompt token (the question too, under `QR`) and every response token; `last`: the last prompt token alone."""


@dataclass(frozen=True)
class Replacement(Portable):
    """A learned stand-in for an instruction in the prompt."""

    FILES: ClassVar[tuple[str, ...]] = FILES

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
    data: str | None = None
    """xxh3_128 of the training triplets' tokens (`psr_lens.activations.store.triplets_digest`), in hexadecimal, where it is known."""
    metrics: ResultTable | None = None
    """What was measured of it; kept in the artifact and shown in its model card."""

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
        if isinstance(self.offset, bool) or not isinstance(self.offset, int | float) or not abs(self.offset) <= sys.float_info.max:
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
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
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
        with hooked(model, hooks):
            yield model

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
    ) -> SteeringHooks:
        """The forward hooks that `steer` adds, for `model.hooks(fwd_hooks=…)` or `run_with_hooks`."""
        self.check_model(model)
        return steering_hooks(model, {name: [action] for name, action in self.actions(alpha, start=start).items()})

    def attach(self, model: Any, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None) -> Attached:
        """Steer a plain transformers model, its `generate` and its pipelines, as `steer` steers one of TransformerLens.

        `with pirate.attach(hf_model): hf_model.generate(…)`, or keep what is returned and call its `remove()`. Of two attached one after
        the other the second reads what the first has changed; attach their sum for both to read what arrives.

        Args:
            model: The transformers model (Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma-2, Gemma-3, OLMo-2, GPT-2 or GPT-NeoX), on any device.
            alpha: Strength, as for `steer`; with an `offset` of 0, 0 adds no hook.
            start: First steered position in the prompt, as for `steer`.

        Raises:
            InputError: `model` is of another architecture, or no transformers model; `alpha` is not finite; or `start` is missing.
            ArtifactError: the model has other sizes; or the replacement was made for weights that TransformerLens had processed, or acts
                elsewhere than at `resid_post`, `attn_out`, `mlp_out` and `z`.
        """
        return attach(model, [self], {name: [action] for name, action in self.actions(alpha, start=start).items()})

    def actions(self, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None) -> dict[str, Action]:
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
        self.check_sizes(theirs | {"d_head": int(model.cfg.d_head)})
        if reason := processing_differs(self.model, model):
            raise ArtifactError(f"model: this replacement cannot act on {theirs['model_name']}: {reason}")
        hook_dict = model.hook_dict
        for name in self.sites:
            if name not in hook_dict:
                raise ArtifactError(
                    f"model: it has no hook point {name!r}, where this replacement acts. "
                    "Load the model that it was made for; `psr_lens.hook_points(model)` lists what this one has."
                )
            if fault := edit_fault(model, name):
                raise ArtifactError(f"model: {fault}")

    def check_sizes(self, theirs: Mapping[str, Any]) -> None:
        """Refuse a model of other sizes, known by its `model_name`, `n_layers`, `d_model`, `n_heads` and `d_head`.

        Raises:
            ArtifactError: sizes differ.
        """
        for key in ("d_model", "n_layers"):
            if key in self.model and self.model[key] != theirs[key]:
                raise ArtifactError(
                    f"model: this replacement was made for {self.model.get('model_name')} with {key}={self.model[key]}, "
                    f"this model ({theirs['model_name']}) has {key}={theirs[key]}. Load the model that it was made for, or fit a new one."
                )
        for name, site in self.sites.items():
            _check_width(name, site, theirs)

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
        from psr_lens.replacement.plan import SteeringPlan

        return SteeringPlan.of(self)

    # --- saving -------------------------------------------------------------------------------------------------------------

    def with_metrics(self, metrics: ResultTable) -> Replacement:
        """The same with results to keep, e.g. `pirate.with_metrics(found.table()).save("pirate-psr")`; earlier ones are replaced."""
        if not isinstance(metrics, ResultTable):
            raise InputError("metrics", type(metrics).__name__, "a ResultTable", "`.table()` of a result gives one.")
        return replace(self, metrics=metrics)

    def write(self, folder: Path) -> None:
        """Write `replacement.safetensors` and `replacement.json`."""
        write_replacement(folder, self)

    @classmethod
    def read(cls, folder: Path, root: Path) -> Replacement:
        """Read what `write` wrote; see `Portable.read`."""
        fields = read_replacement(folder, root)
        try:
            return cls(**fields)
        except InputError as error:
            raise unfit(folder, error) from error

    def to_gguf(self, path: str | Path, alpha: float = 1.0) -> Path:
        """Write a constant replacement as a GGUF control vector for llama.cpp (`--control-vector-scaled FILE 1.0`) and repeng.

        `direction.3` is what `blocks.3.hook_resid_post` gets, added to the output of block 3 counted from 0, as in both of them;
        llama.cpp has none for block 0. A control vector acts on every token, the whole prompt among them, and not from the last prompt
        token on, as this replacement does.

        Args:
            path: The file; an older one is replaced.
            alpha: Strength that is written into the directions.

        Returns:
            The path.

        Raises:
            InputError: the replacement is token-wise, acts elsewhere than after blocks 1 and later, on the last prompt token alone, or
                on the span `QR`.
            MissingPackageError: `gguf` is not installed.
        """
        return write_control_vector(self, path, alpha)

    def model_card(self, load: str = 'load("this-folder")') -> str:
        """The model card in Markdown; see `Portable.model_card`."""
        return model_card("Replacement", self._plan().parts, load)


def _check_width(name: str, site: Site, theirs: Mapping[str, Any]) -> None:
    per_head = re.search(r"attn\.hook_(q|z)$", name) is not None
    if not per_head and not re.search(r"hook_(embed|resid_pre|resid_mid|resid_post|attn_out|mlp_out)$", name):
        return
    keys = ("n_heads", "d_head") if per_head else ("d_model",)
    wanted = tuple(int(theirs[key]) for key in keys)
    if site.width != wanted:
        raise ArtifactError(
            f"model: the directions at {name} are {' × '.join(map(str, site.width))} wide, this model "
            f"({theirs['model_name']}) has {', '.join(f'{key}={size}' for key, size in zip(keys, wanted, strict=True))}. "
            "Load the model that they were made for, or fit a new replacement."
        )
