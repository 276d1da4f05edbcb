"""Statistics of differences, accumulated batch by batch in memory that does not grow with the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import check_fields, checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.activations.hook_keys import HookKey, captured_name
from psr_lens.activations.log_histogram import BINS, histogram_quantile, log_histogram
from psr_lens.activations.paired_passes import PairedReading, row_counts
from psr_lens.errors import InputError
from psr_lens.prompts import Span

EXACT_WIDTH: Final = 512
"""Widest activation whose second moments are kept in full; wider ones are sketched."""
SKETCH_WIDTH: Final = 96
"""Columns of the sketch."""


class SecondMoments:
    """ΔᵀΔ summed over tokens: in full for narrow activations, else a sketch that keeps its leading directions.

    The sketch is `ΔᵀΔ Ω` with a fixed random `Ω` of orthonormal columns, from which the leading eigenpairs follow by Nyström's formula
    (Tropp, Yurtsever, Udell & Cevher 2017, arXiv 1706.05736, algorithm 3). It is nearly exact if a few directions hold most of the
    energy, as they do here, and never overestimates their energy.
    """

    def __init__(self, width: int) -> None:
        """Start empty."""
        self.energy = 0.0
        self._test = _test_matrix(width) if width > EXACT_WIDTH else None
        self._sum = torch.zeros(width, width if self._test is None else SKETCH_WIDTH, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "token width"]) -> None:
        """Add some tokens; in half precision they are summed in single, since their squares may overflow."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.energy += float(rows.square().sum(dtype=torch.float64))
        right = rows if self._test is None else rows @ _test_copy(rows.shape[1], rows.device, rows.dtype)
        self._sum += (rows.T @ right).cpu()

    def leading(self, rank: int) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank width"]]:
        """The largest eigenvalues of ΔᵀΔ (squared singular values of Δ) and their unit directions."""
        if self._test is None:
            values, vectors = torch.linalg.eigh(self._sum)
            return values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank].T
        if not self.energy:
            return torch.zeros(min(rank, SKETCH_WIDTH), dtype=torch.float32), self._test.T[:rank]
        # The shift keeps the Cholesky factorisation from failing; it is subtracted again.
        shift = self.energy * len(self._sum) ** 0.5 * torch.finfo(torch.float32).eps
        shifted = self._sum + shift * self._test
        core = self._test.T @ shifted
        factor = torch.linalg.cholesky((core + core.T) / 2)
        vectors, values, _ = torch.linalg.svd(
            torch.linalg.solve_triangular(factor.T, shifted, upper=True, left=False), full_matrices=False
        )
        return (values.square() - shift).clamp(min=0)[:rank], vectors[:, :rank].T


@lru_cache(maxsize=16)
def _test_copy(width: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "width column"]:
    """Ω on a device and in a type, cached because every batch and hook point of that width needs it."""
    return _test_matrix(width).to(device, dtype)


