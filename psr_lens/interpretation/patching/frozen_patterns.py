"""Attention patterns held while something steers: does it act by what attention carries, or by where attention looks?

In the steered run every head keeps the pattern of the unsteered base run, so steering changes the values that are read and nothing about
which tokens they are read from. In the prompted run the tokens that both contexts have keep the base run's pattern among each other, scaled
to the attention that the run itself leaves to them; attention to the instruction is the run's own, or nothing of it would be read. Both
are the usual freezing of attention patterns (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"), here of two runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.attention_patterns import KeyAlignment, align_keys, check_instructions
from psr_lens.activations.next_token import divergence
from psr_lens.errors import ModelError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, methods_for, strengths
from psr_lens.interpretation.patching.frozen_result import FrozenAttention
from psr_lens.interpretation.patching.grid_loop import ForcedSequence, log_probabilities
from psr_lens.models import HookedModel, fingerprint, frozen, hooked
from psr_lens.prompts import Triplet, check_triplets, instruction_label, token_table
from psr_lens.replacement import SPANS, in_force

Hooks = list[tuple[str, Any]]


@checks_arguments
def freeze_attention(
    model: HookedModel, triplets: Sequence[Triplet], methods: Methods, *, alpha: float | Mapping[str, float] = 1.0
) -> FrozenAttention:
    """Measure how close to the prompt's next-token distributions each method comes with attention free, and with it frozen.

    Frozen is every pattern as in the run without instruction and steering. The prompt is treated alike: the instruction is still read, but
    among the other tokens attention stays where it was. Responses are given; what a model would write with frozen attention has no
    meaning, since new tokens have no pattern to be held at.

    Args:
        model: The model; it is not changed.
        triplets: Prompt pairs with responses.
        methods: One replacement, plan or adapter, or several by name.
        alpha: Strength: one for all methods, or one for each by name.

    Returns:
        KL(prompted ‖ run) at each response token, with attention free and frozen; `psr.plots.frozen_attention` draws it.

    Raises:
        InputError: no triplets, a prompt without an instruction, no methods, or a reserved name.
        ArtifactError: a replacement was made for another model.
        ModelError: a layer has no attention pattern, or logits are not finite.

    Example:
        >>> found = psr.patching.freeze_attention(model, triplets[:4], {"A-PSR": pirate})
        >>> found
        FrozenAttention(4 responses; methods: A-PSR)
    """
    named = methods_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(named))
    check_triplets(model, triplets)
    check_instructions(triplets)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(int(model.cfg.n_layers))]
    if missing := [name for name in names if name not in model.hook_dict]:
        raise ModelError(f"model: got one without the hook point {missing[0]!r}, expected an attention pattern in every layer.")
    free: dict[str, list[Tensor]] = {name: [] for name in (NONE, PROMPT, *named)}
    held: dict[str, list[Tensor]] = {name: [] for name in free}
    with torch.no_grad(), frozen(model):
        for triplet in progress_bar(triplets, desc="freeze attention", unit="triplet"):
            here, there = (ForcedSequence.of(triplet, context, "R") for context in ("base", "prompted"))
            starts = {span: torch.tensor([ForcedSequence.of(triplet, "base", span).start]) for span in SPANS}
            patterns: dict[str, Tensor] = {}
            with hooked(model, [(name, _keep(patterns, name)) for name in names]):
                base = log_probabilities(model, here)[0]
            prompted = log_probabilities(model, there)[0]
            shared = _Shared(align_keys(triplet))
            with hooked(model, [(name, shared.holds(patterns[name])) for name in names]):
                still = log_probabilities(model, there)[0]
            none = _row(prompted, base)
            for found, of_prompt in ((free, prompted), (held, still)):
                found[NONE].append(none)
                found[PROMPT].append(_row(prompted, of_prompt))
            holding = [(name, _holds(patterns[name])) for name in names]
            for label, method in named.items():
                nothing: Hooks = []
                for found, hooks in ((free, nothing), (held, holding)):
                    with in_force(model, method, alphas[label], start=starts), hooked(model, hooks):
                        found[label].append(_row(prompted, log_probabilities(model, here)[0]))
    return FrozenAttention(
        instruction_label(each.pair for each in triplets),
        fingerprint(model),
        alphas,
        token_table(model, triplets, "R"),
        {label: _joined(rows) for label, rows in free.items()},
        {label: _joined(rows) for label, rows in held.items()},
    )


def _row(wanted: Float[Tensor, "token d_vocab"], found: Float[Tensor, "token d_vocab"]) -> Float[Tensor, " span_token"]:
    """KL at the tokens of a span, whose last predicts nothing."""
    return torch.cat([divergence(wanted, found).cpu(), torch.full((1,), torch.nan, dtype=torch.double)])


def _joined(rows: Sequence[Tensor]) -> Float[np.ndarray, " token"]:
    return np.asarray(torch.cat(list(rows)).numpy())


def _keep(found: dict[str, Tensor], name: str) -> Any:
    def hook(pattern: Tensor, hook: Any) -> None:
        found[name] = pattern.clone()

    return hook


def _holds(given: Float[Tensor, "1 head query key"]) -> Any:
    def hook(pattern: Tensor, hook: Any) -> Tensor:
        return given

    return hook


class _Shared:
    """The tokens that both contexts of a triplet have."""

    def __init__(self, keys: KeyAlignment) -> None:
        found = [(own, other) for own, other in enumerate(keys.counterpart) if other is not None]
        self._base, self._prompted = torch.tensor(found, dtype=torch.long).T
        self._instruction = torch.tensor(keys.instruction, dtype=torch.long)

    def holds(self, given: Float[Tensor, "1 head base_query base_key"]) -> Any:
        """A hook that puts the base run's pattern among these tokens, with as much attention as the prompted run leaves to them."""
        base, prompted, instruction = (each.to(given.device) for each in (self._base, self._prompted, self._instruction))
        wanted = given[0][:, base[:, None], base].float()
        total = wanted.sum(-1, keepdim=True)

        def hook(pattern: Tensor, hook: Any) -> Tensor:
            own = pattern[0][:, prompted].float()
            left = own.sum(-1, keepdim=True) - own[..., instruction].sum(-1, keepdim=True)
            scaled = wanted * (left / total.clamp(min=torch.finfo(torch.float32).tiny))
            changed = pattern.clone()
            # A row that looks at nothing but what the prompted context lacks has no pattern to be held at.
            changed[0][:, prompted[:, None], prompted] = torch.where(total > 0, scaled, own[..., prompted]).to(pattern.dtype)
            return changed

        return hook
