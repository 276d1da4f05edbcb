"""What tells models apart: every byte of every weight and buffer, however it was changed, the config, the tokenizer, and hooks."""

import copy
import functools
import types
from functools import partial

import pytest
import torch
from helpers import save_tiny

import psr_lens as psr
from psr_lens.errors import ModelError
from psr_lens.models import all_modules, has_hooks, is_bridge, model_content
from psr_lens.models.identity_by_content import former_identity, weights_digest


def test_every_byte_of_every_weight_counts_however_it_is_changed(fresh):
    model = fresh.model
    matrix = max(model.parameters(), key=torch.Tensor.numel)
    vector = next(each for each in model.parameters() if each.ndim == 1)  # of a layer norm, or a bias
    other = [each for each in model.parameters() if each is not matrix][-1]

    def flip_the_last_bit():
        number = vector.data[3:4].view(torch.int32)
        number.copy_(number ^ 1)

    edits = {
        "all columns but one": lambda: matrix.data[..., 1:].zero_(),
        "one number of a vector, in place": lambda: vector.add_(torch.eye(len(vector))[3] * 1e-3),
        "one number, past autograd": lambda: vector.data.__setitem__(-1, 0.123),
        "through numpy": lambda: matrix.detach().numpy().__setitem__((0,) * matrix.ndim, 7.0),
        "other storage": lambda: setattr(other, "data", other.data.clone() + 1),
        "the last bit": flip_the_last_bit,
    }
    seen = [model_content(model)["weights"]]
    assert model_content(model)["weights"] == seen[0]
    for name, edit in edits.items():
        with torch.no_grad():
            edit()
        found = model_content(model)["weights"]
        assert found not in seen, name
        seen.append(found)


def test_a_sample_of_the_weights_is_not_enough(fresh):
    """What format 1 did not see: it took about every n/1024-th number."""
    matrix = max(fresh.model.parameters(), key=torch.Tensor.numel)
    step = matrix.numel() // 1024
    assert step > 1
    before, former = model_content(fresh.model), former_identity(fresh.model)
    with torch.no_grad():
        flat = matrix.detach().flatten()
        flat[torch.arange(len(flat)) % step != 0] = 0
        matrix.copy_(flat.view_as(matrix))
    assert former_identity(fresh.model) == former
    assert model_content(fresh.model)["weights"] != before["weights"]


def test_buffers_count_too(fresh):
    module = fresh.model if "Bridge" not in type(fresh.model).__name__ else fresh.model.original_model
    module.register_buffer("extra", torch.ones(3), persistent=False)
    before = model_content(fresh.model)["weights"]
    module.extra[1] = 0.0
    assert model_content(fresh.model)["weights"] != before


def test_the_same_folder_is_the_same_model_and_another_config_another(tiny_llama, folders, tmp_path):
    again = psr.load_model(folders["llama"], backend=tiny_llama.backend)
    assert model_content(again) == model_content(tiny_llama.model)
    again.cfg.model_name = "moved elsewhere"
    assert model_content(again) == model_content(tiny_llama.model)
    again.cfg.eps = 0.5
    assert model_content(again)["config"] != model_content(tiny_llama.model)["config"]
    again.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert model_content(again)["tokenizer"] != model_content(tiny_llama.model)["tokenizer"]
    other = psr.load_model(save_tiny("llama", tmp_path / "other", seed=1), backend=tiny_llama.backend)
    assert model_content(other)["weights"] != model_content(again)["weights"]


def test_running_a_model_leaves_its_identity(tiny):
    before = model_content(tiny.model)
    tiny.model(torch.arange(10, 20)[None])
    assert model_content(tiny.model) == before


def test_names_shapes_and_types_are_part_of_the_digest():
    def digest(**tensors):
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    one = torch.arange(6.0)
    others = [
        digest(a=one),
        digest(b=one),
        digest(a=one.view(2, 3)),
        digest(a=one.view(torch.int32)),
        digest(a=one[:5]),
        digest(a=one, b=one),
    ]
    assert len(set(others)) == len(others)
    assert digest(a=one.view(2, 3).T) == digest(a=one.view(2, 3).T.contiguous())
    second = one.clone()
    tied = [digest(a=one, b=second, c=one), digest(a=one, b=second, c=second)]
    assert tied[0] != tied[1]
    with pytest.raises(ModelError, match="the weight a is not in memory"):
        digest(a=one.to("meta"))


def test_hooks_are_looked_for_in_every_module_and_at_every_hook_point(tiny):
    wrapped = tiny.model.original_model.modules() if is_bridge(tiny.model) else ()
    found = all_modules(tiny.model)
    assert found == {*tiny.model.modules(), *wrapped}
    assert found >= set(tiny.model.hook_dict.values())


def of_a_person(module, inputs, output=None):
    return None


def disguised(module):
    return functools.wraps(type(module).forward)(lambda *arguments: None)


class replaced_forward:  # noqa: N801 (as PyTorch's handles)
    """A module with another `forward`, until it is removed."""

    def __init__(self, module, forward):
        self.module = module
        module.forward = forward

    def remove(self):
        del self.module.forward


def test_hooks_of_every_kind_are_seen_and_those_of_a_bridge_are_not(tiny):
    model = tiny.model
    module = next(
        each
        for each in (model.original_model if "Bridge" in type(model).__name__ else model).modules()
        if isinstance(each, torch.nn.Module) and list(each.parameters(recurse=False))
    )
    assert not has_hooks(model)
    adders = {
        "a hook point": lambda: model.add_hook("blocks.0.hook_resid_post", lambda value, hook: value) or None,
        "forward": lambda: module.register_forward_hook(of_a_person),
        "forward, partial": lambda: module.register_forward_hook(partial(of_a_person)),
        "before": lambda: module.register_forward_pre_hook(of_a_person),
        "another forward": lambda: replaced_forward(module, types.MethodType(of_a_person, module)),
        "another forward, in the name of the first": lambda: replaced_forward(module, disguised(module)),
        "forward, in the name of another function": lambda: module.register_forward_hook(disguised(module)),
        "all modules": lambda: torch.nn.modules.module.register_module_forward_hook(of_a_person),
    }
    for name, add in adders.items():
        handle = add()
        assert has_hooks(model), name
        if handle is None:
            model.reset_hooks()
        else:
            handle.remove()
        assert not has_hooks(model), name
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: value * 0)]):
        assert has_hooks(model)
    assert not has_hooks(copy.copy(model))
