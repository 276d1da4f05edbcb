"""Generation from a prompt whose last tokens carry the activations of the other prompt: patching with a judge's score as its measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from psr_lens.activations.paired_passes import collect
from psr_lens.errors import InputError
from psr_lens.evaluation.scores import Scores, scores_at
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.interpretation.patching.activation_patching import HOOKS
from psr_lens.interpretation.patching.rows import PromptRows
from psr_lens.models import HookedModel, hooked
from psr_lens.models.hook_points import check_layers
from psr_lens.prompts import Context, PromptPair, Span, Triplet
from psr_lens.results.judgement import Judge


@contextmanager
def transplant(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    hook: str = "resid_post",
    *,
    layers: str | int | Sequence[int] = "all",
    into: Context = "base",
    span: Span = "R",
    heads: Sequence[int] | None = None,
) -> Iterator[HookedModel]:
    """Inside a `with` block, prompts go on from the activations that the other context has on the prompt's part of a span.

    Under the span `R` that is the last prompt token, which predicts the first token of the response; generated tokens are left alone.

    Args:
        model: The model.
        pairs: The prompts that will be read; prompts of the other context go through as they are.
        hook: `"resid_post"`, `"resid_pre"`, `"attn_out"`, `"mlp_out"` or `"z"`.
        layers: At which layers, all of them at once.
        into: The context whose prompts are changed.
        span: `"R"`, the last prompt token, or `"QR"`, the question too.
        heads: Only these heads, at `z`.

    Raises:
        InputError: no pairs, an unknown hook, context or layer, or, inside the block, a prompt that is none of the pairs'.
    """
    if hook not in HOOKS:
        raise InputError("hook", repr(hook), f"one of {', '.join(HOOKS)}")
    if into not in get_args(Context):
        raise InputError("into", repr(into), "'base' or 'prompted'")
    if heads is not None and hook != "z":
        raise InputError("heads", heads, "None, or hook='z', where heads are apart")
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair")
    if heads is not None and not (heads and all(0 <= head < int(model.cfg.n_heads) for head in heads)):
        raise InputError("heads", heads, f"heads from 0 to {int(model.cfg.n_heads) - 1}, or None")
    names = [f"blocks.{layer}.{HOOKS[hook]}" for layer in check_layers(model, layers)]
    unique = list(dict.fromkeys(pairs))
    # A response of one token, any at all, so that the pass has what it needs; its row is not used.
    triplets = [Triplet(pair, pair.base_ids[-1:], "") for pair in unique]
    other: Context = "prompted" if into == "base" else "base"
    found = collect(model, triplets, names, other, span)
    counts = [pair.span_length(span) for pair in unique]
    ends = torch.tensor([count + 1 for count in counts]).cumsum(0).tolist()
    prompts = {pair.ids(other): len(unique) for pair in unique}
    changed_prompts = {pair.ids(into): number for number, pair in enumerate(unique)}
    if len(changed_prompts) < len(unique):
        raise InputError(
            "pairs",
            "one prompt with several counterparts",
            "one counterpart each",
            "Give each instruction's pairs a block of their own.",
        )
    prompts |= changed_prompts
    rows = PromptRows(prompts)
    places = [range(len(pair.ids(into)) - count, len(pair.ids(into))) for pair, count in zip(unique, counts, strict=True)]

    def put(name: str) -> Any:
        def hook_(activation: Tensor, hook: Any) -> Tensor | None:
            if rows.decoding:
                return None
            changed = activation.clone()
            for row, (number, start) in enumerate(zip(rows.numbers, rows.starts, strict=True)):
                if number < len(unique):
                    at = slice(start + places[number].start, start + places[number].stop)
                    given = found[name][ends[number] - 1 - counts[number] : ends[number] - 1].to(changed)
                    if heads is None:
                        changed[row, at] = given
                    else:
                        changed[row, at, list(heads)] = given[:, list(heads)]
            return changed

        return hook_

    with rows.watch(model), hooked(model, [(name, put(name)) for name in names]):
        yield model


def transplanted_scores(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    judge: Judge,
    *,
    hook: str = "resid_post",
    layers: str | int | Sequence[int] = "all",
    into: Context = "base",
    span: Span = "R",
    sampling: SamplingConfig | None = None,
) -> dict[int, Scores]:
    """Trait and coherence of answers, with each layer's activations on the prompt's part of a span taken from the other context.

    Arguments and errors are those of `transplant`, but that layers are changed one by one.

    Returns:
        Layer to scores.
    """
    scores = {}
    for layer in check_layers(model, layers):
        with transplant(model, pairs, hook, layers=layer, into=into, span=span):
            scores[layer] = scores_at(model, pairs, None, judge, context=into, method=f"{hook} {layer}", sampling=sampling)
    return scores
