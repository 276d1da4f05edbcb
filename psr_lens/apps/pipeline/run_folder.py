"""The folder of a run: the names of its files, and the check that it belongs to this run alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.safe_files import write_text
from psr_lens.apps.output_folder import check_folder
from psr_lens.apps.pipeline.config import RunConfig
from psr_lens.errors import ArtifactError, InputError

_FORMAT: Final = 1
SETTINGS_FILE: Final = "run.yaml"
RESULTS_FILE: Final = "results.json"
ANSWERS_FILE: Final = "answers.jsonl"
REPORT_FILE: Final = "report.html"
ARTIFACTS: Final = "artifacts"
KEPT: Final = "kept"
"""Folder that an interrupted run is resumed from: its identity, prompts, answers, scores and the states of its fits."""
_IDENTITY: Final = "identity.json"
_PATHS: Final = ("out", "questions")
"""Settings that say only where files are; they do not affect the results."""


def claim(out: Path, config: RunConfig, about: Mapping[str, Any], *, write: bool = True) -> bool:
    """Claim the folder for this run, or check that it belongs to it.

    Args:
        out: The folder.
        config: The settings, resolved.
        about: Whatever else must be the same for a run to be resumed, by name; values of None are not known yet and not compared.
        write: Record the run's identity if the folder is new or empty.

    Returns:
        Whether the run was begun before.

    Raises:
        InputError: the folder holds another run, or other files.
        ArtifactError: the recorded identity cannot be read.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _PATHS}
    wanted = json.loads(json.dumps({"format": _FORMAT, **settings, **about}))
    path = check_folder(out) / KEPT / _IDENTITY
    start_over = "Give another folder with --out, or delete this one to start over."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if out.exists() and any(each.name != KEPT for each in out.iterdir()):
            raise InputError("out", f"{out}, which holds other files", "a new or empty folder, or the folder of this run") from None
        if write:
            write_text(path, json.dumps(wanted, indent=2) + "\n")
        return False
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {start_over}") from error
    unknown = {name for name, value in about.items() if value is None}
    differ = [name for name in {**wanted, **found} if name not in unknown and found.get(name) != wanted.get(name)]
    if differ:
        raise InputError(
            "out", f"{out}, which holds another run (different: {', '.join(differ)})", "the folder of this run", start_over
        )
    return True


def folder_name(method: str) -> str:
    """The name of a method's folder: its own, with characters that file systems may refuse replaced by `-`."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in method).strip(".") or "method"


def write_answers(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write the answers side by side, one line of JSON per question; the file is replaced as a whole."""
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
