"""The folder of a run: the names of its files, and the check that it belongs to this run alone."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import versions
from psr_lens._utils.safe_files import write_text
from psr_lens.apps.output_folder import check_folder
from psr_lens.apps.pipeline.config import RunConfig
from psr_lens.errors import ArtifactError, InputError
from psr_lens.generation.engine import Engine
from psr_lens.models import HookedModel, model_content
from psr_lens.models.identity_by_content import alike, former_identity

_FORMAT: Final = 2
"""Format 1 had a sample of the model's weights in place of all, and no versions; its runs can be resumed, as can those of format 2 that
were begun before there was the entry `settings` of a model."""
SETTINGS_FILE: Final = "run.yaml"
RESULTS_FILE: Final = "results.json"
ANSWERS_FILE: Final = "answers.jsonl"
REPORT_FILE: Final = "report.html"
ARTIFACTS: Final = "artifacts"
KEPT: Final = "kept"
"""Folder that an interrupted run is resumed from: its identity, prompts, answers, scores and the states of its fits."""
_IDENTITY: Final = "identity.json"
_WITHOUT_EFFECT: Final = ("out", "questions", "verify", "also_at")
"""Settings that do not affect the results: where files are, whether the model is checked, and what the report shows besides."""
_START_OVER: Final = "Give another folder with --out, or delete this one to start over."

_LONGEST: Final = 60
"""Most characters of a method's name in the name of its folder."""
_WITH_DIGEST: Final = re.compile(r".*-[0-9a-f]{8}")
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows keeps for devices, whatever follows the dot."""


def recorded(out: Path) -> dict[str, Any] | None:
    """What the folder says of the run that it was claimed for: settings, digests, versions; None if it was not claimed.

    Raises:
        InputError: `out` is a file.
        ArtifactError: what it holds cannot be read.
    """
    path = check_folder(out) / KEPT / _IDENTITY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {_START_OVER}") from error


def claim(out: Path, config: RunConfig, questions: str, model: HookedModel | None, engine: Engine | None = None) -> bool:
    """Claim the folder for this run, or check that it belongs to it: the same settings, questions, model, engine, and versions.

    Settings that there were not yet when the run was begun count as given with their defaults.

    Args:
        out: The folder.
        config: The settings, resolved.
        questions: Digest of the questions.
        model: The model; if None, neither it nor the engine is compared, and a new or empty folder is not claimed.
        engine: What samples in its place, compared by what samples depend on, and not by its address.

    Returns:
        Whether the run was begun before.

    Raises:
        InputError: the folder holds another run, or other files.
        ArtifactError: the recorded identity cannot be read.
    """
    about: dict[str, Any] = {**_settings(config), "questions": questions, "versions": dict(versions())}
    if model is not None:
        about["model_found"] = model_content(model)
        about["engine_found"] = None if engine is None else engine.identity
    wanted = json.loads(json.dumps({"format": _FORMAT, **about}))
    found = recorded(out)
    if found is None:
        if out.exists() and any(each.name != KEPT for each in out.iterdir()):
            raise InputError("out", f"{out}, which holds other files", "a new or empty folder, or the folder of this run")
        if model is not None:
            write_text(out / KEPT / _IDENTITY, json.dumps(wanted, indent=2) + "\n")
        return False
    found |= _settings_begun_with(found, out)
    if found.get("format") == 1:
        del wanted["versions"]
        wanted |= {"format": 1} | ({} if model is None else {"model_found": former_identity(model)})
    elif model is not None and alike(found.get("model_found"), wanted["model_found"]):
        wanted["model_found"] = found["model_found"]
    unknown = {"model_found", "engine_found"} if model is None else set()
    differ = [name for name in {**wanted, **found} if name not in unknown and found.get(name) != wanted.get(name)]
    if differ:
        raise InputError(
            "out", f"{out}, which holds another run (different: {', '.join(differ)})", "the folder of this run", _START_OVER
        )
    return True


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings that make a run what it is, as JSON content."""
    found = {name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT}
    if config.engine is not None:
        found["engine"] = config.engine.partition(":")[0]  # a server may move
    return dict(json.loads(json.dumps(found)))


def _settings_begun_with(found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The settings with which a run was begun, read as those of today.

    Raises:
        InputError: they have another meaning or name today.
    """
    given = {each.name: found[each.name] for each in fields(RunConfig) if each.name in found and each.name not in _WITHOUT_EFFECT}
    try:
        return _settings(RunConfig(**given, questions="-", out="-").resolved(0))
    except (InputError, TypeError) as error:
        raise InputError(
            "out",
            f"{out}, which holds a run of another version of psr_lens, whose settings this one does not have ({error})",
            "the folder of this run",
            _START_OVER,
        ) from error


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
