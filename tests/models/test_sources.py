"""What a model is loaded from: complete weights, names, folders, `.gguf` files and adapters; types and context lengths."""

import json
import shutil
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from architectures import CONTEXT, save_tiny
from helpers import BACKENDS, logits_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import psr_lens as psr
from psr_lens import models
from psr_lens.errors import InputError, MissingPackageError, ModelError
from psr_lens.models.config_without_weights import outline
from psr_lens.models.verification import verification_of

SEQUENCE = range(10, 70)
"""Longer than windows and original contexts."""
TOLERANCE = 1e-4
needs_hooked_transformer = pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")
pytestmark = pytest.mark.filterwarnings("ignore:model. .* is loaded as a TransformerBridge:RuntimeWarning")


def assert_is_transformers(model: Any, folder: Path) -> None:
    with torch.no_grad():
        wanted = oracles.transformer(folder)(torch.tensor([list(SEQUENCE)])).logits[0]
    torch.testing.assert_close(logits_of(model, SEQUENCE), wanted, atol=TOLERANCE, rtol=0)


# --- what transformers says that it loaded ------------------------------------------------------------------------------------


def without(folder: Path, made: Path, *names: str) -> Path:
    """A copy of a folder whose weights lack some tensors."""
    shutil.copytree(folder, made)
    weights = load_file(made / "model.safetensors")
    save_file({name: each for name, each in weights.items() if name not in names}, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_a_missing_tensor_is_named(folders, tmp_path, backend):
    folder = without(folders["llama"], tmp_path / "made", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        ModelError, match=r"the weights of .*made lack model\.layers\.1\.mlp\.up_proj\.weight, which LlamaForCausalLM needs"
    ):
        psr.load_model(folder, backend=backend)


def test_many_missing_tensors_are_counted(folders, tmp_path):
    names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(3) for part in "qkvo"]
    with pytest.raises(ModelError, match=r"lack model\.layers\.0\.self_attn\.k_proj\.weight, .* and 6 more tensors, which"):
        psr.load_model(without(folders["llama"], tmp_path / "made", *names))


def test_a_base_model_without_its_head_is_refused_and_a_tied_head_is_not_missed(folders, tmp_path):
    AutoModel.from_pretrained(folders["llama"]).save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=r"lack lm_head\.weight, which LlamaForCausalLM needs"):
        psr.load_model(tmp_path / "base")
    tied = save_tiny("llama", tmp_path / "tied", settings={"tie_word_embeddings": True})
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert_is_transformers(psr.load_model(tied), tied)


def test_a_tensor_of_another_shape_is_an_error(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "made")
    weights = load_file(tmp_path / "made" / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, tmp_path / "made" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"^model: .*made"):
        psr.load_model(tmp_path / "made")


def test_a_tensor_that_has_no_place_is_told(folders, tmp_path):
    biased = save_tiny("llama", tmp_path / "made", settings={"attention_bias": True})
    config = json.loads((biased / "config.json").read_text())
    (biased / "config.json").write_text(json.dumps(config | {"attention_bias": False}))
    with pytest.warns(RuntimeWarning, match=r"has no place for model\.layers\.0\.self_attn\.k_proj\.bias, .* leaves them out"):
        psr.load_model(biased)


def spoiled(folder: Path, made: Path, name: str, value: float) -> Path:
    """A copy of a folder with one number of a tensor changed."""
    shutil.copytree(folder, made)
    weights = load_file(made / "model.safetensors")
    weights[name].flatten()[5] = value
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folders, tmp_path, value, verify):
    """A `HookedTransformer` takes NaN patterns for 0, and would sample and be fitted as if nothing were wrong."""
    name = "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(ModelError, match=rf"^model: the weights of .*made are NaN or infinite in {name}\. Give undamaged weights"):
        psr.load_model(spoiled(folders["llama"], tmp_path / "made", name, value), verify=verify)


def test_a_number_that_is_too_large_for_float16_is_named_and_others_are_taken(folders, tmp_path):
    folder = spoiled(folders["llama"], tmp_path / "made", "model.embed_tokens.weight", 1e5)
    with pytest.raises(ModelError, match=r"NaN or infinite in model\.embed_tokens\.weight\..* dtype='bfloat16' or 'float32'"):
        psr.load_model(folder, dtype="float16")
    psr.load_model(folder, verify=False)


# --- context length -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "context"), [("qwen3", 40_960), ("mistral", 131_072), ("mixtral", 32_768)])
def test_the_context_is_the_config_s(tmp_path, family, context, backend):
    folder = save_tiny(family, tmp_path, settings={"max_position_embeddings": context})
    model = psr.load_model(folder, backend=backend)
    assert models.context_length(model) == context == outline(folder).cfg.n_ctx


