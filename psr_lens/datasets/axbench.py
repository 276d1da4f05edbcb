"""AxBench's concept data: what each concept is, and inputs with outputs that have it or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.optional import package
from psr_lens.datasets._files import json_lines, shown, text_field
from psr_lens.errors import InputError

_TEXTS: Final = ("input", "output", "output_concept")
_CATEGORIES: Final = ("positive", "negative", "hard negative")
_READ: Final = (*_TEXTS, "category", "concept_id")
NO_CONCEPT: Final = -1
"""`concept_id` of the rows that belong to no concept and are negative for all of them."""


@dataclass(frozen=True)
class AxbenchConcept:
    """One concept, a line of the metadata."""

    concept_id: int
    """Its number."""
    concept: str
    """What it is, in words."""
    ref: str
    """Where it comes from: the address of a feature of a sparse autoencoder."""
    rest: Mapping[str, Any]
    """All other fields of the line, as they are."""


@dataclass(frozen=True)
class AxbenchRow:
    """One example, a row of the parquet file."""

    input: str
    """The user's question or instruction."""
    output: str
    """The answer; it may break off, for AxBench keeps 128 tokens."""
    output_concept: str
    """The concept that the answer has, in words; `EEEEE` where it has none."""
    category: str
    """`positive`, `negative` or `hard negative`."""
    concept_id: int
    """Number of the concept; −1 where the row belongs to none."""
    rest: Mapping[str, Any]
    """All other columns of the row, as they are."""


@dataclass(frozen=True)
class Axbench:
    """Concepts and their examples."""

    concepts: tuple[AxbenchConcept, ...]
    """What the concepts are."""
    rows: tuple[AxbenchRow, ...]
    """All examples, file after file."""

    def positives(self, concept_id: int) -> list[AxbenchRow]:
        """The examples that have a concept."""
        self._check(concept_id)
        return [row for row in self.rows if row.concept_id == concept_id and row.category == "positive"]

    def negatives(self, concept_id: int) -> list[AxbenchRow]:
        """The examples that do not have a concept: its own negative ones, and those that belong to no concept."""
        self._check(concept_id)
        return [row for row in self.rows if row.concept_id in (concept_id, NO_CONCEPT) and row.category != "positive"]

    def _check(self, concept_id: int) -> None:
        known = [concept.concept_id for concept in self.concepts]
        if concept_id not in known:
            raise InputError("concept_id", concept_id, f"one of {', '.join(map(str, known))}")


def read_axbench(source: str | Path | Sequence[str | Path]) -> Axbench:
    """Read AxBench's metadata (`concept_id`, `concept`, `ref`) and examples.

    Args:
        source: A folder with one file `*metadata.jsonl` and at least one `*.parquet`, read in the order of their names; or these files.

    Raises:
        InputError: files are missing, a line of the metadata or a row of a parquet file is not as it should be, or a row belongs to a
            concept that the metadata does not have.
        MissingPackageError: pyarrow is not installed (`pip install psr-lens[axbench]`).
    """
    metadata, tables = _files(source)
    concepts = [_concept(where, found) for where, found in json_lines(metadata, "axbench")]
    ids = [concept.concept_id for concept in concepts]
    if not ids or len(set(ids)) < len(ids):
        raise InputError("axbench", f"{metadata} with the concepts {ids}", "at least one concept, and none twice")
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
            "Give the files themselves in a list if the folder has more.",
        )
    return metadata[0], tables


def _table(path: Path) -> list[dict[str, Any]]:
    parquet, arrow = package("pyarrow.parquet", "axbench"), package("pyarrow", "axbench")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise InputError("axbench", f"{path} ({error})", "a parquet file that can be read") from error
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
        raise InputError("axbench", f"{where}: concept_id is {concept}", "a concept of the metadata, or −1 if negative")
    return AxbenchRow(asked, answer, words, category, concept, {name: value for name, value in found.items() if name not in _READ})
