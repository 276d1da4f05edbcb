"""One table for everything that is measured: one row per number, with its interval, sample size and number of missing scores."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import read_settings, write_artifact
from psr_lens.errors import ArtifactError, InputError
from psr_lens.results.averages import means_over
from psr_lens.results.result import FIELDS, LABELS, Result, flat, result_from_json

if TYPE_CHECKING:
    import pandas as pd

FORMAT: Final = 1
_VARIES: Final = "varies"


@dataclass(frozen=True, repr=False)
class ResultTable:
    """Results in order, and the settings with which they were measured.

    Example:
        >>> row = psr.Result("A-PSR", "trait", 97.5, n=100, interval=(95.0, 99.0), trait="pirate")
        >>> psr.ResultTable((row,), {"seed": 0})
        ResultTable(1 row; methods: A-PSR; metrics: trait)
    """

    rows: tuple[Result, ...]
    """The results."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How they were measured; values that JSON can hold."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Result]:
        """The rows in their order."""
        return iter(self.rows)

    def __add__(self, other: ResultTable) -> ResultTable:
        """The rows of both tables; a setting in which they differ becomes `{"varies": [value, value]}`."""
        if not isinstance(other, ResultTable):
            raise InputError("+", type(other).__name__, "a ResultTable on either side")
        settings = dict(self.settings)
        for key, value in other.settings.items():
            settings[key] = value if key not in settings else _both(settings[key], value)
        return ResultTable((*self.rows, *other.rows), settings)

    def __radd__(self, other: object) -> ResultTable:
        """For Python's `sum`, which starts from 0."""
        if isinstance(other, int) and other == 0:
            return self
        raise InputError("+", type(other).__name__, "a ResultTable on either side")

    def __repr__(self) -> str:
        """Number of rows, methods and metrics in one line."""
        methods, metrics = (", ".join(dict.fromkeys(getattr(row, name) for row in self.rows)) for name in ("method", "metric"))
        return f"ResultTable({counted(len(self), 'row')}; methods: {methods}; metrics: {metrics})"

    def select(self, **wanted: Any) -> ResultTable:
        """The rows whose fields have these values; a list, tuple or set matches any of its members.

        Raises:
            InputError: unknown field.

        Example:
            >>> table = psr.evaluate(model, pairs[:2], pirate, judge, calibration=psr.Calibration(targets=(), at_prompt=False)).table()
            >>> len(table), len(table.select(method=["none", "prompt"], metric="trait"))
            (8, 2)
        """
        for name in wanted:
            _check_field(name, FIELDS)
        kept = [row for row in self.rows if all(_is_one_of(getattr(row, name), value) for name, value in wanted.items())]
        return ResultTable(tuple(kept), self.settings)

    @checks_arguments
    def mean_over(self, over: Literal["trait", "block"] = "trait") -> ResultTable:
        """The mean over traits (or blocks): one row in place of one row for each of them.

        Rows are averaged when their method, metric and block (or trait) agree. Alpha and layer have to agree only where one trait has
        several rows that differ in them, as on a curve; otherwise each trait may have its own, as for TA@C80. Values that are NaN are
        left out, and the label says so: `mean of 8 of 9`.

        The interval says how the mean would vary with other traits of this kind. Whole traits are drawn with replacement, and the spread
        is widened by √(T/(T−1)), since resampling T values understates it by that factor. Noise within a trait is part of its value and
        so of the spread. The interval is clipped to the range of the traits' own intervals. With fewer than about eight traits it is still
        somewhat too narrow. A single trait keeps its own interval.

        Raises:
            InputError: `over` is neither trait nor block.

        Example:
            >>> rows = [psr.Result("A-PSR", "trait", each, 100, (each - 2, each + 2), trait=f"{each}") for each in (90, 96)]
            >>> [(row.trait, row.value) for row in psr.ResultTable(tuple(rows)).mean_over("trait")]
            [('mean of 2', 93.0)]
        """
        _check_field(over, ("trait", "block"))
        return ResultTable(tuple(means_over(self.rows, over)), self.settings)

    # --- to other forms -----------------------------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one column per field; the interval is in `low` and `high`.

        Raises:
            MissingPackageError: pandas is not installed.

        Example:
            >>> row = psr.Result("A-PSR", "trait", 97.5, n=100, interval=(95.0, 99.0))
            >>> psr.ResultTable((row,)).to_pandas()[["method", "value", "low"]].values.tolist()
            [['A-PSR', 97.5, 95.0]]
        """
        pandas = package("pandas", "pandas")
        columns = [part for name in FIELDS for part in (("low", "high") if name == "interval" else (name,))]
        frame: pd.DataFrame = pandas.DataFrame([flat(row) for row in self.rows], columns=columns)
        return frame

    @checks_arguments
    def to_json(self, path: str | Path) -> Path:
        """Write the table to a file, completely or not at all. NaN is written as null, so that every JSON reader accepts the file.

        Returns:
            The path.

        Raises:
            InputError: the settings hold a value that JSON cannot.

        Example:
            >>> psr.ResultTable((), {"seed": 0}).to_json("results.json").name
            'results.json'
        """
        path = Path(path)
        write_artifact(path.parent, (path.name, {"format": FORMAT, **self.to_content()}), None)
        return path

    def to_content(self) -> dict[str, Any]:
        """The table as lists, mappings, numbers and strings, for `json.dumps`; NaN is None.

        Raises:
            InputError: the settings hold a value that JSON cannot.

        Example:
            >>> psr.ResultTable((), {"seed": 0}).to_content()
            {'settings': {'seed': 0}, 'rows': []}
        """
        return cast(dict[str, Any], _plain({"settings": self.settings, "rows": [asdict(row) for row in self.rows]}, "settings"))

    @classmethod
    @checks_arguments
    def from_json(cls, path: str | Path) -> ResultTable:
        """Read a file written by `to_json`.

        Raises:
            ArtifactError: the file is missing, damaged, or of another format.

        Example:
            >>> psr.ResultTable.from_json(psr.ResultTable((), {"seed": 0}).to_json("results.json")).settings
            {'seed': 0}
        """
        content = read_settings(Path(path), [FORMAT], "ResultTable.to_json")
        try:
            return cls.from_content(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path}: does not hold a table of results ({error}). Save it again with `ResultTable.to_json`."
            ) from error

    @classmethod
    @checks_arguments
    def from_content(cls, content: Mapping[str, Any]) -> ResultTable:
        """The table that `to_content` was called on.

        Raises:
            KeyError, TypeError, ValueError: the mapping does not describe a table.

        Example:
            >>> len(psr.ResultTable.from_content({"settings": {}, "rows": []}))
            0
        """
        rows, settings = content["rows"], content["settings"]
        if not isinstance(rows, list) or not isinstance(settings, dict):
            raise TypeError("rows must be a list, settings a dictionary")
        return cls(tuple(map(result_from_json, rows)), settings)

    @checks_arguments
    def to_markdown(
        self, rows: str | Sequence[str] = "method", columns: str | Sequence[str] = "metric", *, order: Sequence[str] = ()
    ) -> str:
        """A Markdown table with `value [low, high]` in its cells; `missing` stands for a value that could not be measured.

        Args:
            rows: Field or fields whose values become the rows.
            columns: Field or fields whose values become the columns.
            order: Headings of the columns that come first, in this order; the others follow as they appear.

        Raises:
            InputError: unknown field, or two results share a cell.

        Example:
            >>> row = psr.Result("A-PSR", "trait", 97.5, n=100, interval=(95.0, 99.0))
            >>> print(psr.ResultTable((row,)).to_markdown(), end="")
            | method | trait |
            | --- | --- |
            | A-PSR | 97.5 [95, 99] |
        """
        head, body = self._cells(rows, columns)
        left = 1 if isinstance(rows, str) else len(rows)
        places = sorted(range(left, len(head)), key=lambda at: order.index(head[at]) if head[at] in order else len(order))
        lines = [[line[at] for at in (*range(left), *places)] for line in (head, ["---"] * len(head), *body)]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"

    def _repr_html_(self) -> str:
        """The table in a notebook: one column a metric, one row for each method and whatever else varies."""
        varying = [name for name in LABELS if name != "metric" and len({getattr(row, name) for row in self.rows}) > 1]
        try:
            head, body = self._cells(["method", *(name for name in varying if name != "method")], "metric")
        except InputError:  # two results share all labels
            head, body = list(flat(self.rows[0])), [[_text(value) for value in flat(row).values()] for row in self.rows]
        return table(head, body)

    def _cells(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> tuple[list[str], list[list[str]]]:
        down, across = ([each] if isinstance(each, str) else list(each) for each in (rows, columns))
        for name in (*down, *across):
            _check_field(name, LABELS)
        cells: dict[tuple[tuple[Any, ...], ...], Result] = {}
        for row in self.rows:
            place = tuple(tuple(getattr(row, name) for name in names) for names in (down, across))
            if place in cells:
                differ = [name for name in LABELS if getattr(cells[place], name) != getattr(row, name)]
                raise InputError(
                    "rows",
                    f"{down} with columns {across}, by which two results share a cell",
                    "fields that tell all results apart",
                    f"They differ in {', '.join(differ)}: add it, `select` one value, or use `mean_over`."
                    if differ
                    else "All their labels are the same.",
                )
            cells[place] = row
        lefts, tops = (list(dict.fromkeys(place[side] for place in cells)) for side in (0, 1))
        head = [*down, *(", ".join(map(_text, top)) for top in tops)]
        body = [[*map(_text, left), *(_cell(cells.get((left, top))) for top in tops)] for left in lefts]
        return head, body


def _both(first: object, second: object) -> object:
    """The value of a setting in the sum of two tables."""
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


def _plain(value: Any, where: str) -> Any:
    """The value as JSON can hold it: null for NaN, `"inf"` for infinity, lists for sequences."""
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
