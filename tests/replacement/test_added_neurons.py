"""Neurons in force: what their equation gives, for every method that measures, and gone without a trace."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from adapters import SEQUENCE, assert_untouched, state_of
from helpers import BACKENDS, Case, logits_of, random_triplets
from random_neurons import FAMILIES, by_the_equation, random_neurons

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.evaluation.config import load_methods
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.models import ExtraNeurons, neurons_added

GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=4)


def every_case(load):
    return [load(family, backend) for family in FAMILIES for backend in BACKENDS]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_equation_and_nothing_stays(load, family, backend):
    case = load(family, backend)
    neurons, before, base = random_neurons(case), state_of(case.model), logits_of(case.model, SEQUENCE)
    for alpha in (1.0, 0.5, -1.0):
        with by_the_equation(case.hf, neurons, alpha), torch.no_grad():
            wanted = case.hf(torch.tensor([SEQUENCE])).logits[0]
        with neurons.steer(case.model, alpha=alpha):
            found = logits_of(case.model, SEQUENCE)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
        assert (wanted - base).abs().max() > 0.05
    with neurons.steer(case.model, alpha=0):
        assert torch.equal(logits_of(case.model, SEQUENCE), base)
    assert_untouched(case.model, before)
    assert torch.equal(logits_of(case.model, SEQUENCE), base)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox"])
def test_answers_are_those_of_the_equation_and_each_pair_has_its_own_strength(load, family, backend):
    case = load(family, backend)
    neurons = random_neurons(case)
    pairs = [each.pair for each in random_triplets(case.model, 3)]
    mixed = psr.generate(case.model, pairs, neurons, alpha=[1.0, 0.0, 0.5], sampling=GREEDY)
    for pair, alpha, response in zip(pairs, (1.0, 0.0, 0.5), mixed, strict=True):
        ids = list(pair.base_ids)
        for token in response.ids:
            with by_the_equation(case.hf, neurons, alpha), torch.no_grad():
                assert int(case.hf(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    with neurons.steer(case.model):
        inside = psr.generate(case.model, pairs[:1], sampling=GREEDY)
    assert inside[0] == mixed[0]
    column = {"neurons": neurons}
    streamed = [each for each in psr.stream(case.model, pairs[0], column, sampling=GREEDY) if each.column == "neurons"]
    assert tuple(each.id for each in streamed) == mixed[0].ids


def test_every_measurement_takes_them_as_a_method(tiny_llama, tmp_path):
    model, neurons, before = tiny_llama.model, random_neurons(tiny_llama), state_of(tiny_llama.model)
    triplets = random_triplets(model, 3)
    pairs = [each.pair for each in triplets]
    judge, few = psr.judges.fraction("a"), psr.SamplingConfig(max_new_tokens=4)
    for found, each in zip(log_likelihoods(model, triplets, neurons), triplets, strict=True):
        start = len(each.pair.base_ids) - 1
        with by_the_equation(tiny_llama.hf, neurons), torch.no_grad():
            scores = tiny_llama.hf(torch.tensor([[*each.pair.base_ids, *each.response_ids]])).logits[0].log_softmax(-1)
        wanted = torch.tensor([scores[start + place, token] for place, token in enumerate(each.response_ids)])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    compared = psr.compare(model, triplets, neurons, layers=[0])
    errors = []
    for each in triplets:
        start, rows = len(each.pair.base_ids) - 1, len(each.response_ids) + 1
        prompted = oracles.hidden_states(tiny_llama.hf, (*each.pair.prompted_ids, *each.response_ids))[1][-rows:]
        with by_the_equation(tiny_llama.hf, neurons):
            ours = oracles.hidden_states(tiny_llama.hf, (*each.pair.base_ids, *each.response_ids))[1][start:]
        errors.append((ours - prompted).norm(dim=1))
    torch.testing.assert_close(compared.methods["Neurons"].error[:, 0], torch.cat(errors), atol=1e-3, rtol=1e-3)
    once = psr.Calibration(alphas=(0.5,), targets=(), at_prompt=False)
    evaluated = psr.evaluate(model, pairs, neurons, judge, calibration=once, sampling=few, cache=tmp_path / "cache")
    asked = psr.generate(model, pairs, neurons, alpha=0.5, sampling=few)
    assert evaluated.curves["Neurons"][1].answers == tuple(each.text for each in asked)
    again = psr.evaluate(model, pairs, neurons, judge, calibration=once, sampling=few, cache=tmp_path / "cache")
    assert again.curves["Neurons"][1].answers == evaluated.curves["Neurons"][1].answers
    assert psr.scores_at(model, pairs, neurons, judge, alpha=0.5, sampling=few).method == "Neurons"
    assert psr.best_alpha(model, pairs, neurons, judge, alphas=[0.5], min_coherence=0, sampling=few).alpha == 0.5
    assert list(psr.robustness(model, pairs, neurons, judge, counter="but be plain .", sampling=few).alphas) == ["Neurons"]
    assert all(np.isfinite(row.value) for row in psr.faithfulness(model, triplets, neurons).table().select(method="Neurons"))
    assert psr.collateral(model, pairs, neurons, sampling=few).perplexity_ratio("Neurons").value != 1
    assert_untouched(model, before)


# --- refused --------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_in_force_is_refused(load, tiny_llama):
    neurons = random_neurons(tiny_llama)
    with neurons.steer(tiny_llama.model), pytest.raises(ModelError, match="more neurons already"), neurons.steer(tiny_llama.model):
        pass
    with pytest.raises(InputError, match="alpha: got nan, expected a finite number"), neurons.steer(tiny_llama.model, float("nan")):
        pass
    with pytest.raises(InputError, match=r"a model of TransformerLens.*to_checkpoint"), neurons.steer(tiny_llama.hf):
        pass
    gpt2 = load("gpt2", "bridge")
    with (
        pytest.raises(ModelError, match="of an MLP without a gate, the neurons were made for a gated MLP"),
        neurons.steer(gpt2.model),
    ):
        pass
    narrow = replace(neurons, layers={0: ExtraNeurons(torch.ones(1, 7), torch.ones(1, 7), None, torch.ones(1, 7))})
    with pytest.raises(ModelError, match="reads 32 numbers, the neurons 7"), narrow.steer(tiny_llama.model):
        pass
    beyond = replace(neurons, layers={9: neurons.layers[0]})
    with pytest.raises(ModelError, match=r"it has no layer 'model\.layers\.9"), beyond.steer(tiny_llama.model):
        pass
    deeper = replace(neurons, model={**neurons.model, "n_layers": 9})
    with pytest.raises(ArtifactError, match=r"made for .* with n_layers=9"), deeper.steer(tiny_llama.model):
        pass
    with pytest.raises(InputError, match=r"layers: got \{\}, expected a mapping"):
        replace(neurons, layers={})


@pytest.mark.parametrize("family", ["gemma2", "phi3", "olmo2", "qwen3-moe"])
def test_other_families_are_refused(load, family):
    case = load(family, "bridge")
    layers = {0: ExtraNeurons(*(torch.ones(1, case.model.cfg.d_model) for _ in range(2)))}
    with pytest.raises(ModelError, match="cannot get more neurons here, those of 'llama'"), neurons_added(case.model, layers):
        pass
    with pytest.raises(ModelError, match="cannot get more neurons here"):
        psr.adapt(case.model, random_triplets(case.model, 3), psr.Neurons(rank=1))


def test_a_processed_model_is_refused(folders):
    if len(BACKENDS) > 1:
        model = psr.load_model(folders["llama"], backend="hooked_transformer")
        model.blocks[0].mlp.W_in = torch.nn.Parameter(model.blocks[0].mlp.W_in.detach().clone())
    else:
        model = psr.load_model(folders["llama"])
        model.enable_compatibility_mode(disable_warnings=True)
    case = Case("llama", "", folders["llama"], model, None)
    with pytest.raises(ModelError, match="they were processed, replaced"), random_neurons(case).steer(model):
        pass


def test_no_engine_samples_with_them(tiny_llama):
    pairs = [each.pair for each in random_triplets(tiny_llama.model, 1)]

    class Other:
        identity = "other"

        def check(self, *given): ...

        def respond(self, *given): ...

    with pytest.raises(InputError, match="an engine, with added neurons to steer with"):
        psr.generate(tiny_llama.model, pairs, random_neurons(tiny_llama), engine=Other())


# --- files ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_folder_gives_the_same_neurons(load, family, tmp_path):
    case = load(family, "bridge")
    neurons = random_neurons(case)
    folder = neurons.save(tmp_path / "neurons")
    again = psr.AddedNeurons.load(folder)
    assert (again.digest, again.settings, again.model) == (neurons.digest, neurons.settings, neurons.model)
    assert list(again.layers) == [0, 2]
    assert isinstance(load_methods({"ours": str(folder)})["ours"], psr.AddedNeurons)
    with neurons.steer(case.model):
        wanted = logits_of(case.model, SEQUENCE)
    with again.steer(case.model):
        assert torch.equal(logits_of(case.model, SEQUENCE), wanted)


def test_a_damaged_folder_is_refused(tiny_llama, tmp_path):
    neurons = random_neurons(tiny_llama)
    folder = neurons.save(tmp_path / "neurons")
    record = json.loads((folder / "psr_neurons.json").read_text())
    for change, message in (
        ({"digest": "0"}, "do not belong together"),
        ({"layers": {"0": ["read"]}}, "is damaged"),
        ({"layers": {"0": ["read", "write", "other"]}}, "is damaged"),
        ({"layers": {"zero": ["read", "write"]}}, "is damaged"),
        ({"layers": []}, "is damaged"),
        ({"fidelity": {"form": 0}}, "is damaged"),
        ({"layers": {"0": ["read", "write", "up"]}}, "also holds"),
        ({"format": 9}, "format 9 is not supported"),
    ):
        (folder / "psr_neurons.json").write_text(json.dumps(record | change))
        with pytest.raises(ArtifactError, match=message):
            psr.AddedNeurons.load(folder)
