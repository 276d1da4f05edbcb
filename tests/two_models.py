"""Some pirate texts in both organisms, and a reading of their activations by plain transformers with hooks of its own."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from helpers import BACKENDS

import psr_lens as psr


def by_hand(
    hf: Any, triplets: Sequence[psr.Triplet], context: str = "base", sites: dict[int, Any] | None = None
) -> list[torch.Tensor]:
    """`[token, d_model]` as it arrives after each block, on the last prompt token and the response, all texts one after the other.

    Args:
        hf: The plain transformers model.
        triplets: The texts.
        context: Which prompt.
        sites: What steers, by layer: `relu(A·w + b)·z` is added from the last prompt token on.
    """
    blocks = hf.model.layers if hasattr(hf, "model") else hf.transformer.h
    found: list[list[torch.Tensor]] = [[] for _ in blocks]
    for each in triplets:
        prompt = each.pair.ids(context)
        handles = []
        for layer, block in enumerate(blocks):

            def hook(module: Any, inputs: Any, output: Any, layer: int = layer, first: int = len(prompt) - 1) -> Any:
                stream = output[0] if isinstance(output, tuple) else output
                found[layer].append(stream[0, first:].detach().clone().double())
                if not sites or layer not in sites:
                    return output
                site = sites[layer]
                stream = stream.clone()
                rows = stream[0, first:]
                stream[0, first:] = rows + torch.relu(rows @ site.weights.T + site.bias) @ site.directions
                return (stream, *output[1:]) if isinstance(output, tuple) else stream

            handles.append(block.register_forward_hook(hook))
        with torch.no_grad():
            hf(torch.tensor([[*prompt, *each.response_ids]]))
        for handle in handles:
            handle.remove()
    return [torch.cat(each) for each in found]


def two_organisms(organism: Any, load: Any) -> SimpleNamespace:
    """Source, target, eight texts, a replacement of the source's, and what plain transformers says of them."""
    other = load("organism-gpt2", BACKENDS[0])
    source, target = organism.model, other.model
    questions = psr.organism.questions(8, split="train", seed=5)
    pairs = psr.prompt_pairs(source, questions, instruction="talk like a pirate .")
    triplets = psr.sample_responses(source, pairs, sampling=psr.SamplingConfig(max_new_tokens=24))
    fitted = psr.fit(source, triplets, psr.Sequential(rank=2, regression_steps=3))
    return SimpleNamespace(
        source=source,
        target=target,
        source_hf=organism.hf,
        target_hf=other.hf,
        triplets=triplets,
        fitted=fitted,
        paired=psr.transfer.pair_texts(source, target, triplets),
        text=torch.cat([torch.full((1 + len(each.response_ids),), index) for index, each in enumerate(triplets)]),
        x=by_hand(other.hf, triplets),
        y=by_hand(organism.hf, triplets),
    )


def ridge_by_hand(x: torch.Tensor, y: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and offset of ridge regression on centred numbers, solved at once; the ridge is in units of the mean variance of x."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    system = x.T @ x + ridge * len(x) * x.var(0, correction=0).mean() * torch.eye(x.shape[1], dtype=torch.float64)
    matrix = torch.linalg.solve(system, x.T @ y).T
    return matrix, mean_y - matrix @ mean_x
