"""The small regression of one site, on made-up data of which the answer is known."""

from itertools import pairwise

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

import psr_lens as psr
from psr_lens.errors import FitError
from psr_lens.fitting.layerwise.regression import fit_site
from psr_lens.replacement import Site

WIDTH = 12


def planted(tokens: int = 400, rank: int = 1, seed: int = 0, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Site]:
    """Inputs, targets and strengths that a known site made."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    site = Site(3 * draw(rank, WIDTH), draw(rank, WIDTH), draw(rank), "relu")
    inputs = 2 * draw(tokens, WIDTH) + 5 * draw(WIDTH)
    site = Site(site.directions, site.weights, site.bias - (inputs @ site.weights.T).mean(0), "relu")
    alpha = 0.5 + 0.5 * torch.rand(tokens, generator=generator)
    return inputs, alpha[:, None] * site.intervention(inputs) + noise * draw(tokens, WIDTH), alpha, site


def relative_error(site: Site, inputs: Tensor, targets: Tensor, alpha: Tensor) -> float:
    return float((alpha[:, None] * site.intervention(inputs) - targets).square().sum() / targets.square().sum())


def objective(site: Site, inputs: Tensor, targets: Tensor, alpha: Tensor, ridge: float, power: float) -> float:
    """What the regression minimises, written out in NumPy from the definition."""
    x, t, a = (each.double().numpy() for each in (inputs, targets, alpha))
    z, w, b = (each.double().numpy() for each in (site.directions, site.weights, site.bias))
    weight = np.linalg.norm(x + t, axis=1) ** -power
    weight /= weight @ a**2
    centred = x - (weight * a**2) @ x
    covariance = centred.T @ ((weight * a**2)[:, None] * centred)
    scale = np.trace(covariance) / WIDTH
    error = (weight * np.square(a[:, None] * np.maximum(x @ w.T + b, 0) @ z - t).sum(1)).sum()
    penalty = ridge * scale * (np.square(w).sum(1) * np.square(z).sum(1)).sum()
    return float((error + penalty) / (weight * np.square(t).sum(1)).sum())


def test_a_planted_rank_1_map_is_recovered():
    inputs, targets, alpha, truth = planted(tokens=900)
    found = fit_site(inputs[:500], targets[:500], alpha[:500], psr.Sequential(rank=1, ridge=0.0))
    assert relative_error(found, inputs[:500], targets[:500], alpha[:500]) < 1e-6
    assert relative_error(found, inputs[500:], targets[500:], alpha[500:]) < 1e-5
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(found.directions, truth.directions).item() > 0.9999
    assert cosine(found.weights, truth.weights).item() > 0.9999


def test_a_planted_map_of_higher_rank_needs_as_many_directions():
    inputs, targets, alpha, _ = planted(rank=3)
    errors = [
        relative_error(fit_site(inputs, targets, alpha, psr.Sequential(rank=rank, ridge=0.0)), inputs, targets, alpha)
        for rank in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4
    assert errors[0] > 0.1


@pytest.mark.parametrize("heads", [1, 3])
def test_every_head_is_fitted_by_itself(heads):
    data = [planted(seed=seed) for seed in range(heads)]
    inputs, targets = (torch.stack([each[part] for each in data], dim=1) for part in (0, 1))
    config = psr.Sequential(rank=2, hook="z", regression_steps=20)
    site = fit_site(inputs, targets, data[0][2], config)
    assert site.directions.shape == site.weights.shape == (heads, 2, WIDTH)
    assert site.bias.shape == (heads, 2)
    for head in range(heads):
        alone = fit_site(inputs[:, head], targets[:, head], data[0][2], config)
        assert all(torch.equal(getattr(site, part)[head], getattr(alone, part)) for part in ("directions", "weights", "bias"))


@pytest.mark.parametrize(("rank", "power"), [(1, 0.0), (4, 2.0)])
def test_the_closed_form_is_least_squares_of_what_is_added(rank, power):
    """In NumPy, as one system in (w, b): the rows α·(x, 1) with the values t·z, and the ridge as rows of its own."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator) + 3.0
    targets = torch.randn(200, WIDTH, generator=generator) * torch.linspace(5, 0.5, WIDTH) + 1.0
    alpha = torch.rand(200, generator=generator)
    alpha[:40] = 0.0
    site = fit_site(inputs, targets, alpha, psr.Sequential(rank=rank, regression_steps=0, relative=power, ridge=0.3))
    x, t, a = inputs.double().numpy(), targets.double().numpy(), alpha.double().numpy()[:, None]
    k = np.linalg.norm(x + t, axis=1, keepdims=True) ** -power
    k /= (k * a**2).sum()
    directions = np.linalg.svd(np.sqrt(k) * a * t, full_matrices=False)[2][:rank]
    directions *= np.sign((k * a * (t @ directions.T)).sum(0))[:, None]  # such that the mean coefficient is positive
    variance = (k * a**2 * np.square(x - (k * a**2 * x).sum(0))).sum() / WIDTH
    penalty = np.hstack([np.sqrt(0.3 * variance) * np.eye(WIDTH), np.zeros((WIDTH, 1))])
    rows = np.vstack([np.sqrt(k) * a * np.hstack([x, np.ones((200, 1))]), penalty])
    values = np.vstack([np.sqrt(k) * (t @ directions.T), np.zeros((WIDTH, rank))])
    probes = np.linalg.lstsq(rows, values, rcond=None)[0]
    wanted = np.maximum(x @ probes[:-1] + probes[-1], 0) @ directions
    np.testing.assert_allclose(site.intervention(inputs).numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weak", "steps"), [(0.0, 0), (0.0, 40), (1e-6, 40), (1e-4, 0)])
def test_tokens_at_a_strength_near_0_change_nothing(weak, steps):
    """Whatever a site is, it adds (nearly) nothing to them: their targets say nothing about it."""
    inputs, targets, alpha, _ = planted(noise=0.5)
    config = psr.Sequential(rank=2, regression_steps=steps, hook="mlp_out")  # where no token counts less for its size
    without = fit_site(inputs, targets, alpha, config)
    others, strange, _, _ = planted(tokens=100, seed=5, noise=3.0)
    together = fit_site(
        torch.cat([inputs, others]), torch.cat([targets, strange]), torch.cat([alpha, torch.full((100,), weak)]), config
    )
    torch.testing.assert_close(together.intervention(inputs), without.intervention(inputs), rtol=0.01, atol=0.05)


def test_strengths_of_0_alone_are_an_error():
    inputs, targets, _, _ = planted()
    with pytest.raises(FitError, match="every triplet has a strength"):
        fit_site(inputs, targets, torch.zeros(len(inputs)), psr.Sequential())


@pytest.mark.parametrize(("ridge", "power"), [(0.0, 2.0), (0.03, 2.0), (0.3, 0.0)])
def test_the_result_is_a_minimum_of_the_objective(ridge, power):
    inputs, targets, alpha, _ = planted(tokens=200, rank=3, noise=2.0)
    settings = {"rank": 2, "ridge": ridge, "relative": power}
    start = fit_site(inputs, targets, alpha, psr.Sequential(regression_steps=0, **settings))
    site = fit_site(inputs, targets, alpha, psr.Sequential(regression_steps=300, **settings))
    lowest = objective(site, inputs, targets, alpha, ridge, power)
    assert lowest < 0.95 * objective(start, inputs, targets, alpha, ridge, power)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 1e-1):  # no step in any direction goes lower
        for _ in range(30):
            parts = [part * (1 + size * torch.randn(part.shape, generator=generator)) for part in (site.directions, site.weights)]
            moved = Site(parts[0], parts[1], site.bias + site.bias.abs() * size * torch.randn(2, generator=generator), "relu")
            assert objective(moved, inputs, targets, alpha, ridge, power) > lowest - 1e-5


