"""The replacement: directions times token-wise coefficients at hook points, put in the prompt's place.

PSR and constant steering are one class; they differ only in the rule that gives a token its coefficient.

References:
    Heyman & Vandeputte, "Steer Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907, eq. 7 and 8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from psr_lens.curve import LearningCurve
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import Span

Rule = Literal["relu", "sigmoid", "constant", "projection"]
"""`relu`: λ = max(0, A·w + b), read from each token's activation (eq. 8); `sigmoid`: λ = 1 / (1 + exp(−A·w − b)), a gate;
`constant`: λ = b, the same on every token; `projection`: λ = b − A·z, which moves the projection on a direction of length 1 to b
(Stolfo et al. 2025, "Improving Instruction-Following in Language Models through Activation Steering", arXiv 2410.12877)."""

FORMAT: Final = 1
WEIGHTS_FILE: Final = "replacement.safetensors"
SETTINGS_FILE: Final = "replacement.json"
FIRST_POINT: Final = "blocks.0.hook_resid_pre"
"""The first point that fires in every call; `hook_embed` stays silent in `HookedTransformer.generate`."""


@dataclass(frozen=True)
class Site:
    """What a replacement does at one hook point."""

    directions: Float[Tensor, "*head rank width"]
    """The directions `z` that are added, `[rank, d_model]`; at `attn.hook_z` each head has its own, `[head, rank, d_head]`."""
    weights: Float[Tensor, "*head rank width"]
    """The probes `w`, shaped as the directions; all zero under the rules that have none."""
    bias: Float[Tensor, "*head rank"]
    """The offsets `b`; the coefficient itself under the constant rule, the target under the projection rule."""
    rule: Rule
    """How a token's coefficients come about."""

    def coefficients(self, activation: Float[Tensor, "*token width"]) -> Float[Tensor, "*token rank"]:
        """λ of every token (eq. 8), in units of the directions; of every token and head at `attn.hook_z`."""
        if self.rule == "constant":
            return self.bias.expand(*activation.shape[:-1], self.bias.shape[-1])
        read = _per_head(activation, (self.directions if self.rule == "projection" else self.weights).transpose(-1, -2))
        if self.rule == "projection":
            return self.bias - read
        return torch.relu(read + self.bias) if self.rule == "relu" else torch.sigmoid(read + self.bias)

    def intervention(self, activation: Float[Tensor, "*token width"]) -> Float[Tensor, "*token width"]:
        """λ(A)·z, what is added to every token's activation at `alpha` 1 (eq. 7)."""
        return _per_head(self.coefficients(activation), self.directions)

    def to(self, device: torch.device, dtype: torch.dtype) -> Site:
        """The same site with its tensors on another device and of another type."""
        return Site(self.directions.to(device, dtype), self.weights.to(device, dtype), self.bias.to(device, dtype), self.rule)


