"""Loading, and the one face that both TransformerLens classes show."""

import shutil
import tempfile
from types import SimpleNamespace

import pytest
import torch
from helpers import BACKENDS, TINY, Case, assert_unchanged, logits_of, pairs_of, save_tiny, state_of
from transformers import AutoTokenizer

import psr_lens as psr
from psr_lens import models
from psr_lens.errors import InputError, ModelError
from psr_lens.organism.tokenizer import build_tokenizer

TOLERANCE = 1e-4
OTHER_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
needs_hooked_transformer = pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")


def assert_same_logits(case: Case) -> None:
    for pair in pairs_of(case.model, 3):
        with torch.no_grad():
            wanted = case.hf(torch.tensor([pair.prompted_ids])).logits[0]
        torch.testing.assert_close(logits_of(case.model, pair.prompted_ids), wanted, atol=TOLERANCE, rtol=0)


def test_organism_is_a_hooked_transformer_where_the_class_exists():
    expected = "HookedTransformer" if "hooked_transformer" in BACKENDS else "TransformerBridge"
    assert type(psr.load_model("organism")).__name__ == expected


def test_backend_chooses_the_class(load):
    assert type(load("organism", "bridge").model).__name__ == "TransformerBridge"
    assert models.is_bridge(load("organism", "bridge").model)
    assert not models.is_bridge(load("organism", BACKENDS[0]).model) or BACKENDS[0] == "bridge"


def test_logits_of_the_shipped_organisms_are_those_of_transformers(shipped):
    assert_same_logits(shipped)


def test_logits_of_local_folders_are_those_of_transformers(tiny):
    assert_same_logits(tiny)


def test_weights_are_float32_in_evaluation_mode_and_frozen(tiny, shipped):
    for case in (tiny, shipped):
        assert {parameter.dtype for parameter in case.model.parameters()} == {torch.float32}
        assert not any(module.training for module in case.model.modules())
        assert not any(parameter.requires_grad for parameter in case.model.parameters())
        assert models.device_of(case.model).type == "cpu"


def test_a_repeated_call_gives_the_same_logits_bit_for_bit(tiny):
    assert torch.equal(logits_of(tiny.model, range(10, 30)), logits_of(tiny.model, range(10, 30)))


@needs_hooked_transformer
@pytest.mark.parametrize("family", ["organism", "organism-gpt2", *TINY])
def test_weights_are_not_processed(load, family):
    case = load(family, "hooked_transformer")
    names = ("transformer.h.0.ln_1.weight", "transformer.wte.weight", "lm_head.weight")
    if "gpt2" not in family:
        names = ("model.layers.0.input_layernorm.weight", "model.embed_tokens.weight", "lm_head.weight")
    norm, embedding, unembedding = (case.hf.get_parameter(name) for name in names)
    assert torch.equal(case.model.blocks[0].ln1.w, norm)  # folding would take it away
    assert torch.equal(case.model.W_E, embedding)  # centring would move it
    assert torch.equal(case.model.W_U, unembedding.T)


def test_a_loaded_model_is_taken_as_it_is(tiny):
    assert psr.load_model(tiny.model, verify=False) is tiny.model  # which leaves what all tests share alone


def test_the_organism_needs_no_files_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert psr.load_model("organism").cfg.n_layers == 6


