"""The time that a chat template is told: the same whenever a command is repeated with its folder, and in all its processes."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Final

import torch

from psr_lens._utils.distributed import rank_and_world_size, same_as_first
from psr_lens._utils.safe_files import write_text
from psr_lens.errors import ArtifactError
from psr_lens.models import WithTokenizer, tokenizer_of
from psr_lens.prompts.chat_templates import NOW, ChatSettings, settled

TIME_FILE: Final = "template_time.json"
"""The file in a command's folder that holds the time; only there if the template asks for it."""
_LONGEST: Final = 64
"""Most characters of a time in ISO 8601."""


def told_time(model: WithTokenizer, recorded: str | None = None) -> dict[str, str]:
    """The time for all prompts of a command, as a variable of the template; empty if the template does not ask for it.

    Args:
        model: The model whose template it is.
        recorded: The time with which the command was begun; None for the present.

    Returns:
        What `prompt_pairs` takes as `template_kwargs`. Under a launcher, every process gets the time of the first one.
    """
    own = settled(ChatSettings.of(), tokenizer_of(model)).variables.get(NOW)
    if own is None:
        return {}
    text = (own if recorded is None else recorded).encode()
    letters = torch.tensor([*text, *[0] * (_LONGEST - len(text))])
    same_as_first([letters])
    return {NOW: bytes(letters.tolist()).rstrip(b"\0").decode()}


def kept_time(model: WithTokenizer, folder: Path) -> dict[str, str]:
    """`told_time`, read from a folder, or written to it when the command is begun.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / TIME_FILE
    try:
        recorded = str(json.loads(path.read_text(encoding="utf-8"))[NOW])
        datetime.fromisoformat(recorded)
    except FileNotFoundError:
        recorded = None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged ({error}). Delete it; prompts are then told the present time.") from error
    told = told_time(model, recorded)
    if told and recorded is None and rank_and_world_size()[0] == 0:
        write_text(path, json.dumps(told) + "\n")
    return told
