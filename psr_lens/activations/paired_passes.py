"""Teacher-forced passes over many triplets, batch by batch: `collect` reads one context, `PairedReading` what an instruction changes.

The same responses are read in both contexts, and the rows of the span are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.activations.attention_patterns import INSTRUCTION, PatternColumns
from psr_lens.activations.batches import ContextBatch, context_batch, length_batches, sharing_saves, suffix_batch
from psr_lens.activations.finite import check_finite
from psr_lens.activations.teacher_forced_pass import PassSteering, after_prompts, gather, keep, layers_needed, read_batch
from psr_lens.models import Decoder, HookedModel, can_extend_by_several, device_of, forward, hooked, is_altered
from psr_lens.models.hook_points import is_pattern
from psr_lens.prompts import Context, Span, Triplet, check_triplets

Take = Callable[[str, Float[Tensor, "token ..."]], None]
"""A function that gets a hook name and a batch's rows there, triplet by triplet."""

Difference = Literal["accumulated", "local"]
"""`accumulated`: prompted minus base context; `local`: what one layer adds if its input is already that of the prompted context."""

TOKEN_BUDGET: Final = 8_192
"""Default for the most tokens in a batch, padding included."""

MOST_PADDING: Final = {"cpu": 0.02}
"""Both contexts share one forward pass if that adds at most this share of padding; a CPU gains almost nothing from it."""
MOST_PADDING_ELSEWHERE: Final = 0.15
"""The same on a GPU, which is seldom fully used."""


