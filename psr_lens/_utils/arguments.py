"""Arguments checked against the type hints of the function that takes them: a value of another type is an `InputError` before any work.

The hints say what is legal, and are said nowhere else. What they cannot say (ranges, lengths, names that exist) functions check themselves.
"""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from functools import cache, reduce, wraps
from itertools import chain
from operator import or_
from typing import Any, Final, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from psr_lens._utils.numbers import is_real, is_whole
from psr_lens.errors import InputError

_P = ParamSpec("_P")
_R = TypeVar("_R")

CHECKS: Final[dict[Any, Callable[[Any, str], object]]] = {}
"""Checks of hints that have one of their own, of a value and the argument's name; each is added where its type is defined."""

_MADE_BY: Final = {
    "ActivationMap": "`psr.transfer.fit_activation_map`",
    "Agreement": "`psr.transfer.agreement`",
    "Attribution": "`psr.attribute`",
    "Captured": "`psr.capture` in memory",
    "CapturedStatistics": "`psr.capture(…, to=psr.Statistics())`",
    "Collateral": "`psr.collateral`",
    "Comparison": "`psr.compare`",
    "Cosines": "`psr.cosines`",
    "Evaluation": "`psr.evaluate`",
    "Faithfulness": "`psr.faithfulness`",
    "FrozenAttention": "`psr.patching.freeze_attention`",
    "LearningCurve": "a fit by gradient descent",
    "LogitLens": "`psr.logit_lens`",
    "Outlook": "`psr.outlook`",
    "PairedText": "`psr.transfer.pair_texts`",
    "PatchGrid": "`psr.patching.patch` or `psr.patching.ablate`",
    "Reach": "`psr.reach`",
    "Replacement": "`psr.fit`",
    "ResultTable": "the `table` method of a result",
    "ScoreAttribution": "`psr.score_attribution`",
    "TopTokens": "`psr.top_tokens`",
}
"""Where results come from, by the names of their classes."""
_WORDS: Final[dict[Any, str]] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    type(None): "None",
    os.PathLike: "a path",
}


def checks_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have a function refuse arguments that do not fit its type hints.

    Raises:
        InputError: such an argument, when the function is called.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def with_checks(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # an argument that is missing, or that the function does not have: Python says so
            return function(*args, **kwargs)
        hints = _hints(with_checks)
        for name, value in given.items():
            if name in hints:
                check(value, hints[name], name)
        return function(*args, **kwargs)

    return with_checks


def check_fields(settings: Any) -> None:
    """Refuse fields of a dataclass that do not fit their type hints; for its `__post_init__`.

    Raises:
        InputError: such a field.
    """
    kind: Any = type(settings)
    hints = _hints(kind)
    for each in fields(settings):
        if each.init:
            check(getattr(settings, each.name), hints.get(each.name, Any), each.name)


def check(value: Any, hint: Any, argument: str) -> None:
    """Refuse a value that does not fit a type hint.

    Raises:
        InputError: it does not.
    """
    options = [each for each in _options(hint) if each is not type(None)]
    if value is None and len(options) < len(_options(hint)):
        return
    if (own := CHECKS.get(reduce(or_, options) if options else hint)) is not None:
        own(value, argument)
        return
    if fits(value, hint):
        return
    if len(holding := [each for each in options if _holds(each, value)]) == 1:
        inner = get_args(holding[0])
        if isinstance(value, Mapping):
            for key, each in value.items():
                check(key, inner[0], f"a name in {argument}")
                check(each, inner[1], f"{argument}[{key!r}]")
        else:
            for index, each in enumerate(value):
                check(each, inner[0], f"{argument}[{index}]")
    items = [get_args(each)[0] for each in options if _is_sequence(each)]
    remedy = "Put it in brackets." if len(items) == 1 and value is not None and fits(value, items[0]) else ""
    raise InputError(argument, described(value), in_words(hint), remedy)


def _holds(hint: Any, value: Any) -> bool:
    """Whether a value is a list or a mapping as a hint has it, whatever is in it."""
    if isinstance(value, str):
        return False
    return isinstance(value, list | tuple) if _is_sequence(hint) else _is_mapping(hint) and isinstance(value, Mapping)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a hint means; True for hints that are not understood, such as shapes of tensors."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if hint in (int, float):
        return is_whole(value) if hint is int else is_real(value)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is None:
        return value is None
    if _is_sequence(hint):
        if isinstance(value, np.ndarray):  # of numbers, as good as a list of them
            return value.ndim == 1 and fits(value.tolist(), hint)
        if not isinstance(value, origin) or isinstance(value, str | bytes):
            return False
        return not isinstance(value, Collection) or all(fits(each, inner[0]) for each in value)
    if _is_mapping(hint):
        return isinstance(value, origin) and all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    try:
        return isinstance(value, getattr(hint, "array_type", origin or hint))  # of a tensor, neither shape nor dtype
    except TypeError:
        return True


def in_words(hint: Any) -> str:
    """What a type hint allows, in words."""
    options = sorted(_options(hint), key=lambda each: (each is bool, each is type(None)))
    said = [map(repr, get_args(each)) if get_origin(each) is Literal else [_words(each)] for each in options]
    *others, last = dict.fromkeys(chain.from_iterable(said))
    return f"{', '.join(others)} or {last}" if others else last


def described(value: object) -> str:
    """What a value is, for messages: itself if it is a text or a number, otherwise its type with its article."""
    if value is None or isinstance(value, bool | int | float | np.generic):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else value[:_LONGEST] + "…")
    if isinstance(value, type):
        return f"the class {value.__name__}"
    empty = isinstance(value, list | tuple | dict | set) and not value
    return f"an empty {type(value).__name__}" if empty else with_article(type(value).__name__)


