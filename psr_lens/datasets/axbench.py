"""AxBench's concept data (Wu et al. 2025, arXiv 2501.17148): concepts, and examples with and without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import package
from psr_lens.datasets._files import json_lines, shown, text_field
from psr_lens.errors import InputError

_TEXTS: Final = ("input", "output", "output_concept")
_CATEGORIES: Final = ("positive", "negative", "hard negative")
_READ: Final = (*_TEXTS, "category", "concept_id")
NO_CONCEPT: Final = -1
"""`concept_id` of the rows that belong to no concept and are negative examples of every concept."""


@dataclass(frozen=True)
class AxbenchConcept:
    """One concept, a line of the metadata.

    Example:
        >>> psr.datasets.AxbenchConcept(3, "rivers", "https://example.com/1", {}).concept
        'rivers'
    """

    concept_id: int
    """Its number."""
    concept: str
    """Its description in words."""
    ref: str
    """Its source: the address of a sparse autoencoder's feature."""
    rest: Mapping[str, Any]
    """All other fields of the line, unchanged."""


@dataclass(frozen=True)
class AxbenchRow:
    """One example, a row of a parquet file.

    Example:
        >>> psr.datasets.AxbenchRow("Where?", "By the river.", "rivers", "positive", 3, {}).category
        'positive'
    """

    input: str
    """The user's question or instruction."""
    output: str
    """The answer; it may be cut off, since AxBench keeps 128 tokens."""
    output_concept: str
    """The answer's concept in words; `EEEEE` if it has none."""
    category: str
    """`positive`, `negative` or `hard negative`."""
    concept_id: int
    """Number of the concept; −1 if the row belongs to none."""
    rest: Mapping[str, Any]
    """All other columns of the row, unchanged."""


@dataclass(frozen=True, repr=False)
class Axbench:
    """Concepts and their examples.

    Example:
        >>> concept = psr.datasets.AxbenchConcept(3, "rivers", "https://example.com/1", {})
        >>> psr.datasets.Axbench((concept,), ())
        Axbench(1 concept, 0 examples)
    """

    concepts: tuple[AxbenchConcept, ...]
    """The concepts."""
    rows: tuple[AxbenchRow, ...]
    """All examples, file by file."""

    @checks_arguments
    def positives(self, concept_id: int) -> list[AxbenchRow]:
        """The examples with a concept.

        Raises:
            InputError: an unknown concept.

        Example:
            >>> concept = psr.datasets.AxbenchConcept(3, "rivers", "https://example.com/1", {})
            >>> row = psr.datasets.AxbenchRow("Where?", "By the river.", "rivers", "positive", 3, {})
            >>> psr.datasets.Axbench((concept,), (row,)).positives(3)[0].output
            'By the river.'
        """
        self._check(concept_id)
        return [row for row in self.rows if row.concept_id == concept_id and row.category == "positive"]

    @checks_arguments
    def negatives(self, concept_id: int) -> list[AxbenchRow]:
        """The examples without a concept: its own negative examples, and those that belong to no concept.

        Raises:
            InputError: an unknown concept.

        Example:
            >>> concept = psr.datasets.AxbenchConcept(3, "rivers", "https://example.com/1", {})
            >>> row = psr.datasets.AxbenchRow("Who?", "A bear.", "EEEEE", "negative", -1, {})
            >>> psr.datasets.Axbench((concept,), (row,)).negatives(3)[0].output
            'A bear.'
        """
        self._check(concept_id)
        return [row for row in self.rows if row.concept_id in (concept_id, NO_CONCEPT) and row.category != "positive"]

    def __repr__(self) -> str:
        """Numbers of concepts and examples."""
        return f"Axbench({counted(len(self.concepts), 'concept')}, {counted(len(self.rows), 'example')})"

    def _repr_html_(self) -> str:
        head = ("concept_id", "concept", "positive", "negative")
        rows = [
            (each.concept_id, each.concept, len(self.positives(each.concept_id)), len(self.negatives(each.concept_id)))
            for each in self.concepts
        ]
        return table(head, rows, repr(self))

    def _check(self, concept_id: int) -> None:
        known = [concept.concept_id for concept in self.concepts]
        if concept_id not in known:
            raise InputError("concept_id", concept_id, f"one of {', '.join(map(str, known))}")


