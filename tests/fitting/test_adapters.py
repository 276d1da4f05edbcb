"""LoRA: in force as peft puts it in force, and gone without a trace."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from adapters import SEQUENCE, TWO, adapted_by_peft, assert_untouched, at_strength, random_adapter, state_of
from helpers import logits_of, random_triplets

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.evaluation.config import load_methods
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.models import LowRank, added_weights
from psr_lens.models.plain_model import held_plain_model
from psr_lens.replacement import Adapter

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of peft's

# --- in force -------------------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_peft_at_every_strength_and_nothing_stays(tiny, tmp_path):
    adapter, before = random_adapter(tiny), state_of(tiny.model)
    base = logits_of(tiny.model, SEQUENCE)
    hf = adapted_by_peft(tiny, adapter.save(tmp_path / "lora"))
    for strength in (1.0, 0.5, -1.0):
        with torch.no_grad():
            wanted = at_strength(hf, strength)(torch.tensor([SEQUENCE])).logits[0]
        with adapter.steer(tiny.model, alpha=strength):
            found = logits_of(tiny.model, SEQUENCE)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
        assert (wanted - base).abs().max() > 0.01
    with adapter.steer(tiny.model, alpha=0):
        assert torch.equal(logits_of(tiny.model, SEQUENCE), base)
    assert_untouched(tiny.model, before)
    assert torch.equal(logits_of(tiny.model, SEQUENCE), base)


@pytest.mark.parametrize(("family", "backend"), TWO)
def test_answers_are_those_of_peft_and_each_pair_has_its_own_strength(load, family, backend, tmp_path):
    case = load(family, backend)
    adapter = random_adapter(case)
    pairs = [each.pair for each in random_triplets(case.model, 3)]
    greedy = psr.SamplingConfig(temperature=0, max_new_tokens=3)
    mixed = psr.generate(case.model, pairs, adapter, alpha=[1.0, 0.0, 0.5], sampling=greedy)
    hf = adapted_by_peft(case, adapter.save(tmp_path / "lora"))
    for pair, strength, response in zip(pairs, (1.0, 0.0, 0.5), mixed, strict=True):
        ids = list(pair.base_ids)
        for token in response.ids:
            with torch.no_grad():
                assert int(at_strength(hf, strength)(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    with adapter.steer(case.model):  # sampling within a block, too
        inside = psr.generate(case.model, pairs[:1], sampling=greedy)
    assert inside[0] == mixed[0]


@pytest.mark.slow
def test_every_measurement_takes_it_as_a_method(tiny_llama, tmp_path):
    model, adapter, before = tiny_llama.model, random_adapter(tiny_llama), state_of(tiny_llama.model)
    triplets = random_triplets(model, 3)
    pairs = [each.pair for each in triplets]
    judge = psr.judges.fraction("a")
    few = psr.SamplingConfig(max_new_tokens=4)
    hf = adapted_by_peft(tiny_llama, adapter.save(tmp_path / "lora"))

    def peft_reads(ids):
        with torch.no_grad():
            return hf(torch.tensor([list(ids)]), output_hidden_states=True)

    wanted = []
    for each in triplets:
        scores = peft_reads((*each.pair.base_ids, *each.response_ids)).logits[0].log_softmax(-1)
        start = len(each.pair.base_ids) - 1
        wanted.append(torch.tensor([scores[start + place, token] for place, token in enumerate(each.response_ids)]))
    for found, one in zip(log_likelihoods(model, triplets, adapter), wanted, strict=True):
        torch.testing.assert_close(found, one, atol=1e-4, rtol=1e-4)

    compared = psr.compare(model, triplets, {"LoRA": adapter}, layers=[0])
    assert compared.methods["LoRA"].fits == (adapter.settings,)
    errors = []
    for each in triplets:
        start = len(each.pair.base_ids) - 1
        base, prompted = (
            oracles.hidden_states(tiny_llama.hf, (*ids, *each.response_ids))[1]
            for ids in (each.pair.base_ids, each.pair.prompted_ids)
        )
        steered = peft_reads((*each.pair.base_ids, *each.response_ids)).hidden_states[1][0]
        rows = len(each.response_ids) + 1
        errors.append((steered[start:] - base[start:] - (prompted[-rows:] - base[start:])).norm(dim=1))
    torch.testing.assert_close(compared.methods["LoRA"].error[:, 0], torch.cat(errors), atol=1e-3, rtol=1e-3)
    assert compared.methods["LoRA"].coefficient.shape[1] == 0

    evaluated = psr.evaluate(
        model,
        pairs,
        {"LoRA": adapter},
        judge,
        calibration=psr.Calibration(alphas=(0.5,), targets=(), at_prompt=False),
        sampling=few,
    )
    asked = psr.generate(model, pairs, adapter, alpha=0.5, sampling=few)
    assert evaluated.curves["LoRA"][1].answers == tuple(each.text for each in asked)
    assert psr.scores_at(model, pairs, adapter, judge, alpha=0.5, sampling=few).method == "LoRA"
    assert psr.best_alpha(model, pairs, adapter, judge, alphas=[0.5], min_coherence=0, sampling=few).alpha == 0.5
    assert (
        psr.answers_by_method(model, pairs, adapter, alpha=0.5, sampling=few).answers["LoRA"] == evaluated.curves["LoRA"][1].answers
    )
    assert list(psr.robustness(model, pairs, adapter, judge, counter="but be plain .", sampling=few).alphas) == ["LoRA"]
    close = psr.faithfulness(model, triplets, adapter)
    assert all(np.isfinite(row.value) for row in close.table().select(method="LoRA"))
    beside = psr.fit(model, triplets, psr.DiM(layers=1))
    harm = psr.collateral(model, pairs, {"LoRA": adapter, "CAA": beside}, sampling=few)
    assert list(harm.doses) == ["CAA"]
    assert harm.perplexity_ratio("LoRA").value != 1
    assert not psr.collateral(model, pairs, adapter, sampling=few, effects=psr.SideEffects(dose_limit=0.1)).overdosed
    harm_alone = replace(harm, doses={})
    page = psr.report(compared, tmp_path / "report.html", also=[close, harm_alone]).read_text()
    assert "changes weights" in repr(compared.methods["LoRA"])
    assert "Coefficients applied" not in page
    with pytest.raises(InputError, match=r"method: got 'LoRA', expected a replacement or a plan\. An adapter changes weights"):
        psr.plots.coefficient_scatter(compared, "LoRA")
    assert_untouched(model, before)


def test_answers_of_adapters_are_told_apart_in_a_cache(tiny_llama, tmp_path):
    model, one, other = tiny_llama.model, random_adapter(tiny_llama), random_adapter(tiny_llama, seed=1)
    pairs = [each.pair for each in random_triplets(model, 2)]
    config = psr.SamplingConfig(temperature=0, max_new_tokens=4)
    answers = AnswerCache(model, pairs, None, config, tmp_path)
    texts = [answers.responses(each) for each in (None, one, other, replace(one, scaling=1.0))]
    assert answers.generated == 8
    again = AnswerCache(model, pairs, None, config, tmp_path)
    assert [again.responses(each) for each in (None, one, other, replace(one, scaling=1.0))] == texts
    assert again.responses(one, 0.0) == texts[0]
    assert again.generated == 0


def test_an_error_and_an_interrupt_in_the_block_leave_nothing(fresh):
    adapter, before = random_adapter(fresh), state_of(fresh.model)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), adapter.steer(fresh.model):
            raise error
        assert_untouched(fresh.model, before)


def test_an_interrupt_while_it_is_tried_what_the_model_computes_with_leaves_nothing(fresh, monkeypatch):
    adapter, before = random_adapter(fresh), state_of(fresh.model)

    def interrupted(model, plain):
        assert any(not torch.equal(each, before[0][name][0]) for name, each in model.named_parameters())
        raise KeyboardInterrupt

    monkeypatch.setattr("psr_lens.models.added_weights.same_logits", interrupted)
    with pytest.raises(KeyboardInterrupt), adapter.steer(fresh.model):
        pass
    assert_untouched(fresh.model, before)


def test_two_at_once_are_refused_and_the_first_ends_well(fresh):
    adapter, before = random_adapter(fresh), state_of(fresh.model)
    with adapter.steer(fresh.model):
        inside = logits_of(fresh.model, SEQUENCE)
        with pytest.raises(ModelError, match="model: an adapter is in force on it already"), adapter.steer(fresh.model):
            pass
        assert torch.equal(logits_of(fresh.model, SEQUENCE), inside)
    assert_untouched(fresh.model, before)


def test_a_model_that_computes_with_other_weights_is_refused_with_the_remedy(fresh):
    adapter = random_adapter(fresh)
    if fresh.backend == "bridge":
        fresh.model.enable_compatibility_mode(disable_warnings=True)
    else:
        fresh.model.blocks[0].mlp.W_in.data = fresh.model.blocks[0].mlp.W_in.data.clone()
    with pytest.raises(ModelError, match=r"(?s)processed, replaced.*backend='bridge'"), adapter.steer(fresh.model):
        pass


def test_a_class_that_keeps_a_copy_of_a_weight_is_found_out(fresh, monkeypatch):
    plain = held_plain_model(fresh.model)
    name = next(iter(random_adapter(fresh).layers))
    apart = plain.get_submodule(name)
    apart._parameters = {**apart._parameters, "weight": torch.nn.Parameter(apart.weight.detach().clone(), requires_grad=False)}
    monkeypatch.setattr("psr_lens.models.added_weights.held_plain_model", lambda model: plain)
    with (
        pytest.raises(ModelError, match=r"it computes with copies of the weights of .*backend='bridge'"),
        random_adapter(fresh).steer(fresh.model),
    ):
        pass


# --- saved ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "backend"), TWO)
def test_the_folder_is_opened_by_load_model_too(load, family, backend, tmp_path, recwarn):
    case = load(family, backend)
    adapter = random_adapter(case)
    loaded = psr.load_model(adapter.save(tmp_path / "lora"), backend=case.backend)
    assert not [each for each in recwarn if "fan_in_fan_out" in str(each.message)]
    with adapter.steer(case.model):
        torch.testing.assert_close(logits_of(loaded, SEQUENCE), logits_of(case.model, SEQUENCE), atol=2e-5, rtol=1e-4)
    again = Adapter.load(tmp_path / "lora")
    assert again.digest == adapter.digest
    assert repr(again) == repr(adapter)
    assert load_methods({"LoRA": str(tmp_path / "lora")})["LoRA"].digest == adapter.digest


def test_damage_and_files_of_another_adapter_are_refused(tiny_llama, tmp_path):
    folder = random_adapter(tiny_llama).save(tmp_path / "lora")
    other = random_adapter(tiny_llama, seed=1).save(tmp_path / "other")
    (folder / "adapter_model.safetensors").write_bytes((other / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="do not belong together"):
        Adapter.load(folder)
    record = json.loads((other / "psr_adapter.json").read_text())
    for broken in ({"layers": 3}, {"curve": {}}, {"settings": 1}, {"format": 9}):
        (other / "psr_adapter.json").write_text(json.dumps(record | broken))
        with pytest.raises(ArtifactError, match="psr_adapter"):
            Adapter.load(other)
    with pytest.raises(ArtifactError, match="no such file"):
        Adapter.load(tmp_path / "nowhere")


# --- bad input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_said(tiny_llama, load):
    model, adapter = tiny_llama.model, random_adapter(tiny_llama)
    triplets = random_triplets(model, 2)
    for alpha in (float("nan"), torch.tensor([1.0, 2.0]), "1", True):
        with pytest.raises(InputError, match=r"alpha: got .*, expected a finite number"), adapter.steer(model, alpha):
            pass
    with pytest.raises(InputError, match=r"model: got LlamaForCausalLM, expected a model of TransformerLens.*peft"):
        adapter.steer(tiny_llama.hf).__enter__()
    with (
        pytest.raises(ModelError, match=r"model: it has no layer 'model\.layers\.0"),
        adapter.steer(load("gpt2", tiny_llama.backend).model),
    ):
        pass
    short = replace(adapter, layers={name: LowRank(each.a[:, 1:], each.b) for name, each in adapter.layers.items()})
    with pytest.raises(ModelError, match=r"q_proj is .* the adapter's change .*"), short.steer(model):
        pass
    with pytest.raises(InputError, match=r"targets: got \['nothing'\], expected names of linear layers of the model.*all-linear"):
        psr.adapt(model, triplets, psr.LoRA(targets=["nothing"]))
    with pytest.raises(InputError, match=r"triplets\[0\]\.trait: got 10, expected at least 50 with psr\.LoRA\(\)"):
        psr.adapt(model, [replace(triplets[0], trait=10.0)], psr.LoRA())
    with pytest.raises(InputError, match=r"config: got a Joint, expected the settings of what is learned into weights"):
        psr.adapt(model, triplets, psr.Joint())
    with pytest.raises(
        InputError, match=r"config: got a LoRA, expected the settings of a solver.*`psr\.adapt` learns adapters and neurons"
    ):
        psr.fit(model, triplets, psr.LoRA())
    for given in ({"lora_alpha": 0.0}, {"rank": 0}, {"targets": []}, {"targets": [""]}):
        with pytest.raises(InputError, match=f"^{next(iter(given))}: got"):
            psr.LoRA(**given)
    with pytest.raises(InputError, match="methods"):
        psr.compare(model, triplets, {"LoRA": peft})


def test_a_weight_of_two_layers_would_be_changed_twice_and_is_refused():
    weight = torch.eye(3)
    changed = added_weights._changed({"a": weight, "b": weight.view(3, 3)}, lambda _name, _device: torch.ones(3, 3))
    with pytest.raises(ModelError, match="two layers of the adapter share a weight"), changed:
        pass
    assert torch.equal(weight, torch.eye(3))