def test_more_steps_never_do_worse_than_the_start():
    for seed in range(3):
        inputs, targets, alpha, _ = planted(tokens=60, rank=4, seed=seed, noise=2.0)
        found = [
            objective(
                fit_site(inputs, targets, alpha, psr.Sequential(rank=2, regression_steps=steps, ridge=0.03, relative=2.0)),
                inputs,
                targets,
                alpha,
                0.03,
                2.0,
            )
            for steps in (0, 1, 5, 30, 200)
        ]
        assert all(later <= earlier + 1e-6 for earlier, later in pairwise(found))


@pytest.mark.parametrize("size", [1, 7, 399])
def test_chunks_change_nothing(size):
    inputs, targets, alpha, _ = planted(rank=2, noise=0.3)
    tokens = 60 if size == 1 else len(inputs)
    inputs, targets, alpha = inputs[:tokens], targets[:tokens], alpha[:tokens]
    whole, chunked = (
        fit_site(inputs, targets, alpha, psr.Sequential(rank=2, regression_batch=batch)).intervention(inputs)
        for batch in (10_000, size)
    )
    assert (chunked - whole).norm() <= 1e-5 * whole.norm()


def test_the_ridge_keeps_probes_from_directions_that_hardly_vary():
    inputs, targets, alpha, _ = planted(tokens=100, noise=1.0)
    inputs[:, 0] = inputs[:, 0].mean() + 1e-3 * (inputs[:, 0] - inputs[:, 0].mean())
    free, ridged = (fit_site(inputs, targets, alpha, psr.Sequential(rank=1, ridge=ridge)) for ridge in (0.0, 0.03))
    elsewhere = inputs.clone()
    elsewhere[:, 0] += 3.0  # as other texts might
    change = [float((site.intervention(elsewhere) - site.intervention(inputs)).norm()) for site in (free, ridged)]
    assert change[1] < 0.1 * change[0]


