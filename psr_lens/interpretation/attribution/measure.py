"""`attribute`: the split of each token's Δ over layers, heads and what the heads read, batch by batch.

After every block, `Δ_post = Δ_pre + Σ_heads (parts) + Δ_mlp`, whether attention and MLP are sequential or parallel. Unrolled, Δ after
layer L is the difference of the embeddings (0 except for position embeddings) plus what all heads and MLPs up to L add. Both contexts
run through the model in one batch, and each layer is split up during the pass, so that only one layer of one batch is in memory.

References:
    Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, for the sum over heads and layers; Heyman & Vandeputte, "Steer
    Like the LLM: Activation Steering that Mimics Prompting", ICML 2026, arXiv 2605.03907, section 3, for Δ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import is_whole
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import context_batch, length_batches
from psr_lens.activations.paired_passes import Difference, stacked
from psr_lens.errors import InputError
from psr_lens.interpretation.attribution.head_output import head_outputs
from psr_lens.interpretation.attribution.head_reading import Keys
from psr_lens.interpretation.attribution.result import Attribution
from psr_lens.interpretation.attribution.running_sums import SourceSums, TokenSums
from psr_lens.interpretation.attribution.split_by_layer import SplitLayer, above_rounding, delta_after, split_layers
from psr_lens.models import HookedModel, device_of, dtype_of, fingerprint, frozen
from psr_lens.models.hook_points import Layers, check_layers, layer_of
from psr_lens.prompts import Span, Triplet, check_triplets, instruction_label, token_table
from psr_lens.replacement import Replacement, check_compatible

TOKEN_BUDGET: Final = 4_096
"""Tokens per batch and context, padding included; attention patterns take more memory per token here than in `capture`."""

_STREAM: Final = ("hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out", "hook_resid_post")


@checks_arguments
def attribute(
    model: HookedModel,
    triplets: Sequence[Triplet],
    *,
    layers: Layers = "all",
    span: Span = "R",
    difference: Difference = "accumulated",
    target: int | None = None,
    project: Replacement | Mapping[int, Float[Tensor, "rank d_model"]] | None = None,
    by_source: bool = False,
) -> Attribution:
    """Split Δ exactly over layers, MLPs, heads, and what each head reads.

    Args:
        model: The model; it is not changed.
        triplets: Prompt pairs with responses.
        layers: Layers to split. Leave it at `"all"` with a `target`, which needs every layer up to it.
        span: Tokens to read: `"R"`, the last prompt token and the response, or `"QR"`, the question too.
        difference: `"accumulated"`, the difference from the base run, or `"local"`, what each layer alone adds because of the prompt.
        target: Measure all parts against Δ after this layer (−1 for the last), so that shares are comparable across layers and sum to
            1 over all of them. With None, each layer is measured against its own Δ.
        project: A replacement, or directions by layer, onto which the parts of each layer are projected; with a `target`, the
            directions of that layer.
        by_source: Also split what each head reads by the instruction's tokens.

    Returns:
        Norms and shares of every part: two numbers per token, layer, head and part, and one more per direction of `project`.

    Raises:
        InputError: no triplets, a layer out of range, a target together with `layers` or `"local"`, or directions of another width.
        ArtifactError: the replacement was made for another model.
        ModelError: the outputs of the model's heads and MLPs do not sum to the residual stream in a supported way.

    Example:
        >>> result = psr.attribute(model, triplets[:4])
        >>> result.top_heads(1)[0].layer
        0
        >>> bool(result.remainder.max() < 1e-4)
        True
    """
    if difference not in get_args(Difference):
        raise InputError("difference", repr(difference), "'accumulated' or 'local'")
    wanted = check_layers(model, layers)
    if target is not None:
        target = _checked_target(model, layers, target, difference)
        wanted = list(range(target + 1))
    triplets = list(triplets)
    check_triplets(model, triplets)
    sums = TokenSums(triplets, span, wanted, _directions(model, project))
    sources = SourceSums(triplets, wanted, int(model.cfg.n_heads)) if by_source else None
    dtype = dtype_of(model)
    bar = progress_bar(total=len(triplets), desc="attribute", unit="triplet")
    with torch.no_grad(), frozen(model), bar:
        outputs = head_outputs(model, triplets[:4], wanted)
        for indices in length_batches(triplets, TOKEN_BUDGET):
            chosen = [triplets[index] for index in indices]
            both = stacked(*(context_batch(chosen, context, span, device_of(model)) for context in ("base", "prompted")))
            keys, take = Keys.of(chosen, both), sums.of(indices)
            fixed = None if target is None else above_rounding(*delta_after(model, both, target), dtype)

            def each(split: SplitLayer) -> None:
                toward = above_rounding(split.delta, split.size, dtype) if fixed is None else fixed  # noqa: B023 (used within the turn)
                sums.add(take, split, toward, split.layer if target is None else target)  # noqa: B023
                if sources is not None:
                    sources.add(indices, keys, split, toward)  # noqa: B023

            split_layers(model, both, keys, outputs, difference, each)
            bar.update(len(indices))
    unrolled = target is not None
    return Attribution(
        instruction_label(each.pair for each in triplets),
        fingerprint(model),
        span,
        difference,
        target,
        token_table(model, triplets, span),
        tuple(wanted),
        sums.magnitude(),
        sums.split("norm", lowest_only=unrolled),
        sums.split("share", lowest_only=unrolled),
        sums.remainder(model),
        sums.projections(lowest_only=unrolled),
        None if sources is None else sources.result(model),
    )


def _checked_target(model: HookedModel, layers: object, target: int, difference: Difference) -> int:
    if difference == "local":
        raise InputError(
            "target", target, "None with difference='local'", "What a layer adds on its own has no parts in other layers."
        )
    if layers != "all":
        raise InputError("layers", repr(layers), "'all' with a target", "All layers up to the target have parts in its Δ.")
    depth = int(model.cfg.n_layers)
    if not is_whole(target) or not -depth <= target < depth:
        raise InputError("target", repr(target), f"a layer from 0 to {depth - 1} (this model has {depth}), or None")
    return int(target) % depth


def _directions(
    model: HookedModel, project: Replacement | Mapping[int, Float[Tensor, "rank d_model"]] | None
) -> dict[int, Float[Tensor, "rank d_model"]]:
    """Unit directions by layer."""
    found: dict[int, list[Tensor]] = {}
    if isinstance(project, Replacement):
        check_compatible(project, model)
        for name, site in project.sites.items():
            layer = layer_of(name)
            if layer is None or not name.endswith(_STREAM):
                raise InputError(
                    "project", f"a replacement that acts at {name!r}", "one that acts on the residual stream of layers"
                )
            found.setdefault(layer, []).append(site.directions)
    elif project is not None:
        check_layers(model, list(project))
        found = {layer % int(model.cfg.n_layers): [rows] for layer, rows in project.items()}
    width = int(model.cfg.d_model)
    joined = {layer: torch.cat(parts).to(device_of(model), torch.float32) for layer, parts in found.items()}
    for layer, rows in joined.items():
        if rows.ndim != 2 or rows.shape[1] != width:
            raise InputError("project", f"{tuple(rows.shape)} for layer {layer}", f"directions of shape (rank, {width})")
    return {layer: torch.nn.functional.normalize(rows, dim=1) for layer, rows in joined.items()}
