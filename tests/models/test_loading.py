"""A loaded model is the user's model: its logits are those of plain transformers, or it is refused and the message says why."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from architectures import FAMILIES, WINDOW, save_tiny
from helpers import BACKENDS, logits_of
from safetensors.torch import load_file, save_file

import psr_lens as psr
from psr_lens import models
from psr_lens.errors import ModelError
from psr_lens.models import verification
from psr_lens.models.verification import DisagreementError, verification_of

SEQUENCE = range(10, 70)
"""Longer than windows and original contexts."""
TOLERANCE = 1e-4
needs_hooked_transformer = pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")
pytestmark = pytest.mark.filterwarnings("ignore:model. .* is loaded as a TransformerBridge:RuntimeWarning")


def assert_is_transformers(model: Any, folder: Path) -> None:
    with torch.no_grad():
        wanted = oracles.transformer(folder)(torch.tensor([list(SEQUENCE)])).logits[0]
    torch.testing.assert_close(logits_of(model, SEQUENCE), wanted, atol=TOLERANCE, rtol=0)


# --- the class that agrees --------------------------------------------------------------------------------------------------

WRONG = [  # in HookedTransformer, but not in a bridge
    ("llama", "linear RoPE"),
    ("llama", "attention bias"),
    ("llama", "MLP bias"),
    ("llama-gqa", "YaRN"),
    ("llama-gqa", "wide heads"),
    ("qwen2", "YaRN"),
    ("qwen2", "windows"),
    ("qwen3", "attention bias"),
    ("phi3", "LongRoPE"),
    ("phi3", "partial RoPE"),
    ("gpt2", "wider MLP"),
]


@pytest.mark.parametrize(("family", "variant"), WRONG, ids=lambda each: each.replace(" ", "-"))
def test_auto_is_right_where_hooked_transformer_is_wrong_and_says_which_class_it_took(tmp_path, family, variant):
    folder = save_tiny(family, tmp_path / "model", settings=FAMILIES[family].variants[variant])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = psr.load_model(folder)
    assert models.is_bridge(model)
    assert_is_transformers(model, folder)
    assert verification_of(model).difference < verification.TOLERANCE
    said = [str(each.message) for each in caught if "TransformerBridge" in str(each.message)]
    if "hooked_transformer" not in BACKENDS:
        assert not said
        return
    (line,) = said
    assert line.startswith(f"model: {folder} is loaded as a TransformerBridge: ")
    assert "\n" not in line
    assert re.search(r"differ from those of plain transformers by \d\.\de\+00 |HookedTransformer cannot take", line)


@needs_hooked_transformer
@pytest.mark.parametrize("method", ["bitsandbytes", "fp8"])
def test_quantised_weights_go_through_a_bridge_or_are_refused_in_one_sentence(folders, monkeypatch, method):
    """As if transformers had read them: what it makes of them is a model that says so in its config."""
    from psr_lens.models import loading

    read = loading.read_weights

    def quantised(*given: Any) -> Any:
        model = read(*given)
        model.config.quantization_config = {"quant_method": method, "load_in_4bit": True}
        return model

    monkeypatch.setattr(loading, "read_weights", quantised)
    with pytest.warns(RuntimeWarning, match=rf"is loaded as a TransformerBridge: .*its weights are quantised \({method}\)"):
        assert models.is_bridge(psr.load_model(folders["llama"]))
    with pytest.raises(ModelError, match=rf"HookedTransformer cannot take .*quantised \({method}\)\)\. Use backend='bridge'\."):
        psr.load_model(folders["llama"], backend="hooked_transformer")


@pytest.mark.parametrize(("noise", "quantised"), [(0.003, True), (0.003, False), (0.3, True)])
def test_kernels_that_round_by_the_number_of_tokens_are_let_pass_where_weights_are_quantised(
    folders, monkeypatch, noise, quantised
):
    """So do those of bitsandbytes on a CPU, in plain transformers too; in float32 it would be a fault."""
    from psr_lens.models import loading

    read = loading.read_weights

    def rounding(*given: Any) -> Any:
        model = read(*given)
        if quantised:
            model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        for layer in model.model.layers:
            layer.mlp.down_proj.register_forward_hook(lambda module, given, out: out * (1 + noise / out.shape[1]))
        return model

    monkeypatch.setattr(loading, "read_weights", rounding)
    if quantised and noise < 0.1:
        verified = models.fingerprint(psr.load_model(folders["llama"], backend="bridge"))["verified"]
        assert verified["dtype"] == "float32, quantised"
        assert 1e-4 < verified["difference"] < 0.1
    else:
        with pytest.raises(DisagreementError, match=r"in decode steps differ .* is allowed in float32"):
            psr.load_model(folders["llama"], backend="bridge")


@needs_hooked_transformer
@pytest.mark.parametrize(
    ("family", "variant"), [("llama", "dynamic RoPE"), ("llama-gqa", "Llama-3 RoPE"), ("gpt-neox", "sequential")]
)
def test_hooked_transformer_stays_where_it_agrees(tmp_path, family, variant):
    folder = save_tiny(family, tmp_path / "model", settings=FAMILIES[family].variants[variant])
    model = psr.load_model(folder)
    assert not models.is_bridge(model)
    assert_is_transformers(model, folder)


@pytest.mark.parametrize(("family", "variant"), [("falcon", "grouped queries"), ("gpt-neox", "no attention bias")])
def test_what_no_class_takes_is_refused_in_one_sentence_each(tmp_path, family, variant):
    folder = save_tiny(family, tmp_path / "model", settings=FAMILIES[family].variants[variant])
    with pytest.raises(ModelError, match=r"^model: .* cannot be loaded by TransformerLens \(.*\)\.") as caught:
        psr.load_model(folder)
    assert ("HookedTransformer is no way out: HookedTransformer cannot take" in str(caught.value)) == (len(BACKENDS) == 2)


def test_without_a_check_auto_takes_the_class_that_runs_the_modules_of_transformers(tmp_path):
    """A `HookedTransformer` would be taken of a model that it computes wrongly."""
    folder = save_tiny("llama", tmp_path / "model", settings=FAMILIES["llama"].variants["linear RoPE"])
    model = psr.load_model(folder, verify=False)
    assert models.is_bridge(model)
    assert_is_transformers(model, folder)
    assert models.fingerprint(model)["verified"] is False


@pytest.mark.parametrize("family", ["cohere", "cohere2"])
def test_a_bridge_that_disagrees_is_refused_with_numbers(folders, family):
    if len(BACKENDS) == 1:  # TransformerLens 4.3 is right
        assert_is_transformers(psr.load_model(folders[family]), folders[family])
        return
    refused = (
        r"the logits of TransformerBridge differ from those of plain transformers by \d\.\de\+00 .*1e-03 is allowed in float32"
    )
    for backend in ("bridge", "auto"):
        with pytest.raises(ModelError, match=refused):
            psr.load_model(folders[family], backend=backend)
    model = psr.load_model(folders[family], backend="bridge", verify=False)
    assert (models.fingerprint(model)["verified"], verification_of(model)) == (False, None)


# --- what is checked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_fingerprint_says_what_was_checked_and_identity_does_not(folders, backend):
    model = psr.load_model(folders["mistral"], backend=backend)
    found = models.fingerprint(model)
    verified = found.pop("verified")
    assert verified == {"difference": verified["difference"], "dtype": "float32", "tokens": WINDOW + verification.BEYOND}
    assert 0 < verified["difference"] < 1e-4
    assert found == models.model_identity(model)


def test_artifacts_carry_it_and_older_ones_are_read(folders, tmp_path):
    from helpers import random_replacement

    model = psr.load_model(folders["llama"])
    saved = random_replacement(model).save(tmp_path / "made")
    assert psr.Replacement.load(saved).model["verified"] == models.fingerprint(model)["verified"]
    name = next(path for path in saved.glob("*.json") if "model" in json.loads(path.read_text()))
    settings = json.loads(name.read_text())
    del settings["model"]["verified"]
    name.write_text(json.dumps(settings))
    with psr.Replacement.load(saved).steer(model):
        logits_of(model, SEQUENCE)


class Wrong:
    """A cache that forgets: what a class does that loses it under some version of transformers."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __call__(self, model: Any, batch: int) -> Any:
        made, decoder = self._decoder(model, batch), self._decoder
        step = made.step

        def forgetful(new: Any, mask: Any, *rest: Any) -> Any:
            if new.shape[1] > 1:
                return step(new, mask, *rest)
            return decoder(model, batch).step(new, torch.ones_like(new))

        made.step = forgetful
        return made


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_that_is_lost_is_noticed(folders, monkeypatch, backend):
    monkeypatch.setattr(verification, "Decoder", Wrong(verification.Decoder))
    with pytest.raises(DisagreementError, match=r"in decode steps differ .* by \d"):
        psr.load_model(folders["llama"], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["a window", "an attention score", "a norm"])
