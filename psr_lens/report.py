"""One HTML file that shows a comparison to anybody with a browser: no server, no network, nothing beside the file."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from psr_lens.compare import PARAPHRASE, PROMPT, Comparison
from psr_lens.errors import InputError
from psr_lens.evaluate import Interval, Scores
from psr_lens.plots import coefficient_text, relative_rmse, strength_distribution, strength_heatmap
from psr_lens.plots.heatmap import MAX_LAYERS
from psr_lens.plots.style import PALETTE, TEMPLATE, method_styles
from psr_lens.plots.tokens import shortened
from psr_lens.token_text import readable

EXAMPLES: Final = 3
"""Most responses of a section that the reader can choose from."""
CELLS: Final = 180_000
"""Most heatmap cells of a report (about 2 MB); where they do not suffice, a section shows fewer responses, then coarser heatmaps."""

_PACKAGES: Final = ("psr-lens", "torch", "transformer-lens", "transformers", "plotly")
_ABSENT: Final = "–"


@dataclass(frozen=True)
class _Row:
    """One line of the table of methods."""

    name: str
    """Name of the method."""
    color: str
    """Its colour in the figures."""
    alpha: str
    """Strength at which it was scored."""
    n: str
    """Number of scored answers."""
    missing: int
    """Number of answers that the judge could not score."""
    trait: str
    """Mean trait score."""
    trait_interval: str
    """Its 95 % interval."""
    coherence: str
    """Mean coherence score."""
    coherence_interval: str
    """Its 95 % interval."""
    rmse: str
    """Relative RMSE after the last layer."""


@dataclass(frozen=True)
class _Figure:
    """One figure, ready for the page."""

    data: Markup
    """The figure as JSON without its template."""
    height: int
    """Height in pixels, kept free until it is drawn."""


@dataclass(frozen=True)
class _Example:
    """The two figures of one response."""

    label: str
    """Its first words."""
    heatmap: _Figure
    """Strength by token and layer."""
    text: _Figure
    """Coefficients under the text."""


@dataclass(frozen=True)
class _Section:
    """One comparison, ready for the page."""

    key: str
    """Anchor."""
    name: str
    """Heading."""
    instruction: str
    """The instruction of the prompt."""
    summary: str
    """The result in words."""
    rows: tuple[_Row, ...]
    """The table of methods."""
    lead: str
    """The replacement whose coefficients are shown."""
    alpha: str
    """Strength of the replacements in the figures."""
    last_layer: int
    """Layer after which the table gives the relative RMSE."""
    has_paraphrase: bool
    """Whether there is a yardstick."""
    rmse: _Figure
    """Relative RMSE by layer."""
    distribution: _Figure
    """Spread of strength."""
    examples: tuple[_Example, ...]
    """Responses to choose from."""
    settings: tuple[tuple[str, str], ...]
    """What is needed to run it again."""


def report(result: Comparison | Mapping[str, Comparison], path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write comparisons into one self-contained HTML file.

    The file holds Plotly once, opens offline and asks nothing of the network. It is put in its place only when it is complete, so a
    failure leaves an older file as it was.

    Args:
        result: What `compare` returned, or several by name (one section each).
        path: The file to write; folders on the way to it are made.
        title: Heading of the page.

    Returns:
        The path of the file.

    Raises:
        InputError: there is nothing to report, a value is no `Comparison`, or `path` is a folder.
    """
    comparisons = _checked(result)
    target = Path(path)
    if target.is_dir():
        raise InputError("path", f"the folder {str(path)!r}", "the name of a file", f"For example {str(target / 'report.html')!r}.")
    page = _page(comparisons, title or "What the prompt steers, and what replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _checked(result: object) -> dict[str, Comparison]:
    """The comparisons by name, after refusing what is none.

    Raises:
        InputError: as in `report`.
    """
    remedy = "`compare` makes them."
    if isinstance(result, Comparison):
        return {shortened(result.instruction, 60): result}
    if not isinstance(result, Mapping):
        raise InputError("result", f"a {type(result).__name__}", "a Comparison, or a mapping of names to Comparisons", remedy)
    if not result:
        raise InputError("result", "an empty mapping", "at least one Comparison", remedy)
    for name, value in result.items():
        if not isinstance(value, Comparison):
            raise InputError(f"result[{name!r}]", f"a {type(value).__name__}", "a Comparison", remedy)
    return {str(name): value for name, value in result.items()}


def _page(comparisons: Mapping[str, Comparison], title: str) -> str:
    environment = Environment(
        loader=PackageLoader("psr_lens"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    share = CELLS // len(comparisons)
    return environment.get_template("report.html.j2").render(
        title=title,
        sections=[_section(f"s{place}", name, each, share) for place, (name, each) in enumerate(comparisons.items(), start=1)],
        template=_script_safe(TEMPLATE.to_plotly_json()),
        plotly=Markup(get_plotlyjs()),  # Plotly's own source, the one thing here that no user wrote
        versions=_versions(),
    )


def _section(key: str, name: str, comparison: Comparison, cells: int) -> _Section:
    lead = _lead(comparison)
    triplets, max_tokens = _shown(comparison, cells)
    return _Section(
        key=key,
        name=name,
        instruction=comparison.instruction,
        summary=_summary(comparison, lead),
        rows=tuple(_rows(comparison)),
        lead=lead,
        alpha=_number(comparison.alpha, 3),
        last_layer=comparison.layers[-1],
        has_paraphrase=comparison.paraphrase_rmse is not None,
        rmse=_figure(relative_rmse(comparison)),
        distribution=_figure(strength_distribution(comparison)),
        examples=tuple(
            _Example(
                _first_words(comparison, triplet),
                _figure(strength_heatmap(comparison, triplet, max_tokens=max_tokens)),
                _figure(coefficient_text(comparison, lead, triplet)),
            )
            for triplet in triplets
        ),
        settings=tuple(_settings(comparison)),
    )


def _shown(comparison: Comparison, cells: int) -> tuple[list[int], int]:
    """The first responses, as many as their heatmaps' cells allow, and the most rows of a heatmap."""
    triplets = comparison.tokens.triplet.unique().tolist()[:EXAMPLES]
    wide = (1 + len(comparison.methods)) * min(len(comparison.layers), MAX_LAYERS)
    max_tokens = max(40, min(400, cells // wide))
    sizes = [wide * min(max_tokens, len(comparison.tokens.rows(triplet))) for triplet in triplets]
    fitting = [triplet for place, triplet in enumerate(triplets) if sum(sizes[: place + 1]) <= cells]
    return fitting or triplets[:1], max_tokens


def _lead(comparison: Comparison) -> str:
    """The replacement that is nearest to the prompt after the last layer, of those whose strength varies if there is one."""
    styles = method_styles(comparison)
    names = [name for name in comparison.methods if styles[name].role != "constant"] or list(comparison.methods)
    return min(names, key=lambda name: float(comparison.methods[name].relative_rmse[-1]))


def _figure(figure: go.Figure) -> _Figure:
    data = json.loads(figure.to_json())
    data["layout"].pop("template", None)  # the same for all figures, so the page holds it once
    return _Figure(_script_safe(data), int(figure.layout.height))


def _script_safe(data: object) -> Markup:
    """JSON that may stand inside a script element: no `<` can end it early."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _first_words(comparison: Comparison, triplet: int) -> str:
    rows = comparison.tokens.rows(triplet)
    rows = rows[comparison.tokens.position[rows] >= 0][:16]
    return shortened(" ".join(readable([comparison.tokens.strings[row] for row in rows.tolist()], comparison.tokens.strings)), 56)


# The result in words and numbers.


def _summary(comparison: Comparison, lead: str) -> str:
    """What the scores and the relative RMSE say, without more praise than they carry."""
    scores = {each.method: each for each in comparison.scores}
    return " ".join(part for part in (_scores_in_words(comparison, scores, lead), _rmse_in_words(comparison, lead)) if part)


def _scores_in_words(comparison: Comparison, scores: Mapping[str, Scores], lead: str) -> str:
    if lead not in scores:
        return "" if scores else "No answers were scored for this comparison."
    others = [
        f"{subject} {_number(scores[name].trait)} and {_number(scores[name].coherence)}"
        for name, subject in ((PROMPT, "the prompt scores"), ("none", "the model without either"))
        if name in scores
    ]
    sentences = [f"{lead} scores {_pair(scores[lead])}" + (f"; {', '.join(others)}" if others else "")]
    styles = method_styles(comparison)
    constants = [name for name in comparison.methods if name in scores and name != lead and styles[name].role == "constant"]
    if constants:
        best = max((scores[name] for name in constants), key=lambda each: (each.trait, each.coherence))
        sentences.append(f"Constant steering ({best.method}, α = {_number(best.alpha, 2)}) reaches {_pair(best)}")
    missing = sum(each.missing for each in scores.values())
    if missing:
        sentences.append(f"The judge could not score {missing:,} answer{'s' if missing > 1 else ''}")
    return ". ".join(sentences) + "."


def _rmse_in_words(comparison: Comparison, lead: str) -> str:
    value = float(comparison.methods[lead].relative_rmse[-1])
    text = (
        f"After layer {comparison.layers[-1]} the relative RMSE of {lead} is {value:.2f}, where 0 is the prompt and 1 no steering"
    )
    if comparison.paraphrase_rmse is None:
        return f"{text}."
    yardstick = float(comparison.paraphrase_rmse[-1])
    word = "closer than" if value < yardstick else "not as close as"
    return f"{text}: {word} a second wording of the instruction, which is at {yardstick:.2f}."


def _pair(scores: Scores) -> str:
    return f"trait {_number(scores.trait)} and coherence {_number(scores.coherence)}"


def _number(value: float | None, digits: int = 1) -> str:
    """A number in running text, without idle zeros."""
    text = _fixed(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _fixed(value: float | None, digits: int = 1) -> str:
    """A number in a column, where digits stand under digits."""
    return _ABSENT if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def _interval(interval: Interval) -> str:
    return f"{_fixed(interval[0])} to {_fixed(interval[1])}" if all(map(math.isfinite, interval)) else ""


def _rows(comparison: Comparison) -> list[_Row]:
    """Scored methods in the order of their scores, then replacements without scores, then the yardstick."""
    styles = method_styles(comparison)
    final = {name: float(trace.relative_rmse[-1]) for name, trace in comparison.methods.items()}
    final |= {PROMPT: 0.0, "none": 1.0}
    if comparison.paraphrase_rmse is not None:
        final[PARAPHRASE] = float(comparison.paraphrase_rmse[-1])
    scores = {each.method: each for each in comparison.scores}
    unscored = [name for name in (*comparison.methods, PARAPHRASE) if name not in scores and name in final]
    return [
        _row(name, styles[name].color if name in styles else PALETTE["none"], scores.get(name), final.get(name))
        for name in (*scores, *unscored)
    ]


def _row(name: str, color: str, scores: Scores | None, rmse: float | None) -> _Row:
    return _Row(
        name=name,
        color=color,
        alpha=_number(scores.alpha if scores else None, 2),
        n=f"{scores.n:,}" if scores else _ABSENT,
        missing=scores.missing if scores else 0,
        trait=_fixed(scores.trait if scores else None),
        trait_interval=_interval(scores.trait_interval) if scores else "",
        coherence=_fixed(scores.coherence if scores else None),
        coherence_interval=_interval(scores.coherence_interval) if scores else "",
        rmse=_ABSENT if rmse is None else f"{rmse:.2f}",
    )


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    span = {"R": "the last prompt token and every response token", "QR": "the question, the last prompt token and the response"}
    lines: list[tuple[str, Any]] = [
        ("instruction", comparison.instruction),
        *((f"model: {key}", value) for key, value in comparison.model.items()),
        ("span", f"{comparison.span}, {span[comparison.span]}"),
        ("compared", f"{len(comparison.tokens):,} tokens of {len(comparison.tokens.triplet.unique()):,} responses"),
        ("layers", _layers(comparison.layers)),
        ("α in the figures", _number(comparison.alpha, 3)),
        *((f"{name} acts at layers", _layers(trace.site_layers)) for name, trace in comparison.methods.items()),
        *comparison.settings.items(),
    ]
    return [
        (str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)) for key, value in lines
    ]


def _layers(layers: tuple[int, ...]) -> str:
    """Layers in a few words: 0 to 5, or 0, 4, 8."""
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def _versions() -> list[tuple[str, str]]:
    """Versions of what made the numbers; `absent` for a package that is not installed under its own name."""
    found = []
    for package in _PACKAGES:
        try:
            found.append((package.replace("-", "_"), version(package)))
        except PackageNotFoundError:
            found.append((package.replace("-", "_"), "absent"))
    return [*found, ("python", platform.python_version())]
