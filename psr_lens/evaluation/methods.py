"""The names and the strengths of the methods that are measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from psr_lens.errors import InputError
from psr_lens.models import HookedModel
from psr_lens.models.hook_points import layer_of
from psr_lens.replacement import Replacement, SteeringPlan, check_model

PROMPT: Final = "prompt"
"""The method name under which the prompt itself stands."""


PARAPHRASE: Final = "paraphrase"
"""The name under which the yardstick stands: the same instruction in other words."""


NONE: Final = "none"
"""The method name of the model as it is."""


def checked_plans(
    model: HookedModel, methods: Mapping[str, Replacement | SteeringPlan], taken: Sequence[str]
) -> dict[str, SteeringPlan]:
    """Replacements as plans, by name.

    Args:
        model: The model that they are to steer.
        methods: Names and methods, or plans of several.
        taken: Names that stand for something else.

    Raises:
        InputError: no methods, a name that is taken, or one that acts outside of all layers.
        ArtifactError: a replacement was made for another model.
    """
    if not isinstance(methods, Mapping) or not methods:
        got = "none" if not methods else f"a {type(methods).__name__}"
        raise InputError("methods", got, "at least one name and replacement", "Give a mapping, {'A-PSR': replacement}.")
    plans = {}
    for name, replacement in methods.items():
        if name in taken:
            *first, last = map(repr, taken)
            raise InputError("methods", repr(name), f"names other than {', '.join(first)} and {last}, which are taken")
        plans[name] = SteeringPlan.of(replacement)
        for part in plans[name].parts:
            check_model(part.replacement, model)
            if outside := [site for site in part.replacement.sites if layer_of(site) is None]:
                raise InputError("methods", f"{name!r}, which acts at {outside}", "methods that act within layers")
    return plans


def strengths(alpha: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The strength of each replacement, from one number for all or one for each.

    Raises:
        InputError: a name without a number.
    """
    if not isinstance(alpha, Mapping):
        return dict.fromkeys(names, float(alpha))
    if missing := [name for name in names if name not in alpha]:
        raise InputError("alpha", f"none for {', '.join(map(repr, missing))}", "a number, or one for each replacement")
    return {name: float(alpha[name]) for name in names}
