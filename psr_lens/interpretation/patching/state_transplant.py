"""Generation from a prompt whose last tokens carry the activations of the other context: patching measured by a judge's score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.paired_passes import collect
from psr_lens.errors import InputError
from psr_lens.evaluation.scores import Scores, scores_at
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.interpretation.patching.patchable_hooks import other_context, patchable_points
from psr_lens.interpretation.patching.prompt_of_each_row import PromptRows
from psr_lens.models import HookedModel, TemporaryHooks, hooked
from psr_lens.models.hook_points import Layers
from psr_lens.prompts import Context, PromptPair, Span, Triplet
from psr_lens.results.judgement import Judge


@checks_arguments
@contextmanager
def transplant(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    hook: str = "resid_post",
    *,
    layers: Layers = "all",
    into: Context = "base",
    span: Span = "R",
    heads: Sequence[int] | None = None,
) -> Iterator[HookedModel]:
    """Inside a `with` block, give prompts the activations that the other context has at the prompt's tokens of a span.

    In the span `R` this is the last prompt token, which predicts the first token of the response. Generated tokens are not changed.

    Args:
        model: The model.
        pairs: The prompts that will be read. Prompts of the other context are not changed.
        hook: `"resid_post"`, `"resid_pre"`, `"attn_out"`, `"mlp_out"` or `"z"`.
        layers: Layers to change, all at once.
        into: The context whose prompts are changed.
        span: `"R"`, the last prompt token, or `"QR"`, the question too.
        heads: Heads to change, at `"z"` only; all by default.

    Raises:
        InputError: no pairs, an unknown hook or context, a layer or head out of range, or, inside the block, a prompt that
            belongs to none of the pairs.

    Example:
        >>> with psr.patching.transplant(model, pairs[:2], layers=5):
        ...     answers = psr.generate(model, pairs[:2])
        >>> len(answers)
        2
    """
    names, other = list(patchable_points(model, hook, layers)), other_context(into)
    _check_heads(model, heads, hook)
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair")
    unique = list(dict.fromkeys(pairs))
    # The pass needs a response: one token, any at all. Its row is not used.
    triplets = [Triplet(pair, pair.base_ids[-1:], "") for pair in unique]
    found = collect(model, triplets, names, other, span)
    counts = [pair.span_length(span) for pair in unique]
    ends = torch.tensor([count + 1 for count in counts]).cumsum(0).tolist()
    prompts = {pair.ids(other): len(unique) for pair in unique}
    changed_prompts = {pair.ids(into): number for number, pair in enumerate(unique)}
    if len(changed_prompts) < len(unique):
        raise InputError(
            "pairs",
            "one prompt with several counterparts",
            "one counterpart for each prompt",
            "Use a block of its own for each instruction.",
        )
    prompts |= changed_prompts
    rows = PromptRows(prompts)

    def put(name: str) -> Any:
        def hook_(activation: Tensor, hook: Any) -> Tensor | None:
            if rows.decoding:
                return None
            changed = activation.clone()
            for row, (number, start) in enumerate(zip(rows.numbers, rows.starts, strict=True)):
                if number < len(unique):
                    end = start + len(unique[number].ids(into))
                    at = slice(end - counts[number], end)
                    given = found[name][ends[number] - 1 - counts[number] : ends[number] - 1].to(changed)
                    if heads is None:
                        changed[row, at] = given
                    else:
                        changed[row, at, list(heads)] = given[:, list(heads)]
            return changed

        return hook_

    with rows.watch(model), hooked(model, TemporaryHooks((name, put(name)) for name in names)):
        yield model


def _check_heads(model: HookedModel, heads: Sequence[int] | None, hook: str) -> None:
    if heads is None:
        return
    if hook != "z":
        raise InputError("heads", heads, "None, or hook='z', which has one activation per head")
    if not (heads and all(0 <= head < int(model.cfg.n_heads) for head in heads)):
        raise InputError("heads", heads, f"heads from 0 to {int(model.cfg.n_heads) - 1}, or None")


@checks_arguments
def transplanted_scores(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    judge: Judge,
    *,
    hook: str = "resid_post",
    layers: Layers = "all",
    into: Context = "base",
    span: Span = "R",
    sampling: SamplingConfig | None = None,
) -> dict[int, Scores]:
    """Trait and coherence of answers with one layer's activations transplanted from the other context, layer by layer.

    Args:
        model: The model.
        pairs: Prompt pairs that nothing was fitted on.
        judge: Scores the answers.
        hook: As for `transplant`.
        layers: Layers to change, one at a time.
        into: The context whose prompts are changed.
        span: As for `transplant`.
        sampling: How answers are sampled.

    Returns:
        Scores by layer.

    Raises:
        InputError: as for `transplant`.

    Example:
        >>> scores = psr.patching.transplanted_scores(model, pairs[:2], judge, layers=[5])
        >>> scores[5].method, scores[5].n
        ('resid_post 5', 2)
    """
    scores = {}
    for layer in patchable_points(model, hook, layers).values():
        with transplant(model, pairs, hook, layers=layer, into=into, span=span):
            scores[layer] = scores_at(model, pairs, None, judge, context=into, method=f"{hook} {layer}", sampling=sampling)
    return scores