def test_loading_prints_nothing(folders, capfd):
    for backend in BACKENDS:
        psr.load_model(folders["llama"], backend=backend)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_dtypes_are_kept(folders, backend):
    model = psr.load_model(folders["llama"], backend=backend, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits_of(model, range(10, 20)).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_architecture_is_read_from_the_folder_and_not_from_its_name(tmp_path, folders, backend):
    disguised = tmp_path / "gpt2-large-gemma"
    shutil.copytree(folders["llama-gqa"], disguised)
    model = psr.load_model(disguised, backend=backend)
    torch.testing.assert_close(
        logits_of(model, range(10, 30)),
        logits_of(psr.load_model(folders["llama-gqa"], backend=backend), range(10, 30)),
        atol=1e-5,
        rtol=0,
    )


@needs_hooked_transformer
def test_a_temporary_folder_with_the_name_of_an_architecture_is_told_of_and_not_fallen_for(tmp_path, folders, monkeypatch):
    trap = tmp_path / "gemma-2b"
    trap.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(trap))
    with pytest.raises(ModelError, match=r"TMPDIR|bridge"):
        psr.load_model(folders["llama"], backend="hooked_transformer")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_without_a_tokenizer_is_a_model_without_one(tmp_path, folders, backend):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folders["llama"] / name, tmp_path / name)
    model = psr.load_model(tmp_path, backend=backend)
    assert logits_of(model, range(10, 20)).isfinite().all()
    with pytest.raises(ModelError, match="no tokenizer"):
        models.tokenizer_of(model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_weights_are_a_model_error(tmp_path, folders, backend):
    shutil.copytree(folders["llama"], tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="damaged"):
        psr.load_model(tmp_path / "damaged", backend=backend)


def test_an_empty_folder_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        psr.load_model(tmp_path)


def test_without_hooked_transformer_the_bridge_is_taken(folders, monkeypatch):
    monkeypatch.setattr(models.loading, "has_hooked_transformer", lambda: False)
    assert models.is_bridge(psr.load_model(folders["llama"]))
    with pytest.raises(ModelError, match=r"removed in 4\.0"):
        psr.load_model(folders["llama"], backend="hooked_transformer")


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("name", ["gpt2", "google/gemma-2-2b-it", "Qwen/Qwen2.5-7B-Instruct"])
def test_a_known_name_that_cannot_be_fetched_is_a_model_error(name, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=rf"(?s)the weights of '{name}' could not be fetched or read .*network"):
        psr.load_model(name, backend=backend)


def test_a_name_that_only_the_hub_may_know_goes_to_the_bridge(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="the weights of 'somebody/their-model' could not be fetched"):
        psr.load_model("somebody/their-model")


def test_the_tokenizer_is_a_copy_of_our_own(fresh):
    ours = models.tokenizer_of(fresh.model)
    assert ours is not fresh.model.tokenizer
    assert models.tokenizer_of(fresh.model) is ours
    fresh.model.tokenizer.padding_side = "left" if ours.padding_side == "right" else "right"
    assert models.tokenizer_of(fresh.model).padding_side != fresh.model.tokenizer.padding_side


def test_a_chat_template_that_the_user_sets_is_used(fresh):
    models.tokenizer_of(fresh.model)
    fresh.model.tokenizer.chat_template = OTHER_TEMPLATE
    assert models.tokenizer_of(fresh.model).chat_template == OTHER_TEMPLATE


def test_a_tokenizer_that_the_user_puts_in_is_used(fresh, tmp_path):
    models.tokenizer_of(fresh.model)
    other = build_tokenizer()
    other.chat_template = OTHER_TEMPLATE
    other.save_pretrained(tmp_path)
    fresh.model.tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert models.tokenizer_of(fresh.model).chat_template == OTHER_TEMPLATE


def test_both_classes_have_the_same_fingerprint(load):
    for family in ("organism", *TINY):
        first, *others = (models.model_identity(load(family, backend).model) for backend in BACKENDS)
        assert all(other == first for other in others)


def test_a_fingerprint_tells_models_apart_and_names_no_path(tmp_path, tiny):
    found = models.fingerprint(tiny.model)
    assert (found["n_layers"], found["d_model"], found["n_heads"]) == (3, 32, 4)
    assert found["architecture"] == ("GPT2LMHeadModel" if tiny.family == "gpt2" else "LlamaForCausalLM")
    assert "/" not in found["model_name"]
    other = psr.load_model(save_tiny("llama", tmp_path / "wide", width=48), backend=tiny.backend)
    assert models.fingerprint(other)["d_model"] == 48


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(tiny, side):
    sequences = [pair.prompted_ids for pair in pairs_of(tiny.model, 5)]
    width = max(map(len, sequences)) + 3
    tokens, mask = torch.zeros(5, width, dtype=torch.long), torch.zeros(5, width, dtype=torch.long)
    places = [slice(width - len(ids), width) if side == "left" else slice(len(ids)) for ids in sequences]
    for row, (ids, place) in enumerate(zip(sequences, places, strict=True)):
        tokens[row, place], mask[row, place] = torch.tensor(ids), 1
    with torch.no_grad():
        logits = models.forward(tiny.model, tokens, mask)
    for row, (ids, place) in enumerate(zip(sequences, places, strict=True)):
        torch.testing.assert_close(logits[row, place], logits_of(tiny.model, ids), atol=1e-4, rtol=0)


def test_a_pass_that_stops_early_reads_the_same(tiny):
    tokens = torch.arange(10, 20)[None]
    name, seen = "blocks.1.hook_resid_post", []
    with tiny.model.hooks(fwd_hooks=[(name, lambda activation, hook: seen.append(activation.clone()))]), torch.no_grad():
        for stop in (2, 3, None):
            models.forward(tiny.model, tokens, torch.ones_like(tokens), stop)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[2])


def test_decode_steps_with_a_cache_agree_with_a_full_pass(tiny):
    prompts = [[10, 11, 12, 13, 14], [20, 21, 22], [30]]
    following = [[40, 41], [42, 43], [44, 45]]
    tokens = torch.tensor([[0] * (5 - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (5 - len(ids)) + [1] * len(ids) for ids in prompts])
    decoder = models.Decoder(tiny.model, 3)
    with torch.no_grad():
        steps = [decoder.step(tokens, mask)]
        for step in range(2):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
            steps.append(decoder.step(torch.tensor([[ids[step]] for ids in following]), mask))
    for row, (prompt, after) in enumerate(zip(prompts, following, strict=True)):
        for step, logits in enumerate(steps):
            wanted = logits_of(tiny.model, prompt + after[:step])[-1]
            torch.testing.assert_close(logits[row], wanted, atol=1e-4, rtol=0)


def test_frozen_puts_back_gradients_and_modes_also_after_an_error(fresh):
    fresh.model.train(True)
    next(fresh.model.children()).train(False)
    next(iter(fresh.model.parameters())).requires_grad_(True)
    before = state_of(fresh.model)

    def fail() -> None:
        with models.frozen(fresh.model):
            assert not any(module.training for module in fresh.model.modules())
            assert not any(parameter.requires_grad for parameter in fresh.model.parameters())
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert_unchanged(fresh.model, before)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="SimpleNamespace"):
        psr.load_model(SimpleNamespace(cfg=None))
    with pytest.raises(InputError, match="backend"):
        psr.load_model("organism", backend="jax")


@pytest.mark.usefixtures("unchecked")
def test_a_transformers_model_is_refused_with_the_way_to_load_it(tiny_llama):
    with pytest.raises(
        InputError, match=r"^name_or_path: got a LlamaForCausalLM, .* from the folder that its `save_pretrained` writes"
    ):
        psr.load_model(tiny_llama.hf)
