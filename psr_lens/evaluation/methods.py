"""The methods that are measured side by side: their names, what they steer with, and their strengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from psr_lens._utils.arguments import CHECKS
from psr_lens.errors import InputError
from psr_lens.models import HookedModel
from psr_lens.models.hook_points import layer_of
from psr_lens.replacement import InWeights, Part, Replacement, SteeringPlan, check_compatible

Method = Replacement | SteeringPlan | InWeights
"""What a method acts with: one replacement, a plan of several, an adapter, or added neurons."""

Plan = SteeringPlan | InWeights
"""The same, with a replacement as a plan of one."""

Methods = Method | Mapping[str, Method]
"""What functions take as `methods`: one method, which goes by its own name, or several by name."""

NONE: Final = "none"
"""Method name of the unsteered model without the instruction."""

PROMPT: Final = "prompt"
"""Method name of the prompt with the instruction."""

PARAPHRASE: Final = "paraphrase"
"""Method name of the paraphrase baseline: the prompt with the same instruction in other words."""

_ORDER: Final = "Arguments come in the order model, pairs or triplets, methods, judge."


def named_methods(methods: Any, taken: Sequence[str] = (), argument: str = "methods") -> dict[str, Method]:
    """Methods by name, from one method or a mapping of several.

    Args:
        methods: A replacement, a plan, an adapter or added neurons, which go by their own `method`, or a mapping of names to them.
        taken: Names that stand for something else.
        argument: What the error calls the methods.

    Raises:
        InputError: something else, no methods, or a name that is taken.
    """
    if isinstance(methods, Method):
        methods = {methods.method: methods}
    if not isinstance(methods, Mapping):
        expected = "a Replacement, a SteeringPlan, an Adapter, AddedNeurons, or a mapping of names to them"
        raise InputError(argument, f"a value of type {type(methods).__name__}", expected, _ORDER)
    if not methods:
        raise InputError(argument, "an empty mapping", "at least one method", "Give a mapping such as {'A-PSR': replacement}.")
    for name, method in methods.items():
        if not isinstance(name, str):
            raise InputError(argument, f"the name {name!r}", "names that are strings")
        if name in taken:
            names = " and ".join(filter(None, [", ".join(map(repr, taken[:-1])), repr(taken[-1])]))
            raise InputError(argument, f"the name {name!r}", f"names other than {names}, which are taken")
        check_method(method, f"{argument}[{name!r}]")
    return dict(methods)


def check_method(method: Any, argument: str) -> None:
    """Check that something is a method.

    Raises:
        InputError: it is neither a replacement nor a plan, an adapter or added neurons.
    """
    if not isinstance(method, Method):
        raise InputError(
            argument,
            f"a value of type {type(method).__name__}",
            "a Replacement, a SteeringPlan, an Adapter or AddedNeurons",
            _ORDER,
        )


CHECKS[Methods] = lambda methods, argument: named_methods(methods, argument=argument)
CHECKS[Method] = check_method


def methods_for(model: HookedModel, methods: Any, taken: Sequence[str] = ()) -> dict[str, Method]:
    """Methods by name that were made for a model; arguments as for `named_methods`.

    Raises:
        InputError: as for `named_methods`.
        ArtifactError: a replacement was made for another model.
    """
    named = named_methods(methods, taken)
    for method in named.values():
        for part in parts_of(method):
            check_compatible(part.replacement, model)
    return named


def plans_for(model: HookedModel, methods: Any, taken: Sequence[str] = ()) -> dict[str, Plan]:
    """Methods as plans by name, all of which act within layers; arguments as for `named_methods`.

    Raises:
        InputError: as for `named_methods`, or a method acts outside the layers.
        ArtifactError: a replacement was made for another model.
    """
    named = methods_for(model, methods, taken)
    plans: dict[str, Plan] = {
        name: method if isinstance(method, InWeights) else SteeringPlan.of(method) for name, method in named.items()
    }
    for name, plan in plans.items():
        if outside := [site for part in parts_of(plan) for site in part.replacement.sites if layer_of(site) is None]:
            raise InputError("methods", f"{name!r}, which acts at {outside}", "methods that act within layers")
    return plans


def parts_of(method: Method) -> tuple[Part, ...]:
    """The replacements of a method with their factors; an adapter and added neurons have none."""
    return () if isinstance(method, InWeights) else SteeringPlan.of(method).parts


def fits_of(method: Method) -> tuple[Mapping[str, Any], ...]:
    """Settings of the fits that a method consists of; those of a sum begin with the replacement's name and its factor."""
    if isinstance(method, InWeights):
        return (dict(method.settings),)
    parts = parts_of(method)
    if len(parts) == 1:
        return (dict(parts[0].replacement.settings),)
    return tuple({"method": part.replacement.method, "factor": part.factor, **part.replacement.settings} for part in parts)


def strengths(alpha: Any, names: Sequence[str]) -> dict[str, float]:
    """The strength of each method, from one number for all or a mapping with one for each.

    Raises:
        InputError: a method without a strength, a strength without a method, or one that is not a finite number.
    """
    given = alpha if isinstance(alpha, Mapping) else dict.fromkeys(names, alpha)
    if missing := [name for name in names if name not in given]:
        raise InputError("alpha", f"none for {', '.join(map(repr, missing))}", "one number, or one for each method")
    if unknown := [name for name in given if name not in names]:
        raise InputError("alpha", f"one for {', '.join(map(repr, unknown))}", f"strengths of {', '.join(map(repr, names))} alone")
    for name in names:
        if isinstance(given[name], bool | str) or not hasattr(given[name], "__float__") or not math.isfinite(given[name]):
            raise InputError("alpha", repr(given[name]), "a finite number, or a mapping of method names to numbers")
    return {name: float(given[name]) for name in names}
