"""The entry point in vLLM's group `vllm.general_plugins`, which vLLM calls in each of its processes.

vLLM only logs it when a plugin cannot be imported, and goes on without it: requests would be answered unsteered. So nothing that could
fail is imported here, and what fails later keeps an engine that is to serve replacements from starting.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from psr_lens.errors import ModelError
from psr_lens.serving.wrapping import owner_of, wrap

_CONFIG: Final = "psr"
"""`psr_lens.serving.served.CONFIG`, which may be among what cannot be imported."""


def register() -> None:
    """Take part in vLLM. Further calls have no effect."""
    try:
        from psr_lens.serving.places import take_part
    except Exception as error:  # noqa: BLE001 (whatever it is, an engine must not start as if nothing had happened)
        problem = f"psr_lens cannot be imported ({type(error).__name__}: {error}). Install it again beside vLLM."
    else:
        problem = take_part()
    if problem:
        wrap(owner_of("vllm.config", "VllmConfig"), "__post_init__", functools.partial(_refuse, problem))


def _refuse(problem: str, original: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    original(config, *args, **kwargs)
    if _CONFIG in (config.additional_config or {}):
        raise ModelError(f"vllm: {problem}")
