import pytest
import torch

import psr_lens as psr
from psr_lens import organism
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement import Site


@pytest.fixture(scope="module")
def model():
    return psr.load_model("organism")


@pytest.fixture(scope="module")
def triplets(model):
    pairs = psr.prompt_pairs(model, organism.questions(24), organism.instruction("pirate"))
    return psr.sample_responses(model, pairs, psr.judges.organism("pirate"), progress=False)


@pytest.fixture(scope="module")
def replacements(model, triplets):
    return {
        "A-PSR": psr.fit(model, triplets, psr.FitConfig(regression_steps=40)),
        "CAA": psr.fit(model, triplets, psr.FitConfig(layers=2, solver="dim")),
    }


@pytest.fixture(scope="module")
def result(model, triplets, replacements):
    return psr.compare(model, triplets, replacements, paraphrase=organism.instruction("pirate", 1))


def test_prompt_strength_is_the_norm_of_the_captured_difference(model, triplets, result):
    captured = psr.capture(model, triplets, "resid_post")
    for column, layer in enumerate(result.layers):
        torch.testing.assert_close(result.strength[:, column], captured.strength(f"blocks.{layer}.hook_resid_post"))


def test_relative_rmse_of_doing_nothing_is_one(model, triplets):
    nothing = psr.Replacement(
        {"blocks.0.hook_resid_post": Site(torch.zeros(1, 128), torch.zeros(1, 128), torch.zeros(1), "relu")},
        "R",
        "nothing",
        {},
    )
    trace = psr.compare(model, triplets, {"nothing": nothing}).methods["nothing"]
    torch.testing.assert_close(trace.relative_rmse, torch.ones(6))
    assert trace.strength.abs().max() == 0


def test_layers_before_the_first_site_are_untouched(result):
    caa = result.methods["CAA"]
    assert caa.strength[:, :2].abs().max() == 0
    torch.testing.assert_close(caa.relative_rmse[:2], torch.ones(2))


def test_a_constant_moves_every_token_alike_at_its_own_layer(result, replacements):
    length = replacements["CAA"].sites["blocks.2.hook_resid_post"].directions.norm()
    caa = result.methods["CAA"]
    torch.testing.assert_close(caa.strength[:, 2], length.expand(len(result.tokens)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(caa.coefficient[:, 0], length.expand(len(result.tokens)), rtol=1e-4, atol=1e-4)


def test_coefficients_follow_what_the_prompt_calls_for(result):
    trace = result.methods["A-PSR"]
    assert trace.site_layers == (0, 1, 2, 3, 4, 5)
    correlation = torch.corrcoef(torch.stack([trace.coefficient[:, 0], trace.projection[:, 0]]))[0, 1]
    assert correlation > 0.9


def test_psr_is_closer_to_the_prompt_than_the_constant_and_the_paraphrase_closer_still(result):
    last = {name: float(trace.relative_rmse[-1]) for name, trace in result.methods.items()}
    assert last["A-PSR"] < 0.4 < 0.8 < last["CAA"]
    assert float(result.paraphrase_rmse[-1]) < last["A-PSR"]


def test_rank_one_share_is_that_of_the_singular_values(model, triplets, result):
    delta = psr.capture(model, triplets, "resid_post", layers=[4])["blocks.4.hook_resid_post"]
    values = torch.linalg.svdvals(delta.double())
    assert float(result.rank1_share[4]) == pytest.approx(float(values[0] ** 2 / values.square().sum()), rel=1e-4)


def test_compare_refuses_what_it_cannot_compare(model, triplets, replacements):
    with pytest.raises(InputError, match="replacements: got none, expected at least one"):
        psr.compare(model, triplets, {})
    with pytest.raises(InputError, match="'prompt' and 'paraphrase', which are taken"):
        psr.compare(model, triplets, {"prompt": replacements["CAA"]})
    with pytest.raises(InputError, match="layers: got"):
        psr.compare(model, triplets, replacements, layers=[6])
    foreign = psr.Replacement(replacements["CAA"].sites, "R", "CAA", {"model_name": "other", "d_model": 64, "n_layers": 6})
    with pytest.raises(ArtifactError, match="made for other with d_model=64"):
        psr.compare(model, triplets, {"foreign": foreign})