def _per_head(rows: Float[Tensor, "*token left"], matrix: Float[Tensor, "*head left right"]) -> Float[Tensor, "*token right"]:
    """Rows times a matrix, or every head's rows times its own."""
    if matrix.ndim == 2:
        return rows @ matrix
    return (rows.unsqueeze(-2) @ matrix).squeeze(-2)


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
    """b_m: a token's coefficient is (alpha + b_m)·λ; 0 unless it was learned."""
    curve: LearningCurve | None = None
    """How training went, where there was any."""

    def __post_init__(self) -> None:
        """Refuse parts that cannot belong together."""
        if not self.sites:
            raise InputError("sites", "none", "at least one hook point")
        if self.span not in get_args(Span):
            raise InputError("span", repr(self.span), "'R' or 'QR'")

    def __repr__(self) -> str:
        """Method, sites and span in a line."""
        ranks = sorted({site.directions.shape[0] for site in self.sites.values()})
        return (
            f"Replacement({self.method}, {len(self.sites)} hook points from {next(iter(self.sites))}, "
            f"rank {'–'.join(map(str, ranks))}, span {self.span}, for {self.model.get('model_name')})"
        )

    # --- steering -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def steer(
        self, model: HookedModel, alpha: float | Float[Tensor, "batch"] = 1.0, *, start: int | Int[Tensor, "batch"] | None = None
    ) -> Iterator[HookedModel]:
        """Steer `model` inside a `with` block: forward, `run_with_cache` and `generate`, with or without a KV cache.

        The first call with several tokens counts as the prompt; every token after it is steered. A call that repeats the sequence
        of the one before and adds one token to it (generation without a KV cache) continues it; anything else is a new prompt.

        Args:
            model: The model that the replacement was made for, or one with the same sizes and hook names.
            alpha: Strength, one number or one a sequence; 0 leaves every activation bit-identical.
            start: First steered position in the prompt, counted from the left with padding, one number or one a sequence. The
                default is the last position for the span `R`, and for `QR` the question's first token in an unpadded prompt.

        Raises:
            ArtifactError: the model has other sizes, or lacks one of the hook points.
            InputError: `alpha` is not finite, or `start` is needed and missing.
        """
        hooks = self.hooks(model, alpha, start=start)
        with model.hooks(fwd_hooks=hooks):
            yield model

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, "batch"] = 1.0, *, start: int | Int[Tensor, "batch"] | None = None
    ) -> list[tuple[str, Any]]:
        """The forward hooks that `steer` adds, for `model.hooks(fwd_hooks=…)` or `run_with_hooks`."""
        self.check_model(model)
        if not bool(torch.isfinite(torch.as_tensor(alpha)).all()):
            raise InputError("alpha", alpha, "a finite number, or one a sequence")
        if start is not None and bool((torch.as_tensor(start) < 0).any()):
            raise InputError("start", start, "a position counted from the left, 0 or more")
        if start is None and self.span == "QR":
            if self.question_start is None:
                raise InputError(
                    "start", None, "the position of the question's first token", "The training prompts differed in it."
                )
            start = self.question_start
        if not isinstance(alpha, Tensor) and alpha == 0:
            return []
        tracker = _PositionTracker(start, alpha)
        added: list[tuple[str, Any]] = [(FIRST_POINT, tracker.see)]
        added += [(name, _steering_hook(site, alpha, tracker)) for name, site in self.sites.items()]
        return added

    def check_model(self, model: HookedModel) -> None:
        """Refuse a model that the replacement cannot act on.

        Raises:
            ArtifactError: sizes or hook names differ.
        """
        theirs = fingerprint(model)
        for key in ("d_model", "n_layers"):
            if key in self.model and self.model[key] != theirs[key]:
                raise ArtifactError(
                    f"model: this replacement was made for {self.model.get('model_name')} with {key}={self.model[key]}, "
                    f"this model ({theirs['model_name']}) has {key}={theirs[key]}. Load the model that it was made for, or fit a new one."
                )
        hook_dict = model.hook_dict
        for name, site in self.sites.items():
            if site.directions.shape[1] != theirs["d_model"]:
                raise ArtifactError(
                    f"model: the directions at {name} are {site.directions.shape[1]} wide, this model ({theirs['model_name']}) has "
                    f"d_model={theirs['d_model']}. Load the model that they were made for, or fit a new replacement."
                )
            if name not in hook_dict:
                raise ArtifactError(
                    f"model: it has no hook point {name!r}, where this replacement acts. "
                    "Load the model that it was made for; `psr_lens.hook_points(model)` lists what this one has."
                )

    # --- saving -------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a folder with `replacement.safetensors` and `replacement.json`; an older artifact there is replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}/{part}": getattr(site, part).detach().cpu().contiguous()
            for name, site in self.sites.items()
            for part in ("directions", "weights", "bias")
        }
        settings = {
            "format": FORMAT,
            "method": self.method,
            "span": self.span,
            "question_start": self.question_start,
            "model": dict(self.model),
            "settings": dict(self.settings),
            "sites": [{"hook": name, "rule": site.rule} for name, site in self.sites.items()],
        }
        text = json.dumps(settings, indent=2) + "\n"  # before anything is written: it may refuse
        for file in (WEIGHTS_FILE, SETTINGS_FILE):
            temporary = folder / f".{file}.new"
            if file == WEIGHTS_FILE:
                save_file(tensors, temporary)
            else:
                temporary.write_text(text)
            temporary.replace(folder / file)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Replacement:
        """Read an artifact that `save` wrote; no code in it is run.

        Raises:
            ArtifactError: a file is missing, damaged, of a newer format, or the two do not belong together.
        """
        folder = Path(folder)
        settings = _read_settings(folder / SETTINGS_FILE)
        tensors = _read_tensors(folder / WEIGHTS_FILE)
        try:
            sites = {each["hook"]: _site_from(tensors, each["hook"], each["rule"]) for each in settings["sites"]}
            start = settings["question_start"]
            if start is not None and (not isinstance(start, int) or start < 0):
                raise ValueError(f"question_start is {start!r}")
            return cls(sites, settings["span"], str(settings["method"]), dict(settings["model"]), start, dict(settings["settings"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{folder}: the settings and the tensors do not belong together ({error}). Save it anew."
            ) from error


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file. Give the folder that `Replacement.save` wrote.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Save the replacement anew.") from error
    found = settings.get("format") if isinstance(settings, dict) else None
    if found != FORMAT:
        raise ArtifactError(f"{path}: has format {found!r}, this version reads {FORMAT}. Update psr_lens, or save it anew.")
    return cast(dict[str, Any], settings)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return cast(dict[str, Tensor], load_file(path))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file. Give the folder that `Replacement.save` wrote.") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error}). Save the replacement anew.") from error


def _site_from(tensors: Mapping[str, Tensor], name: str, rule: str) -> Site:
    if rule not in get_args(Rule):
        raise ValueError(f"unknown rule {rule!r} at {name}")
    directions, weights, bias = (tensors[f"{name}/{part}"] for part in ("directions", "weights", "bias"))
    if directions.ndim != 2 or weights.shape != directions.shape or bias.shape != directions.shape[:1]:
        raise ValueError(f"shapes at {name}: {tuple(directions.shape)}, {tuple(weights.shape)}, {tuple(bias.shape)}")
    if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in (directions, weights, bias)):
        raise ValueError(f"numbers at {name} are not all finite")
    return Site(directions, weights, bias, cast(Rule, rule))


