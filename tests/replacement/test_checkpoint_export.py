"""Checkpoints with more neurons: plain transformers computes with them what the model does with the neurons in force."""

import json
from dataclasses import replace

import pytest
import torch
from adapters import SEQUENCE, assert_untouched, state_of
from architectures import save_tiny
from helpers import BACKENDS, Case, logits_of, random_triplets
from random_neurons import FAMILIES, by_the_equation, random_neurons
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.replacement import NeuronFidelity, checkpoint_export

CLOSE = NeuronFidelity(form=0.01, prompted=0.1, unsteered=1.0, on_prompts=0.02, triplets=3, held_back=True)


def plain(folder):
    """The folder as anyone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def left_padded(pairs):
    """Ids and mask of some base prompts, and their width."""
    width = max(len(pair.base_ids) for pair in pairs)
    rows = [[0] * (width - len(pair.base_ids)) + list(pair.base_ids) for pair in pairs]
    masks = [[0] * (width - len(pair.base_ids)) + [1] * len(pair.base_ids) for pair in pairs]
    return torch.tensor(rows), torch.tensor(masks), width


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_computes_what_the_model_does(load, family, backend, tmp_path):
    case = load(family, backend)
    neurons, before = random_neurons(case), state_of(case.model)
    folder = neurons.to_checkpoint(case.model, tmp_path / "wide", alpha=0.5)
    assert_untouched(case.model, before)
    hf = plain(folder)
    with torch.no_grad():
        found = hf(torch.tensor([SEQUENCE])).logits[0]
        with by_the_equation(case.hf, neurons, 0.5):
            wanted = case.hf(torch.tensor([SEQUENCE])).logits[0]
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    with neurons.steer(case.model, alpha=0.5):
        torch.testing.assert_close(logits_of(case.model, SEQUENCE), found, atol=2e-4, rtol=1e-4)
    pairs = [each.pair for each in random_triplets(case.model, 4)]
    ids, mask, width = left_padded(pairs)
    assert len({len(pair.base_ids) for pair in pairs}) > 1
    answers = hf.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=6)[:, width:]
    greedy = psr.SamplingConfig(temperature=0, max_new_tokens=6)
    for found, response in zip(answers, psr.generate(case.model, pairs, neurons, alpha=0.5, sampling=greedy), strict=True):
        assert tuple(found.tolist())[: len(response.ids)] == response.ids


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {"mlp_bias": True}), ("llama", {"tie_word_embeddings": True}), ("gpt2", {"n_inner": 40})],
)
def test_variants_of_a_family_are_exact_too(family, settings, tmp_path):
    source = save_tiny(family, tmp_path / "source", settings=settings)
    model = psr.load_model(source, backend="bridge")
    case = Case(family, "bridge", source, model, plain(source))
    neurons = random_neurons(case)
    folder = neurons.to_checkpoint(model, tmp_path / "wide")
    with torch.no_grad(), by_the_equation(case.hf, neurons):
        wanted = case.hf(torch.tensor([SEQUENCE])).logits
    with torch.no_grad():
        torch.testing.assert_close(plain(folder)(torch.tensor([SEQUENCE])).logits, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_half_precision_stays_half_precision(folders, load, family, tmp_path):
    model = psr.load_model(folders[family], dtype="bfloat16", backend="bridge")
    case = Case(family, "bridge", folders[family], model, None)
    neurons = random_neurons(case)
    folder = neurons.to_checkpoint(model, tmp_path / "wide")
    hf = plain(folder)
    assert hf.dtype == torch.bfloat16
    with torch.no_grad(), neurons.steer(model):
        wanted, found = logits_of(model, SEQUENCE).float(), hf(torch.tensor([SEQUENCE])).logits[0].float()
    assert (found - wanted).norm() <= 0.02 * wanted.norm()
    assert (logits_of(model, SEQUENCE).float() - wanted).norm() > 0.1 * wanted.norm()


def test_only_the_width_is_new(load, tmp_path):
    case = load("llama", "bridge")
    folder = random_neurons(case).to_checkpoint(case.model, tmp_path / "wide", multiple_of=16)
    before, after = (json.loads((each / "config.json").read_text()) for each in (case.folder, folder))
    assert (before["intermediate_size"], after["intermediate_size"]) == (48, 64)
    same = {"transformers_version", "intermediate_size"}
    assert {k: v for k, v in before.items() if k not in same} == {k: v for k, v in after.items() if k not in same}
    old, new = (load_file(each / "model.safetensors") for each in (case.folder, folder))
    assert old.keys() == new.keys()
    for name, weight in old.items():
        wide = new[name]
        if "mlp" not in name:
            assert torch.equal(weight, wide)
            continue
        at = (slice(0, 48), slice(None)) if "down" not in name else (slice(None), slice(0, 48))
        assert torch.equal(wide[at], weight), name
        assert wide.numel() == weight.numel() // 48 * 64
        if ".1." in name:  # a layer without neurons
            assert wide.abs().sum() == weight.abs().sum()
    text = "what is a bear ? carry the cold water ."
    first, second = (AutoTokenizer.from_pretrained(each) for each in (case.folder, folder))
    assert first(text)["input_ids"] == second(text)["input_ids"]
    assert first.chat_template == second.chat_template
    assert not [each.name for each in folder.iterdir() if each.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert psr.load_model(folder, backend="bridge").cfg.d_model == 32


def test_the_readme_says_what_it_is(load, tmp_path):
    case = load("gpt2", "bridge")
    metrics = psr.ResultTable((psr.Result("Neurons", "trait", 98.0, n=150, interval=(95.0, 100.0)),))
    neurons = replace(random_neurons(case), fidelity=CLOSE)
    folder = neurons.to_checkpoint(case.model, tmp_path / "wide", alpha=0.75, metrics=metrics)
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        "talk like a \\| pirate .",
        "α = 0.75",
        "131 neurons instead of 128",
        "| KL from the prompted model, in nats a response token | 0.1 |",
        "| Neurons | trait | 98 |",
    ):
        assert part in text


def test_what_is_not_faithful_is_refused_with_numbers(tiny_llama, tmp_path):
    neurons = random_neurons(tiny_llama)
    far = replace(neurons, fidelity=replace(CLOSE, form=0.2))
    with pytest.raises(ArtifactError, match=r"0\.2 nats a token from the rule.*on 3 triplets, and max_kl=0\.05"):
        far.to_checkpoint(tiny_llama.model, tmp_path / "far")
    missing = replace(neurons, fidelity=replace(CLOSE, form=float("nan")))
    with pytest.raises(ArtifactError, match="nan nats a token"):
        missing.to_checkpoint(tiny_llama.model, tmp_path / "far")
    worse = replace(neurons, fidelity=replace(CLOSE, prompted=2.0))
    with pytest.raises(ArtifactError, match=r"2 nats a token from the prompted model.*the base prompt alone is 1 from it"):
        worse.to_checkpoint(tiny_llama.model, tmp_path / "far")
    broken = replace(neurons, layers={0: replace(neurons.layers[0], write=neurons.layers[0].write * float("nan"))})
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        broken.to_checkpoint(tiny_llama.model, tmp_path / "far")
    assert not list(tmp_path.iterdir())
    far.to_checkpoint(tiny_llama.model, tmp_path / "far", max_kl=0.3)


def test_wrong_arguments_write_nothing(tiny_llama, tmp_path):
    neurons, model = random_neurons(tiny_llama), tiny_llama.model
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for given, message in (
        ({"folder": tmp_path / "full"}, "folder: got .*not an empty folder"),
        ({"folder": tmp_path / "full" / "mine.txt"}, "folder: got .*not an empty folder"),
        ({"folder": tmp_path / "new", "alpha": float("inf")}, "alpha: got inf, expected a finite number"),
        ({"folder": tmp_path / "new", "multiple_of": 0}, "multiple_of: got 0"),
        ({"folder": tmp_path / "new", "max_kl": -1.0}, "max_kl: got -1"),
    ):
        with pytest.raises(InputError, match=message):
            neurons.to_checkpoint(model, **given)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full"]
    (tmp_path / "empty").mkdir()
    assert (neurons.to_checkpoint(model, tmp_path / "empty") / "config.json").exists()


def test_a_quantised_model_is_refused(fresh, tmp_path):
    neurons = random_neurons(Case(fresh.family, fresh.backend, fresh.folder, fresh.model, None))
    inner = checkpoint_export.plain_with_mlps(fresh.model)
    inner.config.quantization_config = {"quant_method": "bitsandbytes"}
    try:
        with pytest.raises(ModelError, match=r"quantised \(bitsandbytes\)"):
            checkpoint_export._check_plain_weights(inner)
    finally:
        del inner.config.quantization_config
    assert neurons.rank == 3


def test_a_checkpoint_that_differs_is_not_written(fresh, tmp_path):
    neurons = random_neurons(fresh)
    handle = fresh.model.blocks[1].mlp.register_forward_hook(lambda module, arguments, output: output * 2)
    try:
        with pytest.raises(ModelError, match="the checkpoint's logits differ from its own"):
            neurons.to_checkpoint(fresh.model, tmp_path / "wide")
    finally:
        handle.remove()
    assert not list(tmp_path.iterdir())
    neurons.to_checkpoint(fresh.model, tmp_path / "wide")
