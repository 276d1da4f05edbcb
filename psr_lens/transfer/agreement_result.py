"""Where two models push the same tokens, as `agreement` returns it: for every pair of layers, with intervals over texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens.errors import InputError
from psr_lens.prompts import TokenTable
from psr_lens.results.bootstrap import Estimate, estimate
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable
from psr_lens.transfer.gate_reading import GateReading
from psr_lens.transfer.layer_matching import LayerPairs, best_monotone_matching
from psr_lens.transfer.pairing import PairedRows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """Where an instruction pushes the same tokens in two models, and whether the gates of one are read from the other's activations.

    Example:
        >>> psr.transfer.agreement(model, psr.load_model("organism-gpt2"), triplets)
        Agreement('talk like a pirate', organism → organism-gpt2, 16 texts, ... pairs of tokens: log ‖Δ‖ correlates 0... [..., ...])
    """

    instruction: str
    """The instruction of the first text."""
    source_model: Mapping[str, Any]
    """Fingerprint of the source."""
    target_model: Mapping[str, Any]
    """Fingerprint of the target."""
    source_tokens: TokenTable
    """All tokens of the source on the span `R`."""
    target_tokens: TokenTable
    """All tokens of the target."""
    pairs: PairedRows
    """The pairs of tokens, as rows of these tables; without massive ones."""
    texts: int
    """Number of texts."""
    massive: int
    """Number of pairs left out, because either model has a massive activation at that token after some layer."""
    source_magnitude: Float[Tensor, "pair source"]
    """‖Δ‖ of the source at each pair's token after each of its layers, in the activations' units."""
    target_magnitude: Float[Tensor, "pair target"]
    """The same of the target."""
    gates: GateReading | None = None
    """How well the gates of the source's replacement are read from the target; None if none was given."""
    back: GateReading | None = None
    """How well those of the target's replacement are read from the source; None if none was given."""

    @cached_property
    def magnitude(self) -> Float[Tensor, "source target"]:
        """Correlation of log ‖Δ‖ over all pairs of tokens, for every pair of layers; NaN where one of them does not vary."""
        counted, sums = self._sums([(s, t) for s in range(self._sizes[0]) for t in range(self._sizes[1])])
        return torch.from_numpy(_correlation(np.ones((1, self.texts)), counted, sums)[0]).reshape(self._sizes).float()

    @cached_property
    def matching(self) -> LayerPairs:
        """The source layer that goes with each target layer: the best monotone matching of `magnitude`."""
        return best_monotone_matching(self.magnitude)

    def matched(self) -> Estimate:
        """Correlation of log ‖Δ‖ at the matched pairs of layers, one for each target layer, with its interval over texts.

        Example:
            >>> psr.transfer.agreement(model, model, triplets[:4]).matched().value.round(2)
            array([1., 1., 1., 1., 1., 1.])
        """
        counted, sums = self._sums(self.matching)
        return estimate(lambda weights: _correlation(weights, counted, sums), self.texts)

    def mean(self) -> Estimate:
        """Mean of these correlations over the target's layers, with its interval over texts.

        Example:
            >>> round(float(psr.transfer.agreement(model, model, triplets[:4]).mean().value), 2)
            1.0
        """
        counted, sums = self._sums(self.matching)
        return estimate(lambda weights: np.nanmean(_correlation(weights, counted, sums), axis=1), self.texts)

    @checks_arguments
    def at(self, source_layer: int, target_layer: int) -> Estimate:
        """Correlation of log ‖Δ‖ at one pair of layers, with its interval over texts.

        Args:
            source_layer: Layer of the source.
            target_layer: Layer of the target.

        Raises:
            InputError: layers that the models do not have.

        Example:
            >>> round(float(psr.transfer.agreement(model, model, triplets[:4]).at(2, 2).value), 2)
            1.0
        """
        for name, layer, size in zip(("source_layer", "target_layer"), (source_layer, target_layer), self._sizes, strict=True):
            if not 0 <= layer < size:
                raise InputError(name, layer, f"a layer from 0 to {size - 1}")
        counted, sums = self._sums([(source_layer, target_layer)])
        return estimate(lambda weights: _correlation(weights, counted, sums)[:, 0], self.texts)

    def table(self) -> ResultTable:
        """The numbers at the matched pairs of layers, and their means.

        Correlations have a row for each target layer, `from layer` the source's; R² has one for each gate, `from layer` the reader's.

        Example:
            >>> psr.transfer.agreement(model, model, triplets[:4]).table()
            ResultTable(7 rows; methods: organism → organism; metrics: correlation of log ‖Δ‖)
        """
        there, here = (str(each.get("model_name")) for each in (self.source_model, self.target_model))
        rows = self._rows(f"{there} → {here}", "correlation of log ‖Δ‖", self.matching, self.matched(), self.mean())
        for name, found in ((f"{there} → {here}", self.gates), (f"{here} → {there}", self.back)):
            if found is not None:
                read = tuple((reader, gate) for gate, reader in found.matching)
                rows += self._rows(name, "R² of gates", read, found.matched(), found.mean())
                rows.append(self._row(name, "R² of shuffled gates", found.control_mean(), (), "mean"))
        return ResultTable(tuple(rows), {"source_model": dict(self.source_model), "target_model": dict(self.target_model)})

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame.

        Raises:
            MissingPackageError: pandas is not installed.

        Example:
            >>> len(psr.transfer.agreement(model, model, triplets[:4]).to_pandas())
            7
        """
        return self.table().to_pandas()

    def __repr__(self) -> str:
        """Models, size and the headline numbers, in one line."""
        names = " → ".join(str(each.get("model_name")) for each in (self.source_model, self.target_model))
        said = [f"log ‖Δ‖ correlates {_said(self.mean())}"]
        for name, found in (("gates", self.gates), ("gates back", self.back)):
            if found is not None:
                said.append(f"{name} R² {_said(found.mean())}, shuffled {float(found.control_mean().value):.2f}")
        size = f"{self.texts} texts, {len(self.pairs.text):,} pairs of tokens"
        return f"Agreement({self.instruction!r}, {names}, {size}: {'; '.join(said)})"

    def _repr_html_(self) -> str:
        found = self.matched()
        rows = [(target, source, _said(found, at)) for at, (source, target) in enumerate(self.matching)]
        return table(("target layer", "source layer", "correlation of log ‖Δ‖"), rows, repr(self))

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.source_magnitude.shape[1], self.target_magnitude.shape[1]

    def _sums(self, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """What correlations need of each text: numbers of tokens, and sums of x, y, x², y² and xy, by pair of layers."""
        text = self.pairs.text.numpy()
        logs = [each.double().log() for each in (self.source_magnitude, self.target_magnitude)]  # −∞ where nothing is changed
        known = [each.isfinite() for each in logs]
        clean = [torch.where(finite, each, 0.0) for each, finite in zip(logs, known, strict=True)]
        means = [(each.sum(0) / finite.sum(0).clamp(min=1)) for each, finite in zip(clean, known, strict=True)]
        x, y = (torch.where(finite, each - mean, 0.0).numpy() for each, mean, finite in zip(clean, means, known, strict=True))
        counted = np.zeros((self.texts, len(pairs)))
        sums = np.zeros((5, self.texts, len(pairs)))
        for at, (s, t) in enumerate(pairs):
            both = (known[0][:, s] & known[1][:, t]).numpy()
            left, right = x[:, s] * both, y[:, t] * both
            counted[:, at] = np.bincount(text, both.astype(float), minlength=self.texts)
            for row, values in enumerate((left, right, left * left, right * right, left * right)):
                sums[row, :, at] = np.bincount(text, values, minlength=self.texts)
        return counted, sums

    def _rows(self, method: str, metric: str, pairs: LayerPairs, found: Estimate, mean: Estimate) -> list[Result]:
        rows = [self._row(method, metric, found, (at,), f"from layer {other}", layer) for at, (other, layer) in enumerate(pairs)]
        return [*rows, self._row(method, metric, mean, (), "mean")]

    def _row(self, method: str, metric: str, found: Estimate, at: tuple[int, ...], block: str, layer: int | None = None) -> Result:
        return Result(method, metric, float(found.value[at]), found.n, found.interval(*at), self.instruction, block, layer=layer)


def _correlation(
    weights: Float[np.ndarray, "resample text"], counted: Float[np.ndarray, "text pair"], sums: Float[np.ndarray, "5 text pair"]
) -> Float[np.ndarray, "resample pair"]:
    count = weights @ counted
    x, y, xx, yy, xy = (weights @ each for each in sums)
    below = (count * xx - x**2) * (count * yy - y**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = np.where(below > 1e-18 * (count * xx) * (count * yy), (count * xy - x * y) / np.sqrt(below), np.nan)
    return found


def _said(found: Estimate, *at: int) -> str:
    low, high = found.interval(*at)
    return f"{float(found.value[at]):.2f} [{low:.2f}, {high:.2f}]"