def test_a_class_that_computes_something_else_is_noticed(folders, monkeypatch, backend, what):
    from psr_lens.models import loading

    build = loading.as_bridge if backend == "bridge" else loading.as_hooked_transformer

    def spoiled(*args: Any) -> Any:
        model = build(*args)
        if what == "a norm":
            next(each for name, each in model.named_parameters() if "ln1.w" in name or "layernorm" in name).mul_(1.01)
        else:
            point = "blocks.1.attn.hook_attn_scores" if what == "an attention score" else "blocks.1.attn.hook_pattern"

            def hook(module: Any, given: Any, found: torch.Tensor) -> torch.Tensor:
                if what == "an attention score":
                    return found * 1.05
                beyond = torch.ones_like(found).tril(-WINDOW + 1).bool()  # one token less than the window
                return found.masked_fill(beyond, 0)

            model.hook_dict[point].register_forward_hook(hook)
        return model

    monkeypatch.setattr(loading, build.__name__, spoiled)
    with torch.no_grad(), pytest.raises(DisagreementError, match="differ from those of plain transformers"):
        psr.load_model(folders["mistral"], backend=backend)


def test_the_probe_is_longer_than_every_window_and_original_context(folders):
    lengths = {"llama": verification.SHORT, "mistral": WINDOW + 16, "gemma3": WINDOW + 16, "gpt-oss": WINDOW + 16}
    for family, length in lengths.items():
        probe = verification.probe_of(oracles.transformer(folders[family]))
        assert (probe.length, probe.unreached) == (length, None)
        assert probe.bounds == (() if family == "llama" else (WINDOW,))


