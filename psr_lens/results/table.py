"""One table for everything that is measured: a row a number, with its interval, its sample and what could not be scored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np

from psr_lens._utils.html_table import table
from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import brief, read_settings, write_artifact
from psr_lens.errors import ArtifactError, InputError

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[float, float]
NO_INTERVAL: Final[Interval] = (math.nan, math.nan)
"""Where there is none."""

FORMAT: Final = 1
_RESAMPLES: Final = 2_000
_VARIES: Final = "varies"


@dataclass(frozen=True)
class Result:
    """One number: what one method reached, in one metric, on one trait and one block of questions."""

    method: str
    """`"none"`, `"prompt"`, `"A-PSR"`, `"S-Const DiM"`, `"A-PSR + prompt"`, …"""
    metric: str
    """`"trait"`, `"coherence"`, `"TA@C80"`, `"TA@Cp"`, `"relative RMSE"`, `"KL"`, `"top-1 agreement"`, …"""
    value: float
    """The number; NaN where it could not be measured."""
    n: int
    """Samples (questions or tokens) behind it."""
    interval: Interval
    """95 % bootstrap interval; (NaN, NaN) where there is none."""
    trait: str = ""
    """Trait, concept or instruction id."""
    block: str = ""
    """Kind of questions: `"descriptions"`, `"procedures"`, `"counter-instruction"`, …"""
    alpha: float | None = None
    """Strength of the steering; None without."""
    layer: int | None = None
    """Layer that was measured or steered; None where it is not one."""
    missing: int = 0
    """Samples that could not be scored; they never count as 0."""


_FIELDS: Final = tuple(each.name for each in fields(Result))
_LABELS: Final = ("method", "metric", "trait", "block", "alpha", "layer")
"""What tells rows apart."""
_KINDS: Final = {
    **dict.fromkeys(("method", "metric", "trait", "block"), str),
    **dict.fromkeys(("n", "missing"), int),
    "layer": int | None,
}
"""What the fields that are no numbers with a fraction hold."""


@dataclass(frozen=True, repr=False)
class ResultTable:
    """Results in their order, and the settings with which they were measured."""

    rows: tuple[Result, ...]
    """The numbers."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How they were measured; what JSON can hold."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Result]:
        """The rows in their order."""
        return iter(self.rows)

    def __add__(self, other: ResultTable) -> ResultTable:
        """The rows of both; a setting in which the two differ becomes `{"varies": [each of them]}`."""
        if not isinstance(other, ResultTable):
            raise InputError("+", type(other).__name__, "a ResultTable on either side")
        settings = dict(self.settings)
        for key, value in other.settings.items():
            settings[key] = value if key not in settings else _both(settings[key], value)
        return ResultTable((*self.rows, *other.rows), settings)

    def __radd__(self, other: object) -> ResultTable:
        """What is left for Python's `sum`, which starts from 0."""
        if isinstance(other, int) and other == 0:
            return self
        raise InputError("+", type(other).__name__, "a ResultTable on either side")

    def __repr__(self) -> str:
        """How many rows, of which methods and metrics."""
        methods, metrics = (", ".join(dict.fromkeys(getattr(row, name) for row in self.rows)) for name in ("method", "metric"))
        return f"ResultTable({len(self)} rows; methods: {methods}; metrics: {metrics})"

    def select(self, **wanted: Any) -> ResultTable:
        """The rows whose fields have these values; a list, tuple or set stands for any of its members.

        Raises:
            InputError: rows have no such field.
        """
        for name in wanted:
            _check_field(name, _FIELDS)
        kept = [row for row in self.rows if all(_is_one_of(getattr(row, name), value) for name, value in wanted.items())]
        return ResultTable(tuple(kept), self.settings)

    def mean_over(self, over: Literal["trait", "block"] = "trait") -> ResultTable:
        """One row where there was one for each trait (or block), with the mean of their values.

        Rows belong together when method, metric and block (or trait) agree; alpha and layer must agree too only where a trait has
        several rows that differ in them (a curve), for else they are found for each trait by itself (TA@C80). Values that are NaN are
        left out of the mean, and the label says so: `mean of 8 of 9`.

        The interval says how the mean would move with other traits of this kind: whole traits are drawn with replacement, and the
        spread is widened by √(T/(T−1)), by which resampling T values is too narrow. Noise within a trait is part of its value and so of
        the spread. It ends where the outermost trait's own interval does. With fewer than about eight traits it is still somewhat narrow.
        A single trait keeps its own interval.

        Raises:
            InputError: `over` is neither trait nor block.
        """
        _check_field(over, ("trait", "block"))
        other = "block" if over == "trait" else "trait"
        groups = _grouped(self.rows, ("method", "metric", other))
        for name in ("layer", "alpha"):
            groups = [part for group in groups for part in (_grouped(group, (name,)) if _repeats(group, over) else [group])]
        return ResultTable(tuple(_mean(group, over) for group in groups), self.settings)

    # --- to other forms -----------------------------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a column a field; the interval is `low` and `high`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        pandas = package("pandas", "pandas")
        columns = [part for name in _FIELDS for part in (("low", "high") if name == "interval" else (name,))]
        frame: pd.DataFrame = pandas.DataFrame([_flat(row) for row in self.rows], columns=columns)
        return frame

    def to_json(self, path: str | Path) -> Path:
        """Write a file, at once or not at all; NaN is written as null, so that every reader of JSON can read it.

        Returns:
            The path.

        Raises:
            InputError: the settings hold what JSON cannot.
        """
        path = Path(path)
        write_artifact(path.parent, (path.name, {"format": FORMAT, **self.to_content()}), None)
        return path

    def to_content(self) -> dict[str, Any]:
        """As lists, numbers and texts, for `json.dumps`; NaN is None.

        Raises:
            InputError: the settings hold what JSON cannot.
        """
        return cast(dict[str, Any], _plain({"settings": self.settings, "rows": [asdict(row) for row in self.rows]}, "settings"))

    @classmethod
    def from_json(cls, path: str | Path) -> ResultTable:
        """Read a file that `to_json` wrote.

        Raises:
            ArtifactError: the file is missing, damaged, or of another format.
        """
        content = read_settings(Path(path), [FORMAT], "ResultTable.to_json")
        try:
            return cls.from_content(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: holds no table of results ({error}). Save it anew with `ResultTable.to_json`.") from error

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> ResultTable:
        """What `to_content` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        rows, settings = content["rows"], content["settings"]
        if not isinstance(rows, list) or not isinstance(settings, dict):
            raise TypeError("rows must be a list, settings a dictionary")
        return cls(tuple(map(_row_from, rows)), settings)

    def to_markdown(
        self, rows: str | Sequence[str] = "method", columns: str | Sequence[str] = "metric", *, order: Sequence[str] = ()
    ) -> str:
        """A Markdown table with `value [low, high]` in its cells; `missing` is a value that could not be measured.

        Args:
            rows: The field, or the fields, with a row for each value.
            columns: The field, or the fields, with a column for each value.
            order: Headings of columns that come first, in this order; the others follow as they appear.

        Raises:
            InputError: there is no such field, or two results fall into one cell.
        """
        head, body = self._cells(rows, columns)
        left = 1 if isinstance(rows, str) else len(rows)
        places = sorted(range(left, len(head)), key=lambda at: order.index(head[at]) if head[at] in order else len(order))
        lines = [[line[at] for at in (*range(left), *places)] for line in (head, ["---"] * len(head), *body)]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"

    def _repr_html_(self) -> str:
        """The table in a notebook: by method and metric, with a row for each trait, block, layer and strength that there is."""
        varying = [name for name in _LABELS if name != "metric" and len({getattr(row, name) for row in self.rows}) > 1]
        try:
            head, body = self._cells(["method", *(name for name in varying if name != "method")], "metric")
        except InputError:  # the same thing measured twice
            head, body = list(_flat(self.rows[0])), [[_text(value) for value in _flat(row).values()] for row in self.rows]
        return table(head, body)

    def _cells(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> tuple[list[str], list[list[str]]]:
        down, across = ([each] if isinstance(each, str) else list(each) for each in (rows, columns))
        for name in (*down, *across):
            _check_field(name, _LABELS)
        cells: dict[tuple[tuple[Any, ...], tuple[Any, ...]], Result] = {}
        for row in self.rows:
            place = (_key(row, down), _key(row, across))
            if place in cells:
                differ = [name for name in _LABELS if getattr(cells[place], name) != getattr(row, name)]
                raise InputError(
                    "rows",
                    f"{down} with columns {across}, by which two results share a cell",
                    "fields that tell all results apart",
                    f"They differ in {', '.join(differ)}: add it, `select` one, or `mean_over` it."
                    if differ
                    else "They differ in no label.",
                )
            cells[place] = row
        lefts, tops = (list(dict.fromkeys(place[side] for place in cells)) for side in (0, 1))
        head = [*down, *(", ".join(map(_text, top)) for top in tops)]
        body = [[*map(_text, left), *(_cell(cells.get((left, top))) for top in tops)] for left in lefts]
        return head, body


def _both(first: object, second: object) -> object:
    """What becomes of one setting of two tables."""
    if first == second:
        return first
    found: list[object] = []
    for each in (first, second):
        values = each[_VARIES] if isinstance(each, dict) and set(each) == {_VARIES} else [each]
        found += [value for value in values if value not in found]
    return {_VARIES: found}


def _check_field(name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        raise InputError("field", repr(name), f"one of {', '.join(known)}", f"Did you mean {close[0]!r}?" if close else "")


def _is_one_of(value: object, wanted: object) -> bool:
    return value in wanted if isinstance(wanted, list | tuple | set | frozenset) else value == wanted


def _key(row: Result, names: Collection[str]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in names)


def _grouped(rows: Sequence[Result], names: Sequence[str]) -> list[list[Result]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for row in rows:
        groups.setdefault(_key(row, names), []).append(row)
    return list(groups.values())


def _repeats(rows: Sequence[Result], over: str) -> bool:
    """Whether a trait (or block) has several rows."""
    return len({getattr(row, over) for row in rows}) < len(rows)


def _mean(rows: Sequence[Result], over: str) -> Result:
    values = np.array([row.value for row in rows], dtype=float)
    values = values[~np.isnan(values)]
    interval = NO_INTERVAL
    if len(values) == 1:
        interval = next(row.interval for row in rows if not math.isnan(row.value))
    elif len(values):
        draws = np.random.default_rng(0).choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
        wider = values.mean() + (draws - values.mean()) * math.sqrt(len(values) / (len(values) - 1))
        ends = np.array([[row.value, *row.interval] for row in rows], dtype=float)
        low, high = np.clip(np.quantile(wider, [0.025, 0.975]), np.nanmin(ends), np.nanmax(ends))
        interval = (float(low), float(high))
    of = f"{len(rows)}" if len(values) == len(rows) else f"{len(values)} of {len(rows)}"
    same = {
        name: next(iter(found)) if len(found := {getattr(row, name) for row in rows}) == 1 else None for name in ("alpha", "layer")
    }
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("n", "missing")}
    value = float(values.mean()) if len(values) else math.nan
    changes: dict[str, Any] = {over: f"mean of {of}", **same, **counts}
    return replace(rows[0], value=value, interval=interval, **changes)


def _flat(row: Result) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _FIELDS}
    return {
        part: value
        for name, both in values.items()
        for part, value in ((("low", both[0]), ("high", both[1])) if name == "interval" else ((name, both),))
    }


def _plain(value: Any, where: str) -> Any:
    """What JSON holds in the value's place: null for NaN, `"inf"` for infinity, lists for sequences."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | np.floating):
        number = float(value)
        return None if math.isnan(number) else number if math.isfinite(number) else str(number)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, where) for each in value]
    raise InputError("settings", f"{where} = {value!r} ({type(value).__name__})", "what JSON can hold")


