"""The folder of a run: the names of its files, and the check that it belongs to this run alone."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import versions
from psr_lens._utils.safe_files import write_text
from psr_lens.apps.output_folder import check_folder
from psr_lens.apps.pipeline.config import RunConfig
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, model_content
from psr_lens.models.content import former_identity

_FORMAT: Final = 2
"""Format 1 had a sample of the model's weights in place of all, and no versions; its runs can be resumed."""
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

_LONGEST: Final = 60
"""Most characters of a method's name in the name of its folder."""
_WITH_DIGEST: Final = re.compile(r".*-[0-9a-f]{8}")
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows keeps for devices, whatever follows the dot."""


def claim(out: Path, config: RunConfig, questions: str, model: HookedModel | None) -> bool:
    """Claim the folder for this run, or check that it belongs to it: the same settings, questions, model, and versions.

    Args:
        out: The folder.
        config: The settings, resolved.
        questions: Digest of the questions.
        model: The model; if None, it is not compared, and a new or empty folder is not claimed.

    Returns:
        Whether the run was begun before.

    Raises:
        InputError: the folder holds another run, or other files.
        ArtifactError: the recorded identity cannot be read.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _PATHS}
    about: dict[str, Any] = {**settings, "questions": questions, "versions": dict(versions())}
    if model is not None:
        about["model_found"] = model_content(model)
    wanted = json.loads(json.dumps({"format": _FORMAT, **about}))
    path = check_folder(out) / KEPT / _IDENTITY
    start_over = "Give another folder with --out, or delete this one to start over."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if out.exists() and any(each.name != KEPT for each in out.iterdir()):
            raise InputError("out", f"{out}, which holds other files", "a new or empty folder, or the folder of this run") from None
        if model is not None:
            write_text(path, json.dumps(wanted, indent=2) + "\n")
        return False
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {start_over}") from error
    if isinstance(found, dict) and found.get("format") == 1:
        del wanted["versions"]
        wanted |= {"format": 1} | ({} if model is None else {"model_found": former_identity(model)})
    unknown = {"model_found"} if model is None else set()
    differ = [name for name in {**wanted, **found} if name not in unknown and found.get(name) != wanted.get(name)]
    if differ:
        raise InputError(
            "out", f"{out}, which holds another run (different: {', '.join(differ)})", "the folder of this run", start_over
        )
    return True


def folder_names(methods: Iterable[str]) -> dict[str, str]:
    """The name of each method's folder, no two of them the same, even where case does not count.

    It is the method's own name, with characters that file systems may refuse replaced by `-`. A digest of the name is added where that is
    not unique, too long, or reserved, and wherever it might be taken for such a name with a digest.
    """
    plain = {method: plain_name(method) for method in methods}
    taken = Counter(map(_folded, plain.values()))
    return {
        method: f"{name[:_LONGEST]}-{digest_of(method)[:8]}"
        if taken[_folded(name)] > 1
        or len(name) > _LONGEST
        or _WITH_DIGEST.fullmatch(_folded(name))
        or _DEVICES.fullmatch(_folded(name))
        else name
        for method, name in plain.items()
    }


def plain_name(method: str) -> str:
    """A method's name with characters that file systems may refuse replaced by `-`, which two methods may share."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in method).strip(".") or "method"


def _folded(name: str) -> str:
    """The same for names that a file system may take for one: it may ignore case, or how letters are composed."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def write_answers(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write the answers side by side, one line of JSON per question; the file is replaced as a whole."""
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
