"""Replacements, and plans that combine several: `pirate + 0.5 * shout` steers wherever a replacement does.

A replacement adds directions times token-wise coefficients at hook points, instead of the instruction in the prompt. PSR and constant
steering are one class; they differ only in the rule that gives a token its coefficient. In a plan, every part reads the activation that
arrives at a hook point, and what the parts add is summed (eq. 7, with a sum over replacements), so their order does not matter.

References:
    Heyman & Vandeputte, "Steer Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907, eq. 7 and 8.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

import torch

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError
from psr_lens.replacement.gguf_export import write_control_vector
from psr_lens.replacement.saved_files import (
    FILES,
    PLAN_FILES,
    check_content,
    check_part,
    part_folder,
    read_factors,
    read_replacement,
    unfit,
    unfit_parts,
    write_plan,
    write_replacement,
)
from psr_lens.replacement.spec import ReplacementSpec, finite_number
from psr_lens.replacement.steering import Steering
from psr_lens.results.table import ResultTable

_SAME: Final = ("d_model", "n_layers", "d_vocab", "architecture")
"""Entries of the fingerprint that must agree between the parts of a plan; a fine-tuned model agrees in them with its base."""


class _Arithmetic(Steering):
    """`+`, `-` and `*` of replacements and plans; the result is a plan."""

    @abstractmethod
    def _parts(self) -> tuple[Part, ...]:
        """The parts of the plan that steers alike."""

    def _weighted(self) -> tuple[tuple[ReplacementSpec, float], ...]:
        return tuple((part.replacement, part.factor) for part in self._parts())

    def __add__(self, other: Replacement | SteeringPlan) -> SteeringPlan:
        """All parts of both: `pirate + 0.5 * shout`."""
        if not isinstance(other, Replacement | SteeringPlan):
            raise InputError(
                "+",
                f"{brief(other)} ({type(other).__name__})",
                "a replacement or a plan on either side",
                "To change the strength, multiply (`2 * plan`) or pass `alpha` to `steer`.",
            )
        return SteeringPlan((*self._parts(), *other._parts()))

    def __radd__(self, other: object) -> SteeringPlan:
        """Needed by Python's `sum`, which starts from 0."""
        return SteeringPlan(self._parts()) if isinstance(other, int) and other == 0 else self + other  # type: ignore[operator]

    def __sub__(self, other: Replacement | SteeringPlan) -> SteeringPlan:
        """All parts of both, with the strength of the other's reversed."""
        return self + (-other if isinstance(other, Replacement | SteeringPlan) else other)

    def __mul__(self, factor: float) -> SteeringPlan:
        """The same parts with their strength times a number."""
        number = finite_number(factor)
        if number is None:
            raise InputError(
                "*",
                f"{brief(factor)} ({type(factor).__name__})",
                "a finite number on one side",
                "For one strength per sequence, pass a tensor as `alpha` to `steer`.",
            )
        return SteeringPlan(tuple(replace(part, factor=part.factor * number) for part in self._parts()))

    __rmul__ = __mul__

    def __neg__(self) -> SteeringPlan:
        """The same parts with their strength reversed."""
        return self * -1


@dataclass(frozen=True, eq=False, repr=False)
class Replacement(ReplacementSpec, _Arithmetic):
    """A learned replacement for an instruction in the prompt; its fields are those of `ReplacementSpec`.

    Example:
        >>> pirate
        Replacement(A-PSR, 6 hook points from blocks.0.hook_resid_post, rank 4, span R, for organism)
        >>> pirate.sites["blocks.2.hook_resid_post"]
        Site(relu, rank 4, width 128)
    """

    _FILES: ClassVar[tuple[str, ...]] = FILES

    def __repr__(self) -> str:
        """Method, hook points, rank and span in a line."""
        ranks = sorted({site.rank for site in self.sites.values()})
        first, *others = self.sites
        where = f"{counted(len(self.sites), 'hook point')} from {first}" if others else first
        carried = "" if self.origin is None else ", {} from {}".format(*self.origin)
        return (
            f"Replacement({self.method}, {where}, "
            f"rank {'–'.join(map(str, ranks))}, span {self.span}{', last token only' if self.tokens == 'last' else ''}, "
            f"for {self.model.get('model_name')}{carried})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                site.rule,
                site.rank,
                float(torch.linalg.vector_norm(site.directions)),
                float(torch.linalg.vector_norm(site.weights)),
            )
            for name, site in self.sites.items()
        ]
        return table(("hook point", "rule", "rank", "‖z‖", "‖w‖"), rows, repr(self))

    @checks_arguments
    def with_metrics(self, metrics: ResultTable) -> Replacement:
        """The same replacement with measured results, which are saved with it and shown in its model card; earlier ones are replaced.

        Args:
            metrics: The results, e.g. `result.table()`.

        Raises:
            InputError: `metrics` is not a table of results.

        Example:
            >>> metrics = psr.ResultTable((psr.Result("A-PSR", "trait", 98.0, n=150, interval=(95.0, 100.0)),))
            >>> "| A-PSR | trait | 98 |" in pirate.with_metrics(metrics).model_card()
            True
        """
        return replace(self, metrics=metrics)

    @checks_arguments
    def to_gguf(self, path: str | Path, alpha: float = 1.0) -> Path:
        """Write a constant replacement as a GGUF control vector for llama.cpp (`--control-vector-scaled FILE 1.0`) and repeng.

        `direction.3` is what `blocks.3.hook_resid_post` gets: it is added to the output of block 3, counted from 0, as in llama.cpp and
        repeng; llama.cpp has no direction for block 0. A control vector acts on every token, the whole prompt included, whereas this
        replacement acts from the last prompt token on.

        Args:
            path: The file; an older one is replaced.
            alpha: Strength, multiplied into the directions.

        Returns:
            The path.

        Raises:
            InputError: the replacement is token-wise, acts elsewhere than after blocks 1 and later, on the last prompt token alone, or
                on the span `QR`; `alpha` is not a finite number; or `path` is a folder or leads through a file.
            MissingPackageError: `gguf` is not installed.

        Example:
            >>> caa.to_gguf("pirate.gguf", alpha=1.5).name  # llama-cli --control-vector-scaled pirate.gguf 1.0
            'pirate.gguf'
        """
        return write_control_vector(self, path, alpha)

    def _parts(self) -> tuple[Part, ...]:
        return (Part(self, 1.0),)

    def _write(self, folder: Path) -> None:
        write_replacement(folder, self)

    @classmethod
    def _read(cls, folder: Path, root: Path) -> Replacement:
        fields, checksum = read_replacement(folder, root)
        try:
            found = cls(**fields)
        except InputError as error:
            raise unfit(folder, error) from error
        check_content(folder, found, checksum)
        return found


