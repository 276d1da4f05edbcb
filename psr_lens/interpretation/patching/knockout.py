"""Attention knock-out: hide the instruction from some heads, and change nothing else.

A head's attention to the instruction's tokens is set to 0, and the rest of the row is rescaled to its previous sum. This is the same as
hiding those keys from the softmax (the attention knock-out of Geva et al. 2023, "Dissecting Recall of Factual Associations in
Auto-Regressive Language Models", arXiv 2304.14767). The head then reads what it would have read without the instruction. Mean ablation,
the alternative, depends on a data set of instructions and keeps what those have in common, so it is not used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.attention_patterns import align_keys
from psr_lens.errors import InputError
from psr_lens.interpretation.attribution import HeadReading
from psr_lens.interpretation.attribution.chosen_heads import heads_by_layer
from psr_lens.interpretation.patching.prompt_of_each_row import PromptRows
from psr_lens.models import HookedModel, TemporaryHooks, hooked
from psr_lens.prompts import PromptPair, Span, Triplet


@checks_arguments
@contextmanager
def knock_out(
    model: HookedModel,
    pairs: Sequence[PromptPair | Triplet],
    heads: Sequence[tuple[int, int] | HeadReading],
    *,
    span: Span | None = None,
) -> Iterator[HookedModel]:
    """Inside a `with` block, hide the instruction from some heads.

    This works in teacher-forced passes, in `psr_lens.generate` and in everything built on it, for any batch of the given prompts, padded
    on either side. Base prompts have no instruction and are not changed. The instruction's own tokens still attend to each other.

    Args:
        model: The model.
        pairs: The prompts that will be read.
        heads: Layer and index of each head, for example the result of `Attribution.top_heads`.
        span: Hide the instruction from the tokens of this span and from generated tokens; None for every token after the instruction.

    Raises:
        InputError: a head out of range, no pairs, or, inside the block, a prompt that belongs to none of the pairs.

    Example:
        >>> with psr.patching.knock_out(model, pairs, [(0, 3)]):
        ...     answers = psr.generate(model, pairs[:2], context="prompted")
        >>> len(answers)
        2
    """
    by_layer = heads_by_layer(model, heads)
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair")
    unique = list(dict.fromkeys(each.pair if isinstance(each, Triplet) else each for each in pairs))
    hidden: list[Sequence[int]] = [align_keys(Triplet(pair, (), "")).instruction for pair in unique]
    first = [_first_reader(pair, instruction, span) for pair, instruction in zip(unique, hidden, strict=True)]
    prompts = {pair.prompted_ids: number for number, pair in enumerate(unique)}
    untouched = len(hidden)
    prompts |= {pair.base_ids: untouched for pair in unique if pair.base_ids not in prompts}
    rows = PromptRows(prompts)
    hidden, first = [*hidden, ()], [*first, 0]

    def hide(chosen: list[int]) -> Any:
        def hook(pattern: Tensor, hook: Any) -> Tensor:
            keys = torch.zeros(len(pattern), rows.length, dtype=torch.bool, device=pattern.device)
            keys[rows.index(hidden, pattern.device)] = True
            keys = keys[:, -pattern.shape[3] :]  # a cache may have dropped keys outside a sliding window
            changed = pattern.clone()
            changed[:, chosen] = _without(pattern[:, chosen], keys[:, None] & readers(pattern)[..., None])
            return changed

        return hook

    def readers(pattern: Tensor) -> Tensor:
        """Queries from which the instruction is hidden, `[batch, query]`."""
        positions = torch.arange(pattern.shape[2], device=pattern.device)
        if rows.decoding:
            return torch.ones_like(positions, dtype=torch.bool).expand(len(pattern), -1)
        begins = [start + first[number] for number, start in zip(rows.numbers, rows.starts, strict=True)]
        return positions >= torch.tensor(begins, device=pattern.device)[:, None]

    with (
        rows.watch(model),
        hooked(model, TemporaryHooks((f"blocks.{layer}.attn.hook_pattern", hide(at)) for layer, at in by_layer.items())),
    ):
        yield model


def _without(
    pattern: Float[Tensor, "batch head query key"], hidden: Bool[Tensor, "batch query key"]
) -> Float[Tensor, "batch head query key"]:
    """Attention with some keys hidden and each row rescaled to its previous sum; 0 where no key is left."""
    before = pattern.float()
    after = before.masked_fill(hidden[:, None], 0)
    taken, left = (before - after).sum(-1, keepdim=True), after.sum(-1, keepdim=True)
    factor = torch.where(taken > 0, before.sum(-1, keepdim=True) / left.clamp(min=torch.finfo(left.dtype).tiny), 1)
    return (after * factor).to(pattern.dtype)


def _first_reader(pair: PromptPair, instruction: Sequence[int], span: Span | None) -> int:
    """Position in the prompted context of the first token from which the instruction is hidden."""
    if span is not None:
        return len(pair.prompted_ids) - pair.span_length(span)
    return instruction[-1] + 1 if instruction else 0
