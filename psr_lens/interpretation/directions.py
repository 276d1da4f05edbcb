"""What the parts of a replacement mean: the words that its directions promote, how they lie to each other, and the tokens that it reads.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") reads a direction of the residual stream through the model's own
last norm and unembedding, as if nothing came between.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET, row_counts
from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.activations.teacher_forced_pass import Steered, read_batch
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, frozen, tokenizer_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Span, Triplet, check_triplets
from psr_lens.replacement import Replacement, check_model

Part = Literal["directions", "weights"]
"""`directions`: what is added, `z`; `weights`: what is looked for, the probe `w`."""

Source = Replacement | CapturedStatistics | Mapping[str, Float[Tensor, "rank d_model"]]
"""Whatever has directions in the residual stream, by hook name: a replacement, the singular directions of Δ, or tensors."""

_RESIDUAL: Final = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
"""Hook points whose activations are written in the residual stream's own basis."""


@dataclass(frozen=True)
class LensRow:
    """What one direction says in words."""

    hook: str
    """Where the direction lies."""
    layer: int | None
    """The block that the hook point lies in."""
    direction: int
    """Which of the directions there, from 0."""
    promoted: tuple[str, ...]
    """Tokens whose logits it raises most, the first one most of all."""
    promoted_logits: Float[Tensor, " token"]
    """By how much, in logits of a residual stream that holds nothing else."""
    suppressed: tuple[str, ...]
    """Tokens whose logits it lowers most."""
    suppressed_logits: Float[Tensor, " token"]
    """By how much; negative."""


@dataclass(frozen=True)
class LogitLens:
    """Directions read through the model's last norm and unembedding."""

    part: Part
    """Whether they are what is added or what is looked for."""
    rows: tuple[LensRow, ...]
    """One a direction, by layer."""

    def _repr_html_(self) -> str:
        rows = [(row.hook, row.direction, ", ".join(row.promoted), ", ".join(row.suppressed)) for row in self.rows]
        return table(("hook point", "direction", "promotes", "suppresses"), rows)


@dataclass(frozen=True)
class Cosines:
    """How directions of several sources lie to each other."""

    names: tuple[str, ...]
    """Source of each row and column."""
    hooks: tuple[str, ...]
    """Hook point of each."""
    layers: tuple[int | None, ...]
    """Layer of each."""
    ranks: tuple[int, ...]
    """Number of directions that each stands for."""
    matrix: Float[Tensor, "site site"]
    """Cosine; between several directions the largest that any two combinations of them have, which is never negative. NaN where a
    direction is zero."""


@dataclass(frozen=True)
class TopToken:
    """One token that a replacement pushes hard."""

    coefficient: float
    """‖λ(A)·z‖, the length of what is added to it at α = 1, in the activation's units; or one direction's λ."""
    token: str
    """The token as the vocabulary spells it."""
    before: tuple[str, ...]
    """The tokens that precede it in the prompt and response."""
    after: tuple[str, ...]
    """The tokens that follow it in the response."""
    triplet: int
    """Index of the triplet."""
    position: int
    """Place in the response; −1 is the last prompt token."""


@dataclass(frozen=True)
class TopTokens:
    """Where, in a corpus, one site of a replacement pushes hardest."""

    hook: str
    """The site."""
    layer: int | None
    """Its layer."""
    direction: int | None
    """Which of its directions; None for all together."""
    tokens: tuple[TopToken, ...]
    """Strongest first."""
    searched: int
    """Number of tokens that were looked at."""
    active: int
    """Number of them with a coefficient above 0."""

    def _repr_html_(self) -> str:
        rows = [(each.coefficient, " ".join(each.before), each.token, " ".join(each.after)) for each in self.tokens]
        about = f"{self.hook}: {self.active:,} of {self.searched:,} tokens are pushed at all"
        return table(("coefficient", "before", "token", "after"), rows, about)


