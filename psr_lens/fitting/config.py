"""The settings of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from psr_lens._utils.yaml_config import check_keys, yaml_mapping
from psr_lens.errors import InputError
from psr_lens.prompts import Span

Solver = Literal["sequential", "local", "joint", "dim", "actadd", "last_token", "stolfo", "reft_r1"]
Objective = Literal["mse", "ll"]
Start = Literal["random", "sequential", "local"]
HookKind = Literal["resid_post", "attn_out", "mlp_out", "z"]
FittedRule = Literal["relu", "sigmoid", "constant"]
Autocast = Literal["none", "bfloat16"]
PresetName = Literal["persona", "ifeval", "axbench"]

CLOSED_FORM: Final = ("dim", "actadd", "last_token", "stolfo", "reft_r1")
"""Baselines, which have one direction a site."""


OWN_RANK: Final = -1
"""Stands for the solver's own rank until a configuration is made."""
LAYERWISE_RANK: Final = 4
"""The rank of the solvers that fit layer by layer, where none is asked for."""


@dataclass(frozen=True)
class FitConfig:
    """What to learn and how. Defaults of the joint solver are the paper's (Heyman & Vandeputte 2026, persona setting)."""

    layers: str | int | Sequence[int] = "all"
    """Layers to act at: `"all"` (A-PSR), one number (S-PSR) or several; negative ones count from the end."""
    hook: HookKind = "resid_post"
    """Hook point within each layer: the residual stream after it, what its attention or its MLP writes, or `"z"`, each head's own."""
    solver: Solver = "sequential"
    """`"sequential"`: layer by layer within one forward pass; `"local"`: every layer by itself, on the prompted model's own inputs;
    `"joint"`: gradient descent through the model, as in the paper; the others are baselines (`psr_lens.fitting.baselines`, `.reft`)."""
    objective: Objective = "mse"
    """Joint: `"mse"`, be close to the prompted activations (prompt steering imitation), or `"ll"`, make the response likely."""
    rule: FittedRule = "relu"
    """How a token's coefficient comes about: `"relu"`, max(0, A·w + b), the paper's (eq. 8); `"sigmoid"`, a gate between 0 and 1;
    `"constant"`, the same on every token."""
    span: Span = "R"
    """Where it acts: `"R"`, the last prompt token and the response; `"QR"`, the question too."""
    rank: int = OWN_RANK
    """Directions a site; by default 4 with `"sequential"` and `"local"`, chosen by how they do on other kinds of question than they were
    fitted on, and 1, the paper's, with the other solvers."""
    seed: int = 123
    """Seed of the start, of the shuffling and of the validation split."""
    start: Start = "random"
    """Joint: `"random"`, w ~ N(0, 0.01²) and b = 0 as in the paper; or from the result of `"sequential"` or `"local"`."""
    epochs: int = 15
    """Joint: passes over the triplets."""
    batch_size: int = 16
    """Joint: triplets a step; those of more than `token_budget` tokens are computed in parts whose gradients are added up."""
    learning_rate: float = 1e-3
    """Joint: AdamW's, falling linearly to 0."""
    weight_decay: float = 1e-6
    """Joint: AdamW's."""
    regulariser: float = 0.1
    """Joint: weight of max(0, 1 − Σ_i λ_i), against probes that never fire."""
    normalise: bool = True
    """Joint: divide the error by the unsteered error, so that it balances against the regulariser."""
    learned_offset: bool = False
    """Joint: coefficients are (α + b_m)·λ with a learned b_m, from −0.5; triplets without the trait then teach as negative examples."""
    validation: float = 0.0
    """Joint: share of the triplets to leave out of training and to measure the loss on after every epoch."""
    patience: int | None = None
    """Joint: stop after so many epochs without a lower validation loss, and take the best state; None trains to the end."""
    autocast: Autocast = "none"
    """Joint: type in which the model computes; probes, directions and losses stay in float32."""
    ridge: float = 0.003
    """Sequential, local: weight of Σ_i |w_i|²·|z_i|² in the regressions (see there), in units of the inputs' mean variance: against
    probes that misfire on texts unlike those fitted on."""
    relative: float = 0.0
    """Sequential, local at `resid_post`: a token's squared error is divided by the length of its prompted activation to this
    power; 0 weighs all tokens alike, 2 is the relative error."""
    regression_steps: int = 40
    """Sequential, local: most steps of L-BFGS a layer; 0 stays with the closed form."""
    regression_batch: int = 65_536
    """Sequential, local: most tokens of a regression on the device at once; more than that wait in main memory."""
    polish_epochs: int = 0
    """Sequential, local: epochs of joint training after them, from their result."""
    token_budget: int = 8_192
    """Most tokens of a batch in a forward pass, padding included."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        for name, kind in _CHOICES.items():
            self._one_of(name, get_args(kind))
        if self.rank == OWN_RANK:
            object.__setattr__(self, "rank", LAYERWISE_RANK if self.solver in ("sequential", "local") else 1)
        for name in ("rank", "epochs", "batch_size", "token_budget", "regression_batch"):
            self._whole(name, 1)
        for name in ("regression_steps", "seed", "polish_epochs"):
            self._whole(name, 0)
        for name in ("learning_rate", "weight_decay", "regulariser", "ridge", "relative", "validation"):
            self._not_negative(name)
        self._belong_together()

    @classmethod
    def preset(cls, name: PresetName, **changes: Any) -> FitConfig:
        """The settings that the paper reports for one of its three benchmarks, with changes of one's own.

        | preset | span | objective | regulariser and normalisation |
        |---|---|---|---|
        | `"persona"` | QR | MSE | on |
        | `"ifeval"` | R | LL | off |
        | `"axbench"` | R | MSE | off |

        All of them: joint training at all layers, rank 1, AdamW with learning rate 1e-3 and weight decay 1e-6, linear decay to 0,
        shuffle seed 123, 15 epochs for MSE and 7 for LL (also where `objective` is changed). Heyman & Vandeputte 2026, experiments and
        appendix; for AxBench they found it better without the regulariser.

        Raises:
            InputError: no such preset, or a setting that does not exist.
        """
        if name not in get_args(PresetName):
            raise InputError("preset", repr(name), f"one of {', '.join(map(repr, get_args(PresetName)))}")
        on = name == "persona"
        settings: dict[str, Any] = {
            "solver": "joint",
            "span": "QR" if on else "R",
            "objective": "ll" if name == "ifeval" else "mse",
            "regulariser": 0.1 if on else 0.0,
            "normalise": on,
        } | changes
        settings.setdefault("epochs", 7 if settings["objective"] == "ll" else 15)
        return cls.of(settings)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FitConfig:
        """A config from a mapping, as a YAML or JSON file gives it; the key `preset` may name one to start from.

        Raises:
            InputError: a setting that does not exist, or a value that cannot be meant.
        """
        check_keys("config", settings, [*(each.name for each in fields(cls)), "preset"])
        given = dict(settings)
        if "preset" in given:
            return cls.preset(given.pop("preset"), **given)
        return cls(**given)

    def _belong_together(self) -> None:
        if self.solver in CLOSED_FORM and self.rank != 1:
            raise InputError("rank", self.rank, f"1 with solver={self.solver!r}, which has a single direction", "Give `rank=1`.")
        if self.solver in ("sequential", "local") and self.rule != "relu":
            raise InputError(
                "rule", repr(self.rule), f"'relu' with solver={self.solver!r}", "solver='joint' trains the other rules."
            )
        if self.rule == "constant" and self.rank != 1:
            raise InputError("rank", self.rank, "1 with rule='constant', whose directions add up to one")
        if self.validation >= 1:
            raise InputError("validation", self.validation, "a share of the triplets below 1")
        if self.patience is not None:
            self._whole("patience", 1)
            if not self.validation:
                raise InputError("validation", self.validation, "a share above 0 with patience, e.g. 0.1")

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


_CHOICES: Final = {
    "solver": Solver,
    "objective": Objective,
    "hook": HookKind,
    "rule": FittedRule,
    "start": Start,
    "span": Span,
    "autocast": Autocast,
}


def read_config(path: str | Path) -> FitConfig:
    """Settings from a YAML (or JSON) file: a mapping from names to values, with an optional `preset`.

    Raises:
        InputError: the file cannot be read, is no mapping, or holds a setting that does not exist or cannot be meant.
    """
    return FitConfig.of(yaml_mapping(path, "`solver: sequential`"))
