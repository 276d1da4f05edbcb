"""A bridge finds its cache under the name that transformers 5.24 gave it, and is left alone where the old name holds."""

from typing import Any

import pytest
import torch
from helpers import BACKENDS, logits_of

import psr_lens as psr
from psr_lens import models
from psr_lens.models import cache_argument, loading
from psr_lens.models.cache_argument import NEW_NAME, OLD_NAME, OLD_NAME_OF_STATES, carry_cache
from psr_lens.models.kv_cache import Decoder

PROMPT, STEPS = range(10, 22), 3


def hooks_on(model: Any) -> int:
    return sum(len(each._forward_pre_hooks) for each in model.modules())


def decoded(model: Any) -> torch.Tensor:
    """Logits of some steps behind a prompt, with the cache."""
    ids, decoder, found = [*PROMPT, 30, 31, 32], Decoder(model, 1), []
    for begin, end in [(0, len(PROMPT)), *((at, at + 1) for at in range(len(PROMPT), len(PROMPT) + STEPS))]:
        with torch.no_grad():
            found.append(decoder.step(torch.tensor([ids[begin:end]]), torch.ones(1, end, dtype=torch.long))[0])
    return torch.stack(found)


def call_by_the_new_name(model: Any) -> None:
    """Let the components of a bridge be called as transformers 5.24 calls them."""

    def renamed(module: Any, arguments: Any, named: dict[str, Any]) -> Any:
        return arguments, {NEW_NAME if name in (OLD_NAME, OLD_NAME_OF_STATES) else name: each for name, each in named.items()}

    for component in model.modules():
        if cache_argument._name_inside(component) is not None:
            component.register_forward_pre_hook(renamed, with_kwargs=True)


def test_what_helps_is_added_once_and_only_where_the_name_is_new(folders, monkeypatch):
    model = psr.load_model(folders["llama"], backend="bridge")
    if cache_argument.cache_argument(model.original_model) == NEW_NAME:
        pytest.skip("this transformers has the new name itself, so that whatever decodes is such a test")
    before = hooks_on(model)
    carry_cache(model)
    assert hooks_on(model) == before  # the old name needs no help
    wanted = logits_of(model, [*PROMPT, 30, 31, 32])[len(PROMPT) - 1 :]
    torch.testing.assert_close(decoded(model), wanted, atol=1e-4, rtol=1e-4)

    monkeypatch.setattr(cache_argument, "cache_argument", lambda hf_model: NEW_NAME)
    carry_cache(model)
    helped = hooks_on(model)
    assert helped > before
    carry_cache(model)
    assert hooks_on(model) == helped
    assert not models.has_hooks(model)  # answers of such a model are kept as those of any other
    torch.testing.assert_close(decoded(model), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "helped"), [("llama", False), ("llama", True), ("gpt2", True), ("qwen3-next", True)])
def test_a_cache_under_its_new_name_is_found_and_without_that_lost(folders, monkeypatch, family, helped):
    model = psr.load_model(folders[family], backend="bridge", verify=False)
    if cache_argument.cache_argument(model.original_model) == NEW_NAME:
        pytest.skip("this transformers has the new name itself, so that whatever decodes is such a test")
    wanted = logits_of(model, [*PROMPT, 30, 31, 32])[len(PROMPT) - 1 :]
    call_by_the_new_name(model)
    if helped:
        monkeypatch.setattr(cache_argument, "cache_argument", lambda hf_model: NEW_NAME)
        carry_cache(model)
    difference = (decoded(model) - wanted).abs().max()
    assert (difference < 1e-4) == helped


def test_a_bridge_that_loses_its_cache_is_refused_when_it_is_loaded(folders, monkeypatch):
    build = loading.as_bridge

    def renaming(*given: Any) -> Any:
        model = build(*given)
        call_by_the_new_name(model)
        return model

    monkeypatch.setattr(loading, "as_bridge", renaming)
    monkeypatch.setattr(loading, "carry_cache", lambda model: None)
    monkeypatch.setattr("psr_lens.models.kv_cache.carry_cache", lambda model: None)
    with pytest.raises(models.verification.DisagreementError, match="in decode steps differ from those of plain transformers"):
        psr.load_model(folders["llama"], backend="bridge")


@pytest.mark.parametrize("name", [NEW_NAME, OLD_NAME, OLD_NAME_OF_STATES])
def test_a_cache_reaches_a_model_under_its_new_name_whatever_it_was_called(name):
    """As TransformerLens's own `generate` gives it to Mamba, which takes no `past_key_values` and would say nothing."""
    found = []

    class New(torch.nn.Module):
        def forward(self, input_ids: Any, cache: Any = None, **others: Any) -> None:
            found.append((input_ids, cache, others))

    model = type("TransformerBridge", (torch.nn.Module,), {})()
    model.original_model = New()
    for _ in range(2):
        carry_cache(model)
    assert hooks_on(model) == 1
    for given in ({name: "states"}, {"cache": None, name: "states"}, {}):
        model.original_model("ids", use_cache=True, **given)
    assert found[:2] == [("ids", "states", {"use_cache": True})] * 2
    assert found[2] == ("ids", None, {"use_cache": True})


@pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")
def test_a_hooked_transformer_is_left_alone(load, monkeypatch):
    model = load("llama", "hooked_transformer").model
    monkeypatch.setattr(cache_argument, "cache_argument", lambda hf_model: NEW_NAME)
    before = hooks_on(model)
    carry_cache(model)
    assert hooks_on(model) == before


def test_the_name_is_the_one_in_the_signature():
    class Old(torch.nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class New(torch.nn.Module):
        def forward(self, input_ids: Any, cache: Any = None) -> None: ...

    class Renaming(torch.nn.Module):
        def forward(self, input_ids: Any, cache: Any = None, past_key_values: Any = None) -> None: ...

    class Neither(torch.nn.Module):
        def forward(self, input_ids: Any) -> None: ...

    names = [cache_argument.cache_argument(each()) for each in (Old, New, Renaming, Neither)]
    assert names == [OLD_NAME, NEW_NAME, NEW_NAME, OLD_NAME]