def collect(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    context: Context,
    span: Span,
    *,
    steered: PassSteering | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> dict[str, Float[Tensor, "token ..."]]:
    """Activations at hook points on the span, from one teacher-forced pass over all triplets in one context.

    Args:
        model: The model.
        triplets: Prompt pairs with responses.
        names: Hook names.
        context: Which prompt the responses follow.
        span: Which tokens to keep.
        steered: Steering in force during the pass; None for the model as it is. At the names in its `arriving`, the activations are
            read before it acts there.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        Hook name to `[token, …]` on the CPU, rows in the order of `token_table`.
    """
    check_triplets(model, triplets)
    gathered = Rows(triplets, span)
    arriving = () if steered is None else steered.arriving
    after = [name for name in names if name not in arriving]
    with progress_bar(total=len(triplets), desc=f"read {context}", unit="triplet") as bar:
        for indices in length_batches(triplets, token_budget):
            chosen = [triplets[index] for index in indices]
            found = read_batch(model, chosen, after, context, span, steered=steered)
            take = gathered.of(indices)
            for name in names:
                take(name, (found.arriving if name in arriving else found.rows)[name])
            bar.update(len(indices))
    return {name: gathered.tensors[name] for name in names}


class Rows:
    """Tensors with one row per token, in the order of the triplets; filled batch by batch, in any order."""

    def __init__(self, triplets: Sequence[Triplet], span: Span, dtype: torch.dtype | None = None) -> None:
        """Start without tensors; numbers are kept as `dtype`, or in the type that they come in if None."""
        self.counts = row_counts(triplets, span)
        self.offsets = [0]
        for count in self.counts:
            self.offsets.append(self.offsets[-1] + count)
        self.tensors: dict[str, Tensor] = {}
        self._dtype = dtype

    def at(self, indices: Sequence[int]) -> Int[Tensor, " token"]:
        """The numbers of the rows of a batch of the triplets `indices`."""
        return torch.cat([torch.arange(self.offsets[index], self.offsets[index + 1]) for index in indices])

    def of(self, indices: Sequence[int]) -> Take:
        """A function that stores the rows of a batch of the triplets `indices` in their place, on the CPU.

        It raises a ModelError if a number is too large for the type in which it is kept.
        """
        into = self.at(indices)

        def take(name: str, rows: Float[Tensor, "token ..."]) -> None:
            if name not in self.tensors:
                self.tensors[name] = torch.empty(self.offsets[-1], *rows.shape[1:], dtype=self._dtype or rows.dtype)
            kept = rows.to("cpu", self.tensors[name].dtype)
            if torch.finfo(kept.dtype).max < torch.finfo(rows.dtype).max:
                check_finite({name: kept}, f"They are too large for {kept.dtype}: keep them as bfloat16 or float32.")
            self.tensors[name].index_copy_(0, into, kept)

        return take


def row_counts(triplets: Sequence[Triplet], span: Span) -> list[int]:
    """Number of tokens of each triplet on a span."""
    return [triplet.pair.span_length(span) + len(triplet.response_ids) for triplet in triplets]


@dataclass(frozen=True, eq=False)
class PairedReading:
    """Reads what an instruction changes at hook points, batch by batch, and hands it to a destination."""

    model: HookedModel
    """The model."""
    triplets: Sequence[Triplet]
    """Prompt pairs with responses."""
    shapes: Mapping[str, tuple[int, ...]]
    """Hook name to the shape of one token's row; an attention pattern has a second entry, for the instruction's columns."""
    dtype: torch.dtype
    """Data type in which the model computes."""
    span: Span = "R"
    """Which tokens are read."""
    difference: Difference = "accumulated"
    """Which difference is taken."""
    token_budget: int = TOKEN_BUDGET
    """Most tokens in a batch, padding included."""

    @property
    def hooks(self) -> list[str]:
        """Names of the hook points to read."""
        return [name for name in self.shapes if not name.endswith(INSTRUCTION)]

    def bar(self, tokens: int | None = None) -> Any:
        """A progress bar over `tokens` tokens, by default those of all triplets."""
        total = sum(row_counts(self.triplets, self.span)) if tokens is None else tokens
        return progress_bar(total=total, desc="capture", unit="token", unit_scale=True)

    def batches(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """Batch some triplets for `read`: by length, or by prompt if the responses to one prompt share its computation."""
        triplets = [self.triplets[index] for index in chosen]
        for batch in length_batches(triplets, self.token_budget, by_prompt=self._shares_prompts(triplets)):
            yield [chosen[index] for index in batch]

    def read(self, indices: Sequence[int], take: Take, take_norm: Take | None = None) -> None:
        """Read one batch, and hand over the rows on its spans, one hook point at a time, on the model's device.

        Only the activations that are still to be subtracted are kept, and blocks after the last hook point are not run.

        Args:
            indices: The triplets of the batch.
            take: Gets the differences.
            take_norm: Gets ‖A‖, the norms of the activations that the differences are measured from.

        Raises:
            ModelError: activations are not finite; names the hook point.
        """
        columns = self._pattern_columns([self.triplets[index] for index in indices], device_of(self.model))

        def subtract(name: str, before: Tensor, after: Tensor) -> None:
            if take_norm is not None:
                wide = torch.promote_types(before.dtype, torch.float32)  # a sum of squares overflows half precision
                take_norm(name, torch.linalg.vector_norm(before.flatten(1), dim=1, dtype=wide))
            for part, rows in _difference(name, before, after, columns).items():
                check_finite({part: rows})
                take(part, rows)

        self.read_both(indices, subtract)

    def read_both(self, indices: Sequence[int], take: Callable[[str, Tensor, Tensor], None]) -> None:
        """As `read`, but hand over what would be subtracted: the rows in the base context, and those in the prompted one."""
        triplets = [self.triplets[index] for index in indices]
        device = device_of(self.model)
        make = suffix_batch if self._shares_prompts(triplets) else context_batch
        base, prompted = (make(triplets, context, self.span, device) for context in ("base", "prompted"))
        if self.difference == "local":
            self._local(base, prompted, take)
        else:
            self._accumulated(base, prompted, take)

    def _pattern_columns(self, triplets: Sequence[Triplet], device: torch.device) -> PatternColumns | None:
        for name in self.hooks:
            if is_pattern(name):
                keys, instruction_keys = self.shapes[name][-1], self.shapes[f"{name}{INSTRUCTION}"][-1]
                return PatternColumns.of(triplets, self.span, keys, instruction_keys, device)
        return None

    def _shares_prompts(self, triplets: Sequence[Triplet]) -> bool:
        if any(is_pattern(name) for name in self.hooks):
            return False  # a pattern has a column for every token of the context
        if not can_extend_by_several(self.model) or is_altered(self.model):
            return False  # hooks of others may act on the prompt, and differently in each response
        return sharing_saves(triplets, self.span, ("base", "prompted"))

    def _accumulated(self, base: ContextBatch, prompted: ContextBatch, subtract: Callable[[str, Tensor, Tensor], None]) -> None:
        left = set(self.hooks)  # HookedTransformer fires LayerNorm points once each for queries, keys and values
        if base.prefix is None and _fit_together(base, prompted):
            both = stacked(base, prompted)
            in_base, in_prompted = both.rows.chunk(2)

            def subtract_halves(name: str) -> Any:
                def hook(activation: Tensor, hook: Any) -> None:
                    if name in left:
                        left.remove(name)
                        subtract(name, *(gather(activation, both, these, name) for these in (in_base, in_prompted)))

                return hook

            self._run(both, [(name, subtract_halves(name)) for name in self.hooks])
            return
        held: dict[str, Tensor] = {}
        self._run(base, [(name, keep(held, name, base)) for name in self.hooks])

        def subtract_held(name: str) -> Any:
            def hook(activation: Tensor, hook: Any) -> None:
                if name in held:
                    subtract(name, held.pop(name), gather(activation, prompted, prompted.rows, name))

            return hook

        self._run(prompted, [(name, subtract_held(name)) for name in self.hooks])

    def _local(self, base: ContextBatch, prompted: ContextBatch, subtract: Callable[[str, Tensor, Tensor], None]) -> None:
        """Replace every block's output on the span by the prompted one, so that each block gets the prompted input."""
        depth = layers_needed(self.hooks)
        outputs = [f"blocks.{layer}.hook_resid_post" for layer in range(self.model.cfg.n_layers if depth is None else depth)]
        wanted: dict[str, Tensor] = {}
        self._run(prompted, [(name, keep(wanted, name, prompted)) for name in dict.fromkeys([*self.hooks, *outputs])])

        def replace(name: str) -> Any:
            def hook(activation: Tensor, hook: Any) -> Tensor:
                replaced = activation.clone()
                replaced.flatten(0, 1)[base.rows.to(replaced.device)] = wanted[name].to(replaced.device)
                return replaced

            return hook

        reached: dict[str, Tensor] = {}
        # At a block's output the reading hook comes first, so it sees what the block itself computed.
        reading = [(name, keep(reached, name, base)) for name in self.hooks]
        self._run(base, [*reading, *((name, replace(name)) for name in outputs)])
        for name in self.hooks:
            subtract(name, reached.pop(name), wanted.pop(name))

    def _run(self, batch: ContextBatch, hooks: list[tuple[str, Any]]) -> None:
        depth = layers_needed([name for name, _ in hooks])
        if batch.prefix is None:
            with hooked(self.model, hooks):
                forward(self.model, batch.tokens, batch.mask, depth)
            return
        decoder = after_prompts(Decoder(self.model, len(batch.prefix.tokens)), batch.prefix, depth)
        with hooked(self.model, hooks):
            decoder.step(batch.tokens, batch.whole_mask, depth)


def _fit_together(base: ContextBatch, prompted: ContextBatch) -> bool:
    short, long = sorted((base.tokens.shape[1], prompted.tokens.shape[1]))
    return short >= (1 - MOST_PADDING.get(base.tokens.device.type, MOST_PADDING_ELSEWHERE)) * long


def stacked(base: ContextBatch, prompted: ContextBatch) -> ContextBatch:
    """Both contexts of some triplets in one batch: base sequences first, padded on the right to one width."""
    width = max(base.tokens.shape[1], prompted.tokens.shape[1])
    parts = [
        torch.cat([torch.nn.functional.pad(values, (0, width - values.shape[1])) for values in pair])
        for pair in ((base.tokens, prompted.tokens), (base.mask, prompted.mask), (base.span, prompted.span))
    ]
    return ContextBatch(parts[0], parts[1], parts[2], torch.cat([base.start, prompted.start]))


def _difference(name: str, base: Tensor, prompted: Tensor, columns: PatternColumns | None) -> dict[str, Tensor]:
    """Prompted minus base, by name; `prompted` is overwritten."""
    if columns is not None and is_pattern(name):
        changed, on_instruction = columns.align(base, prompted)
        return {name: changed, f"{name}{INSTRUCTION}": on_instruction}
    return {name: prompted.sub_(base)}