@needs_hooked_transformer
def test_all_of_the_context_can_be_used(tmp_path):
    folder = save_tiny("qwen3", tmp_path, layers=1, settings={"max_position_embeddings": 3_000})
    ids = torch.arange(2_060)[None] % 300 + 10  # TransformerLens stops at 2,048
    with torch.no_grad():
        found = psr.load_model(folder, backend="hooked_transformer")(ids)[0, -1]
        torch.testing.assert_close(found, oracles.transformer(folder)(ids).logits[0, -1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_positions_keep_their_number(folders, backend):
    assert models.context_length(psr.load_model(folders["gpt2"], backend=backend)) == CONTEXT


# --- types of the weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_types_go_by_name(folders, backend, name):
    model = psr.load_model(folders["llama"], backend=backend, dtype=name)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, name)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_takes_the_type_of_the_config(folders, tmp_path, backend):
    shutil.copytree(folders["llama"], tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    (tmp_path / "made" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    model = psr.load_model(tmp_path / "made", backend=backend, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} == {model.cfg.dtype}


@pytest.mark.parametrize("dtype", ["fp16", "int8", "", torch.int8, None, 16], ids=repr)
@pytest.mark.usefixtures("unchecked")
def test_other_types_are_refused(dtype):
    with pytest.raises(InputError, match=r"^dtype: got .*, expected 'auto', 'float32', 'bfloat16', 'float16', or a floating"):
        psr.load_model("organism", dtype=dtype)


# --- where a model comes from -----------------------------------------------------------------------------------------------------


def test_a_config_as_a_path_is_answered_with_its_folder(folders):
    path = folders["llama"] / "config.json"
    for call in (psr.load_model, outline):
        with pytest.raises(InputError, match=rf"^model: got '{path}', .* Give the folder that holds the file: '{path.parent}'"):
            call(path)


def test_other_kinds_of_models_are_refused_in_one_sentence(folders, tmp_path):
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    AutoModelForSequenceClassification.from_pretrained(folders["llama"]).save_pretrained(tmp_path / "classifier")
    names = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration", "classifier": "LlamaForSequenceClassification"}
    for name, architecture in names.items():
        for backend in (*BACKENDS, "auto"):
            with pytest.raises(ModelError, match=rf"{name} holds a {architecture}, which is not a causal language model\. Give"):
                psr.load_model(tmp_path / name, backend=backend)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "hqq"])
def test_quantised_weights_without_their_package_are_refused_in_one_sentence(folders, tmp_path, method):
    settings: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": 32}
    if method == "bitsandbytes":
        settings = {"quant_method": method, "load_in_4bit": True}
    if method == "hqq":
        settings = {"quant_method": method, "quant_config": {"weight_quant_params": {"nbits": 4}}}
    shutil.copytree(folders["llama"], tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    (tmp_path / "made" / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(
        ModelError, match=rf"the weights of .*made are quantised \({method}\), and transformers cannot read them here \(.+\)\."
    ):
        psr.load_model(tmp_path / "made")


def test_a_tokenizer_that_fails_is_told_and_none_is_none(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "made")
    (tmp_path / "made" / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"^model: the tokenizer of .*made cannot be loaded by transformers \(.*\)\. Save a complete"
    ):
        psr.load_model(tmp_path / "made")
    for path in (tmp_path / "made").glob("tokenizer*"):
        path.unlink()
    assert psr.load_model(tmp_path / "made").tokenizer is None


def test_code_of_a_repository_is_not_run_and_not_asked_about(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    own = {
        "model_type": "mine",
        "architectures": ["Mine"],
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Mine"},
    }
    (tmp_path / "made" / "config.json").write_text(json.dumps(config | own))
    (tmp_path / "made" / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"^model: .*made cannot be loaded by transformers"):
        psr.load_model(tmp_path / "made")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_is_read_and_checked_like_a_folder(fetched, backend):
    model = psr.load_model("gpt2", backend=backend)
    assert models.is_bridge(model) == (backend == "bridge")
    assert_is_transformers(model, fetched)
    assert verification_of(model) is not None
    assert models.fingerprint(model)["model_name"] == "gpt2"


@needs_hooked_transformer
def test_a_name_that_hooked_transformer_cannot_take_is_refused_only_where_that_class_is_asked_for(fetched, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no such architecture")

    monkeypatch.setattr("transformer_lens.loading_from_pretrained.get_pretrained_state_dict", refuse)
    with pytest.raises(ModelError, match=r"HookedTransformer cannot take 'gpt2' \(GPT2LMHeadModel: no such architecture\)"):
        psr.load_model("gpt2", backend="hooked_transformer")
    assert models.is_bridge(psr.load_model("gpt2"))


# --- .gguf ----------------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_that_is_not_there_and_a_folder_of_one(tmp_path):
    with pytest.raises(
        InputError, match=r"^model: got '.*nowhere\.gguf', expected the path of a \.gguf file\. There is no such file\."
    ):
        psr.load_model(tmp_path / "nowhere.gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds no config\.json\. To load the \.gguf file in it, give its path: '.*tiny\.gguf'"):
        psr.load_model(tmp_path)
    with pytest.raises(ModelError, match=r"^model: .*tiny\.gguf cannot be loaded by transformers"):
        psr.load_model(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(("kind", "backend"), [("F16", BACKENDS[0]), ("Q8_0", "bridge")])
def test_a_gguf_file_is_the_model_that_was_written_into_it(tmp_path, kind, backend):
    """Weights, order of the heads' rows, context, tokenizer and template; quantised weights are those numbers that the file can hold."""
    from tiny_gguf import TEMPLATE, TOKENS, quantised, save_gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    written = LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENS), max_position_embeddings=96, rope_theta=500.0, **sizes)).eval()
    with torch.no_grad():
        for weight in written.parameters():
            weight.normal_(std=0.2, mean=float(weight.ndim == 1))
            if weight.ndim > 1:  # as far as such numbers can say it
                weight.copy_(torch.from_numpy(quantised(weight, kind)))
        wanted = written(torch.tensor([list(SEQUENCE)])).logits[0]
    model = psr.load_model(save_gguf(written, tmp_path / "tiny.gguf", kind), backend=backend)
    torch.testing.assert_close(logits_of(model, SEQUENCE), wanted, atol=TOLERANCE, rtol=0)
    assert verification_of(model) is not None
    assert models.context_length(model) == 96 == outline(tmp_path / "tiny.gguf").cfg.n_ctx
    assert model.tokenizer.chat_template == TEMPLATE
    [pair] = psr.prompt_pairs(model, ["the bear"], "Be brief.")
    text = "<s>user: the bear</s>assistant:"
    assert model.tokenizer.decode(pair.base_ids) == text
    assert pair.base_ids[0] == 0
    assert len(psr.generate(model, [pair], sampling=psr.SamplingConfig(max_new_tokens=3))[0].ids) <= 3


def test_without_gguf_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"psr-lens\[gguf\]"):
        psr.load_model(tmp_path / "tiny.gguf")


# --- adapters -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_weights", [True, False], ids=["beside weights", "alone"])
def test_an_adapter_is_never_dropped(folders, tmp_path, monkeypatch, with_weights):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    made = tmp_path / "made"
    if with_weights:
        shutil.copytree(folders["llama"], made)
    made.mkdir(exist_ok=True)
    (made / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(folders["llama"]), "target_modules": ["q_proj"]})
    )
    for backend in (*BACKENDS, "auto"):
        with pytest.raises(
            ModelError, match=r"^model: .*made holds an adapter \(LoRA\), .*peft is not installed.*psr-lens\[peft\]"
        ):
            psr.load_model(made, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_is_merged(folders, tmp_path, backend):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        oracles.transformer(folders["llama"]), peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3)
        adapted.save_pretrained(tmp_path / "alone")
        wanted = adapted.eval()(torch.tensor([list(SEQUENCE)])).logits[0]
    shutil.copytree(folders["llama"], tmp_path / "both")
    for path in (tmp_path / "alone").glob("adapter_*"):
        shutil.copy(path, tmp_path / "both")
    for name in ("alone", "both"):
        model = psr.load_model(tmp_path / name, backend=backend)
        torch.testing.assert_close(logits_of(model, SEQUENCE), wanted, atol=TOLERANCE, rtol=0)
        assert model.tokenizer is not None
    weights = load_file(tmp_path / "both" / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, tmp_path / "both" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be loaded by peft \(Found missing adapter keys"):
        psr.load_model(tmp_path / "both", backend=backend)


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "ranks of its own": ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 3}}),
    "with the head": ("LoraConfig", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "IA3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "LoHa": ("LoHaConfig", {"r": 2, "target_modules": ["o_proj"]}),
    "PROMPT_TUNING": ("PromptTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
    "PREFIX_TUNING": ("PrefixTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_other_kinds_are_merged_or_refused(folders, tmp_path, name):
    peft = pytest.importorskip("peft")
    kind, settings = ADAPTERS[name]
    adapted = peft.get_peft_model(oracles.transformer(folders["llama"]), getattr(peft, kind)(**settings)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
        wanted = adapted(torch.tensor([list(SEQUENCE)])).logits[0]
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folders["llama"])}))
    if name.endswith("TUNING"):
        with pytest.raises(
            ModelError, match=rf"holds an adapter \({name}\) that adds tokens .* cannot be merged .*\. Give an adapter"
        ):
            psr.load_model(tmp_path)
        return
    torch.testing.assert_close(logits_of(psr.load_model(tmp_path), SEQUENCE), wanted, atol=TOLERANCE, rtol=0)


def test_an_adapter_alone_has_its_base_s_outline(folders, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folders["llama"])})
    )
    assert outline(tmp_path).cfg.n_ctx == AutoConfig.from_pretrained(folders["llama"]).max_position_embeddings


def test_an_adapter_whose_base_is_gone_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ModelError, match=r"the adapter in .* was trained on '/gone/base', which cannot be found\."):
        outline(tmp_path)