@pytest.mark.parametrize("scale", [2.0**-13, 2.0**13])
def test_the_units_of_the_data_do_not_matter(scale):
    inputs, targets, alpha, _ = planted(rank=2, noise=0.3)
    config = psr.Sequential(regression_steps=50)
    plain = fit_site(inputs, targets, alpha, config)
    scaled = fit_site(inputs * scale, targets * scale, alpha, config)
    torch.testing.assert_close(scaled.intervention(inputs * scale) / scale, plain.intervention(inputs), atol=1e-3, rtol=1e-3)


def test_tokens_of_a_weaker_trait_ask_for_weaker_steering():
    inputs, targets, alpha, _ = planted()
    full = fit_site(inputs, targets / alpha[:, None], torch.ones(len(inputs)), psr.Sequential(rank=1, ridge=0.0))
    partial = fit_site(inputs, targets, alpha, psr.Sequential(rank=1, ridge=0.0))
    assert relative_error(partial, inputs, full.intervention(inputs), torch.ones(len(inputs))) < 1e-3


@pytest.mark.parametrize("ridge", [0.1, 0.0])
@pytest.mark.parametrize("kind", ["constant inputs", "no difference", "one token", "fewer tokens than dimensions"])
def test_degenerate_data_gives_finite_numbers(kind, ridge):
    inputs, targets, alpha, _ = planted()
    if kind == "constant inputs":
        inputs = inputs[:1].expand_as(inputs)
    elif kind == "no difference":
        targets = torch.zeros_like(targets)
    elif kind == "one token":
        inputs, targets, alpha = inputs[:1], targets[:1], alpha[:1]
    else:
        inputs, targets, alpha = inputs[:5], targets[:5], alpha[:5]
    site = fit_site(inputs, targets, alpha, psr.Sequential(regression_steps=20, rank=2, ridge=ridge))
    assert all(tensor.isfinite().all() for tensor in (site.directions, site.weights, site.bias))
    assert site.intervention(inputs).isfinite().all()


def test_fitting_is_deterministic():
    inputs, targets, alpha, _ = planted(noise=0.5)
    first, again = (fit_site(inputs, targets, alpha, psr.Sequential(regression_steps=30)) for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.directions, again.directions)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_data_that_is_not_finite_is_a_fit_error(bad, where):
    inputs, targets, alpha, _ = planted(tokens=20)
    (inputs if where == "inputs" else targets)[3, 2] = bad
    with pytest.raises(FitError, match="not all finite"):
        fit_site(inputs, targets, alpha, psr.Sequential())


