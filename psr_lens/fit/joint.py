"""The paper's solver: all probes and directions trained together, by gradient descent through the frozen model.

Heyman & Vandeputte 2026: prompt steering imitation (MSE) over the intervened layer and all later ones, on the span; AdamW, linear
decay, and a regulariser against probes that never fire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens.errors import FitError
from psr_lens.fit.config import FitConfig
from psr_lens.fit.sequential import fit_sequential
from psr_lens.hook_points import layer_of
from psr_lens.models import HookedModel, device_of, forward, frozen
from psr_lens.passes import collect
from psr_lens.prompts import Triplet, context_batch
from psr_lens.replacement import Site

START_SCALE = 0.01
"""Standard deviation of the probes and directions at the start."""


def fit_joint(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: FitConfig, *, progress: bool = False
) -> dict[str, Site]:
    """Train the sites `names` together; see `FitConfig` for the settings.

    Raises:
        FitError: the loss is no longer finite; names the step.
    """
    measured = _measured(model, names)
    targets = collect(model, triplets, measured, "steered", config.span, token_budget=config.token_budget, progress=progress)
    unsteered = collect(model, triplets, measured, "base", config.span, token_budget=config.token_budget, progress=progress)
    scale = sum(float((targets[name] - unsteered[name]).double().square().sum(1).mean()) for name in measured)
    del unsteered
    counts = [triplet.pair.span_length(config.span) + len(triplet.response_ids) for triplet in triplets]
    split = {name: rows.split(counts) for name, rows in targets.items()}

    generator = torch.Generator().manual_seed(config.seed)
    sites = _starts(model, triplets, names, config, generator, progress)
    parameters = [tensor for site in sites.values() for tensor in (site.directions, site.weights, site.bias)]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = -(-len(triplets) // config.batch_size)
    total = per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / total)
    with frozen(model), torch.enable_grad(), tqdm(total=total, desc="fit joint", unit="step", disable=not progress) as bar:
        for step in range(total):
            if step % per_epoch == 0:
                order = torch.randperm(len(triplets), generator=generator).tolist()
            at = step % per_epoch * config.batch_size
            chosen = order[at : at + config.batch_size]
            wanted = {name: torch.cat([rows[index] for index in chosen]) for name, rows in split.items()}
            error, dead = _losses(model, [triplets[index] for index in chosen], sites, wanted, config)
            loss = (error / scale if config.normalise else error) + config.regulariser * dead
            if not bool(torch.isfinite(loss)):
                raise FitError(f"joint: the loss became {loss.item()} at step {step + 1} of {total}. Lower `learning_rate`.")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.set_postfix(error=f"{error.item() / scale:.4f}", dead=f"{dead.item():.3f}", refresh=False)
            bar.update()
    return {
        name: Site(site.directions.detach().cpu(), site.weights.detach().cpu(), site.bias.detach().cpu(), "relu")
        for name, site in sites.items()
    }


def _measured(model: HookedModel, names: Sequence[str]) -> list[str]:
    """The residual stream after the first site's layer and after every later one."""
    first = min(layer for name in names if (layer := layer_of(name)) is not None)
    return [f"blocks.{layer}.hook_resid_post" for layer in range(first, model.cfg.n_layers)]


def _starts(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: FitConfig,
    generator: torch.Generator,
    progress: bool,
) -> dict[str, Site]:
    """Trainable sites: small random ones, or those of the sequential solver."""
    device = device_of(model)
    if config.start == "random":
        return {name: _start(int(model.cfg.d_model), config.rank, generator, device) for name in names}
    sites = fit_sequential(model, triplets, names, config, progress=progress)
    return {name: _trainable(site.to(device, torch.float32)) for name, site in sites.items()}


def _start(width: int, rank: int, generator: torch.Generator, device: torch.device) -> Site:
    directions, weights = (torch.randn(rank, width, generator=generator) * START_SCALE for _ in range(2))
    return _trainable(Site(directions, weights, torch.zeros(rank), "relu").to(device, torch.float32))


def _trainable(site: Site) -> Site:
    directions, weights, bias = (tensor.clone().requires_grad_() for tensor in (site.directions, site.weights, site.bias))
    return Site(directions, weights, bias, site.rule)


def _losses(
    model: HookedModel,
    triplets: Sequence[Triplet],
    sites: dict[str, Site],
    targets: dict[str, Float[Tensor, "token d_model"]],
    config: FitConfig,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Summed squared error over the measured layers, and the regulariser, of one batch."""
    device = device_of(model)
    batch = context_batch(triplets, "base", config.span, device)
    alpha = torch.tensor([triplet.trait for triplet in triplets], device=device)
    errors: list[Tensor] = []
    dead: list[Tensor] = []
    hooks = [
        (name, _training_hook(sites.get(name), target.to(device), batch.span, alpha, errors, dead))
        for name, target in targets.items()
    ]
    with model.hooks(fwd_hooks=hooks):
        forward(model, batch.tokens, batch.mask)
    return torch.stack(errors).sum(), torch.stack(dead).sum()


def _training_hook(
    site: Site | None,
    target: Float[Tensor, "token d_model"],
    span: Bool[Tensor, "batch position"],
    alpha: Float[Tensor, "batch"],
    errors: list[Tensor],
    dead: list[Tensor],
) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        if site is not None:
            coefficients = site.coefficients(activation.to(site.weights.dtype)) * span[..., None]
            dead.append(torch.relu(1 - coefficients.sum((1, 2))).mean())
            added = alpha[:, None, None] * (coefficients @ site.directions)
            activation = activation + added.to(activation.dtype)
        errors.append((activation[span].float() - target.float()).square().sum(1).mean())
        return activation

    return hook