class _PositionTracker:
    """Knows, at every call of the model inside one `with` block, which positions are to be steered.

    It looks at what enters the first block: the same tokens at the same places always enter alike, so a call that repeats the one
    before and adds one token to it is generation without a KV cache, and a call of a single token after a prompt is a decode step.
    """

    def __init__(self, start: int | Int[Tensor, "batch"] | None, alpha: float | Float[Tensor, "batch"]) -> None:
        self._asked = start
        self._alpha = alpha
        self._sequence: Tensor | None = None
        self._prompt_start: int | Tensor = 0
        self._start: int | Tensor = 0

    def see(self, activation: Tensor, hook: Any) -> None:
        """Take note of a new call."""
        batch, length = activation.shape[:2]
        for name, given in (("start", self._asked), ("alpha", self._alpha)):
            if isinstance(given, Tensor) and given.shape not in ((1,), (batch,)):
                raise InputError(name, f"{given.numel()} numbers", f"one, or one for each of the {batch} sequences of a call")
        if length == 1 and self._sequence is not None:
            self._start = 0  # a decode step: the one token is a response token
            return
        if not self._continues(activation):
            self._prompt_start = length - 1 if self._asked is None else self._asked
        self._sequence = activation.detach()
        self._start = self._prompt_start

    def _continues(self, activation: Tensor) -> bool:
        known = self._sequence
        if known is None or known.shape[0] != activation.shape[0] or known.shape[1] + 1 != activation.shape[1]:
            return False
        return torch.equal(known, activation[:, :-1])

    def steered(self, length: int, device: torch.device) -> int | Bool[Tensor, "batch position"]:
        """First steered position where it is the same for all sequences, else a mask."""
        if isinstance(self._start, int):
            return self._start
        return torch.arange(length, device=device)[None, :] >= self._start.to(device)[:, None]


def _steering_hook(site: Site, alpha: float | Tensor, tracker: _PositionTracker) -> Any:
    placed: dict[tuple[torch.device, torch.dtype], Site] = {}

    def strength(key: tuple[torch.device, torch.dtype]) -> float | Tensor:
        return alpha.to(*key)[:, None, None] if isinstance(alpha, Tensor) else alpha

    def hook(activation: Tensor, hook: Any) -> Tensor:
        # Probes work in float32 at least; what is returned has the type that came.
        key = (activation.device, torch.promote_types(activation.dtype, torch.float32))
        if key not in placed:
            placed[key] = site.to(*key)
        here = placed[key]
        steered = tracker.steered(activation.shape[1], activation.device)
        if isinstance(steered, int):
            tail = activation[:, steered:]
            added = strength(key) * here.intervention(tail.to(key[1]))
            changed = (tail + added).to(activation.dtype)
            return changed if steered == 0 else torch.cat([activation[:, :steered], changed], dim=1)
        added = strength(key) * here.intervention(activation.to(key[1]))
        return torch.where(steered[..., None], (activation + added).to(activation.dtype), activation)

    return hook
