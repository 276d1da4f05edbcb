"""Fitting neurons: against a slow reference, against their equation, and against their purpose on the organisms."""

import math

import oracles
import pytest
import torch
from adapters import assert_untouched, state_of
from helpers import BACKENDS, random_triplets
from random_neurons import activation, by_the_equation

import psr_lens as psr
from psr_lens.activations.next_token import divergence
from psr_lens.errors import InputError
from psr_lens.fitting.layerwise.regression import fit_site
from psr_lens.fitting.mlp_neurons import fit_neurons, output_of

FEW = {"regression_steps": 5, "ridge": 0.3, "rank": 2}


def read_by_mlp(hf, layer: int, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer's MLP reads, and what the layer gives."""
    found = []
    handle = oracles.blocks(hf)[layer].mlp.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0][0]))
    try:
        with torch.no_grad():
            residual = oracles.read(hf, ids).residuals[layer]
    finally:
        handle.remove()
    return found[0], residual


@pytest.mark.parametrize(("family", "span", "layers"), [("llama", "R", [0, 1, 2]), ("gpt2", "QR", [0, 2]), ("gpt-neox", "R", [1])])
def test_each_layer_is_fitted_to_what_the_earlier_ones_leave(load, family, span, layers):
    case = load(family, BACKENDS[0])
    triplets, config = random_triplets(case.model, 5), psr.Neurons(span=span, prompt_weight=0.5, token_budget=120, **FEW)
    found = fit_neurons(case.model, triplets, layers, config)
    assert list(found) == layers
    for at, layer in enumerate(layers):
        earlier = psr.AddedNeurons({each: found[each].neurons for each in layers[:at]} or {layer: found[layer].neurons}, {})
        rows = []
        for triplet in triplets:
            base = (*triplet.pair.base_ids, *triplet.response_ids)
            prompted = (*triplet.pair.prompted_ids, *triplet.response_ids)
            strength = triplet.trait / 100
            with by_the_equation(case.hf, earlier, strength if at else 0.0):
                read, ours = read_by_mlp(case.hf, layer, base)
            wanted = read_by_mlp(case.hf, layer, base)[1].clone()
            kept = triplet.pair.span_length(span) + len(triplet.response_ids)
            wanted[-kept:] = read_by_mlp(case.hf, layer, prompted)[1][-kept:]
            weight = torch.full((len(base),), 0.5)
            weight[-kept:] = 1
            rows.append((read, wanted - ours, torch.full((len(base),), strength), weight))
        inputs, targets, alpha, weights = (torch.cat(each) for each in zip(*rows, strict=True))
        reference = fit_site(inputs, targets, alpha, psr.Sequential(hook="mlp_out", **FEW), None, weights)
        expected, got = reference.coefficients(inputs), found[layer].site.coefficients(inputs)
        assert (got - expected).norm() <= 1e-3 * expected.norm()
        real = output_of(found[layer].neurons, activation(case.hf), inputs)
        left, rule = (
            (weights * (alpha[:, None] * each - targets).square().sum(1)).sum() for each in (real, reference.intervention(inputs))
        )
        assert left <= 1.1 * rule  # as good as the rule at what both are for
        assert left < (weights * targets.square().sum(1)).sum()


def test_the_batching_changes_nothing(tiny):
    triplets = random_triplets(tiny.model, 6)
    first, *others = (psr.adapt(tiny.model, triplets, psr.Neurons(token_budget=budget, **FEW)) for budget in (8_192, 100, 1))
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    for other in others:
        for layer, neurons in first.layers.items():
            wanted, found = (output_of(each, activation(tiny.hf), inputs) for each in (neurons, other.layers[layer]))
            assert (found - wanted).norm() <= 2e-2 * wanted.norm()


def test_nothing_of_the_model_changes_and_all_of_the_fit_is_recorded(tiny):
    triplets, before = random_triplets(tiny.model, 10), state_of(tiny.model)
    config = psr.Neurons(layers=[0, -1], validation=0.2, **FEW)
    found = psr.adapt(tiny.model, triplets, config)
    assert_untouched(tiny.model, before)
    assert list(found.layers) == [0, tiny.model.cfg.n_layers - 1]
    assert found.settings["triplets"] == 8
    assert found.settings["instructions"] == sorted({each.pair.instruction for each in triplets})
    assert found.settings["solver"] == "neurons"
    assert (found.fidelity.triplets, found.fidelity.held_back) == (2, True)
    assert psr.adapt(tiny.model, triplets, config).digest == found.digest
    assert psr.adapt(tiny.model, triplets[:1], psr.Neurons(**FEW)).fidelity.held_back is False


