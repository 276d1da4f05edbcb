"""Run-time type checks of the package in its tests: beartype for every function, and jaxtyping's shapes where a signature names any."""

import sys
from collections.abc import Callable
from functools import wraps
from inspect import isclass
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, config, install_import_hook

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where an int will do for a float
_with_shapes = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Check every function of a package, and every dataclass as it is made, from its import on.

    Raises:
        RuntimeError: it has been imported already. The `conftest.py` of a folder comes before this if the folder is named on the command
            line, so it imports the package within its fixtures.
    """
    if package in sys.modules:
        raise RuntimeError(f"{package} was imported before its functions could be checked: see `typecheck.install`")
    jaxtyping.jaxtyped = jaxtyped
    install_import_hook(package, "typecheck.checked")


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping's import hook puts on every class and function, without what only costs time.

    A function within another is not checked: hooks are made anew for every batch and take nothing but bare tensors. Where a signature
    names no shape, beartype checks alone; jaxtyping would bind the arguments of every call, to compare nothing.
    """

    def decorate(given: Any) -> Any:
        if isclass(given):
            return _with_shapes(typechecker=typechecker)(given)
        if "<locals>" in given.__qualname__:
            return given
        hints = {name: _resolved(hint, given) for name, hint in given.__annotations__.items()}
        if any(map(_names_a_shape, hints.values())):
            return _with_shapes(typechecker=typechecker)(given)
        known = {name: hint for name, hint in hints.items() if hint is not Any}  # beartype 0.20: no generator's result may be Any
        return _without_shapes(given, known, typechecker)

    return decorate


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result whenever it is called.

    Left out for speed is whether a model is a `HookedModel`: a bridge answers that by listing all its hook points, a millisecond at every
    call.
    """
    for name, hint in function.__annotations__.items():
        if getattr(hint, "__name__", None) == "HookedModel":
            function.__annotations__[name] = Any
    return _beartype(function)


def _resolved(hint: Any, function: Callable[..., Any]) -> Any:
    """The type that a hint means, or anything where it names what does not exist (yet)."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": hint}), function.__globals__, include_extras=True)["it"]
    except Exception:  # noqa: BLE001
        return Any


def _names_a_shape(hint: Any) -> bool:
    return (isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_names_a_shape, get_args(hint)))


def _without_shapes(function: Callable[..., Any], hints: dict[str, Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    written, function.__annotations__ = function.__annotations__, hints
    fast = typechecker(function)
    function.__annotations__ = written

    @wraps(function)
    def unless_disabled(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else fast)(*args, **kwargs)

    return unless_disabled
