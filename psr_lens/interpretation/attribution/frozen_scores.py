"""Gradients of attention scores with every norm's scale held at its value: scores as linear functions of the residual stream.

A query passes through at most two norms: one in front of the attention, and in some models (Qwen3, Gemma-3, OLMo-2) one of its own.
A score is then a function F(x / ρ(x)) of the residual stream x, with F linear up to biases and ρ the norm's scale. Its gradient g lacks
the direction of x, since the scale divides it out; with ρ held at its value the gradient is

    G = g + x (s − g·x) / ‖x‖²     (x without its mean if the norm is a LayerNorm)

with s the score less the part of biases, because G·x = s for a linear function. Without a norm G = g. The rotation of the query, its
weights and shared keys are all in g, which autograd takes through the model's own computation. A softcap c·tanh(r/c) is treated like a
norm: its ratio to r is held at its value.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.errors import ModelError

LOOSE: Final = 1e-2
"""Largest relative error at which a function counts as linear, or as unchanged by the length of its argument; others are far off."""


def held_gradient(
    gradient: Float[Tensor, "row head width"],
    vector: Float[Tensor, "row head width"],
    score: Float[Tensor, " row"],
    head: int,
    rounding: float,
) -> Float[Tensor, "row width"]:
    """The gradient of scores with respect to the query of one head, with the scale of the query's own norm held.

    Args:
        gradient: Gradient with respect to the queries of all heads, which a norm over all heads may couple.
        vector: The queries.
        score: The scores.
        head: The head whose scores they are.
        rounding: Relative rounding error of products.

    Raises:
        ModelError: scores are neither linear in the query nor in a query divided by its length.
    """
    own, query = gradient[:, head], vector[:, head]
    along, size = (own * query).sum(-1), own.norm(dim=-1) * query.norm(dim=-1)
    allowed = LOOSE * score.norm() + rounding * size.norm()
    if (score - along).norm() > allowed and ((gradient * vector).sum((1, 2)).norm() > allowed or _centred(own)):
        raise ModelError(
            "model: its attention scores are linear neither in the queries nor in queries divided by their length. "
            "`score_attribution` does not support this kind of attention (such as ALiBi, or a LayerNorm of queries)."
        )
    return own + query * _share(score - along, query)


def held_stream_gradient(
    gradient: Float[Tensor, "row d_model"],
    stream: Float[Tensor, "row d_model"],
    score: Float[Tensor, " row"],
    eps: float,
    rounding: float,
) -> Float[Tensor, "row d_model"]:
    """The gradient of scores without their biases with respect to the residual stream, with the scale of the norm before it held.

    Args:
        gradient: Gradient with respect to the residual stream.
        stream: The residual stream.
        score: The scores, less what comes from biases.
        eps: What the norm adds to the mean square.
        rounding: Relative rounding error of products.

    Raises:
        ModelError: between the residual stream and the query is neither nothing nor an RMSNorm or a LayerNorm.
    """
    allowed = LOOSE * score.norm() + rounding * (gradient.norm(dim=-1) * stream.norm(dim=-1)).norm()
    along = (gradient * stream).sum(-1)
    inside = stream - stream.mean(-1, keepdim=True) if _centred(gradient) else stream
    square = inside.square().mean(-1)
    left = (gradient * inside).sum(-1)
    if (left - score * eps / (square + eps)).norm() <= allowed:  # eps alone leaves a gradient along the stream
        return gradient + inside * _share(score - left, inside)
    if (score - along).norm() <= allowed:
        return gradient + stream * _share(score - along, stream)
    raise ModelError(
        "model: between the residual stream and the queries there is something else than an RMSNorm or a LayerNorm. "
        "`score_attribution` does not support this architecture."
    )


def capped(scores: Float[Tensor, "..."], softcap: float) -> Float[Tensor, "..."]:
    """d(r·h)/ds, where s = c·tanh(r/c) are the scores, r those before the softcap, and h = s/r is held; 1 without a softcap."""
    if softcap <= 0:
        return torch.ones_like(scores)
    share = (scores / softcap).double().clamp(-1 + 1e-6, 1 - 1e-6)
    held = torch.where(share == 0, 1, share / share.atanh())
    return (held / (1 - share.square())).to(scores.dtype)


def difference_weights(
    visible: Bool[Tensor, "row key"], instruction: Bool[Tensor, "row key"]
) -> tuple[Float[Tensor, "row key"], Bool[Tensor, " row"]]:
    """Weights that make differences of scores: 1/n on the instruction's visible keys, −1/m on the others; and which rows have both."""
    on, off = visible & instruction, visible & ~instruction
    count, others = on.sum(-1, keepdim=True), off.sum(-1, keepdim=True)
    known = ((count > 0) & (others > 0)).squeeze(-1)
    return on / count.clamp(min=1) - off / others.clamp(min=1), known


def _share(left: Float[Tensor, " row"], vector: Float[Tensor, "row width"]) -> Float[Tensor, "row 1"]:
    return (left / vector.square().sum(-1).clamp(min=torch.finfo(vector.dtype).tiny))[:, None]


def _centred(gradient: Float[Tensor, "row width"]) -> bool:
    """Whether gradients have no mean, as those of a function that does not change with its argument's mean."""
    return bool(gradient.sum(-1).norm() < LOOSE / 10 * gradient.norm() * gradient.shape[-1] ** 0.5)
