"""`psr.play`: the playground in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psr_lens._utils.arguments import checks_arguments
from psr_lens.apps.playground.request import STRONGEST, WEAKEST
from psr_lens.apps.playground.session import UNKNOWN, Session
from psr_lens.apps.playground.widget import widget_of
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, methods_for, strengths
from psr_lens.generation.sampling import SamplingConfig, checked_sampling
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, check_pairs, prompt_pairs


@checks_arguments
def play(
    model: HookedModel,
    pairs: Sequence[PromptPair] | str,
    methods: Methods,
    *,
    instruction: str | None = None,
    alpha: float | Mapping[str, float] = 1.0,
    sampling: SamplingConfig | None = None,
) -> Any:
    """Play with a prompt and its replacements in a notebook: answers side by side, live, each method with a slider for its strength.

    Tokens are coloured as they come, by how hard the prompt or the method pushes them. A click on a token shows its magnitudes layer by
    layer, and the likeliest next tokens with and without steering. Question, instruction, seed and temperature can be edited; answers are
    those that `generate` gives. A run uses the model in a thread of its own: stop it before another cell uses the model.

    Args:
        model: The model; it is not changed.
        pairs: Questions with their instruction, the first of which is shown first; or a question, with `instruction`.
        methods: One replacement, plan or adapter, or several by name.
        instruction: The instruction, if `pairs` is a question.
        alpha: Strength to begin with, from −1 to 3: one for all methods, or one for each by name.
        sampling: How answers are drawn to begin with.

    Returns:
        A widget, which a notebook shows where it is the last value of a cell.

    Raises:
        InputError: arguments in another order, no pairs, no methods, a question without an instruction, or a strength that no slider has.
        ArtifactError: a replacement was made for another model.
        MissingPackageError: anywidget is not installed.

    Example:
        >>> psr.play(model, pairs, {"A-PSR": pirate, "CAA": caa})  # doctest: +SKIP
    """
    return widget_of(session_of(model, pairs, methods, instruction=instruction, alpha=alpha, sampling=sampling))


def session_of(
    model: HookedModel,
    pairs: Sequence[PromptPair] | str,
    methods: Methods,
    *,
    instruction: str | None = None,
    alpha: float | Mapping[str, float] = 1.0,
    sampling: SamplingConfig | None = None,
    load_model: str | None = None,
    loads: Mapping[str, str] | None = None,
) -> Session:
    """The session behind a playground; arguments and errors as for `play`, with Python that loads the model, and each method by name."""
    if isinstance(pairs, str):
        if instruction is None:
            raise InputError("instruction", None, "a text, since `pairs` is a question", 'For example `instruction="be brief ."`.')
        pairs = prompt_pairs(model, [pairs], instruction)
    elif instruction is not None:
        raise InputError("instruction", repr(instruction), "None, since prompt pairs have instructions of their own")
    check_pairs(pairs)
    named = methods_for(model, methods, (NONE, PROMPT))
    config = SamplingConfig(temperature=0.7) if sampling is None else checked_sampling(sampling)
    alphas = strengths(alpha, list(named))
    for name, strength in alphas.items():
        if not WEAKEST <= strength <= STRONGEST:
            argument = f"alpha[{name!r}]" if isinstance(alpha, Mapping) else "alpha"
            raise InputError(argument, strength, f"a strength from {WEAKEST:g} to {STRONGEST:g}, as far as the sliders go")
    return Session(model, pairs, named, alphas, config, load_model or UNKNOWN, loads or {})
