"""The small regression of one site, on made-up data of which the answer is known."""

import jaxtyping
import pytest
import torch
from torch import Tensor

import psr_lens as psr
from psr_lens.errors import FitError
from psr_lens.fit.regression import closed_form, fit_site
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


def test_a_planted_rank_1_map_is_recovered():
    inputs, targets, alpha, truth = planted(tokens=900)
    found = fit_site(inputs[:500], targets[:500], alpha[:500], psr.FitConfig(regression_steps=1500))
    assert relative_error(found, inputs[:500], targets[:500], alpha[:500]) < 1e-3
    assert relative_error(found, inputs[500:], targets[500:], alpha[500:]) < 2e-3
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(found.directions, truth.directions).item() > 0.999
    assert cosine(found.weights, truth.weights).item() > 0.999


def test_a_planted_map_of_higher_rank_needs_as_many_directions():
    inputs, targets, alpha, _ = planted(rank=3)
    errors = [
        relative_error(fit_site(inputs, targets, alpha, psr.FitConfig(rank=rank, regression_steps=600)), inputs, targets, alpha)
        for rank in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02
    assert errors[0] > 0.1


@pytest.mark.parametrize("rank", [1, 4])
def test_the_closed_form_has_orthonormal_leading_singular_directions(rank):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(200, WIDTH, generator=generator) * torch.linspace(5, 0.5, WIDTH) + 1.0
    site = closed_form(torch.randn(200, WIDTH, generator=generator), targets, torch.ones(200), psr.FitConfig(rank=rank))
    wanted = torch.linalg.svd(targets.double(), full_matrices=False).Vh[:rank].float()
    torch.testing.assert_close(site.directions @ site.directions.T, torch.eye(rank), atol=1e-5, rtol=0)
    torch.testing.assert_close((site.directions @ wanted.T).abs(), torch.eye(rank), atol=1e-5, rtol=0)
    assert (targets @ site.directions.T).mean(0).min() >= 0  # signs such that the mean coefficient is positive


def test_the_closed_forms_probes_are_the_ridge_regression_of_the_projections():
    inputs, targets, alpha, _ = planted(noise=0.5)
    inputs = inputs - inputs.mean(0)
    config = psr.FitConfig(rank=2, ridge=0.3)
    site = closed_form(inputs, targets, alpha, config)
    projections = targets.double() @ site.directions.double().T / alpha.double()[:, None]
    penalty = 0.3 * inputs.double().square().mean() * len(inputs)
    augmented = torch.cat([inputs.double(), penalty.sqrt() * torch.eye(WIDTH, dtype=torch.double)])
    wanted = torch.linalg.lstsq(augmented, torch.cat([projections - projections.mean(0), torch.zeros(WIDTH, 2).double()])).solution
    torch.testing.assert_close(site.weights.double(), wanted.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(site.bias.double(), projections.mean(0), atol=1e-4, rtol=1e-4)


def test_without_steps_the_closed_form_is_the_answer():
    inputs, targets, alpha, _ = planted(noise=0.5)
    site = fit_site(inputs, targets, alpha, psr.FitConfig(regression_steps=0, ridge=1e-6))
    direction = site.directions / site.directions.norm()
    wanted = torch.linalg.svd(targets.double(), full_matrices=False).Vh[:1].float()
    assert (direction @ wanted.T).abs().item() == pytest.approx(1.0, abs=1e-5)
    # In units of the data again: the linear part of the coefficients is the ordinary regression.
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    linear = design @ torch.linalg.lstsq(design, (targets @ direction.T).double() / alpha.double()[:, None]).solution
    found = (inputs @ site.weights.T + site.bias) * site.directions.norm()
    torch.testing.assert_close(found.double(), linear, atol=1e-3, rtol=1e-3)


def test_more_steps_never_do_worse_than_the_start():
    for seed in range(3):
        inputs, targets, alpha, _ = planted(tokens=60, rank=4, seed=seed, noise=2.0)
        start, *others = (
            relative_error(fit_site(inputs, targets, alpha, psr.FitConfig(rank=2, **settings)), inputs, targets, alpha)
            for settings in (
                {"regression_steps": 0},
                {"regression_steps": 5},
                {"regression_steps": 100},
                {"regression_steps": 20, "regression_learning_rate": 50.0},  # far too large: the best state is kept
            )
        )
        assert all(error <= start + 1e-6 for error in others)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_units_of_the_data_do_not_matter(scale):
    inputs, targets, alpha, _ = planted(rank=2, noise=0.3)
    config = psr.FitConfig(regression_steps=50)
    plain = fit_site(inputs, targets, alpha, config)
    scaled = fit_site(inputs * scale, targets / scale, alpha, config)
    torch.testing.assert_close(scaled.intervention(inputs * scale) * scale, plain.intervention(inputs), atol=1e-2, rtol=1e-2)


def test_tokens_of_a_weaker_trait_ask_for_weaker_steering():
    inputs, targets, alpha, _ = planted()
    full = fit_site(inputs, targets / alpha[:, None], torch.ones(len(inputs)), psr.FitConfig(regression_steps=800))
    partial = fit_site(inputs, targets, alpha, psr.FitConfig(regression_steps=800))
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
    site = fit_site(inputs, targets, alpha, psr.FitConfig(regression_steps=20, rank=2, ridge=ridge))
    assert all(tensor.isfinite().all() for tensor in (site.directions, site.weights, site.bias))
    assert site.intervention(inputs).isfinite().all()


def test_fitting_is_deterministic():
    inputs, targets, alpha, _ = planted(noise=0.5)
    first, again = (fit_site(inputs, targets, alpha, psr.FitConfig(regression_steps=30)) for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.directions, again.directions)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_data_that_is_not_finite_is_a_fit_error(bad, where):
    inputs, targets, alpha, _ = planted(tokens=20)
    (inputs if where == "inputs" else targets)[3, 2] = bad
    with pytest.raises(FitError, match="not all finite"):
        fit_site(inputs, targets, alpha, psr.FitConfig())


def test_the_tests_check_shapes_at_run_time():
    with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
        fit_site(torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(3), psr.FitConfig())
