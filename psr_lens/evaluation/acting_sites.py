"""What replacements add at their hook points, and what would have been right there: shared by `compare` and `faithfulness`.

Relative RMSE is `‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖` over all tokens of the span, as in figure 3 of Heyman & Vandeputte 2026: 1 is no steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.evaluation.methods import Plan, parts_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Span, Triplet
from psr_lens.replacement import Part, Replacement, Site


def positions(triplets: Sequence[Triplet], span: Span) -> Int[Tensor, " token"]:
    """Position in the response of every token of a span, triplet after triplet; −1 is the last prompt token."""
    return torch.cat([torch.arange(-each.pair.span_length(span), len(each.response_ids)) for each in triplets])


def relative_rmse(error: Float[Tensor, "*layer"], energy: Float[Tensor, "*layer"]) -> Float[Tensor, "*layer"]:
    """‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖ from the sums of squares over all tokens; NaN if the prompt changes nothing."""
    return torch.where(energy > 0, (error / energy).sqrt(), torch.nan)


def squares(rows: Float[Tensor, "token ..."]) -> Float[Tensor, " token"]:
    """‖·‖² of every token, in double precision."""
    return rows.double().flatten(1).square().sum(1)


@dataclass(frozen=True, eq=False)
class SiteReading:
    """What a plan did at one hook point, and what would have been right; missing is prompted − arriving activation."""

    coefficient: Float[Tensor, " token"]
    """Length of what was added, over all heads, in the activation's units; signed if there is a single direction."""
    projection: Float[Tensor, " token"]
    """Length of what was missing within the span of the directions, of each head's own; signed if there is a single direction."""
    acting: Bool[Tensor, " token"]
    """Whether any part of the plan acts on the token."""
    missing: Float[Tensor, " token"]
    """‖missing‖²."""
    within: Float[Tensor, " token"]
    """‖missing‖² within the span of the directions: the most that any coefficients could add."""
    left: Float[Tensor, " token"]
    """‖missing − added‖²."""


@dataclass(frozen=True, eq=False)
class ActingSite:
    """A hook point at which a plan acts, ready for use on one device."""

    name: str
    """The hook point."""
    parts: tuple[tuple[Part, Site], ...]
    """Each part of the plan that acts there, with its site."""
    basis: Float[Tensor, "*head rank width"]
    """Orthonormal rows that span the directions of all parts, of each head's own; rows beyond their rank are zero."""

    @classmethod
    def all_of(cls, plan: Plan, device: torch.device) -> list[ActingSite]:
        """All hook points at which a plan acts, in the order of the layers; an adapter acts at none."""
        found: dict[str, list[tuple[Part, Site]]] = {}
        for part in parts_of(plan):
            for name, site in part.replacement.sites.items():
                found.setdefault(name, []).append((part, site.to(device, torch.float32)))
        return [
            cls(name, tuple(at), _basis(torch.cat([site.directions for _, site in at], dim=-2)))
            for name, at in sorted(found.items(), key=lambda item: layer_of(item[0]) or 0)
        ]

    @property
    def layer(self) -> int:
        """Its layer."""
        return layer_of(self.name) or 0

    @property
    def rank(self) -> int:
        """Dimensions of the span of the directions, over all heads."""
        return int(self.basis.flatten(0, -2).any(-1).sum())

    def within(self, rows: Float[Tensor, "token *head width"]) -> Float[Tensor, " token"]:
        """Squared length of each row within the span of the directions."""
        return squares(self._coordinates(rows))

    def read(
        self,
        arriving: Float[Tensor, "token *head width"],
        prompted: Float[Tensor, "token *head width"],
        position: Int[Tensor, " token"],
        alpha: float,
    ) -> SiteReading:
        """What the plan adds to activations as they arrive, compared with what the prompt makes of them.

        Args:
            arriving: Activations before the plan acts here, with everything that it did at earlier hook points.
            prompted: Activations of the same tokens under the prompt.
            position: Position in the response, as in `TokenTable`.
            alpha: Strength of the plan.
        """
        arriving = arriving.float()
        missing = prompted.float() - arriving
        added, acting = self.added(arriving, position, alpha)
        return SiteReading(
            self._along(added), self._along(missing), acting, squares(missing), self.within(missing), squares(missing - added)
        )

    def added(
        self, arriving: Float[Tensor, "token *head width"], position: Int[Tensor, " token"], alpha: float
    ) -> tuple[Float[Tensor, "token *head width"], Bool[Tensor, " token"]]:
        """What the plan adds to activations as they arrive, and on which tokens it acts; arguments as for `read`."""
        arriving = arriving.float()
        added = torch.zeros_like(arriving)
        acting = torch.zeros(len(position), dtype=torch.bool, device=arriving.device)
        for part, site in self.parts:
            on = acts_on(part.replacement, position).to(arriving.device)
            strength = (alpha * part.factor + part.replacement.offset) * on
            added += strength.reshape(-1, *[1] * (arriving.ndim - 1)) * site.intervention(arriving)
            acting |= on
        return added, acting

    def _coordinates(self, rows: Float[Tensor, "token *head width"]) -> Float[Tensor, "token *head rank"]:
        return torch.einsum("t...w,...rw->t...r", rows, self.basis)

    def _along(self, rows: Float[Tensor, "token *head width"]) -> Float[Tensor, " token"]:
        """Length within the span of the directions; signed if there is a single direction."""
        within = self._coordinates(rows)
        if self.basis.shape[:-1] == (1,):
            # A prompt may push against a direction, which a ReLU cannot.
            return within[:, 0] * torch.sign(self.parts[0][1].directions[0] @ self.basis[0])
        length: Tensor = torch.linalg.vector_norm(within.flatten(1), dim=1)
        return length


def acts_on(replacement: Replacement, position: Int[Tensor, " token"]) -> Bool[Tensor, " token"]:
    """Which tokens a replacement acts on, by their positions in the response."""
    if replacement.span == "QR":
        return torch.ones_like(position, dtype=torch.bool)
    return position == -1 if replacement.tokens == "last" else position >= -1


def _basis(directions: Float[Tensor, "*head rank width"]) -> Float[Tensor, "*head rank width"]:
    _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
    # Directions may be zero, or multiples of each other.
    kept: Tensor = basis * (sizes > 1e-6 * sizes.amax(-1, keepdim=True)).unsqueeze(-1)
    return kept
