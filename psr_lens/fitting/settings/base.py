"""What all settings of fits have in common: which values they may have, and how they are shown and written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral
from typing import Any, ClassVar, Final, Literal, get_args

from psr_lens._utils.arguments import check_fields
from psr_lens._utils.numbers import is_real, is_whole, use_plain_numbers
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.errors import InputError
from psr_lens.prompts import Span

Objective = Literal["mse", "ll", "kl"]
HookKind = Literal["resid_post", "attn_out", "mlp_out", "z"]
FittedRule = Literal["relu", "sigmoid", "linear", "constant"]
TokenWeights = Literal["uniform", "kl"]
Autocast = Literal["none", "bfloat16"]

_CHOICES: Final = {
    "objective": Objective,
    "hook": HookKind,
    "rule": FittedRule,
    "span": Span,
    "autocast": Autocast,
    "token_weights": TokenWeights,
}
_LEAST: Final = {
    "rank": 1,
    "epochs": 1,
    "batch_size": 1,
    "token_budget": 1,
    "regression_batch": 1,
    "regression_steps": 0,
    "seed": 0,
}
_NOT_NEGATIVE: Final = (
    *("learning_rate", "weight_decay", "regulariser", "ridge", "relative", "validation"),
    *("prompt_weight", "constant_ridge"),
)
_YES_OR_NO: Final = ("normalise", "learned_offset")


class Settings(KnownSettings):
    """Base of the dataclasses of settings: values are checked, and `repr` shows those that are not the default."""

    may_be_auto: ClassVar[tuple[str, ...]] = ()
    """Settings that the solver chooses where they are `"auto"`."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        use_plain_numbers(self)
        check_values(self)

    def __repr__(self) -> str:
        """The class and the settings that are not the default."""
        pairs = [(name, repr(getattr(self, name)), repr(each.default)) for name, each in settable(type(self)).items()]
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value, default in pairs if value != default)})"


def check_values(settings: Any) -> None:
    """Check the fields of a dataclass of settings, each by its name.

    Raises:
        InputError: a value is invalid.
    """
    for name in (each.name for each in fields(settings)):
        value = getattr(settings, name)
        if name in _CHOICES and (not isinstance(value, str) or value not in get_args(_CHOICES[name])):
            raise InputError(name, repr(value), f"one of {', '.join(map(repr, get_args(_CHOICES[name])))}")
        if name in _LEAST and not (name in settings.may_be_auto and isinstance(value, str) and value == "auto"):
            check_whole(name, value, _LEAST[name], ", or 'auto'" if name in settings.may_be_auto else "")
        if name in _NOT_NEGATIVE and not _is_not_negative(value):
            raise InputError(name, repr(value), "a finite number of at least 0")
        if name in _YES_OR_NO and not isinstance(value, bool):
            raise InputError(name, repr(value), "True or False")
    check_fields(settings)


def check_whole(name: str, value: Any, least: int, otherwise: str = "") -> None:
    """Check a whole number.

    Raises:
        InputError: the value is none, or below `least`.
    """
    if not is_whole(value) or value < least:
        raise InputError(name, repr(value), f"a whole number of at least {least}{otherwise}")


def _is_not_negative(value: Any) -> bool:
    return is_real(value) and 0 <= value < float("inf")


def settable(kind: type) -> dict[str, Any]:
    """The fields that can be set, by name."""
    return {each.name: each for each in fields(kind) if each.init}


def values_of(settings: Settings) -> dict[str, Any]:
    """The values of a dataclass of settings as JSON has them."""
    values = {name: getattr(settings, name) for name in settable(type(settings))}
    return {name: values_of(value) if isinstance(value, Settings) else _as_json(value) for name, value in values.items()}


def _as_json(value: Any) -> Any:
    """Layers may be a range, an array or numbers of NumPy."""
    if isinstance(value, bool | str | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return [_as_json(each) for each in value] if isinstance(value, Iterable) else value
