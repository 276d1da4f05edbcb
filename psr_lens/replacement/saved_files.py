"""What is saved on disk: a replacement's `replacement.json` and `replacement.safetensors`, a plan's `plan.json` and `part-*` folders.

Every field is checked when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

from torch import Tensor

from psr_lens._utils.safe_files import brief, read_settings, read_tensors, remove_artifact, write_artifact
from psr_lens.errors import ArtifactError
from psr_lens.replacement.content_digest import content_digest
from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.site import Rule, Site
from psr_lens.replacement.spec import ReplacementSpec
from psr_lens.results.table import ResultTable

FORMAT: Final = 5
"""Format version of a replacement's files. 2 added `offset`, `tokens` and `curve`; 3 added `data` and `metrics`; 4 added `checksum`, which
binds the tensors to the settings; 5 added `recommended_alpha`; 1 to 4 can be read."""
WEIGHTS_FILE: Final = "replacement.safetensors"
SETTINGS_FILE: Final = "replacement.json"
FILES: Final = (SETTINGS_FILE, WEIGHTS_FILE)
"""The files of a replacement."""

PLAN_FORMAT: Final = 2
"""Format version of a plan's settings file. 2 added `checksums`, one for each part; 1 can be read."""
PLAN_FILE: Final = "plan.json"
PLAN_FILES: Final = (PLAN_FILE, *(f"part-*/{name}" for name in FILES))
"""The files of a plan, as patterns."""

_TENSORS: Final = ("directions", "weights", "bias")
_ADDED: Final[dict[int, dict[str, Any]]] = {
    2: {"tokens": "span", "offset": 0.0, "curve": None},
    3: {"data": None, "metrics": None},
    4: {"checksum": None},
    5: {"recommended_alpha": None},
}
"""Fields that each format added, with their values in older artifacts."""
_MODEL: Final = {
    **dict.fromkeys(("model_name", "architecture", "processing"), str),
    **dict.fromkeys(("n_layers", "d_model", "n_heads", "d_vocab"), int),
}
"""Types of a fingerprint's entries, none of which has to be there."""
_LAST_POSITION: Final = 2**31


def write_replacement(folder: Path, replacement: ReplacementSpec) -> None:
    """Write the two files of a replacement; older ones are replaced.

    Raises:
        TypeError: the replacement's settings cannot be written as JSON.
        InputError: the settings or metrics are too large, or nested too deeply, to be read again.
    """
    tensors = {f"{name}/{part}": getattr(site, part) for name, site in replacement.sites.items() for part in _TENSORS}
    settings = {
        "format": FORMAT,
        "method": replacement.method,
        "span": replacement.span,
        "tokens": replacement.tokens,
        "offset": replacement.offset,
        "question_start": replacement.question_start,
        "model": dict(replacement.model),
        "data": replacement.data,
        "settings": dict(replacement.settings),
        "curve": None if replacement.curve is None else replacement.curve.to_json(),
        "metrics": None if replacement.metrics is None else replacement.metrics.to_content(),
        "recommended_alpha": replacement.recommended_alpha,
        "sites": [{"hook": name, "rule": site.rule} for name, site in replacement.sites.items()],
        "checksum": content_digest(replacement),
    }
    write_artifact(folder, (SETTINGS_FILE, settings), (WEIGHTS_FILE, tensors))


def read_replacement(folder: Path, root: Path) -> tuple[dict[str, Any], str | None]:
    """The fields of a replacement that `write_replacement` wrote, by name, and the checksum of what it does; None in older formats.

    Types and files are checked here, the values by `ReplacementSpec`, the checksum by `check_content`.

    Args:
        folder: Folder of the files.
        root: The folder that the files must be in after links are followed.

    Raises:
        ArtifactError: a file is missing, damaged, of a newer format or outside `root`; or the two files do not belong together.
    """
    settings = read_settings(folder / SETTINGS_FILE, range(1, FORMAT + 1), "Replacement.save", root)
    for format_, added in _ADDED.items():
        if settings["format"] < format_:
            settings |= added
    try:
        rules = _rules(settings["sites"])
        tensors = read_tensors(
            folder / WEIGHTS_FILE, [f"{name}/{part}" for name in rules for part in _TENSORS], "Replacement.save", root
        )
        curve, metrics, recommended = (settings[name] for name in ("curve", "metrics", "recommended_alpha"))
        checksum = None if settings["format"] < 4 else _of_type("checksum", settings["checksum"], str)
        fields = {
            "sites": {name: _site_from(tensors, name, rule) for name, rule in rules.items()},
            "span": settings["span"],
            "method": _of_type("method", settings["method"], str),
            "model": _model(settings["model"]),
            "question_start": _position(settings["question_start"]),
            "settings": _of_type("settings", settings["settings"], dict),
            "offset": float(_of_type("offset", settings["offset"], int | float)),
            "tokens": settings["tokens"],
            "curve": None if curve is None else LearningCurve.from_json(_of_type("curve", curve, dict)),
            "data": _of_type("data", settings["data"], str | None),
            "metrics": None if metrics is None else ResultTable.from_content(_of_type("metrics", metrics, dict)),
            "recommended_alpha": None if recommended is None else float(_of_type("recommended_alpha", recommended, int | float)),
        }
        return fields, checksum
    except ArtifactError:  # a ValueError too
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unfit(folder, error) from error


