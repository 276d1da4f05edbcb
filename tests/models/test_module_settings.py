"""What a model's modules compute with besides weights, as one digest: the same for the same model, another after any change."""

import copy
import functools
import multiprocessing
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import FAMILIES
from helpers import BACKENDS, save_tiny

import psr_lens as psr
from psr_lens.errors import ModelError
from psr_lens.models import is_bridge, model_content, settings_digest, untold
from psr_lens.models.module_settings import why_not_told

SPAWN = multiprocessing.get_context("spawn")


def part(model: Any, name: str) -> Any:
    """The module that computes a part of the second block, of transformers or of HookedTransformer."""
    found = getattr(model.blocks[1], {"norm": "ln1", "mlp": "mlp", "attention": "attn"}[name])
    return found.original_component if is_bridge(model) else found


@pytest.fixture(params=BACKENDS)
def model(folders, request) -> Any:
    return psr.load_model(folders["llama"], backend=request.param, verify=False)


# --- the same ---------------------------------------------------------------------------------------------------------------


def _in_a_process(folder: str, backend: str, queue: Any) -> None:
    queue.put(settings_digest(psr.load_model(folder, backend=backend, verify=False)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_process_finds_the_same(folders, backend):
    queue = SPAWN.Queue()
    process = SPAWN.Process(target=_in_a_process, args=(str(folders["llama"]), backend, queue))
    process.start()
    found = queue.get(timeout=300)
    process.join()
    assert found == settings_digest(psr.load_model(folders["llama"], backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_and_calls_loading_again_and_copying_leave_it(family, tmp_path):
    folder = save_tiny(family, tmp_path)
    told = 0
    for backend in BACKENDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = psr.load_model(folder, backend=backend)
            except ModelError:
                continue
        before = settings_digest(model)
        assert before is not None, why_not_told(model)
        if family != "falcon":  # TransformerLens patches its layers with functions that stay bound to the first model's
            assert settings_digest(copy.deepcopy(model)) == before
        model.train()
        model.eval()
        model(torch.arange(10, 90)[None])
        model.run_with_cache(torch.arange(10, 20)[None])
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value)]):
            model(torch.arange(10, 20)[None])
        assert settings_digest(model) == before
        assert settings_digest(psr.load_model(folder, backend=backend, verify=False)) == before
        told += 1
    assert told or FAMILIES[family].since > 3


# --- different --------------------------------------------------------------------------------------------------------------


class Doubled(torch.nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value


def shifted(self: Any, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    return value + 1


def scaled(value: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return value * by


def scaled_otherwise(value: torch.Tensor, by: float = 3.0) -> torch.Tensor:
    return value * by


def another_class(module: Any) -> None:
    module.__class__ = type("Other", (type(module),), {"scale": 2.0})


def closing_over(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: value * number


SHIFT = 1.0


def reads_a_global(value: torch.Tensor) -> torch.Tensor:
    return value + SHIFT


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda model: setattr(part(model, "norm"), "variance_epsilon" if is_bridge(model) else "eps", 1.0),
    "a new number": lambda model: setattr(part(model, "norm"), "extra", 1),
    "true for one": lambda model: setattr(part(model, "norm"), "extra", True),
    "None": lambda model: setattr(part(model, "norm"), "extra", None),
    "a text": lambda model: setattr(part(model, "norm"), "extra", "1"),
    "a type": lambda model: setattr(part(model, "norm"), "extra", torch.float16),
    "in a list": lambda model: setattr(part(model, "norm"), "extra", [1, 2]),
    "in a list, another entry": lambda model: setattr(part(model, "norm"), "extra", [1, 3]),
    "in a tuple": lambda model: setattr(part(model, "norm"), "extra", (1, 2)),
    "in a dictionary": lambda model: setattr(part(model, "norm"), "extra", {"a": {"b": 1}}),
    "in a dictionary, deeper": lambda model: setattr(part(model, "norm"), "extra", {"a": {"b": 2}}),
    "in an object": lambda model: setattr(part(model, "norm"), "extra", types.SimpleNamespace(scale=1)),
    "in an object, another": lambda model: setattr(part(model, "norm"), "extra", types.SimpleNamespace(scale=2)),
    "a tensor that is no weight": lambda model: setattr(part(model, "norm"), "extra", torch.ones(2)),
    "another such tensor": lambda model: setattr(part(model, "norm"), "extra", torch.tensor([1.0, 2.0])),
    "another module": lambda model: setattr(part(model, "norm"), "extra", torch.nn.Identity()),
    "a module of a class of its own": lambda model: setattr(part(model, "norm"), "extra", Doubled()),
    "a function of torch": lambda model: setattr(part(model, "norm"), "extra", torch.tanh),
    "another function of torch": lambda model: setattr(part(model, "norm"), "extra", torch.nn.functional.gelu),
    "a partial": lambda model: setattr(
        part(model, "norm"), "extra", functools.partial(torch.nn.functional.gelu, approximate="tanh")
    ),
    "a function": lambda model: setattr(part(model, "norm"), "extra", scaled),
    "a function with another default": lambda model: setattr(part(model, "norm"), "extra", scaled_otherwise),
    "a function that closes over a number": lambda model: setattr(part(model, "norm"), "extra", closing_over(2.0)),
    "the same over another": lambda model: setattr(part(model, "norm"), "extra", closing_over(3.0)),
    "a function that reads a global": lambda model: setattr(part(model, "norm"), "extra", reads_a_global),
    "a bound method": lambda model: setattr(part(model, "mlp"), "_extra", types.MethodType(shifted, part(model, "mlp"))),
    "the forward method": lambda model: setattr(part(model, "mlp"), "forward", types.MethodType(shifted, part(model, "mlp"))),
    "the class": lambda model: another_class(part(model, "norm")),
}


@pytest.mark.slow
def test_every_kind_of_change_is_seen_and_no_two_are_alike(model):
    original, seen = settings_digest(model), {}
    for name, change in CHANGES.items():
        changed = copy.deepcopy(model)
        assert settings_digest(changed) == original
        change(changed)
        found = settings_digest(changed)
        assert found is not None, (name, why_not_told(changed))
        assert found not in (original, *seen.values()), name
        seen[name] = found
        again = copy.deepcopy(model)
        change(again)
        assert settings_digest(again) == found, name
    assert settings_digest(model) == original


def test_the_activation_function_counts(model):
    before = settings_digest(model)
    mlp = part(model, "mlp")
    original = mlp.act_fn
    for value in (torch.nn.Tanh(), torch.nn.ReLU()) if is_bridge(model) else (torch.tanh, torch.relu, scaled, closing_over(1.0)):
        mlp.act_fn = value
        assert settings_digest(model) not in (None, before)
    mlp.act_fn = original
    assert settings_digest(model) == before


def test_a_changed_entry_of_a_list_in_place_and_a_changed_global_count(model, monkeypatch):
    module = part(model, "mlp")
    module.scales, module.shift = [1.0, {"b": 2.0}], reads_a_global
    before = settings_digest(model)
    module.scales[1]["b"] = 3.0
    changed = settings_digest(model)
    assert changed != before
    module.scales[1]["b"] = 2.0
    assert settings_digest(model) == before
    monkeypatch.setitem(reads_a_global.__globals__, "SHIFT", 2.0)
    assert settings_digest(model) not in (None, before, changed)


def test_what_is_put_in_place_of_the_functions_of_a_class_or_a_python_module_counts(model, monkeypatch):
    before = settings_digest(model)
    kind = type(part(model, "norm"))
    monkeypatch.setattr(kind, "forward", functools.wraps(kind.forward)(lambda self, *given: given[0]))
    assert settings_digest(model) not in (None, before)
    monkeypatch.undo()
    assert settings_digest(model) == before
    if is_bridge(model):
        import transformers.models.llama.modeling_llama as file

        for replaced in (lambda value, times: value, file.repeat_kv):
            monkeypatch.setattr(file, "rotate_half", replaced)
            assert settings_digest(model) not in (None, before)
        monkeypatch.undo()
        assert settings_digest(model) == before


def test_a_model_that_was_changed_before_it_was_loaded_first_or_again_is_another(folders, model):
    before = model_content(model)
    CHANGES["a number"](model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = psr.load_model(model, verify=False)
    assert model_content(again)["settings"] != before["settings"]
    assert {**model_content(again), "settings": None} == {**before, "settings": None}
    fresh = psr.load_model(folders["llama"], backend="bridge" if is_bridge(model) else "hooked_transformer", verify=False)
    assert model_content(fresh) == before


# --- not told ---------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_told_is_named_with_its_module_and_attribute(model):
    mlp, unknown = part(model, "mlp"), object()
    name = "act_fn" if not is_bridge(model) else "extra"
    place = r"blocks\.1\._original_component\.mlp\._original_component" if is_bridge(model) else r"blocks\.1\.mlp"
    for value, why in (
        (lambda value: (unknown, value)[1], "an object of the class builtins.object"),
        (threading.Lock(), "an object of the class _thread.lock"),
        ([{"inside": iter([1])}], "an object of the class builtins.list_iterator"),
    ):
        setattr(mlp, name, value)
        assert settings_digest(model) is None
        assert model_content(model)["settings"] is None
        with pytest.raises(AssertionError, match=rf"^functions or settings in the model.*\({place}\.{name}: it holds {why}"):
            raise AssertionError(untold(model))


# --- cost -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_takes_milliseconds(load, backend):
    model = load("organism", backend).model
    settings_digest(model)
    took = []
    for _ in range(5):
        began = time.process_time()
        settings_digest(model)
        took.append(time.process_time() - began)
    assert min(took) < 0.05
