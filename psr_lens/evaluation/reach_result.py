"""How far steered activations are from those that prompts lead to, as `reach` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import PROMPT
from psr_lens.prompts import Span, TokenTable
from psr_lens.results.bootstrap import Estimate, estimate, ratio
from psr_lens.results.medians import median
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

FAR: Final = 0.95
"""A token is far if its distance is above this quantile of the prompted runs' in the same layer."""


@dataclass(frozen=True, eq=False, repr=False)
class Reach:
    """Distances of activations from the nearest one that a prompt leads to on other questions, by method, token and layer.

    Example:
        >>> found = psr.reach(model, triplets, {"A-PSR": pirate, "CAA": caa}, alpha={"A-PSR": 1.0, "CAA": 8.0})
        >>> bool(found.relative("CAA").value[2] > found.relative("A-PSR").value[2])
        True
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    model: Mapping[str, object]
    """What identifies the model."""
    span: Span
    """Which tokens were read."""
    layers: tuple[int, ...]
    """The layers after which the residual stream was read."""
    alphas: Mapping[str, float]
    """Strength of each method."""
    tokens: TokenTable
    """What each row is."""
    references: int
    """Number of unsteered runs with whose activations those of the methods were compared."""
    reference_tokens: int
    """Number of tokens of these runs."""
    distance: Mapping[str, Float[np.ndarray, "token layer"]]
    """Method to the distance of each token from the nearest reference, root mean square over dimensions, in standard deviations of the
    references in each dimension; NaN for tokens that are massive there. `"prompt"` and `"none"` are the unsteered runs with and
    without the instruction, held out like the methods: references to the same question or with the same response do not count."""

    @cached_property
    def typical(self) -> Float[np.ndarray, " layer"]:
        """Distance of the median token of the prompted runs, the unit of `relative`."""
        return median(self.distance[PROMPT], self._owner, self.responses).value

    @property
    def responses(self) -> int:
        """Number of responses."""
        return int(self._owner.max()) + 1

    @checks_arguments
    def relative(self, method: str) -> Estimate:
        """Distance of a method's median token over that of the prompted runs' median token; 1 is as far as a prompt's own activations.

        Args:
            method: Name of a method, `"none"` or `"prompt"`.

        Returns:
            One number per layer. Its interval is over responses, with the prompted runs' median as it is; that of `"prompt"` says how
            uncertain that is.

        Raises:
            InputError: no such method.

        Example:
            >>> psr.reach(model, triplets, pirate).relative("prompt").value.tolist()
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return median(self._of(method) / self.typical, self._owner, self.responses)

    @checks_arguments
    def far(self, method: str) -> Estimate:
        """Share of a method's tokens that are farther away than 95 % of the tokens of prompted runs in the same layer.

        Few tokens that are pushed far away do not move the median; here they count. Arguments and errors are those of `relative`.

        Example:
            >>> bool((psr.reach(model, triplets, pirate).far("prompt").value <= 0.06).all())
            True
        """
        found, known = self._of(method), np.isfinite(self._of(method))
        limit = np.nanquantile(self.distance[PROMPT], FAR, axis=0, method="inverted_cdf")
        counts = np.zeros((2, self.responses, len(self.layers)))
        for kind, each in enumerate((known & (found > limit), known)):
            np.add.at(counts[kind], self._owner, each)
        return estimate(ratio(*counts), self.responses)

    def table(self) -> ResultTable:
        """Both numbers of every method and layer, with their intervals.

        Example:
            >>> found = psr.reach(model, triplets, pirate, layers=[2])
            >>> [(each.method, each.metric) for each in found.table().rows][:2]
            [('prompt', 'relative distance'), ('prompt', 'far tokens')]
        """
        rows = [
            Result(
                method,
                metric,
                float(found.value[column]),
                found.n,
                found.interval(column),
                self.instruction,
                alpha=self.alphas.get(method),
                layer=layer,
            )
            for method in self.distance
            for metric, found in (("relative distance", self.relative(method)), ("far tokens", self.far(method)))
            for column, layer in enumerate(self.layers)
        ]
        return ResultTable(tuple(rows), {"span": self.span, "reference_tokens": self.reference_tokens})

    def __repr__(self) -> str:
        """Size and methods in one line."""
        methods = ", ".join(self.alphas)
        return f"Reach({self.instruction!r}, {self.size}, span {self.span}; methods: {methods})"

    @property
    def size(self) -> str:
        """How many responses and references there are, in words."""
        return f"{counted(self.responses, 'response')} against {counted(self.reference_tokens, 'token')} of {self.references} runs"

    def _repr_html_(self) -> str:
        both = [
            (f"{name}{what}", each(name)) for name in self.distance for what, each in (("", self.relative), (", far", self.far))
        ]
        rows = [(layer, *(f"{found.value[column]:.2f}" for _, found in both)) for column, layer in enumerate(self.layers)]
        return table(["layer", *(name for name, _ in both)], rows, repr(self))

    @property
    def _owner(self) -> np.ndarray:
        owner: np.ndarray = self.tokens.triplet.numpy()
        return owner

    def _of(self, method: str) -> Float[np.ndarray, "token layer"]:
        if method not in self.distance:
            raise InputError("method", repr(method), f"one of {', '.join(map(repr, self.distance))}")
        return self.distance[method]
