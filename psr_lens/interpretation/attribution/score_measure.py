"""`score_attribution`: why heads attend to the instruction, under the prompt and under replacements, batch by batch.

The score of a head is q·k, and q is linear in the residual stream once the scale of each norm on the way is held at its value in that
pass. The residual stream is the sum of the embedding and of what all earlier blocks add, so the score is a sum over these.

What is split is the mean score with the instruction's tokens minus the mean score with the other tokens that the query can see. A softmax
does not change if a constant is added to all scores, so only differences mean anything. The other tokens weigh alike because weights must
not depend on the query: weighted by attention, the difference would no longer be linear, and contexts could not be compared. The price is
that it is not the log-odds of attention, which a single token with a very high score (often the first) may decide; therefore the attention
that follows is given too.

References:
    Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021 (the QK circuit; terms of attention scores); Heyman &
    Vandeputte, "Steer Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.attention_patterns import check_instructions
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import Rows
from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.errors import InputError, ModelError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, plans_for, strengths
from psr_lens.interpretation.attribution.chosen_heads import heads_by_layer
from psr_lens.interpretation.attribution.head_output import TOLERANCE
from psr_lens.interpretation.attribution.result import HeadReading
from psr_lens.interpretation.attribution.score_result import ScoreAttribution, Source, SourceKind
from psr_lens.interpretation.attribution.scores_by_source import AskedHead, ask
from psr_lens.models import HookedModel, dtype_of, fingerprint
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Context, Triplet, check_triplets, instruction_label, token_table
from psr_lens.replacement import SteeringPlan

TOKEN_BUDGET: Final = 1_024
"""Tokens per batch and context, padding included; the outputs of all blocks below the heads are held at once."""

_UNSTEERED: Final = 2
"""The first contexts: the prompted and the base run."""

_SITES: Final = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_attn_out",
    "hook_mlp_out",
    "hook_resid_post",
    "attn.hook_z",
    "mlp.hook_post",
)


@checks_arguments
def score_attribution(
    model: HookedModel,
    triplets: Sequence[Triplet],
    methods: Methods,
    heads: Sequence[tuple[int, int] | HeadReading],
    *,
    alpha: float | Mapping[str, float] = 1.0,
) -> ScoreAttribution:
    """Split the attention scores between responses and the instruction by what the queries are made of, in several contexts.

    Does a replacement make later layers look for the instruction as the prompt does? The instruction's keys of the prompted run are asked
    with the queries of the prompted run, of the base run, and of the base run steered with each method. A query is rotated at the
    position that its token has under the prompt; position embeddings (GPT-2) belong to the residual stream, and stay those of its own
    context.

    Args:
        model: The model; it is not changed.
        triplets: Prompt pairs with responses.
        methods: One replacement or plan, or several by name.
        heads: Layer and index of each head, for example the result of `Attribution.top_heads`.
        alpha: Strength: one for all methods, or one for each by name.

    Returns:
        The part of each source per token, head and context.

    Raises:
        InputError: no triplets, no heads or one out of range, a prompt without an instruction, a method that is an adapter or acts on
            queries or outside of layers.
        ArtifactError: a replacement was made for another model.
        ModelError: the scores are not a supported function of the residual stream, or the blocks' outputs do not sum to it.

    Example:
        >>> heads = psr.attribute(model, triplets[:4]).top_heads(2)
        >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, heads)
        >>> result.contexts
        ('prompt', 'none', 'A-PSR')
    """
    by_layer = {layer: list(dict.fromkeys(at)) for layer, at in sorted(heads_by_layer(model, heads).items())}
    if not by_layer:
        raise InputError("heads", "an empty list", "at least one head", "`psr.attribute(…).top_heads(4)` finds some.")
    triplets = list(triplets)
    check_triplets(model, triplets)
    check_instructions(triplets)
    plans = _checked(plans_for(model, methods, (NONE, PROMPT)))
    alphas = strengths(alpha, list(plans))
    passes: list[tuple[Context, PassSteering | None]] = [("prompted", None), ("base", None)]
    passes += [("base", PassSteering(plan, alphas[name])) for name, plan in plans.items()]
    acting = [set(), set(), *map(_acting, plans.values())]
    order = list(dict.fromkeys((int(each[0]), int(each[1])) for each in heads))
    rows = Rows(triplets, "R")
    with torch.inference_mode(mode=False), progress_bar(total=len(triplets), desc="score attribution", unit="triplet") as bar:
        for indices in length_batches(triplets, TOKEN_BUDGET):
            chosen, take = [triplets[index] for index in indices], rows.of(indices)
            asked, parts = _batch(model, chosen, passes, acting, by_layer)
            for head, found in asked.items():
                values = {"score": found.score, "attention": found.attention, "parts": parts[head]}
                for name, each in values.items():
                    take(f"{head}/{name}", each.transpose(0, 1))
            bar.update(len(indices))
    stacked = {
        name: torch.stack([rows.tensors[f"{head}/{name}"].transpose(0, 1) for head in order], dim=1)
        for name in ("parts", "score", "attention")
    }
    return ScoreAttribution(
        instruction_label(each.pair for each in triplets),
        fingerprint(model),
        tuple(order),
        (PROMPT, NONE, *plans),
        alphas,
        token_table(model, triplets, "R"),
        tuple(_sources(max(by_layer))),
        **stacked,
    )


def _checked(plans: Mapping[str, object]) -> dict[str, SteeringPlan]:
    found = {}
    for name, plan in plans.items():
        if not isinstance(plan, SteeringPlan):
            raise InputError(
                "methods", f"{name!r}, a {type(plan).__name__}", "replacements or plans, which leave the weights alone"
            )
        sites = [site for part in plan.parts for site in part.replacement.sites]
        if other := [site for site in sites if not site.endswith(_SITES)]:
            raise InputError("methods", f"{name!r}, which acts at {other}", "methods that act on the residual stream or on outputs")
        found[name] = plan
    return found


_KINDS: Final[tuple[SourceKind, ...]] = ("attention", "mlp", "replacement")
"""What each block adds, in order."""


def _sources(layer: int) -> list[Source]:
    """Sources of the residual stream before a layer, and biases, in the order in which `_batch` stacks them."""
    return [Source("embedding"), *(Source(kind, below) for below in range(layer) for kind in _KINDS), Source("bias")]


def _batch(
    model: HookedModel,
    triplets: Sequence[Triplet],
    passes: Sequence[tuple[Context, PassSteering | None]],
    acting: Sequence[set[int]],
    heads: Mapping[int, Sequence[int]],
) -> tuple[dict[tuple[int, int], AskedHead], dict[tuple[int, int], Float[Tensor, "context token source"]]]:
    """Scores and parts of each head; `acting` has the blocks in which something is added in each pass."""
    deepest = max(heads)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(deepest + 1)]
    names += [f"blocks.{layer}.{kind}" for layer in range(deepest) for kind in ("hook_attn_out", "hook_mlp_out")]
    if missing := [name for name in names if name not in model.hook_dict]:
        raise ModelError(f"model: got one without the hook point {missing[0]!r}, which is needed to split its residual stream.")
    read = [read_batch(model, triplets, names, context, "R", steered=steered).rows for context, steered in passes]

    def rows(kind: str, layer: int) -> Float[Tensor, "context token d_model"]:
        return torch.stack([each[f"blocks.{layer}.{kind}"] for each in read]).float()

    streams = [rows("hook_resid_pre", layer) for layer in range(deepest + 1)]
    sources = [streams[0]]
    for layer in range(deepest):
        outputs = [rows(kind, layer) for kind in ("hook_attn_out", "hook_mlp_out")]
        added = streams[layer + 1] - streams[layer] - sum(outputs)
        _check_sum(added[:_UNSTEERED], streams[layer + 1][:_UNSTEERED], layer, model)
        for each, acts in zip(added, acting, strict=True):
            if layer not in acts:
                each.zero_()  # rounding errors
        sources += [*outputs, added]
    asked = ask(model, triplets, {layer: streams[layer] for layer in heads}, heads)
    parts = {}
    for (layer, head), found in asked.items():
        split = found.bias[..., None].repeat(1, 1, len(sources) + 1)
        split[..., :-1] = torch.where(found.bias.isnan(), torch.nan, 0)[..., None]
        for column, source in enumerate(sources[: 1 + len(_KINDS) * layer]):
            split[..., column] += (found.gradient * source).sum(-1)
        parts[layer, head] = split
    return asked, parts


def _acting(plan: SteeringPlan) -> set[int]:
    """The blocks in which something is added; what is added to the stream that enters a block counts to the one below."""
    names = [name for part in plan.parts for name in part.replacement.sites]
    return {layer - name.endswith("hook_resid_pre") for name in names if (layer := layer_of(name)) is not None}


def _check_sum(
    left: Float[Tensor, "context token d_model"], stream: Float[Tensor, "context token d_model"], layer: int, model: HookedModel
) -> None:
    """Refuse models whose blocks add something else than the outputs of attention and MLP."""
    allowed = TOLERANCE + 32 * torch.finfo(dtype_of(model)).eps
    if left.norm() > allowed * stream.norm():
        raise ModelError(
            f"model: attention and MLP do not sum to the change of the residual stream at layer {layer}. This architecture scales or adds "
            "something in between, which `score_attribution` does not support; `patching` does."
        )
