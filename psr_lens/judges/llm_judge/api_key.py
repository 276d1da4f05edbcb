"""The key of a judge's server: read from the environment when it is needed, and kept out of everything that others see."""

from __future__ import annotations

import os
from typing import Final

from psr_lens.errors import JudgeError
from psr_lens.judges.llm_judge.settings import LLMSettings

NO_KEY: Final = "none"
"""Sent in place of a key: the client insists on one, and local servers ignore it."""


def api_key(settings: LLMSettings) -> str:
    """The key, read from the environment now.

    Raises:
        JudgeError: the server needs a key and none is set, or the key cannot be sent.
    """
    value = _value(settings)
    if value and not (value.isascii() and value.isprintable() and " " not in value):
        raise JudgeError(f"api_key_env: the value of {settings.api_key_env} has characters that no key has. Set it again.")
    if not value and settings.api_key_env and settings.address is None:
        raise JudgeError(
            f"api_key_env: the environment variable {settings.api_key_env} is not set. Set it to your key, "
            "or give base_url, the address of a server that needs none."
        )
    return value or NO_KEY


def without_key(settings: LLMSettings, text: str) -> str:
    """The text with the key masked, should a server have repeated it."""
    value = _value(settings)
    return text.replace(value, "[key]") if len(value) >= 8 else text  # shorter values are placeholders: "none", "EMPTY"


def _value(settings: LLMSettings) -> str:
    return os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
