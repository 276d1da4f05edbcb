"""What a replacement is in files, `replacement.json` and `replacement.safetensors`, with every field checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from torch import Tensor

from psr_lens._utils.safe_files import brief, read_settings, read_tensors, write_artifact
from psr_lens.errors import ArtifactError
from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.site import Rule, Site
from psr_lens.results.table import ResultTable

if TYPE_CHECKING:
    from psr_lens.replacement.replacement import Replacement

FORMAT: Final = 3
"""Version of the files. 2 added `offset`, `tokens` and `curve`, 3 `data` and `metrics`; 1 and 2 can be read."""
WEIGHTS_FILE: Final = "replacement.safetensors"
SETTINGS_FILE: Final = "replacement.json"
FILES: Final = (SETTINGS_FILE, WEIGHTS_FILE)

_PARTS: Final = ("directions", "weights", "bias")
_ADDED: Final[dict[int, dict[str, Any]]] = {2: {"tokens": "span", "offset": 0.0, "curve": None}, 3: {"data": None, "metrics": None}}
"""What each format added, and what it is in artifacts that are older."""
_MODEL: Final = {
    **dict.fromkeys(("model_name", "architecture", "processing"), str),
    **dict.fromkeys(("n_layers", "d_model", "n_heads", "d_vocab"), int),
}
"""What a fingerprint holds where it holds it."""
_LAST_POSITION: Final = 2**31


def write_replacement(folder: Path, replacement: Replacement) -> None:
    """Write both files; older ones are replaced.

    Raises:
        TypeError: the replacement's settings hold what JSON cannot.
        InputError: they, or its metrics', are more than can be read again.
    """
    tensors = {f"{name}/{part}": getattr(site, part) for name, site in replacement.sites.items() for part in _PARTS}
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
        "sites": [{"hook": name, "rule": site.rule} for name, site in replacement.sites.items()],
    }
    write_artifact(folder, (SETTINGS_FILE, settings), (WEIGHTS_FILE, tensors))


def read_replacement(folder: Path, root: Path) -> dict[str, Any]:
    """The fields of a replacement that `write_replacement` wrote, by name; what fits a field's type is left to `Replacement`.

    Args:
        folder: Where the files are.
        root: The folder that they must lie in, links followed.

    Raises:
        ArtifactError: a file is missing, damaged, of a newer format, outside `root`, or the two do not belong together.
    """
    settings = read_settings(folder / SETTINGS_FILE, range(1, FORMAT + 1), "Replacement.save", root)
    for format_, added in _ADDED.items():
        if settings["format"] < format_:
            settings |= added
    try:
        rules = _rules(settings["sites"])
        tensors = read_tensors(
            folder / WEIGHTS_FILE, [f"{name}/{part}" for name in rules for part in _PARTS], "Replacement.save", root
        )
        curve, metrics = settings["curve"], settings["metrics"]
        return {
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
        }
    except ArtifactError:  # is a ValueError too
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unfit(folder, error) from error


def unfit(folder: Path, error: Exception) -> ArtifactError:
    """The error of an artifact whose parts cannot be right together."""
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ArtifactError(f"{folder}: the settings and the tensors do not belong together ({what}). Save it anew.")


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
            raise ValueError(f"{name} is there twice")
        if each["rule"] not in get_args(Rule):
            raise ValueError(f"unknown rule {brief(each['rule'])} at {name}")
        rules[name] = each["rule"]
    return rules


def _site_from(tensors: Mapping[str, Tensor], name: str, rule: Rule) -> Site:
    directions, weights, bias = (tensors[f"{name}/{part}"] for part in _PARTS)
    if directions.ndim not in (2, 3) or weights.shape != directions.shape or bias.shape != directions.shape[:-1]:
        raise ValueError(f"shapes at {name}: {tuple(directions.shape)}, {tuple(weights.shape)}, {tuple(bias.shape)}")
    if not all(bool(tensor.isfinite().all()) for tensor in (directions, weights, bias)):
        raise ValueError(f"numbers at {name} are not all finite")
    return Site(directions, weights, bias, rule)