def logit_lens(model: HookedModel, source: Source, k: int = 10, *, part: Part = "directions") -> LogitLens:
    """The tokens that each direction promotes and suppresses, through the model's last norm and unembedding.

    A direction is scaled to the length that the last norm gives every residual stream, and what an empty stream says (the biases) is taken
    off, so logits of different layers can be compared. Their softcap, where a model has one, changes no order and is left out.

    Args:
        model: The model that the directions belong to.
        source: A replacement, statistics of Δ (their singular directions), or a mapping from hook names to `[rank, d_model]`.
        k: How many tokens at either end.
        part: Of a replacement, the directions `z` or the probes `w`.

    Raises:
        InputError: `k` is not possible, a direction does not lie in the residual stream, or is of another width.
        ArtifactError: the replacement was made for another model.
    """
    found = directions_of(source, part)
    if isinstance(source, Replacement):
        check_model(source, model)
    vocabulary = int(model.cfg.d_vocab)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= vocabulary // 2:
        raise InputError("k", k, f"1 to {vocabulary // 2}, half of the vocabulary")
    for name, vectors in found.items():
        if vectors.shape[1] != model.cfg.d_model:
            raise InputError(
                "source", f"directions at {name} {vectors.shape[1]} wide", f"the model's d_model of {model.cfg.d_model}"
            )
    rows = []
    for name, vectors in found.items():
        logits = residual_logits(model, vectors)
        most, least = logits.topk(k), (-logits).topk(k)
        for place in range(len(vectors)):
            promoted, suppressed = (_strings(model, top.indices[place].tolist()) for top in (most, least))
            rows.append(
                LensRow(name, layer_of(name), place, promoted, most.values[place], suppressed, -least.values[place]),
            )
    return LogitLens(part, tuple(rows))


def residual_logits(model: HookedModel, vectors: Float[Tensor, "vector d_model"]) -> Float[Tensor, "vector vocabulary"]:
    """Logits of residual streams that hold one vector each, at the length √d_model, without what an empty stream has."""
    lengths = torch.linalg.vector_norm(vectors.double(), dim=1, keepdim=True)
    scaled = (vectors.double() / lengths.clamp(min=torch.finfo(torch.float32).tiny) * math.sqrt(vectors.shape[1])).float()
    inner: Any = model
    with torch.no_grad(), frozen(model):
        weights = next(iter(inner.unembed.parameters()))
        streams = torch.cat([scaled, torch.zeros_like(scaled[:1])]).to(weights.device, weights.dtype)
        logits: Tensor = inner.unembed(inner.ln_final(streams[None]))[0].float().cpu()
    return logits[:-1] - logits[-1]


def cosines(sources: Mapping[str, Source], *, part: Part = "directions", layers: Sequence[int] | None = None) -> Cosines:
    """Cosines between the directions of several sources, site by site: across layers, traits and methods.

    Args:
        sources: Names and what they stand for, as for `logit_lens`; constant steering has directions like any replacement.
        part: Of replacements, the directions `z` or the probes `w`.
        layers: Only these layers.

    Raises:
        InputError: there are no sources, or none has a site at these layers.
    """
    if not sources:
        raise InputError("sources", "none", "at least one name and replacement")
    entries = [
        (name, hook, vectors)
        for name, source in sources.items()
        for hook, vectors in directions_of(source, part).items()
        if layers is None or layer_of(hook) in layers
    ]
    if not entries:
        raise InputError("layers", list(layers or ()), "layers at which at least one of the sources acts")
    widths = sorted({vectors.shape[1] for _, _, vectors in entries})
    if len(widths) > 1:
        raise InputError("sources", f"directions {' and '.join(map(str, widths))} wide", "directions of models of one d_model")
    matrix = torch.full((len(entries), len(entries)), float("nan"))
    for row, (_, _, left) in enumerate(entries):
        for column, (_, _, right) in enumerate(entries[: row + 1]):
            matrix[row, column] = matrix[column, row] = _cosine(left, right)
    return Cosines(
        tuple(name for name, _, _ in entries),
        tuple(hook for _, hook, _ in entries),
        tuple(layer_of(hook) for _, hook, _ in entries),
        tuple(len(vectors) for _, _, vectors in entries),
        matrix,
    )