def check_content(folder: Path, replacement: ReplacementSpec, checksum: str | None) -> None:
    """Check that what was read does what was written.

    Raises:
        ArtifactError: it has another checksum than the one recorded.
    """
    if checksum is not None and content_digest(replacement) != checksum:
        raise unfit(folder, ValueError("the checksum is of other content"))


def unfit(folder: Path, error: Exception) -> ArtifactError:
    """The error for an artifact whose files do not fit together."""
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ArtifactError(f"{folder}: the settings and the tensors do not belong together ({what}). Save the replacement again.")


def write_plan(folder: Path, parts: Sequence[tuple[ReplacementSpec, float]]) -> None:
    """Write `plan.json`, and one replacement per part into `part-0`, `part-1` and so on.

    Surplus parts of an older, longer plan are removed, but no file that this package did not write.

    Args:
        folder: Folder of the plan.
        parts: Replacements, each with the factor of its strength.

    Raises:
        TypeError, InputError: as for `write_replacement`.
    """
    for index, (replacement, _) in enumerate(parts):
        write_replacement(part_folder(folder, index), replacement)
    content = {
        "format": PLAN_FORMAT,
        "factors": [factor for _, factor in parts],
        "checksums": [content_digest(replacement) for replacement, _ in parts],
    }
    write_artifact(folder, (PLAN_FILE, content), None)
    surplus = len(parts)
    while remove_artifact(part_folder(folder, surplus), FILES):
        surplus += 1


def read_factors(folder: Path, root: Path) -> tuple[list[Any], list[Any]]:
    """The factors of a plan's parts and their checksums, None in older formats; neither is checked one by one.

    Raises:
        ArtifactError: the settings file is missing, damaged, of a newer format or outside `root`.
    """
    settings = read_settings(folder / PLAN_FILE, range(1, PLAN_FORMAT + 1), "SteeringPlan.save", root)
    factors = _list_of(folder, settings, "factors")
    checksums = [None] * len(factors) if settings["format"] < 2 else _list_of(folder, settings, "checksums")
    if len(checksums) != len(factors):
        raise unfit_parts(folder, ValueError(f"{len(factors)} factors and {len(checksums)} checksums"))
    return factors, checksums


def check_part(folder: Path, index: int, part: ReplacementSpec, checksum: Any) -> None:
    """Check that a part of a plan is the one that was saved at this index.

    Raises:
        ArtifactError: it has another checksum than the one recorded in the plan.
    """
    if checksum is not None and content_digest(part) != checksum:
        raise unfit_parts(folder, ValueError(f"{part_folder(folder, index).name} is another than was saved there"))


def _list_of(folder: Path, settings: Mapping[str, Any], name: str) -> list[Any]:
    found = settings.get(name)
    if not isinstance(found, list):
        raise ArtifactError(f"{folder / PLAN_FILE}: {name} is {brief(found)}, expected a list. Save the plan again.")
    return found


def part_folder(folder: Path, index: int) -> Path:
    """Folder of one part of a plan."""
    return folder / f"part-{index}"


def unfit_parts(folder: Path, error: Exception) -> ArtifactError:
    """The error for a plan whose parts do not fit together."""
    return ArtifactError(f"{folder}: the parts do not belong together ({error}). Save the plan again.")


def _of_type(name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} is {brief(value)}")
    return value


def _model(found: Any) -> dict[str, Any]:
    for key, kind in _MODEL.items():
        if key in _of_type("model", found, dict):
            _of_type(f"model.{key}", found[key], kind)
    return cast(dict[str, Any], found)


def _position(found: Any) -> int | None:
    if _of_type("question_start", found, int | None) is not None and not 0 <= found < _LAST_POSITION:
        raise ValueError(f"question_start is {brief(found)}")
    return cast(int | None, found)


def _rules(found: Any) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for each in _of_type("sites", found, list):
        name = _of_type("a hook", _of_type("a site", each, dict)["hook"], str)
        if name in rules:
            raise ValueError(f"{name} occurs twice")
        if each["rule"] not in get_args(Rule):
            raise ValueError(f"unknown rule {brief(each['rule'])} at {name}")
        rules[name] = each["rule"]
    return rules


def _site_from(tensors: Mapping[str, Tensor], name: str, rule: Rule) -> Site:
    directions, weights, bias = (tensors[f"{name}/{part}"] for part in _TENSORS)
    if directions.ndim not in (2, 3) or weights.shape != directions.shape or bias.shape != directions.shape[:-1]:
        raise ValueError(
            f"the shapes at {name} do not match: {tuple(directions.shape)}, {tuple(weights.shape)}, {tuple(bias.shape)}"
        )
    site = Site(directions, weights, bias, rule)
    if not site.is_finite:
        raise ValueError(f"the numbers at {name} are not all finite")
    return site
