"""One class of settings for each solver: `Sequential`, `Local` and `Joint`; baselines are in `baselines.py`. `FitConfig` is their base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, cast, get_args

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.yaml_config import check_keys, yaml_mapping
from psr_lens.errors import InputError
from psr_lens.fitting.settings.base import FittedRule, HookKind, Objective, Settings, TokenWeights, settable, values_of
from psr_lens.fitting.settings.gradient_descent import GradientDescent, JointTraining, Polish
from psr_lens.models.hook_points import Layers
from psr_lens.prompts import Span

PresetName = Literal["persona", "ifeval", "axbench"]
_SAID: Final[Mapping[Objective, str]] = {"mse": "", "ll": " LL", "kl": " KL"}
"""How a method's name says what it was trained on."""


_BY_NAME: Final[dict[str, type[FitConfig]]] = {}
"""The class of each solver."""


@dataclass(frozen=True, kw_only=True, repr=False)
class FitConfig(Settings, ABC):
    """Base of the settings of all solvers, for annotations: make a `Sequential`, a `Joint`, … instead.

    Example:
        >>> isinstance(psr.Joint(), psr.FitConfig)
        True
    """

    solver: ClassVar[str]
    """Name of the solver in YAML files and saved settings."""
    is_baseline: ClassVar[bool] = False
    """Whether it is a baseline."""
    tokens: ClassVar[Literal["span", "last"]] = "span"
    """Tokens that the replacement acts on: all of the span, or the last prompt token."""

    layers: Layers = "all"
    """Layers to act at: `"all"` (A-PSR), one layer (S-PSR) or several; negative numbers count from the end."""
    hook: HookKind = "resid_post"
    """Hook point within each layer: the residual stream after it, what its attention or MLP writes, or `"z"`, the output of each head."""
    span: Span = "R"
    """Tokens to act on: `"R"`, the last prompt token and the response; `"QR"`, the question too."""
    token_budget: int = 8_192
    """Most tokens of a batch in a forward pass, padding included."""

    def __init_subclass__(cls) -> None:
        """Every class that names a solver is one."""
        if "solver" in vars(cls):
            _BY_NAME[cls.solver] = cls

    def __new__(cls, *args: Any, **settings: Any) -> FitConfig:
        """Refuse to make the base itself, and settings that the solver does not have."""
        if cls is FitConfig:
            wanted = _BY_NAME.get(str(settings.get("solver", "sequential")), Sequential).__name__
            classes = ", ".join(f"psr.{each.__name__}" for each in _BY_NAME.values())
            raise InputError("config", "psr.FitConfig(…)", f"the class of a solver: {classes}", f"Write `psr.{wanted}(…)`.")
        _check_names(cls, settings, f"psr.{cls.__name__}")
        made: FitConfig = super().__new__(cls, **settings)
        return made

    @property
    @abstractmethod
    def method(self) -> str:
        """Name of the method in tables, without the `S-` or `A-` for one site or several."""

    @property
    def is_trained(self) -> bool:
        """Whether gradient descent is part of the fit, so that it has epochs and can keep a checkpoint."""
        return isinstance(self, GradientDescent)

    @property
    def takes_negatives(self) -> bool:
        """Whether responses without the trait can teach it something: only through a learned offset."""
        return False

    @classmethod
    @checks_arguments
    def of(cls, settings: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None) -> FitConfig:
        """The settings of a solver from a mapping, such as a YAML or JSON file holds.

        Args:
            settings: Settings by name. `solver` names the solver (default `"sequential"`); `preset` names settings of the joint
                solver to start from; `polish` is a mapping of its own.
            defaults: Values for settings that are not given; those that the solver does not have are left out.

        Raises:
            InputError: an unknown setting, one of another solver, or an invalid value.

        Example:
            >>> psr.FitConfig.of({"solver": "joint", "rank": 2})
            Joint(rank=2)
        """
        if not isinstance(settings, Mapping):
            raise InputError("config", repr(settings), "a mapping of settings by name")
        given = dict(settings)
        if (preset := given.pop("preset", None)) is not None:
            given = _with_preset(preset, given)
        solver = given.pop("solver", "sequential" if cls is FitConfig else cls.solver)
        chosen = _BY_NAME.get(solver) if isinstance(solver, str) else None
        if chosen is None or not issubclass(chosen, cls):
            names = [name for name, each in _BY_NAME.items() if issubclass(each, cls)]
            raise InputError("solver", repr(solver), f"one of {', '.join(map(repr, names))}")
        if isinstance(given.get("polish"), Mapping):
            given["polish"] = _made(Polish, given["polish"], defaults, "`polish`")
        return cast(FitConfig, _made(chosen, given, defaults, f"the solver {solver!r}"))

    def to_json(self) -> dict[str, Any]:
        """All settings as a mapping of JSON values, from which `of` makes the same config.

        Example:
            >>> psr.DiM(layers=range(2)).to_json()
            {'solver': 'dim', 'layers': [0, 1], 'hook': 'resid_post', 'span': 'R', 'token_budget': 8192}
        """
        return {"solver": self.solver, **values_of(self)}