_LONGEST: Final = 80
"""Most characters of a text in a message."""


def with_article(name: str) -> str:
    """A noun with "a" or "an" before it."""
    said = {"ndarray": "array"}.get(name, name)
    return f"{'an' if said[0] in 'AEIOUaeiou' else 'a'} {said}"


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if _is_sequence(hint):
        return f"a list of {_several(inner[0])}"
    if _is_mapping(hint):
        return f"a mapping of {'names' if inner[0] is str else _several(inner[0])} to {_several(inner[1])}"
    kind = origin or hint
    if kind in _WORDS or (inspect.isclass(kind) and issubclass(kind, os.PathLike)):
        return _WORDS.get(kind, _WORDS[os.PathLike])
    if kind is Callable or kind is types.FunctionType:
        return "a function"
    name = getattr(getattr(kind, "array_type", kind), "__name__", str(kind))  # a tensor's shape is left out
    made_by = f" from {_MADE_BY[name]}" if name in _MADE_BY else ""
    return with_article(name) + made_by


def _several(hint: Any) -> str:
    """What a type hint allows, as a plural."""
    return " or ".join(dict.fromkeys(_plural(each) for each in _options(hint)))


def _plural(hint: Any) -> str:
    if _is_sequence(hint) or _is_mapping(hint):
        return _words(hint).removeprefix("a ").replace("list", "lists", 1).replace("mapping", "mappings", 1)
    if get_origin(hint) is tuple:
        return f"tuples of {len(get_args(hint))} {' and '.join(dict.fromkeys(map(_plural, get_args(hint))))}"
    named = {int: "whole numbers", float: "numbers", str: "texts", Any: "values", object: "values"}
    if hasattr(hint, "array_type"):
        return "arrays" if hint.array_type is np.ndarray else "tensors"
    return named.get(hint) or (f"{hint.__name__}s" if inspect.isclass(hint) else in_words(hint))


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _is_sequence(hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is tuple:
        return get_args(hint)[1:] == (...,)
    return inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def _hints(taker: Any) -> dict[str, Any]:
    """The hints of a function's arguments or of a class's fields, without those that name what is not imported at run time."""
    names = {}
    for owner in reversed(taker.__mro__) if inspect.isclass(taker) else [inspect.unwrap(taker)]:
        space = vars(sys.modules[owner.__module__])
        for name, hint in getattr(owner, "__annotations__", {}).items():
            try:
                names[name] = get_type_hints(types.SimpleNamespace(__annotations__={name: hint}), space)[name]
            except (NameError, TypeError):  # TypeError: a ClassVar
                names.pop(name, None)
    names.pop("return", None)
    return names