@checks_arguments
def read_axbench(source: str | Path | Sequence[str | Path]) -> Axbench:
    """Read AxBench's metadata (`concept_id`, `concept`, `ref`) and examples.

    Args:
        source: A folder with one file `*metadata.jsonl` and at least one `*.parquet`, read in the order of their names; or a list of
            these files.

    Raises:
        InputError: files are missing, a line of the metadata or a row of a parquet file is invalid, or a row belongs to a concept that is
            not in the metadata.
        MissingPackageError: pyarrow is not installed (`pip install psr-lens[axbench]`).

    Example:
        >>> import pyarrow, pyarrow.parquet
        >>> from pathlib import Path
        >>> _ = Path("metadata.jsonl").write_text('{"concept_id": 0, "concept": "rivers", "ref": "https://example.com/1"}')
        >>> row = {"input": "Hi", "output": "Hello.", "output_concept": "EEEEE", "category": "negative", "concept_id": 0}
        >>> pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), "train.parquet")
        >>> psr.datasets.read_axbench(".")
        Axbench(1 concept, 1 example)
    """
    metadata, tables = _files(source)
    concepts = [_concept(where, found) for where, found in json_lines(metadata, "axbench")]
    ids = [concept.concept_id for concept in concepts]
    if not ids or len(set(ids)) < len(ids):
        raise InputError("axbench", f"{metadata} with the concepts {ids}", "at least one concept, and no duplicates")
    rows = [_row(f"{path}, row {number}", found, set(ids)) for path in tables for number, found in enumerate(_table(path), start=1)]
    return Axbench(tuple(concepts), tuple(rows))


def _files(source: str | Path | Sequence[str | Path]) -> tuple[Path, list[Path]]:
    if isinstance(source, str | Path):
        folder = Path(source)
        metadata, tables = sorted(folder.glob("*metadata.jsonl")), sorted(folder.glob("*.parquet"))
    else:
        paths = [Path(path) for path in source]
        metadata = [path for path in paths if path.suffix == ".jsonl"]
        tables = [path for path in paths if path.suffix == ".parquet"]
        if len(metadata) + len(tables) < len(paths):
            other = next(path for path in paths if path.suffix not in (".jsonl", ".parquet"))
            raise InputError("axbench", str(other), "files that end in .jsonl or .parquet")
    if len(metadata) != 1 or not tables:
        raise InputError(
            "axbench",
            f"{len(metadata)} metadata files and {len(tables)} parquet files ({source})",
            "one *metadata.jsonl and at least one *.parquet",
            "If the folder has more files, give a list of those to read.",
        )
    return metadata[0], tables


def _table(path: Path) -> list[dict[str, Any]]:
    parquet, arrow = package("pyarrow.parquet", "axbench"), package("pyarrow", "axbench")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise InputError("axbench", f"{path} ({error})", "a readable parquet file") from error
    missing = [name for name in _READ if name not in table.column_names]
    if missing:
        raise InputError("axbench", f"{path} without the columns {', '.join(missing)}", f"the columns {', '.join(_READ)}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _number(found: Mapping[str, Any], where: str) -> int:
    value = found.get("concept_id")
    if isinstance(value, bool) or not isinstance(value, int):
        got = shown(value) if "concept_id" in found else "missing"
        raise InputError("axbench", f"{where}: concept_id is {got}", "a whole number as concept_id")
    return value


def _concept(where: str, found: dict[str, Any]) -> AxbenchConcept:
    rest = {name: value for name, value in found.items() if name not in ("concept_id", "concept", "ref")}
    concept, ref = (text_field(found, name, where, "axbench") for name in ("concept", "ref"))
    return AxbenchConcept(_number(found, where), concept, ref, rest)


def _row(where: str, found: dict[str, Any], known: set[int]) -> AxbenchRow:
    asked, answer, words = (text_field(found, name, where, "axbench") for name in _TEXTS)
    if (category := found["category"]) not in _CATEGORIES:
        raise InputError("axbench", f"{where}: category is {shown(category)}", f"one of {', '.join(_CATEGORIES)}")
    concept = _number(found, where)
    if concept not in known and (concept != NO_CONCEPT or category == "positive"):
        raise InputError("axbench", f"{where}: concept_id is {concept}", "a concept of the metadata, or −1 for a negative example")
    return AxbenchRow(asked, answer, words, category, concept, {name: value for name, value in found.items() if name not in _READ})
