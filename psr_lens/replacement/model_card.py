"""The model card of an artifact, `README.md`: Markdown with a YAML header, made from what the artifact records.

A card ends with its own checksum. A card that was edited, or that psr_lens did not write, is never replaced.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import xxhash
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from psr_lens._utils.optional import versions
from psr_lens._utils.safe_files import write_text
from psr_lens._utils.sequences import ranges
from psr_lens.models.hook_points import layer_of, point_of
from psr_lens.replacement.spec import ReplacementSpec
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

CARD_FILE: Final = "README.md"
MAX_RESULTS: Final = 200
"""The largest number of results that a card shows."""

_TAGS: Final = ["activation-steering", "prompt-steering-replacement", "transformer-lens", "interpretability"]
_SPANS: Final = {
    "R": "R: the last prompt token and every response token",
    "QR": "QR: the question, the last prompt token and every response token",
}
_OURS: Final = re.compile(r"\n<!-- Written by psr_lens \(xxh3_128 (\w{32})\); once edited, it is never replaced\. -->\n\Z")


def model_card(kind: str, parts: Sequence[tuple[ReplacementSpec, float]], load: str) -> str:
    """The text of a card.

    Args:
        kind: Name of the class that reads the artifact.
        parts: Replacements, each with the factor of its strength; one for a `Replacement`.
        load: The call that reads the artifact, as code after `psr.<kind>.`.
    """
    model = str(parts[0][0].model.get("model_name", "unknown"))
    instructions = [text for replacement, _ in parts for text in _instructions(replacement)]
    instruction = instructions[0] if instructions else "the instruction that it replaces"
    text = _template().render(
        header=yaml.safe_dump(_header(model), sort_keys=False, allow_unicode=True),
        title=inline(" + ".join(dict.fromkeys(instructions)) or " + ".join(replacement.method for replacement, _ in parts)),
        kind=kind,
        model=inline(model),
        model_literal=json.dumps(model),
        instruction_literal=json.dumps(instruction),
        load=load,
        alpha=_alpha(parts),
        offset=any(replacement.offset for replacement, _ in parts),
        parts=[_part(replacement, factor) for replacement, factor in parts],
        versions=", ".join(f"{package} {number}" for package, number in versions()),
    )
    return f"{text}\n<!-- Written by psr_lens (xxh3_128 {_checksum(text)}); once edited, it is never replaced. -->\n"


def is_ours(text: str) -> bool:
    """Whether `model_card` made this card, and it has not been edited since."""
    found = _OURS.search(text)
    return found is not None and found.group(1) == _checksum(text[: found.start()])


def write_card(folder: Path, text: str) -> None:
    """Write the card of an artifact; an existing card that was edited, or that psr_lens did not write, is kept, with a warning."""
    path = folder / CARD_FILE
    if path.exists() or path.is_symlink():
        try:
            ours = is_ours(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ours = False
        if not ours:
            warnings.warn(kept_warning(str(path)), stacklevel=3)
            return
    write_text(path, text)


def kept_warning(card: str) -> str:
    """The warning for a card that is not replaced, given its path or name."""
    return (
        f"{card} was edited, or was not written by psr_lens, and is kept. The new model card was not written; "
        "`model_card()` returns its text. Remove the file to have the card written."
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("psr_lens.replacement", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.j2")


def _checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _header(model: str) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "psr-lens", "tags": list(_TAGS)}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):  # an owner and a name, as on the Hub
        header["base_model"] = model
    return header


def _part(replacement: ReplacementSpec, factor: float) -> dict[str, Any]:
    results, left_out = results_of(replacement.metrics)
    settings = json.dumps(dict(replacement.settings), indent=2, ensure_ascii=False, default=str).replace("```", "` ` `")
    return {
        "factor": f"{factor:g}",
        "facts": [(name, inline(value)) for name, value in _facts(replacement)],
        "results": results,
        "left_out": left_out,
        "settings": settings,
    }


def _facts(replacement: ReplacementSpec) -> list[tuple[str, str]]:
    model, settings, sites = replacement.model, replacement.settings, replacement.sites
    sizes = [f"{key} {model[key]}" for key in ("n_layers", "d_model", "n_heads", "d_vocab") if key in model]
    span = "the last prompt token alone" if replacement.tokens == "last" else _SPANS[replacement.span]
    triplets = f"{settings['triplets']} triplets, " if isinstance(settings.get("triplets"), int) else ""
    facts = [
        ("instruction", "; ".join(_instructions(replacement)) or "not recorded"),
        ("base model", ", ".join([f"{model.get('model_name')} ({model.get('architecture', 'unknown')})", *sizes])),
        ("method", replacement.method),
        ("hook points", _hook_points(sites)),
        ("coefficients", ", ".join(sorted({site.rule for site in sites.values()}))),
        ("rank", ", ".join(map(str, sorted({site.rank for site in sites.values()})))),
        ("span", span),
        ("training data", f"{triplets}xxh3_128 of their tokens {replacement.data}" if replacement.data else "not recorded"),
    ]
    if "processing" in model:
        facts.insert(2, ("weights", f"processed by TransformerLens: {model['processing']}"))
    if replacement.origin is not None:
        facts.insert(1, ("carried over", "{} from {}".format(*replacement.origin)))
    if replacement.offset:
        facts.append(("learned offset of alpha", f"{replacement.offset:g}"))
    if replacement.recommended_alpha is not None:
        facts.append(("recommended alpha", f"{replacement.recommended_alpha:g}"))
    return facts


def _alpha(parts: Sequence[tuple[ReplacementSpec, float]]) -> float:
    """The strength of the examples: the recommended one, where it is of all that steers, as it is."""
    recommended = parts[0][0].recommended_alpha if len(parts) == 1 and parts[0][1] == 1 else None
    return 1.0 if recommended is None else recommended


def _hook_points(names: Iterable[str]) -> str:
    """Hook points grouped by kind: `hook_resid_post in layers 0–2`."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        layer = layer_of(name)
        kinds.setdefault(point_of(name), []).extend([] if layer is None else [layer])
    return "; ".join(
        f"{kind} in layer{'s' if len(layers) > 1 else ''} {ranges(layers)}" if layers else kind for kind, layers in kinds.items()
    )