@dataclass(frozen=True, kw_only=True, repr=False)
class Layerwise(FitConfig):
    """Settings of the solvers that fit layer by layer, by a regression at each of them."""

    may_be_auto = ("rank",)

    rank: int | Literal["auto"] = 4
    """Directions a site; `"auto"` chooses at each site the rank, up to 32, that explains held-out tokens. 4 did best on other kinds of
    question than those fitted on."""
    ridge: float = 0.003
    """Weight of Σ_i |w_i|²·|z_i|² in the regressions, in units of the inputs' mean variance: against probes that misfire on texts
    unlike those fitted on."""
    relative: float = 0.0
    """At `resid_post` only: a token's squared error is divided by the norm of its prompted activation to this power; 0 weighs all tokens
    alike but for massive ones, 2 gives the relative error."""
    token_weights: TokenWeights = "uniform"
    """How much a token's error counts: `"uniform"`, all alike; `"kl"`, by what it decides, the KL divergence between the prompted and the
    base model's next token, which takes a forward pass more in each context. At `resid_post` massive activations count less with either."""
    regression_steps: int = 40
    """Most steps of L-BFGS at a layer; 0 keeps the closed form."""
    regression_batch: int = 65_536
    """Most tokens of a regression on the device at once; where there are more, they are held in main memory."""
    polish: Polish | None = None
    """Joint training that starts from the result; None for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative and self.hook != "resid_post":
            raise InputError("relative", self.relative, f"0 with hook={self.hook!r}", "It weighs tokens at 'resid_post' alone.")

    @property
    def method(self) -> str:
        """PSR, as in the paper."""
        return "PSR" + ("" if self.polish is None else _SAID[self.polish.objective])

    @property
    def is_trained(self) -> bool:
        """Whether the result is polished."""
        return self.polish is not None


@dataclass(frozen=True, kw_only=True, repr=False)
class Sequential(Layerwise):
    """Settings of the sequential solver: layer by layer within one forward pass, each fitted with all earlier ones in force.

    Example:
        >>> fitted = psr.fit(model, triplets[:4], psr.Sequential(layers=[1, 2], rank=2))
        >>> fitted.method, list(fitted.sites)
        ('A-PSR', ['blocks.1.hook_resid_post', 'blocks.2.hook_resid_post'])
    """

    solver = "sequential"


@dataclass(frozen=True, kw_only=True, repr=False)
class Local(Layerwise):
    """Settings of the local solver: every layer is fitted by itself, on the prompted model's own inputs.

    Example:
        >>> psr.fit(model, triplets[:4], psr.Local(layers=1)).sites["blocks.1.hook_resid_post"].rank
        4
    """

    solver = "local"


@dataclass(frozen=True, kw_only=True, repr=False)
class Joint(JointTraining, FitConfig):
    """Settings of the paper's solver: all sites trained together by gradient descent, from a random start.

    Defaults are the paper's for personas (Heyman & Vandeputte 2026), but for the span, which is QR there. To start from the result of
    another solver, give `polish` to a `Sequential` or a `Local`.

    Example:
        >>> psr.fit(model, triplets[:4], psr.Joint(layers=1, objective="ll", epochs=2)).method
        'S-PSR LL'
    """

    solver = "joint"

    rank: int = 1
    """Directions a site."""
    rule: FittedRule = "relu"
    """How a token's coefficient is computed: `"relu"`, max(0, A·w + b), the paper's (eq. 8); `"sigmoid"`, a gate between 0 and 1;
    `"linear"`, A·w + b, of either sign; `"constant"`, the same for every token."""
    learned_offset: bool = False
    """Coefficients are (α + b_m)·λ with a learned b_m, from −0.5. Responses without the trait (below 50) then serve as negative examples;
    without it they are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "constant" and self.rank != 1:
            raise InputError("rank", self.rank, "1 with rule='constant', whose directions would add up to one")

    @property
    def method(self) -> str:
        """As in the paper, by rule and objective."""
        if self.rule == "constant":
            return f"Const {self.objective.upper()}"
        return {"relu": "PSR", "sigmoid": "gated PSR", "linear": "linear PSR"}[self.rule] + _SAID[self.objective]

    @property
    def takes_negatives(self) -> bool:
        """Whether the offset is learned."""
        return self.learned_offset

    @classmethod
    @checks_arguments
    def preset(cls, name: PresetName, **changes: Any) -> Joint:
        """The settings that the paper reports for one of its three benchmarks, with changes.

        | preset | span | objective | regulariser and normalisation |
        |---|---|---|---|
        | `"persona"` | QR | MSE | on |
        | `"ifeval"` | R | LL | off |
        | `"axbench"` | R | MSE | off |

        All of them: joint training at all layers, rank 1, AdamW with learning rate 1e-3 and weight decay 1e-6, linear decay to 0,
        shuffle seed 123, 15 epochs for MSE and 7 for LL (also where `objective` is changed). Heyman & Vandeputte 2026, experiments and
        appendix; for AxBench they found it better without the regulariser.

        Args:
            name: The benchmark.
            changes: Settings to use instead of the preset's.

        Raises:
            InputError: an unknown preset or setting, or an invalid value.

        Example:
            >>> psr.Joint.preset("ifeval", layers=2)
            Joint(layers=2, epochs=7, objective='ll', regulariser=0.0, normalise=False)
        """
        return cast(Joint, Joint.of({**changes, "preset": name}))


