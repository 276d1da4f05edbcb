"""The replacements that an operator has an engine serve, read once when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.digests import digest_of
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError
from psr_lens.replacement import PLAN_FILE, Replacement, ReplacementSpec, SteeringPlan
from psr_lens.replacement.content_digest import content_digest
from psr_lens.replacement.site import Site

CONFIG: Final = "psr"
"""The key of vLLM's `additional_config` that holds names and folders."""
_EXAMPLE: Final = "For example `additional_config={'psr': {'pirate': 'pirate-psr'}}`."


@dataclass(frozen=True, eq=False)
class ServedPart:
    """One replacement within what a name stands for."""

    digest: str
    """Digest of what the replacement does."""
    factor: float
    """Its strength relative to that of the name."""


@dataclass(frozen=True, eq=False)
class Served:
    """All replacements of an engine."""

    replacements: Mapping[str, ReplacementSpec]
    """Each replacement by the digest of what it does, so that one that has several names is kept once."""
    named: Mapping[str, tuple[ServedPart, ...]]
    """What each name stands for: a replacement, or the parts of a plan."""

    def parts(self, name: str) -> tuple[ServedPart, ...]:
        """What a name, or the digest of a replacement, stands for.

        Raises:
            InputError: nothing goes by that name.
        """
        if name in self.named:
            return self.named[name]
        if name in self.replacements:
            return (ServedPart(name, 1.0),)
        raise InputError("psr", brief(name), f"one of the replacements that are served: {', '.join(map(repr, self.named))}")

    def sites(self) -> dict[str, list[tuple[int, Site]]]:
        """What is done at each hook point: sites, each with the index of its replacement."""
        found: dict[str, list[tuple[int, Site]]] = {}
        for index, replacement in enumerate(self.replacements.values()):
            for hook, site in replacement.sites.items():
                found.setdefault(hook, []).append((index, site))
        return found

    @property
    def digests(self) -> dict[str, list[list[Any]]]:
        """What each name stands for, as JSON content."""
        return {name: [[part.digest, part.factor] for part in parts] for name, parts in self.named.items()}

    @property
    def graph_digest(self) -> str:
        """Digest of what decides how a compiled model looks: hook points, rules, ranks and columns of strengths. Numbers are its inputs."""
        return digest_of(
            [
                [hook, [[index, site.rule, list(site.directions.shape)] for index, site in at]]
                for hook, at in sorted(self.sites().items())
            ]
        )


def served_by(additional_config: Any) -> Served | None:
    """The replacements that an engine's `additional_config` names; None if it names none.

    Raises:
        InputError: the configuration does not map names to folders.
        ArtifactError: a folder holds no artifact, or a damaged one.
    """
    given = additional_config.get(CONFIG) if isinstance(additional_config, Mapping) else None
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise InputError("additional_config['psr']", brief(given), "a mapping from names to folders", _EXAMPLE)
    replacements: dict[str, ReplacementSpec] = {}
    named: dict[str, tuple[ServedPart, ...]] = {}
    for name, folder in given.items():
        _check_entry(name, folder)
        parts = []
        for replacement, factor in _read(Path(folder)):
            digest = content_digest(replacement)
            replacements[digest] = replacement
            parts.append(ServedPart(digest, factor))
        named[name] = tuple(parts)
    return Served(replacements, named)


def _read(folder: Path) -> list[tuple[ReplacementSpec, float]]:
    if (folder / PLAN_FILE).exists():
        return [(part.replacement, part.factor) for part in SteeringPlan.load(folder).parts]
    return [(Replacement.load(folder), 1.0)]


def _check_entry(name: Any, folder: Any) -> None:
    if not isinstance(name, str) or not name.strip() or name != name.strip() or set(name) & set("@+,"):
        raise InputError(
            "additional_config['psr']",
            f"the name {brief(name)}",
            "a name without outer spaces and without '@', '+' and ',', which are reserved for names with a strength",
            _EXAMPLE,
        )
    if not isinstance(folder, str):  # a key of vLLM's compile cache, which takes only what JSON has
        raise InputError(
            f"additional_config['psr'][{name!r}]", brief(folder), "the folder of a saved replacement or plan", _EXAMPLE
        )
