"""The key of a judge's server: which one belongs to the address, read from the environment when needed and never stored elsewhere.

A key is sent only to the address that it belongs to: `OPENAI_API_KEY` to OpenAI's own, or to that in `OPENAI_BASE_URL`; a key in
`PSR_LENS_API_KEYS` to the address beside it. Any other variable is read only if the program's author, or the person who starts it, names it
for an address (`api_key_env`); a file of settings may not.
"""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import urlsplit

from psr_lens.errors import JudgeError
from psr_lens.judges.llm_judge.settings import LLMSettings

NO_KEY: Final = "none"
"""Sent in place of a key: the client insists on one, and local servers ignore it."""
OPENAI: Final = "https://api.openai.com"
OPENAI_KEY: Final = "OPENAI_API_KEY"
KEYS: Final = "PSR_LENS_API_KEYS"
"""Variable with keys bound to addresses: `https://api.example.com=KEY http://localhost:8000=KEY`."""

_PORTS: Final = {"https": 443, "http": 80}


def api_key(settings: LLMSettings) -> str:
    """The key, read from the environment now.

    Raises:
        JudgeError: the server needs a key and none is set, or the key cannot be sent.
    """
    variable, value = _variable_and_value(settings)
    if value and not (value.isascii() and value.isprintable() and " " not in value):
        raise JudgeError(f"api_key_env: the value of {variable} has characters that no key has. Set it again.")
    if not value and settings.api_key_env:
        raise JudgeError(
            f"api_key_env: the environment variable {variable} is not set. Set it to the key of {origin(settings.address or OPENAI)}, "
            "or leave api_key_env out for a server that needs none."
        )
    if not value and origin(settings.address or OPENAI) == OPENAI:
        raise JudgeError(
            f"api_key_env: the environment variable {OPENAI_KEY} is not set. Set it to your key, "
            "or give base_url, the address of a server that needs none."
        )
    return value or NO_KEY


def key_variable(settings: LLMSettings) -> str:
    """The variable whose key is sent to the server; empty if none is."""
    return _variable_and_value(settings)[0]


def without_key(settings: LLMSettings, text: str) -> str:
    """The text with the key masked, should a server have repeated it."""
    value = _variable_and_value(settings)[1]
    return text.replace(value, "[key]") if len(value) >= 8 else text  # shorter values are placeholders: "none", "EMPTY"


def is_openai_home(settings: LLMSettings) -> bool:
    """Whether the judge asks where the variables of OpenAI's client belong: at OpenAI, or at OPENAI_BASE_URL."""
    return origin(settings.address or OPENAI) == origin(os.environ.get("OPENAI_BASE_URL") or OPENAI)


def origin(address: str) -> str:
    """Scheme, host and port of an address, to compare it with others; the address itself if it has none."""
    try:
        parts = urlsplit(address if "://" in address else f"https://{address}")
        port = parts.port
    except ValueError:
        return address
    shown = "" if port in (None, _PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}{shown}"


def _variable_and_value(settings: LLMSettings) -> tuple[str, str]:
    if settings.api_key_env:
        return settings.api_key_env, os.environ.get(settings.api_key_env, "").strip()
    bound = _bound_keys().get(origin(settings.address or OPENAI))
    if bound is not None:
        return KEYS, bound
    if is_openai_home(settings):
        return OPENAI_KEY, os.environ.get(OPENAI_KEY, "").strip()
    return "", ""


def _bound_keys() -> dict[str, str]:
    found = {}
    for number, entry in enumerate(os.environ.get(KEYS, "").split(), start=1):
        address, equals, key = entry.partition("=")
        if not (address and equals and key):
            raise JudgeError(
                f"{KEYS}: entry {number} is not an address and a key. Write `https://api.example.com=KEY`, with spaces between entries."
            )
        found[origin(address)] = key
    return found