@lru_cache(maxsize=16)
def _test_matrix(width: int) -> Float[Tensor, "width column"]:
    """The fixed Ω of the sketch."""
    random = torch.randn(width, SKETCH_WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(random).Q
    return basis


@dataclass(frozen=True, eq=False, repr=False)
class HookStatistics:
    """Statistics of the differences at one hook point, over one group of tokens."""

    tokens: int
    """Number of tokens."""
    mean: Float[Tensor, "*shape"]
    """Mean difference, in the shape of one token's activation."""
    mean_magnitude: float
    """Mean of ‖Δ‖."""
    mean_cosine: float
    """Mean cosine similarity of a token's Δ to the mean difference; tokens with Δ = 0 count as 0."""
    energy: float
    """Σ‖Δ‖² over tokens."""
    first_position: int
    """Position in the response of the first entry of the fields by position; −1 is the last prompt token."""
    tokens_by_position: Int[Tensor, " position"]
    """Number of tokens at each position in the response."""
    magnitude_by_position: Float[Tensor, " position"]
    """Mean of ‖Δ‖ at each position in the response; NaN where there is no token."""
    histogram: Int[Tensor, " bin"]
    """Number of tokens by ‖Δ‖, in bins of equal width on a log scale; the first bin is for Δ = 0."""
    singular_values: Float[Tensor, " rank"]
    """Largest singular values of the matrix of differences, tokens as rows, in descending order."""
    directions: Float[Tensor, "rank width"]
    """Their right singular vectors, unit vectors over the flattened activation."""

    def __repr__(self) -> str:
        """Number of tokens, shape and mean magnitude, in one line."""
        return (
            f"HookStatistics({counted(self.tokens, 'token')} of shape {tuple(self.mean.shape)}, mean ‖Δ‖ {self.mean_magnitude:.4g})"
        )

    @checks_arguments
    def quantile(self, q: float) -> float:
        """The smallest ‖Δ‖ that at least a share `q` of the tokens does not exceed, accurate to 1 %.

        Raises:
            InputError: `q` is not between 0 and 1.
        """
        if not 0 <= q <= 1:
            raise InputError("q", q, "a number from 0 to 1")
        return histogram_quantile(self.histogram, q)

    @checks_arguments
    def rank_share(self, rank: int) -> float:
        """Share of the energy Σ‖Δ‖² in the first `rank` singular directions; NaN if the energy is 0.

        Raises:
            InputError: `rank` is below 1, or larger than the number of directions kept.
        """
        if not 1 <= rank <= len(self.singular_values):
            raise InputError("rank", rank, f"1 to {len(self.singular_values)}", "Capture with `Statistics(rank=…)` to keep more.")
        return float(self.singular_values[:rank].double().square().sum()) / self.energy if self.energy else float("nan")


class _Running:
    """The sums behind one `HookStatistics`."""

    def __init__(self, shape: tuple[int, ...], first_position: int, positions: int) -> None:
        self.shape, self.first_position = shape, first_position
        width = torch.Size(shape).numel()
        self.tokens = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.total_unit = torch.zeros(width, dtype=torch.float64)
        self.magnitude = torch.zeros(positions, dtype=torch.float64)
        self.count = torch.zeros(positions, dtype=torch.long)
        self.histogram = torch.zeros(BINS, dtype=torch.long)
        self.moments = SecondMoments(width)

    def add(self, rows: Float[Tensor, "token ..."], positions: Int[Tensor, " token"]) -> None:
        flat = rows.flatten(1) if rows.dtype == torch.float64 else rows.flatten(1).float()
        norms = torch.linalg.vector_norm(flat, dim=1)
        self.tokens += len(flat)
        self.total += flat.sum(0).to("cpu", torch.float64)
        self.total_unit += ((1 / norms).nan_to_num(posinf=0) @ flat).to("cpu", torch.float64)
        magnitude = norms.to("cpu", torch.float64)
        self.magnitude.index_add_(0, positions - self.first_position, magnitude)
        self.count += torch.bincount(positions - self.first_position, minlength=len(self.count))
        self.histogram += log_histogram(magnitude)
        self.moments.add(flat)

    def finish(self, rank: int) -> HookStatistics:
        mean = self.total / self.tokens
        length = float(mean.norm()) * self.tokens
        values, directions = self.moments.leading(rank)
        seen = int(self.count.nonzero().max()) + 1
        return HookStatistics(
            self.tokens,
            mean.reshape(self.shape).float(),
            float(self.magnitude.sum()) / self.tokens,
            float(self.total_unit @ mean) / length if length else 0.0,
            self.moments.energy,
            self.first_position,
            self.count[:seen].clone(),
            (self.magnitude / self.count)[:seen].float(),
            self.histogram,
            values.sqrt().float(),
            directions.float().clone(),
        )


@dataclass(frozen=True, eq=False, repr=False)
class CapturedStatistics:
    """Statistics of Δ at each captured hook point, over all tokens and by group; made by `capture` with `to=Statistics()`.

    Example:
        >>> statistics = psr.capture(model, triplets[:4], to=psr.Statistics(rank=4))
        >>> statistics["resid_post", 3].directions.shape
        torch.Size([4, 128])
    """

    overall: Mapping[str, HookStatistics]
    """Hook name to the statistics over all tokens."""
    by_group: Mapping[str, Mapping[str, HookStatistics]]
    """Group (such as a trait) to hook name to statistics; empty if no groups were given."""
    span: Span
    """Which tokens were captured."""
    n_layers: int | None = None
    """Depth of the model, from which negative layers count; None if it is not known."""

    def __repr__(self) -> str:
        """Numbers of hook points, tokens and groups, in one line."""
        tokens = next(iter(self.overall.values())).tokens if self.overall else 0
        groups = f", groups {', '.join(self.by_group)}" if self.by_group else ""
        return (
            f"CapturedStatistics({counted(len(self.overall), 'hook point')}, {counted(tokens, 'token')}, span {self.span}{groups})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                found.tokens,
                found.mean_magnitude,
                found.quantile(0.5),
                found.quantile(0.99),
                found.mean_cosine,
                found.rank_share(1),
            )
            for name, found in self.overall.items()
        ]
        head = ("hook point", "tokens", "mean ‖Δ‖", "median", "99 % within", "cosine to the mean", "energy in one direction")
        return table(head, rows, f"Δ on the span {self.span}" + (f", groups {', '.join(self.by_group)}" if self.by_group else ""))

    def __getitem__(self, hook: HookKey) -> HookStatistics:
        """The statistics over all tokens at one hook point: `statistics["resid_post", 3]`.

        Args:
            hook: A kind and a layer (negative layers count from the end), or a hook name.

        Raises:
            InputError: that hook point was not captured.
        """
        return self.overall[captured_name(hook, self.overall, self.n_layers)]


