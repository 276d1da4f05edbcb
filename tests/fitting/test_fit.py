"""The one entry to all solvers, the constant baseline, and what the fits are good for on the organism."""

from dataclasses import replace

import pytest
import torch
from helpers import BACKENDS, logits_of, random_triplets, relative_error

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import fingerprint
from psr_lens.replacement import Replacement

QUICK = (psr.Sequential(regression_steps=3), psr.Joint(epochs=1), psr.DiM())
"""One config a solver, each quick."""


@pytest.mark.parametrize(
    ("config", "method", "sites"),
    [
        (None, "A-PSR", [0, 1, 2]),
        (psr.Sequential(layers=1), "S-PSR", [1]),
        (psr.Sequential(layers=[-1]), "S-PSR", [2]),
        (psr.Local(layers=1, polish=psr.Polish(epochs=1, objective="ll")), "S-PSR LL", [1]),
        (psr.Joint(layers=[2, 0], epochs=1), "A-PSR", [0, 2]),
        (psr.DiM(layers=range(2)), "A-Const DiM", [0, 1]),
        (psr.DiM(layers=0), "S-Const DiM", [0]),
    ],
)
def test_the_settings_say_what_is_fitted_and_what_it_is_called(tiny_llama, config, method, sites):
    triplets = random_triplets(tiny_llama.model, 3)
    fitted = psr.fit(tiny_llama.model, triplets, config)
    assert fitted.method == method
    assert list(fitted.sites) == [f"blocks.{layer}.hook_resid_post" for layer in sites]
    assert fitted.model == fingerprint(tiny_llama.model)
    assert fitted.settings["triplets"] == 3
    assert fitted.settings["solver"] == (config or psr.Sequential()).solver
    assert fitted.settings["instructions"] == sorted({triplet.pair.instruction for triplet in triplets})


@pytest.mark.parametrize(
    ("config", "rank"), [(psr.DiM(), 1), *((replace(config, rank=rank), rank) for config in QUICK[:2] for rank in (1, 2))], ids=str
)
def test_a_fit_keeps_its_rank_and_lies_on_the_cpu_without_gradients(tiny_llama, config, rank):
    for site in psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), config).sites.values():
        assert site.directions.shape == site.weights.shape == (rank, 32)
        assert site.bias.shape == (rank,)
        assert not any(tensor.requires_grad for tensor in (site.directions, site.weights, site.bias))


