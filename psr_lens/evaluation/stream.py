"""Answers without steering, with the prompt and with each method, side by side and token by token."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, methods_for, parts_of, strengths
from psr_lens.generation.sampling import SamplingConfig, checked_sampling
from psr_lens.generation.streaming import Column, StreamedToken, stream_columns
from psr_lens.models import HookedModel, check_ids
from psr_lens.prompts import PromptPair


@checks_arguments
def stream(
    model: HookedModel,
    pair: PromptPair,
    methods: Methods,
    *,
    alpha: float | Mapping[str, float] = 1.0,
    columns: Sequence[str] | None = None,
    sampling: SamplingConfig | None = None,
    number: int = 0,
) -> Generator[StreamedToken, None, None]:
    """Answer one question without steering, with the prompt and with each method, all at once and token by token.

    Every column makes a step in turn, behind a KV cache of its own, and draws from the same random stream. Its tokens are those that
    `generate` samples with the same settings. Between two tokens the model is as it was, so that it can be used for something else.
    Hooks that others have put on it, and its weights, count as they are when the first token is asked for: those that come between two
    tokens may have no effect.
    `close()` of the generator ends it and frees its hooks and caches; so does leaving a `for` loop over it that holds the only reference.

    A replacement's magnitudes are recorded by the hooks that steer. Those of the column `prompt` need a second pass: the same tokens are
    also read after the base prompt.

    Args:
        model: The model; it is not changed.
        pair: The question, with and without the instruction.
        methods: One replacement, plan or adapter, or several by name.
        alpha: Strength: one for all methods, or one for each by name.
        columns: Which columns to answer in, in this order, of `none`, `prompt` and the methods' names; None for all.
        sampling: How answers are drawn.
        number: Number of the random stream; `generate` gives the first of its pairs 0.

    Returns:
        A generator of tokens, one of each column in turn until each has ended.

    Raises:
        InputError: arguments in another order, no methods, a reserved name, an unknown column, or a prompt that fills the model's context.
        ArtifactError: a replacement was made for another model.
        ModelError: the model has no tokenizer, or its logits are NaN or infinite.

    Example:
        >>> few = psr.SamplingConfig(temperature=0, max_new_tokens=3)
        >>> for token in psr.stream(model, pairs[0], {"A-PSR": pirate}, columns=["prompt", "A-PSR"], sampling=few):
        ...     print(token.column, repr(token.text))
        prompt 'arr'
        A-PSR 'arr'
        prompt ','
        A-PSR ','
        prompt ' to'
        A-PSR ' to'
    """
    named = methods_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(named))
    available = {NONE: Column(NONE), PROMPT: Column(PROMPT, "prompted")}
    for name, method in named.items():
        points = dict.fromkeys(point for part in parts_of(method) for point in part.replacement.sites)
        available[name] = Column(name, acting=method, alpha=alphas[name], points=tuple(points))
    chosen = list(available) if columns is None else list(columns)
    if unknown := [name for name in chosen if name not in available]:
        raise InputError("columns", ", ".join(map(repr, unknown)), f"some of {', '.join(map(repr, available))}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError("columns", repr(chosen), "at least one column, none of them twice")
    if number < 0:
        raise InputError("number", number, "a whole number, 0 or more")
    for ids in (pair.base_ids, pair.prompted_ids):
        check_ids(model, ids, "pair")
    return stream_columns(model, pair, [available[name] for name in chosen], checked_sampling(sampling), number)
