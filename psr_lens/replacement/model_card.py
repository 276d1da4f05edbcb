"""The model card of an artifact: `README.md`, Markdown under a YAML header, made from what the artifact records.

A card ends with its own checksum. One that was edited, or that somebody else wrote, is not ours to replace.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from psr_lens._utils.optional import versions
from psr_lens._utils.safe_files import write_text
from psr_lens.models.hook_points import layer_of
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

if TYPE_CHECKING:
    from psr_lens.replacement.plan import Part
    from psr_lens.replacement.replacement import Replacement

CARD_FILE: Final = "README.md"
MAX_RESULTS: Final = 200
"""Most results that a card shows."""

_TAGS: Final = ["activation-steering", "prompt-steering-replacement", "transformer-lens", "interpretability"]
_SPANS: Final = {
    "R": "R: the last prompt token and every response token",
    "QR": "QR: the question, the last prompt token and every response token",
}
_OURS: Final = re.compile(r"\n<!-- Written by psr_lens \(xxh3_128 (\w{32})\); once edited, it is never replaced\. -->\n\Z")


def model_card(kind: str, parts: Sequence[Part], load: str) -> str:
    """The text of a card.

    Args:
        kind: Name of the class that reads the artifact.
        parts: What steers, a single part for a replacement.
        load: The call that reads it, as code after `psr.<kind>.`.
    """
    first = parts[0].replacement
    model = str(first.model.get("model_name", "unknown"))
    instructions = [text for part in parts for text in _instructions(part.replacement)]
    instruction = instructions[0] if instructions else "what it stands for"
    text = _template().render(
        header=yaml.safe_dump(_header(model), sort_keys=False, allow_unicode=True),
        title=_inline(" + ".join(dict.fromkeys(instructions)) or " + ".join(part.replacement.method for part in parts)),
        kind=kind,
        model=_inline(model),
        model_literal=json.dumps(model),
        instruction_literal=json.dumps(instruction),
        load=load,
        parts=[_part(part) for part in parts],
        versions=", ".join(f"{package} {number}" for package, number in versions()),
    )
    return f"{text}\n<!-- Written by psr_lens (xxh3_128 {_checksum(text)}); once edited, it is never replaced. -->\n"


def is_ours(text: str) -> bool:
    """Whether a card is one that `model_card` made, and nobody has changed since."""
    found = _OURS.search(text)
    return found is not None and found.group(1) == _checksum(text[: found.start()])


def write_card(folder: Path, text: str) -> None:
    """Write the card of an artifact, unless there is one in the folder that is not ours: that is kept, with a warning."""
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


def kept_warning(place: str) -> str:
    """What is said where a card is not replaced."""
    return (
        f"{place} was written or edited by somebody else and is kept as it is; the new model card was not written. "
        "`model_card()` gives its text; remove the file to have it written."
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
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):  # an owner and a name, as the Hub has them
        header["base_model"] = model
    return header


def _part(part: Part) -> dict[str, Any]:
    replacement = part.replacement
    results, left_out = _results(replacement.metrics)
    settings = json.dumps(dict(replacement.settings), indent=2, ensure_ascii=False, default=str).replace("```", "` ` `")
    return {
        "factor": f"{part.factor:g}",
        "facts": [(name, _inline(value)) for name, value in _facts(replacement)],
        "results": results,
        "left_out": left_out,
        "settings": settings,
    }


def _facts(replacement: Replacement) -> list[tuple[str, str]]:
    model, settings, sites = replacement.model, replacement.settings, replacement.sites
    sizes = [f"{key} {model[key]}" for key in ("n_layers", "d_model", "n_heads", "d_vocab") if key in model]
    span = "the last prompt token alone" if replacement.tokens == "last" else _SPANS[replacement.span]
    triplets = f"{settings['triplets']} triplets, " if isinstance(settings.get("triplets"), int) else ""
    facts = [
        ("instruction", "; ".join(_instructions(replacement)) or "not recorded"),
        ("base model", ", ".join([f"{model.get('model_name')} ({model.get('architecture', 'unknown')})", *sizes])),
        ("method", replacement.method),
        ("hook points", _places(sites)),
        ("coefficients", ", ".join(sorted({site.rule for site in sites.values()}))),
        ("rank", ", ".join(map(str, sorted({site.rank for site in sites.values()})))),
        ("span", span),
        ("training data", f"{triplets}xxh3_128 of their tokens {replacement.data}" if replacement.data else "not recorded"),
    ]
    if "processing" in model:
        facts.insert(2, ("weights", f"processed by TransformerLens: {model['processing']}"))
    if replacement.offset:
        facts.append(("learned offset of alpha", f"{replacement.offset:g}"))
    return facts


def _places(names: Iterable[str]) -> str:
    """Hook points, those of one kind together: `hook_resid_post in layers 0, 1, 2`."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"^blocks\.\d+\.", "", name), []).append(str(layer_of(name)))
    return "; ".join(
        kind if layers == ["None"] else f"{kind} in layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"
        for kind, layers in kinds.items()
    )


def _instructions(replacement: Replacement) -> list[str]:
    found = replacement.settings.get("instructions")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else []


def _results(metrics: ResultTable | None) -> tuple[tuple[list[str], list[list[str]]] | None, int]:
    """Head and rows of the table of results, and how many are left out of it; without the columns in which all rows are empty."""
    if not metrics:
        return None, 0
    rows = metrics.rows[:MAX_RESULTS]
    columns = [(name, [_inline(cell) for cell in map(cell_of, rows)]) for name, cell_of in _COLUMNS.items()]
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
    "not scored": lambda row: str(row.missing or ""),
    "trait": lambda row: row.trait,
    "questions": lambda row: row.block,
    "alpha": lambda row: _number(row.alpha),
    "layer": lambda row: "" if row.layer is None else str(row.layer),
}
"""What a card shows of a result."""


def _inline(text: str) -> str:
    """Text on one line in which Markdown and HTML find nothing to act on; long texts are cut."""
    line = " ".join(text.split())
    line = line if len(line) <= 2_000 else f"{line[:2_000]} …"
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", line)
