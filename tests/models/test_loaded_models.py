"""An already loaded model is checked against plain transformers too, where one is available."""

import warnings
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from architectures import hooked_gemma2
from helpers import BACKENDS, assert_unchanged, logits_of, state_of
from transformers import AutoTokenizer

import psr_lens as psr
from psr_lens import models
from psr_lens.errors import InputError, ModelError
from psr_lens.models.verification import DisagreementError, verification_of

needs_hooked_transformer = pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")


def booted(folder: Path, **options: Any) -> Any:
    """A bridge as users make one with TransformerLens."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(folder), hf_model=oracles.transformer(folder), tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", **options
    )


def from_pretrained(folder: Path, **options: Any) -> Any:
    """The tiny model as a `HookedTransformer`, processed as TransformerLens does by default, under the name `gpt2`."""
    from transformer_lens import HookedTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer.from_pretrained("gpt2", tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", **options)


def assert_verified(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psr.load_model(model) is model
    assert 0 < models.fingerprint(model)["verified"]["difference"] < 1e-4


def assert_unverified(model: Any, reason: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"^model: this .* was not checked against plain transformers: {reason}") as caught:
        assert psr.load_model(model) is model
    assert "\n" not in str(caught[0].message)
    assert models.fingerprint(model)["verified"] is False


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_a_bridge_is_held_against_the_model_in_it_and_stays_as_it_is(folders, family):
    model = booted(folders[family])
    model.train()
    before = state_of(model)
    assert_verified(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_load_model_made_is_checked_again(folders, backend):
    model = psr.load_model(folders["llama"], backend=backend, verify=False)
    assert models.fingerprint(model)["verified"] is False
    assert_verified(model)


def test_a_bridge_that_disagrees_is_refused_with_numbers(folders):
    model = booted(folders["cohere"])
    if len(BACKENDS) == 1:  # TransformerLens 4.3 is right
        assert_verified(model)
        return
    refused = (
        r"^model: the logits of this TransformerBridge differ from those of plain transformers by \d\.\de\+00 of their standard"
    )
    with pytest.raises(DisagreementError, match=refused):
        psr.load_model(model)
    assert psr.load_model(model, verify=False) is model


def test_a_bridge_whose_class_computes_something_else_is_refused(folders, monkeypatch):
    model = booted(folders["llama"])
    point = model.hook_dict["blocks.1.mlp.hook_out"]
    monkeypatch.setattr(type(point), "forward", lambda self, given: given * 1.02 if self is point else given)
    with pytest.raises(DisagreementError, match="this TransformerBridge differ"):
        psr.load_model(model)


@needs_hooked_transformer
def test_a_hooked_transformer_is_held_against_the_model_that_its_config_names(fetched):
    model = from_pretrained(fetched)
    assert models.processing(model) == "fold_ln + center_writing_weights"
    shift = logits_of(model, range(10, 30)) - oracles.transformer(fetched)(torch.arange(10, 30)[None]).logits[0]
    assert shift.abs().max() > 1e-2  # centring the unembedding moves all logits of a position alike
    assert_verified(model)
    plain = from_pretrained(fetched, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    assert_verified(plain)
    with torch.no_grad():
        plain.blocks[1].mlp.b_out[0] += 0.5
    with pytest.raises(
        DisagreementError, match=r"this HookedTransformer differ .* It was compared with 'gpt2', which its config names\."
    ):
        psr.load_model(plain)


def test_a_bridge_in_compatibility_mode_is_held_against_the_model_that_its_config_names(folders):
    model = booted(folders["gpt2"])
    model.enable_compatibility_mode(disable_warnings=True)
    assert models.processing(model) != "none"
    assert_verified(model)
    with torch.no_grad():
        next(each for name, each in model.named_parameters() if "mlp" in name and name.endswith("bias"))[0] += 5
    with pytest.raises(DisagreementError, match="which its config names"):
        psr.load_model(model)


@needs_hooked_transformer
def test_edited_weights_of_a_loaded_model_are_not_the_named_model_s(fetched):
    model = psr.load_model("gpt2", backend="hooked_transformer")
    model.unembed.W_U.data = model.unembed.W_U.data * 1.5
    with pytest.raises(DisagreementError, match="It was compared with 'gpt2'"):
        psr.load_model(model)


def test_a_model_with_hooks_is_not_compared_and_loses_what_was_said_of_it(folders):
    model = booted(folders["llama"])
    assert_verified(model)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value * 0)]):
        assert_unverified(model, r"there are hooks on it\.$")
    assert verification_of(model) is None


@needs_hooked_transformer
def test_a_model_that_names_no_other_is_taken_with_a_warning():
    model = hooked_gemma2()
    assert_unverified(model, r"the model that its config names, 'hooked-gemma2', cannot be found\.$")
    model.cfg.model_name = "custom"
    assert_unverified(model, r"its config does not say which model it is\.$")
    model.cfg.model_name = "NeelNanda/SoLU_1L512W_C4_Code"
    assert_unverified(model, r"transformers has no version of 'NeelNanda/SoLU_1L512W_C4_Code'\.$")
    model.cfg.model_name = "gpt2"  # which is not in the cache
    assert_unverified(model, r"the weights of 'gpt2' could not be fetched or read \(.*\)\.")


@needs_hooked_transformer
def test_the_tokenizer_of_another_model_does_not_name_it(fetched):
    model = hooked_gemma2()
    model.cfg.tokenizer_name = "gpt2"
    assert_unverified(model, "the model that its config names, 'hooked-gemma2', cannot be found")


def test_how_weights_are_read_cannot_be_said_of_a_loaded_model(tiny_llama):
    record = verification_of(tiny_llama.model)
    options: list[dict[str, Any]] = [
        {"device": "cpu"},
        {"dtype": "bfloat16"},
        {"backend": "bridge"},
        {"device_map": "auto"},
        {"n_devices": 2},
    ]
    for option in options:
        (name,) = option
        with pytest.raises(
            InputError, match=rf"^{name}: got .*, expected nothing, since the model is already loaded\. Give its name"
        ):
            psr.load_model(tiny_llama.model, **option)
    assert psr.load_model(tiny_llama.model, verify=False) is tiny_llama.model
    assert verification_of(tiny_llama.model) is record


def test_weights_of_a_loaded_model_that_are_not_finite_are_named(fresh):
    names, weights = zip(*torch.nn.Module.named_parameters(fresh.model), strict=True)
    weights[3].data[(0,) * weights[3].ndim] = float("nan")
    with pytest.raises(ModelError, match=rf"^model: the weights of this \w+ are NaN or infinite in {names[3]}\. Give"):
        psr.load_model(fresh.model)
    assert psr.load_model(fresh.model, verify=False) is fresh.model