def top_tokens(
    model: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement,
    k: int = 20,
    *,
    layer: int | None = None,
    direction: int | None = None,
    span: Span | None = None,
    per_response: int | None = 1,
    window: int = 8,
    token_budget: int = TOKEN_BUDGET,
) -> TopTokens:
    """The tokens of a corpus that a replacement pushes hardest, in their context.

    The corpus is read as the replacement steers it, at α = 1, so the coefficients are those of real use. `with_responses` makes triplets of
    any texts.

    Args:
        model: The model.
        triplets: The corpus.
        replacement: What steers.
        k: How many tokens.
        layer: The site's layer; by default the one where the replacement's directions are pushed hardest at one token.
        direction: One of the site's directions; by default what all of them add together.
        span: Which tokens to look at; the replacement's own by default.
        per_response: Most tokens taken from one response; None for no limit.
        window: How many tokens of context on either side.
        token_budget: Most tokens in a batch, padding included.

    Raises:
        InputError: no triplets, or a layer or direction that the replacement does not have.
        ArtifactError: the replacement was made for another model.
    """
    check_triplets(model, triplets)
    check_model(replacement, model)
    for name, value, least in (("k", k, 1), ("per_response", per_response or 1, 1), ("window", window, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, repr(value), f"a whole number, {least} or more")
    names = [name for name in replacement.sites if layer is None or layer_of(name) == layer]
    if not names:
        acts = sorted({str(layer_of(name)) for name in replacement.sites})
        raise InputError("layer", repr(layer), f"a layer at which the replacement acts ({', '.join(acts)})")
    if direction is not None and not 0 <= direction < min(replacement.sites[name].rank for name in names):
        raise InputError("direction", direction, f"0 to {replacement.sites[names[0]].rank - 1}, or None for all together")
    search = _Search(replacement, names, span or replacement.span, direction, k, per_response)
    for indices in progress_bar(list(length_batches(triplets, token_budget)), desc="top tokens", unit="batch"):
        search.read(model, triplets, indices)
    name = max(names, key=lambda name: search.best[name][-1][0] if search.best[name] else -1.0)
    return TopTokens(
        name,
        layer_of(name),
        direction,
        tuple(_in_context(model, triplets, found, search.span, window) for found in search.strongest(name)),
        search.searched,
        search.active[name],
    )


class _Search:
    """The strongest tokens of each site so far, in memory that does not grow with the corpus."""

    def __init__(
        self, replacement: Replacement, names: Sequence[str], span: Span, direction: int | None, k: int, per_response: int | None
    ) -> None:
        self.replacement, self.names, self.span, self.direction, self.k, self.most = (
            replacement,
            names,
            span,
            direction,
            k,
            per_response,
        )
        self.best: dict[str, list[tuple[float, int, int]]] = {name: [] for name in names}
        self.active = dict.fromkeys(names, 0)
        self.searched = 0

    def read(self, model: HookedModel, triplets: Sequence[Triplet], indices: Sequence[int]) -> None:
        """Take in one batch of triplets."""
        chosen = [triplets[index] for index in indices]
        arriving = read_batch(model, chosen, [], "base", self.span, steered=Steered(self.replacement, arriving=self.names)).arriving
        counts = row_counts(chosen, self.span)
        self.searched += sum(counts)
        for name in self.names:
            strength = self._strength(name, arriving[name].float().cpu())
            self.active[name] += int((strength > 0).sum())
            for index, own in zip(indices, strength.split(counts), strict=True):
                values, rows = own.topk(min(self.most or self.k, self.k, len(own)))
                pushed = [(value, -index, -row) for value, row in zip(values.tolist(), rows.tolist(), strict=True) if value > 0]
                self.best[name] = sorted(heapq.nlargest(self.k, [*self.best[name], *pushed]))

    def _strength(self, name: str, activation: Float[Tensor, "token ..."]) -> Float[Tensor, " token"]:
        site = self.replacement.sites[name].to(torch.device("cpu"), torch.float32)
        if self.direction is None:
            whole: Tensor = torch.linalg.vector_norm(site.intervention(activation).flatten(1), dim=1)
            return whole
        own: Tensor = site.coefficients(activation)[..., self.direction].reshape(len(activation), -1).amax(dim=1)
        return own

    def strongest(self, name: str) -> list[tuple[float, int, int]]:
        """Strength, triplet and row within the triplet's span, strongest first."""
        return [(value, -index, -row) for value, index, row in reversed(self.best[name])]


def _in_context(
    model: HookedModel, triplets: Sequence[Triplet], found: tuple[float, int, int], span: Span, window: int
) -> TopToken:
    strength, index, row = found
    triplet = triplets[index]
    ids = (*triplet.pair.base_ids, *triplet.response_ids)
    at = len(triplet.pair.base_ids) - triplet.pair.span_length(span) + row
    before, after = ids[max(0, at - window) : at], ids[at + 1 : at + 1 + window]
    position = row - triplet.pair.span_length(span)
    return TopToken(strength, _strings(model, [ids[at]])[0], _strings(model, before), _strings(model, after), index, position)


def directions_of(source: Source, part: Part = "directions") -> dict[str, Float[Tensor, "rank d_model"]]:
    """Hook names and the directions there, by layer.

    Raises:
        InputError: no such part or kind of source, or directions that do not lie in the residual stream.
    """
    if part not in get_args(Part):
        raise InputError("part", repr(part), "'directions' or 'weights'")
    if isinstance(source, Replacement):
        found = {name: getattr(site, part) for name, site in source.sites.items()}
    elif isinstance(source, CapturedStatistics):
        found = {name: statistics.directions for name, statistics in source.overall.items()}
    elif isinstance(source, Mapping) and all(isinstance(value, Tensor) for value in source.values()):
        found = dict(source)
    else:
        raise InputError(
            "source", type(source).__name__, "a Replacement, CapturedStatistics, or a mapping to [rank, d_model] tensors"
        )
    for name, vectors in found.items():
        if not name.endswith(_RESIDUAL) or vectors.ndim != 2:
            raise InputError(
                "source",
                f"directions at {name}, {' × '.join(map(str, vectors.shape))}",
                "directions in the residual stream, [rank, d_model]",
                "At other hook points they are in a basis of their own.",
            )
    return {name: vectors.detach().float().cpu() for name, vectors in sorted(found.items(), key=_by_layer)}


def _by_layer(item: tuple[str, object]) -> int:
    layer = layer_of(item[0])
    return -1 if layer is None else layer


def _cosine(left: Float[Tensor, "left width"], right: Float[Tensor, "right other"]) -> float:
    """Of two directions; else of the two combinations that lie closest (the first canonical correlation of the spans)."""
    if not left.any() or not right.any():
        return float("nan")
    if len(left) == len(right) == 1:
        return float(torch.nn.functional.cosine_similarity(left.double(), right.double())[0])
    bases = []
    for vectors in (left, right):
        _, sizes, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
        bases.append(basis[sizes > 1e-6 * sizes[0]])
    return float(torch.linalg.matrix_norm(bases[0] @ bases[1].T, 2).clamp(max=1))


def _strings(model: HookedModel, ids: Sequence[int]) -> tuple[str, ...]:
    tokens: list[str] = tokenizer_of(model).convert_ids_to_tokens(list(ids))
    return tuple(str(token) for token in tokens)
