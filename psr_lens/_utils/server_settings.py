"""What names a server and its key: an address without secrets, and the environment variable that holds the key."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from psr_lens.errors import InputError

_OF_SECRETS: Final = "@?#"
"""What an address with a user, a query or a fragment has."""
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")


def may_hold_secrets(address: str) -> bool:
    """Whether something given as an address has a user, a query or a fragment, so that no message may show it."""
    return any(mark in address for mark in _OF_SECRETS)


def check_address(argument: str, address: str, expected: str, example: str = "", *, key: str = "api_key_env") -> None:
    """Refuse what is no address of a server, or holds secrets, which messages would show.

    Args:
        argument: The argument's name.
        address: What was given for it.
        expected: What was expected, for the message.
        example: A sentence with an address that would do.
        key: The argument that names the environment variable with the key.

    Raises:
        InputError: it is refused.
    """
    if may_hold_secrets(address):
        remedy = f"{example} Put secrets into the environment variable that {key} names.".lstrip()
        raise InputError(argument, "an address with a user, a query or a fragment (not shown)", expected, remedy)
    try:
        parts = urlsplit(address)
        good = (
            address.isprintable()
            and " " not in address
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        good = False
    if not good:
        raise InputError(argument, repr(address), expected, example)


def check_variable(variable: object, argument: str = "api_key_env") -> None:
    """Refuse what is no name of an environment variable, without showing it: it may be the key itself.

    Args:
        variable: What was given.
        argument: The argument's name.

    Raises:
        InputError: it is none.
    """
    if not (isinstance(variable, str) and _VARIABLE.fullmatch(variable)):
        raise InputError(
            argument,
            "something that is not such a name (not shown, in case it is the key)",
            "the name of an environment variable, in capitals",
            "Put the key into that variable, never into the program.",
        )