def _instructions(replacement: ReplacementSpec) -> list[str]:
    found = replacement.settings.get("instructions")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else []


def results_of(metrics: ResultTable | None) -> tuple[tuple[list[str], list[list[str]]] | None, int]:
    """Head and rows of the table of results, without empty columns, and the number of results left out of it."""
    if not metrics:
        return None, 0
    rows = metrics.rows[:MAX_RESULTS]
    columns = [(name, [inline(cell) for cell in map(cell_of, rows)]) for name, cell_of in _COLUMNS.items()]
    columns = [(name, cells) for name, cells in columns if any(cells)]
    body = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return ([name for name, _ in columns], body), len(metrics) - len(rows)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4g}"


_COLUMNS: Final[dict[str, Callable[[Result], str]]] = {
    "method": lambda row: row.method,
    "metric": lambda row: row.metric,
    "value": lambda row: _number(row.value) or "missing",
    "95 % interval": lambda row: f"{_number(row.interval[0])} to {_number(row.interval[1])}" if _number(row.interval[0]) else "",
    "n": lambda row: str(row.n),
    "missing": lambda row: str(row.missing or ""),
    "trait": lambda row: row.trait,
    "questions": lambda row: row.block,
    "alpha": lambda row: _number(row.alpha),
    "layer": lambda row: "" if row.layer is None else str(row.layer),
}
"""Columns of the table of results."""


def inline(text: str) -> str:
    """Text on one line, escaped for Markdown and HTML; long texts are cut."""
    line = " ".join(text.split())
    line = line if len(line) <= 2_000 else f"{line[:2_000]} …"
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", line)