def test_the_tests_check_shapes_at_run_time():
    with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
        fit_site(torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(3), psr.Sequential())


def test_a_tokens_weight_is_how_often_it_counts():
    inputs, targets, alpha, _ = planted(tokens=200, rank=3, noise=1.0)
    times = torch.arange(200) % 3
    config = psr.Sequential(rank=2, regression_steps=300)
    weighted = fit_site(inputs, targets, alpha, config, token_weights=2.5 * times.float())
    repeated = fit_site(*(each.repeat_interleave(times, 0) for each in (inputs, targets, alpha)), config)
    alike = (weighted.intervention(inputs) - repeated.intervention(inputs)).norm() / repeated.intervention(inputs).norm()
    assert alike < 0.02


def with_a_massive_token(inputs: Tensor, targets: Tensor, size: float, *, prompted: bool) -> tuple[Tensor, Tensor]:
    """The first token has an activation of `size` times the median norm, in the prompted context or in the base context alone."""
    median = torch.maximum(inputs.norm(dim=1), (inputs + targets).norm(dim=1)).median()
    massive = torch.zeros(WIDTH).index_fill(0, torch.tensor([3]), size * float(median))
    inputs, targets, ordinary = inputs.clone(), targets.clone(), inputs[0]
    inputs[0], targets[0] = (ordinary, massive - ordinary) if prompted else (massive, ordinary - massive)
    return inputs, targets


@pytest.mark.parametrize("prompted", [True, False])
def test_a_massive_activation_does_not_outweigh_the_other_tokens(prompted):
    inputs, targets, alpha, _ = planted(tokens=600, rank=2, noise=0.5)
    changed = with_a_massive_token(inputs, 0.1 * targets, 60.0, prompted=prompted)
    error = [
        relative_error(fit_site(*changed, alpha, psr.Sequential(rank=2, hook=hook)), inputs[1:], 0.1 * targets[1:], alpha[1:])
        for hook in ("resid_post", "mlp_out")
    ]
    assert error[0] < 0.3
    assert error[1] > 2 * error[0]  # elsewhere than in the residual stream nothing divides by the norm


def test_activations_that_are_merely_large_count_in_full():
    inputs, targets, alpha, _ = planted(noise=0.5)
    changed = with_a_massive_token(inputs, 0.1 * targets, 2.9, prompted=True)
    robust, plain = (fit_site(*changed, alpha, psr.Sequential(rank=2, hook=hook)) for hook in ("resid_post", "mlp_out"))
    assert torch.equal(robust.directions, plain.directions)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_rank_that_is_chosen_is_the_planted_one(rank):
    generator = torch.Generator().manual_seed(rank)
    inputs = torch.randn(600, WIDTH, generator=generator)
    weights, directions = (torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator))[0].T for _ in range(2))
    targets = (inputs @ weights.T + 3) @ directions + 0.05 * torch.randn(600, WIDTH, generator=generator)
    for batch in (65_536, 70):
        assert fit_site(inputs, targets, torch.ones(600), psr.Sequential(rank="auto", regression_batch=batch)).rank == rank


@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_no_more_than_one_direction_is_chosen_where_nothing_can_be_predicted(tokens):
    inputs, targets = (torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    site = fit_site(inputs, targets, torch.ones(tokens), psr.Sequential(rank="auto", regression_steps=5))
    assert site.rank == 1
    assert site.is_finite


def test_every_head_chooses_its_rank_and_the_others_get_directions_of_nought():
    data = [planted(rank=rank, seed=rank) for rank in (1, 4)]
    inputs, targets = (torch.stack([each[part] for each in data], dim=1) for part in (0, 1))
    config = psr.Sequential(rank="auto", hook="z", regression_steps=20)
    alone = [fit_site(inputs[:, head], targets[:, head], data[0][2], config) for head in range(2)]
    assert alone[0].rank < alone[1].rank
    together = fit_site(inputs, targets, data[0][2], config)
    for head in range(2):
        wanted = alone[head].intervention(inputs[:, head])
        torch.testing.assert_close(together.intervention(inputs)[:, head], wanted, rtol=1e-4, atol=1e-4)