def test_a_probe_that_has_to_be_shorter_is_said(folders, monkeypatch):
    monkeypatch.setattr(verification, "_OPERATIONS", 0)
    with pytest.warns(
        RuntimeWarning, match=rf"checked against transformers on only 24 tokens, fewer than its window .* of {WINDOW}"
    ):
        model = psr.load_model(folders["mistral"])
    assert models.fingerprint(model)["verified"] | {"difference": 0} == {
        "difference": 0,
        "dtype": "float32",
        "tokens": verification.SHORT,
        "unreached": WINDOW,
    }


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_checked_with_a_tolerance_of_its_own(folders, family, dtype):
    model = psr.load_model(folders[family], dtype=dtype)
    found = verification_of(model)
    assert found.dtype == dtype
    assert found.difference < verification.TOLERANCES[getattr(torch, dtype)]
    if family == "mixtral":  # HookedTransformer's experts run in float32 only
        assert models.is_bridge(model)
        refused = rf"cannot run it in {dtype} \(" if "hooked_transformer" in BACKENDS else "removed in 4.0"
        with pytest.raises(ModelError, match=refused):
            psr.load_model(folders[family], backend="hooked_transformer", dtype=dtype)


@needs_hooked_transformer
def test_a_class_that_was_asked_for_is_refused_where_it_is_wrong_in_half_precision_too(tmp_path):
    folder = save_tiny("llama", tmp_path / "model", settings=FAMILIES["llama"].variants["linear RoPE"])
    with pytest.raises(DisagreementError, match=r"differ from those of plain transformers by \d\.\de\+00 .* in float32"):
        psr.load_model(folder, backend="hooked_transformer")
    with pytest.raises(DisagreementError, match="1e-01 is allowed in bfloat16"):
        psr.load_model(folder, backend="hooked_transformer", dtype="bfloat16")


def test_logits_that_are_not_finite_are_told(tmp_path):
    save_tiny("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] *= 2e4
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite in float16\. Load the model with dtype='bfloat16'"):
        psr.load_model(tmp_path, dtype="float16")