def read_config(path: str | Path) -> FitConfig:
    """The settings of a fit from a YAML (or JSON) file that holds what `FitConfig.of` takes.

    Raises:
        InputError: the file cannot be read or is not a mapping; an unknown setting, one of another solver, or an invalid value.
    """
    return FitConfig.of(yaml_mapping(path, "`solver: sequential`"))


def as_joint(*parts: Settings, **changes: Any) -> Joint:
    """The config of a joint fit with the settings that `parts` share with it, and changes: what the training loop works with."""
    own = settable(Joint)
    shared = {name: getattr(part, name) for part in parts for name in settable(type(part)) if name in own}
    if shared.get("rank") == "auto":  # the sites that are trained have ranks of their own
        del shared["rank"]
    return Joint(**shared | changes)


def _with_preset(name: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    if name not in get_args(PresetName):
        raise InputError("preset", repr(name), f"one of {', '.join(map(repr, get_args(PresetName)))}")
    if (solver := changes.get("solver", "joint")) != "joint":
        raise InputError("preset", repr(name), f"none with solver {solver!r}", "Presets are settings of the solver 'joint'.")
    on = name == "persona"
    settings: dict[str, Any] = {
        "solver": "joint",
        "span": "QR" if on else "R",
        "objective": "ll" if name == "ifeval" else "mse",
        "regulariser": 0.1 if on else 0.0,
        "normalise": on,
    } | dict(changes)
    settings.setdefault("epochs", 7 if settings["objective"] == "ll" else 15)
    return settings


def _made(kind: type[FitConfig | Polish], given: Mapping[str, Any], defaults: Mapping[str, Any] | None, what: str) -> Any:
    """Settings of one class, from those that are given and the defaults that it has."""
    _check_names(kind, given, what)
    own = settable(kind)
    check_keys("config", given, list(own) if kind is Polish else [*own, "solver", "preset"])
    unset = {name: value for name, value in (defaults or {}).items() if name in own}
    return kind(**{**unset, **given})


def _check_names(kind: type[FitConfig | Polish], given: Mapping[str, Any], what: str) -> None:
    """Answer a setting of another solver with that solver's name."""
    own = list(settable(kind))
    for name in given:
        owners = [repr(each.solver) for each in _BY_NAME.values() if name in settable(each)]
        if name not in own and owners:
            if "polish" in own and name in settable(Polish):
                owners.append("`polish`")
            remedy = f"{name!r} is a setting of {', '.join(owners)}."
            raise InputError("config", f"the setting {name!r} with {what}", f"one of {', '.join(own)}", remedy)