def test_under_qr_the_questions_place_is_remembered_where_it_was_the_same_in_all_prompts(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    assert (
        psr.fit(tiny_llama.model, triplets, psr.Sequential(span="QR", regression_steps=3)).question_start == 2
    )  # after <bos> <user>
    assert psr.fit(tiny_llama.model, triplets, psr.Sequential(span="R", regression_steps=3)).question_start is None


@pytest.mark.parametrize("span", ["R", "QR"])
def test_the_difference_in_means_at_one_layer_is_the_mean_of_the_captured_differences(tiny, span):
    triplets = random_triplets(tiny.model, 5)
    captured = psr.capture(tiny.model, triplets, span=span)
    fits = [psr.fit(tiny.model, triplets, psr.DiM(layers=layer, span=span)) for layer in (0, 2)]
    for name, site in [*fits[0].sites.items(), *fits[1].sites.items()]:
        torch.testing.assert_close(site.directions[0], captured[name].mean(0), atol=1e-6, rtol=1e-6)
        assert site.rule == "constant"
        assert site.coefficients(captured[name]).unique().tolist() == [1.0]


def test_the_difference_in_means_at_one_layer_is_added_to_every_token_alike(tiny):
    triplets, name = random_triplets(tiny.model, 4), "blocks.1.hook_resid_post"
    fitted = psr.fit(tiny.model, triplets, psr.DiM(layers=1))
    plain, steered = (
        collect(tiny.model, triplets, [name], "base", "R", steered=each)[name] for each in (None, PassSteering(fitted))
    )
    mean = psr.capture(tiny.model, triplets, name)[name].mean(0)
    torch.testing.assert_close(steered - plain, mean.expand_as(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", QUICK, ids=repr)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_in_bfloat16_can_be_fitted_and_steered(folders, config, backend):
    model = psr.load_model(folders["llama"], backend=backend, dtype=torch.bfloat16)
    triplets = random_triplets(model, 4)
    fitted = psr.fit(model, triplets, config)
    assert all(site.directions.isfinite().all() for site in fitted.sites.values())
    with fitted.steer(model):
        assert logits_of(model, range(10, 20)).dtype == torch.bfloat16


@pytest.mark.parametrize("config", QUICK, ids=repr)
def test_a_fit_within_inference_mode_works(tiny_llama, config):
    triplets = random_triplets(tiny_llama.model, 3)
    wanted = psr.fit(tiny_llama.model, triplets, config)
    with torch.inference_mode():
        found = psr.fit(tiny_llama.model, triplets, config)
    for name, site in wanted.sites.items():
        torch.testing.assert_close(found.sites[name].directions.clone(), site.directions)


@pytest.mark.parametrize("config", QUICK, ids=repr)
def test_both_classes_give_the_same_replacement(load, config):
    if len(BACKENDS) < 2:
        pytest.skip("one class only")
    cases = [load("gpt2", backend) for backend in BACKENDS]
    first, second = (psr.fit(case.model, random_triplets(case.model, 4), config).sites for case in cases)
    for name, site in first.items():
        torch.testing.assert_close(second[name].directions, site.directions, atol=1e-3, rtol=1e-3)


def test_half_the_trait_score_is_taken_for_half_the_steering(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 5)
    halves = [psr.Triplet(each.pair, each.response_ids, "", trait=50.0) for each in triplets]
    wholes = [psr.Triplet(each.pair, each.response_ids, "", trait=100.0) for each in triplets]
    config = psr.Sequential(layers=0, regression_steps=0)
    half, whole = (next(iter(psr.fit(tiny_llama.model, each, config).sites.values())) for each in (halves, wholes))
    inputs = collect(tiny_llama.model, triplets, ["blocks.0.hook_resid_post"], "base", "R")["blocks.0.hook_resid_post"]
    torch.testing.assert_close(half.intervention(inputs), 2 * whole.intervention(inputs), atol=1e-4, rtol=1e-4)


# --- on the organism --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(organism, pirate_triplets) -> dict[str, Replacement]:
    """The pirate by several methods."""
    configs = {
        "A-PSR": psr.Sequential(regression_steps=100),
        "A-PSR rank 4": psr.Sequential(regression_steps=100, rank=4),
        "A-Const DiM": psr.DiM(),
        "S-Const DiM": psr.DiM(layers=2),
    }
    return {name: psr.fit(organism.model, pirate_triplets, config) for name, config in configs.items()}


def held_out_scores(model, replacement) -> tuple[float, float]:
    questions = psr.organism.questions(30, split="held_out", kind="description", seed=2)
    pairs = psr.prompt_pairs(model, questions, psr.organism.instruction("pirate"))
    responses = psr.generate(model, pairs, replacement, sampling=SamplingConfig(seed=1))
    scores = psr.judges.organism("pirate")([response.text for response in responses], questions)
    return float(scores.trait.mean()), float(scores.coherence.mean())


def test_a_psr_talks_like_a_pirate_on_questions_it_never_saw(organism, fitted):
    trait, coherence = held_out_scores(organism.model, fitted["A-PSR"])
    assert trait >= 90
    assert coherence >= 90


@pytest.mark.parametrize("method", ["S-Const DiM", "A-Const DiM"])
def test_the_difference_in_means_does_not(organism, fitted, method):
    trait, _ = held_out_scores(organism.model, fitted[method])
    assert trait < 20


def test_more_directions_come_closer_to_the_prompt(organism, fitted, pirate_triplets):
    rank_1, rank_4, constant = (
        relative_error(organism.model, pirate_triplets, fitted[name]) for name in ("A-PSR", "A-PSR rank 4", "A-Const DiM")
    )
    assert rank_4 <= rank_1 < 0.3 < constant


def test_an_artifact_of_one_class_steers_the_other(organism, fitted, load, tmp_path):
    again = Replacement.load(fitted["A-PSR"].save(tmp_path))
    for backend in BACKENDS:
        trait, _ = held_out_scores(load("organism", backend).model, again)
        assert trait >= 90
