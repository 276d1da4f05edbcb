"""The tokens that directions promote and suppress.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") reads a direction of the residual stream through the model's own
final norm and unembedding, as if no layer came in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import is_whole
from psr_lens.errors import InputError
from psr_lens.interpretation.directions.sources import Part, Source, directions_of
from psr_lens.models import HookedModel, frozen, tokenizer_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts.token_text import token_strings
from psr_lens.replacement import Replacement, check_compatible

Lens = Literal["logit", "jacobian"]
"""`logit`: as if no layer came in between; `jacobian`: transported to the last layer by the average Jacobian first."""


@dataclass(frozen=True, eq=False, repr=False)
class LensRow:
    """The tokens that one direction promotes and suppresses most."""

    hook: str
    """Hook point of the direction."""
    layer: int | None
    """Layer of the hook point; None outside of layers."""
    direction: int
    """Index of the direction at its hook point."""
    promoted: tuple[str, ...]
    """Tokens whose logits it raises most, the most promoted first."""
    promoted_logits: Float[Tensor, " token"]
    """How much it raises them, in logits of a residual stream that holds nothing else."""
    suppressed: tuple[str, ...]
    """Tokens whose logits it lowers most, the most suppressed first."""
    suppressed_logits: Float[Tensor, " token"]
    """How much it lowers them; negative."""

    def __repr__(self) -> str:
        """The direction, and the three tokens at either end, on one line."""
        up, down = (", ".join(map(repr, tokens[:3])) for tokens in (self.promoted, self.suppressed))
        return f"LensRow({self.hook}, direction {self.direction}: promotes {up}; suppresses {down})"


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """Directions read through the model's final norm and unembedding, as `logit_lens` and `jacobian_lens` return them."""

    part: Part
    """Whether these are directions that are added or probes that are read."""
    rows: tuple[LensRow, ...]
    """One row per direction, in the order of the layers."""
    lens: Lens = "logit"
    """Whether directions were read as they are, or as what later layers make of them."""

    def __repr__(self) -> str:
        """Number of directions and of their hook points."""
        through = " through the Jacobian lens" if self.lens == "jacobian" else ""
        return f"LogitLens({self.part}{through}: {len(self.rows)} at {len({row.hook for row in self.rows})} hook points)"

    def _repr_html_(self) -> str:
        rows = [(row.hook, row.direction, ", ".join(row.promoted), ", ".join(row.suppressed)) for row in self.rows]
        return table(("hook point", "direction", "promotes", "suppresses"), rows)


@checks_arguments
def logit_lens(model: HookedModel, source: Source, k: int = 10, *, part: Part = "directions") -> LogitLens:
    """The tokens that each direction promotes and suppresses, read through the model's final norm and unembedding.

    Each direction is scaled to the length that the final norm gives every residual stream, and the logits of an empty stream (the
    biases) are subtracted, so that logits can be compared across layers. A softcap on the logits changes no order and is left out.

    Args:
        model: The model that the directions belong to.
        source: A replacement, statistics of Δ (their singular directions), or a mapping from hook names to `[rank, d_model]` tensors.
        k: Number of promoted, and of suppressed, tokens.
        part: Of a replacement, the directions `z` or the probes `w`.

    Raises:
        InputError: `k` is out of range, or a direction is not in the residual stream or has another width.
        ArtifactError: the replacement was made for another model.

    Example:
        >>> lens = psr.logit_lens(model, pirate, k=4)
        >>> lens
        LogitLens(directions: 24 at 6 hook points)
        >>> sorted(lens.rows[20].promoted)
        ['ahoy', 'arr', 'aye', 'yoho']
    """
    return LogitLens(part, rows_of(model, readable(model, source, k, part), k))


def readable(model: HookedModel, source: Source, k: int, part: Part) -> dict[str, Float[Tensor, "rank d_model"]]:
    """The directions of a source by hook name, checked against the model; arguments and errors are those of `logit_lens`."""
    found = directions_of(source, part)
    if isinstance(source, Replacement):
        check_compatible(source, model)
    vocabulary = int(model.cfg.d_vocab)
    if not is_whole(k) or not 1 <= k <= vocabulary // 2:
        raise InputError("k", k, f"1 to {vocabulary // 2}, half of the vocabulary")
    for name, vectors in found.items():
        if vectors.shape[1] != model.cfg.d_model:
            raise InputError(
                "source", f"directions at {name} {vectors.shape[1]} wide", f"the model's d_model of {model.cfg.d_model}"
            )
    return found


def rows_of(model: HookedModel, found: Mapping[str, Float[Tensor, "rank d_model"]], k: int) -> tuple[LensRow, ...]:
    """A row for each direction, with the `k` tokens at either end."""
    rows = []
    for name, vectors in found.items():
        logits = residual_logits(model, vectors)
        most, least = logits.topk(k), (-logits).topk(k)
        for index in range(len(vectors)):
            promoted, suppressed = (token_strings(tokenizer_of(model), top.indices[index].tolist()) for top in (most, least))
            rows.append(
                LensRow(name, layer_of(name), index, promoted, most.values[index], suppressed, -least.values[index]),
            )
    return tuple(rows)


def residual_logits(model: HookedModel, vectors: Float[Tensor, "vector d_model"]) -> Float[Tensor, "vector vocabulary"]:
    """Logits of residual streams that hold one vector each, scaled to length √d_model, minus those of an empty stream."""
    lengths = torch.linalg.vector_norm(vectors.double(), dim=1, keepdim=True)
    scaled = (vectors.double() / lengths.clamp(min=torch.finfo(torch.float32).tiny) * math.sqrt(vectors.shape[1])).float()
    inner: Any = model
    with torch.no_grad(), frozen(model):
        weights = next(iter(inner.unembed.parameters()))
        streams = torch.cat([scaled, torch.zeros_like(scaled[:1])]).to(weights.device, weights.dtype)
        logits: Tensor = inner.unembed(inner.ln_final(streams[None]))[0].float().cpu()
    return logits[:-1] - logits[-1]