def test_the_fidelity_is_that_of_plain_transformers(load):
    case = load("llama", BACKENDS[0])
    triplets = random_triplets(case.model, 4)
    found = psr.adapt(case.model, triplets, psr.Neurons(validation=0, **FEW))
    prompted, unsteered, prompts = [], [], []
    for each in triplets:
        base, start = (*each.pair.base_ids, *each.response_ids), len(each.pair.base_ids) - 1
        with torch.no_grad():
            wanted = case.hf(torch.tensor([[*each.pair.prompted_ids, *each.response_ids]])).logits[0][
                len(each.pair.prompted_ids) - 1 : -1
            ]
            free = case.hf(torch.tensor([base])).logits[0]
            with by_the_equation(case.hf, found):
                ours = case.hf(torch.tensor([base])).logits[0]
        prompted.append(divergence(wanted, ours[start:-1]))
        unsteered.append(divergence(wanted, free[start:-1]))
        prompts.append(divergence(free[:start], ours[:start]))
    for name, values in (("prompted", prompted), ("unsteered", unsteered), ("on_prompts", prompts)):
        assert math.isclose(getattr(found.fidelity, name), float(torch.cat(values).mean()), rel_tol=1e-3, abs_tol=1e-5), name
    assert found.fidelity.form >= 0


def test_sharper_neurons_are_closer_to_the_rule(load):
    case = load("gpt2", BACKENDS[0])
    triplets = random_triplets(case.model, 6)
    blunt, sharp = (psr.adapt(case.model, triplets, psr.Neurons(sharpness=each, **FEW)).fidelity.form for each in (2.0, 200.0))
    assert sharp < 0.1 * blunt


@pytest.mark.slow
@pytest.mark.parametrize("family", ["organism", "organism-gpt2"])
def test_the_organism_talks_like_a_pirate_without_being_told(load, family, tmp_path):
    case = load(family, BACKENDS[0])
    model, judge = case.model, psr.judges.organism("pirate")
    instruction = psr.organism.INSTRUCTIONS["pirate"]
    asked = psr.prompt_pairs(model, psr.organism.questions(60, split="train", kind="description", seed=1), instruction)
    held_out = psr.prompt_pairs(model, psr.organism.questions(15, split="held_out", kind="description"), instruction)
    triplets = psr.sample_responses(model, asked, judge, sampling=psr.SamplingConfig(max_new_tokens=32))
    neurons = psr.adapt(model, triplets, psr.Neurons())
    assert neurons.fidelity.form < 0.01
    assert neurons.fidelity.prompted < 0.05 * neurons.fidelity.unsteered
    scores = psr.scores_at(model, held_out, neurons, judge, sampling=psr.SamplingConfig(temperature=0, max_new_tokens=32))
    assert scores.trait >= 90
    assert scores.coherence >= 90
    folder = neurons.to_checkpoint(model, tmp_path / "pirate")
    again = psr.load_model(folder, backend="bridge")
    told = psr.prompt_pairs(again, [pair.question for pair in held_out[:4]], instruction)
    greedy = psr.SamplingConfig(temperature=0, max_new_tokens=16)
    assert psr.generate(again, told, sampling=greedy) == psr.generate(model, held_out[:4], neurons, sampling=greedy)


def test_wrong_settings_are_refused(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    for given, message in (
        ({"rank": 0}, "rank: got 0, expected a whole number of at least 1, or 'auto'"),
        ({"sharpness": 0.0}, "sharpness: got 0.0, expected a finite number above 0"),
        ({"sharpness": True}, "sharpness: got True"),
        ({"prompt_weight": -1.0}, "prompt_weight: got -1.0"),
        ({"constant_ridge": math.inf}, "constant_ridge: got inf"),
        ({"validation": 1.0}, "validation: got 1.0"),
    ):
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            psr.Neurons(**given)
    with pytest.raises(InputError, match=r"layers: got .*9"):
        psr.adapt(tiny_llama.model, triplets, psr.Neurons(layers=9))
    with pytest.raises(InputError, match=r"checkpoint: got .*, expected None with psr\.Neurons\(\), which has no epochs"):
        psr.adapt(tiny_llama.model, triplets, psr.Neurons(), checkpoint="run")
    with pytest.raises(InputError, match=r"`psr\.adapt` learns adapters and neurons"):
        psr.fit(tiny_llama.model, triplets, psr.Neurons())