@dataclass(frozen=True)
class Statistics(KnownSettings):
    """Destination of `capture` that keeps statistics only; its memory does not grow with the number of triplets.

    Example:
        >>> traits = ["pirate", "pirate", "other", "other"]
        >>> psr.capture(model, triplets[:4], to=psr.Statistics(groups=traits)).by_group.keys()
        dict_keys(['pirate', 'other'])
    """

    groups: Sequence[str] | None = None
    """Group of each triplet, such as its trait; if given, statistics are kept for each group too."""
    rank: int = 16
    """Number of singular directions to keep at each hook point."""

    def __post_init__(self) -> None:
        """Refuse fields of another type."""
        check_fields(self)

    @checks_arguments
    def receive(self, reading: PairedReading) -> CapturedStatistics:
        """Read all differences, batch by batch; called by `capture`.

        Raises:
            InputError: `groups` and the triplets differ in number, or `rank` is below 1.

        Example:
            >>> psr.capture(model, triplets[:4], to=psr.Statistics())
            CapturedStatistics(6 hook points, ... tokens, span R)
        """
        if self.groups is not None and len(self.groups) != len(reading.triplets):
            raise InputError("groups", f"a list of {len(self.groups)}", f"{len(reading.triplets)}, one group for each triplet")
        if self.rank < 1:
            raise InputError("rank", self.rank, "at least 1")
        counts = row_counts(reading.triplets, reading.span)
        before = [triplet.pair.span_length(reading.span) for triplet in reading.triplets]
        first, last = -max(before), max(len(triplet.response_ids) for triplet in reading.triplets)

        def start() -> dict[str, _Running]:
            return {name: _Running(shape, first, last - first) for name, shape in reading.shapes.items()}

        overall = start()
        by_group = {group: start() for group in dict.fromkeys(self.groups or ())}
        with reading.bar() as bar:
            for indices in reading.batches(range(len(reading.triplets))):
                positions = torch.cat([torch.arange(-before[index], counts[index] - before[index]) for index in indices])
                owner = torch.tensor(indices).repeat_interleave(torch.tensor([counts[index] for index in indices]))
                members = (
                    {
                        group: torch.tensor([self.groups[index] == group for index in owner.tolist()])
                        for group in dict.fromkeys(self.groups[index] for index in indices)
                    }
                    if self.groups
                    else {}
                )

                def take(name: str, rows: Tensor, positions: Tensor = positions, members: dict[str, Tensor] = members) -> None:
                    overall[name].add(rows, positions)
                    for group, mine in members.items():
                        by_group[group][name].add(rows[mine.to(rows.device)], positions[mine])

                reading.read(indices, take)
                bar.update(len(owner))
        return CapturedStatistics(
            {name: running.finish(self.rank) for name, running in overall.items()},
            {group: {name: each.finish(self.rank) for name, each in found.items()} for group, found in by_group.items()},
            reading.span,
            int(reading.model.cfg.n_layers),
        )
