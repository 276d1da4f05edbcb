"""Groups of options: a command's parameter that is a dataclass stands for the options that are its fields.

Typer makes an option of each parameter, and has no groups of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def flat_options(command: Callable[..., None]) -> Callable[..., None]:
    """Show a command to typer with the fields of its groups in their places, and call it with the groups made of their values.

    A group is a dataclass whose fields are annotated as the parameters of a command are. It can check its values in `__post_init__`: typer
    reports a `typer.BadParameter` from there as it does an invalid value.

    Raises:
        TypeError: two options with the same name, or a default for a whole group.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Callable[..., Any]] = {}
    options: dict[str, list[inspect.Parameter]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if not is_dataclass(hints[name]):
            options[name] = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])]
        elif parameter.default is inspect.Parameter.empty:
            groups[name], options[name] = hints[name], _options(hints[name])
        else:
            raise TypeError(f"{command.__name__}: got a default for the group {name!r}, expected defaults of its fields alone")
    flat = [each for some in options.values() for each in some]
    if twice := [name for name, count in Counter(each.name for each in flat).items() if count > 1]:
        raise TypeError(f"{command.__name__}: got two options with the name {twice[0]!r}, expected one")

    @functools.wraps(command)
    def flattened(**given: Any) -> None:
        made = {name: group(**{each.name: given.pop(each.name) for each in options[name]}) for name, group in groups.items()}
        command(**given, **made)

    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {each.name: each.annotation for each in flat}
    return flattened


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a group as parameters of a function."""
    hints = get_type_hints(group, include_extras=True)
    found = []
    for each in (each for each in fields(group) if each.init):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        given = inspect.Parameter.empty if default is MISSING else default
        found.append(inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=given, annotation=hints[each.name]))
    return found