@dataclass(frozen=True)
class Part:
    """One replacement within a plan."""

    replacement: Replacement
    """What steers."""
    factor: float
    """Its strength relative to the plan's `alpha`; its own offset is added to the product."""

    def __post_init__(self) -> None:
        """Refuse what is not a replacement with a finite factor."""
        if not isinstance(self.replacement, Replacement):
            raise InputError("replacement", f"{brief(self.replacement)} ({type(self.replacement).__name__})", "a Replacement")
        if finite_number(self.factor) is None:
            raise InputError("factor", f"{brief(self.factor)} ({type(self.factor).__name__})", "a finite number")


@dataclass(frozen=True, repr=False)
class SteeringPlan(_Arithmetic):
    """Replacements that steer together, each at its own strength and on its own span; made with `+`, `-` and `*`.

    Example:
        >>> (pirate - 0.5 * caa).method
        'A-PSR − 0.5 × S-Const DiM'
    """

    _FILES: ClassVar[tuple[str, ...]] = PLAN_FILES

    parts: tuple[Part, ...]
    """The replacements, each with the factor of its strength."""

    def __post_init__(self) -> None:
        """Refuse parts that cannot steer one model together."""
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Part) for part in self.parts):
            raise InputError("parts", brief(self.parts), "a tuple of `Part`s", "Add replacements instead: `pirate + 0.5 * shout`.")
        if not self.parts:
            raise InputError("parts", "none", "at least one replacement")
        first = self.parts[0].replacement.model
        for part in self.parts:
            theirs = part.replacement.model
            for key in _SAME:
                if key in first and key in theirs and first[key] != theirs[key]:
                    raise InputError(
                        "parts",
                        f"replacements for {first.get('model_name')} with {key}={first[key]} and for {theirs.get('model_name')} "
                        f"with {key}={theirs[key]}",
                        "replacements for one model",
                        "Fit them on the model that is to be steered.",
                    )

    @classmethod
    def of(cls, steering: Replacement | SteeringPlan) -> SteeringPlan:
        """A replacement as a plan of one part; a plan as it is.

        Raises:
            InputError: `steering` is neither.

        Example:
            >>> [part.factor for part in psr.SteeringPlan.of(pirate).parts]
            [1.0]
        """
        if not isinstance(steering, Replacement | SteeringPlan):
            raise InputError("steering", f"{brief(steering)} ({type(steering).__name__})", "a Replacement or a SteeringPlan")
        return steering if isinstance(steering, SteeringPlan) else cls(steering._parts())

    @property
    def method(self) -> str:
        """Names of the parts' methods with their factors, e.g. `A-PSR + 0.5 × A-PSR`."""
        text = ""
        for index, part in enumerate(self.parts):
            size = abs(part.factor)
            sign = ("−" if part.factor < 0 else "") if index == 0 else (" − " if part.factor < 0 else " + ")
            text += sign + ("" if size == 1 else f"{size:g} × ") + part.replacement.method
        return text

    def __repr__(self) -> str:
        """The parts with their factors in a line."""
        return f"SteeringPlan({', '.join(f'{part.factor:g} × {part.replacement!r}' for part in self.parts)})"

    def _repr_html_(self) -> str:
        rows = [(part.factor, repr(part.replacement)) for part in self.parts]
        return table(("factor", "replacement"), rows, f"SteeringPlan of {counted(len(self.parts), 'part')}")

    def _parts(self) -> tuple[Part, ...]:
        return self.parts

    def _write(self, folder: Path) -> None:
        write_plan(folder, self._weighted())

    @classmethod
    def _read(cls, folder: Path, root: Path) -> SteeringPlan:
        factors, checksums = read_factors(folder, root)
        replacements = [Replacement._read(part_folder(folder, index), root) for index in range(len(factors))]
        for index, (each, checksum) in enumerate(zip(replacements, checksums, strict=True)):
            check_part(folder, index, each, checksum)
        try:
            return cls(tuple(Part(each, factor) for each, factor in zip(replacements, factors, strict=True)))
        except InputError as error:
            raise unfit_parts(folder, error) from error
