"""What names a server and its key: an address without secrets, and the environment variable that holds the key."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from psr_lens.errors import InputError

_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")


def check_address(argument: str, address: str, expected: str, example: str = "") -> None:
    """Refuse what is no address of a server, or holds secrets, which messages would show.

    Args:
        argument: The argument's name.
        address: What was given for it.
        expected: What was expected, for the message.
        example: A sentence with an address that would do.

    Raises:
        InputError: it is refused.
    """
    if any(mark in address for mark in "@?#"):
        remedy = f"{example} Put secrets into the environment variable that api_key_env names.".lstrip()
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


def check_variable(api_key_env: object) -> None:
    """Refuse what is no name of an environment variable, without showing it: it may be the key itself.

    Raises:
        InputError: it is none.
    """
    if not (isinstance(api_key_env, str) and _VARIABLE.fullmatch(api_key_env)):
        raise InputError(
            "api_key_env",
            "something that is not such a name (not shown, in case it is the key)",
            "the name of an environment variable, in capitals",
            "Put the key into that variable, never into the program.",
        )