def _row_from(content: Mapping[str, Any]) -> Result:
    known = {name: content[name] for name in _FIELDS if name in content}
    low, high = known["interval"]
    known |= {"value": _number_from(known["value"]), "interval": (_number_from(low), _number_from(high))}
    if known.get("alpha") is not None:
        known["alpha"] = _number_from(known["alpha"])
    for name, kind in _KINDS.items():
        value = known.get(name)
        if name in known and (isinstance(value, bool) or not isinstance(value, kind)):
            raise TypeError(f"{name} is {brief(value)}")
    return Result(**known)


def _number_from(value: Any) -> float:
    """What `_plain` made of a number."""
    if isinstance(value, bool) or not (value is None or value in ("inf", "-inf") or isinstance(value, int | float)):
        raise TypeError(f"{brief(value)} is no number")
    try:
        return math.nan if value is None else float(value)
    except OverflowError as error:
        raise ValueError(f"{brief(value)} is too large") from error


def _cell(row: Result | None) -> str:
    if row is None:
        return ""
    text = "missing" if math.isnan(row.value) else _number(row.value)
    if not any(math.isnan(bound) for bound in row.interval):
        text += f" [{_number(row.interval[0])}, {_number(row.interval[1])}]"
    return text + (f" ({row.missing} missing)" if row.missing else "")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(value: object) -> str:
    return "" if value is None else _number(value) if isinstance(value, float) else str(value)
