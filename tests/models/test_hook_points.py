"""Which hook points there are, and how a user names some of them."""

import re

import numpy as np
import pytest
import torch
from helpers import LAYERS, WIDTH, assert_unchanged, hook_count, state_of

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.models.hook_points import KINDS, check_layers, hook_shapes, layer_of, select_hooks

EVERY_LAYER = (
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)


def by_name(model) -> dict:
    return {point.name: point for point in psr.hook_points(model)}


def fired(model, names, batch: int, length: int) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [(name, lambda activation, hook, name=name: seen[name].append(activation)) for name in names]
    tokens = torch.randint(10, 60, (batch, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens)
    return seen


def test_every_listed_point_fires_with_the_shape_and_type_that_are_listed(tiny):
    points = by_name(tiny.model)
    for name, activations in fired(tiny.model, points, batch=3, length=7).items():
        point = points[name]
        assert activations, name
        if point.per_token:
            assert tuple(activations[-1].shape) == (3, 7, *point.shape), name
            assert activations[-1].dtype == point.dtype
            assert point.bytes_per_token == activations[-1][0, 0].numel() * activations[-1].element_size()
        else:
            assert point.bytes_per_token == (4 * 4 if point.is_pattern else 0)  # a number a head, with one key


def test_the_points_that_hooked_transformer_has_are_listed_in_order_of_firing(tiny):
    names = list(by_name(tiny.model))
    wanted = ["hook_embed", *(f"blocks.{layer}.{name}" for layer in range(LAYERS) for name in EVERY_LAYER)]
    assert [name for name in names if name in wanted] == wanted


def test_each_point_is_listed_once(tiny):
    points = psr.hook_points(tiny.model)
    objects = [id(tiny.model.hook_dict[point.name]) for point in points]
    assert len(set(objects)) == len(points)


def test_attention_patterns_have_no_row_a_token(tiny):
    points = by_name(tiny.model)
    for layer in range(LAYERS):
        assert not points[f"blocks.{layer}.attn.hook_pattern"].per_token
        assert not points[f"blocks.{layer}.attn.hook_attn_scores"].per_token
        assert points[f"blocks.{layer}.attn.hook_z"].shape == (4, WIDTH // 4)


def test_grouped_keys_have_their_own_number_of_heads(load):
    points = by_name(load("llama-gqa", "bridge").model)
    assert points["blocks.0.attn.hook_q"].shape == (4, WIDTH // 4)
    assert points["blocks.0.attn.hook_k"].shape == (2, WIDTH // 4)


def test_layers_are_read_from_names():
    assert layer_of("blocks.3.hook_resid_post") == 3
    assert layer_of("blocks.12.attn.hook_z") == 12
    assert layer_of("hook_embed") is None
    assert layer_of("ln_final.hook_scale") is None


def test_a_kind_means_that_point_of_every_layer(tiny):
    for kind in KINDS.keys() - {"embed", "pos_embed", "result"}:
        assert select_hooks(tiny.model, kind) == [KINDS[kind].replace("*", str(layer)) for layer in range(LAYERS)]


def test_the_embedding_is_a_kind_of_its_own(tiny):
    assert select_hooks(tiny.model, "embed") == ["hook_embed"]


def test_all_means_every_point_with_a_row_a_token(tiny):
    assert select_hooks(tiny.model, "all") == [point.name for point in psr.hook_points(tiny.model) if point.per_token]


def test_names_patterns_and_kinds_can_be_mixed_and_come_in_the_models_order(tiny):
    chosen = select_hooks(tiny.model, ["blocks.2.hook_resid_post", "blocks.[01].hook_attn_out", "embed", "blocks.0.hook_attn_out"])
    assert chosen == ["hook_embed", "blocks.0.hook_attn_out", "blocks.1.hook_attn_out", "blocks.2.hook_resid_post"]


def test_layers_narrow_a_selection_and_count_from_the_end_too(tiny):
    assert select_hooks(tiny.model, "resid_post", layers=[-1, 0]) == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    assert {layer_of(name) for name in select_hooks(tiny.model, "all", layers=[1])} == {1}


def test_attention_patterns_are_taken_on_request_only(tiny):
    pattern = "blocks.0.attn.hook_pattern"
    assert all("pattern" not in name for hooks in ("all", "blocks.0.attn.*") for name in select_hooks(tiny.model, hooks))
    assert select_hooks(tiny.model, pattern) == [pattern]
    assert select_hooks(tiny.model, ["all", "pattern"], layers=[0]).count(pattern) == 1
    assert hook_shapes(tiny.model, [pattern, "blocks.1.attn.hook_z"]) == {
        pattern: (4,),
        "blocks.1.attn.hook_z": (4, WIDTH // 4),
    }


def test_attention_scores_are_refused_with_what_to_take_instead(tiny):
    with pytest.raises(InputError, match=r"hook_attn_scores.*Use `blocks\.0\.attn\.hook_pattern` for attention"):
        select_hooks(tiny.model, "blocks.0.attn.hook_attn_scores")


def test_the_table_has_a_line_for_each_kind_with_layers_shape_and_bytes(tiny):
    table = psr.hook_points(tiny.model)
    head, *lines = str(table).splitlines()
    assert head.split("  ")[0] == "hook point"
    found = {line.split()[0]: re.split(r"\s{2,}", line)[1:] for line in lines}
    assert len(found) == len(lines)
    assert found["blocks.*.hook_resid_post"] == [f"0–{LAYERS - 1}", str(WIDTH), f"{4 * WIDTH}", "yes"]
    assert found["blocks.*.attn.hook_z"] == [f"0–{LAYERS - 1}", f"4 × {WIDTH // 4}", f"{4 * WIDTH}", "yes"]
    assert found["blocks.*.attn.hook_pattern"] == [f"0–{LAYERS - 1}", "4 × key", "16 × keys", "on request: keys aligned"]
    assert found["blocks.*.attn.hook_attn_scores"] == [f"0–{LAYERS - 1}", "–", "–", "no row per token"]
    assert found["hook_embed"] == ["–", str(WIDTH), f"{4 * WIDTH}", "yes"]
    assert table._repr_html_().count("<tr>") == len(lines) + 1
    assert repr(table) == f"HookPointTable({len(table)} hook points, {LAYERS} layers)"


def test_a_silent_point_is_refused_with_the_switch_to_turn_on(tiny):
    with pytest.raises(InputError, match="set_use_attn_result"):
        select_hooks(tiny.model, "blocks.0.attn.hook_result")
    with pytest.raises(InputError, match="set_use_attn_result"):
        select_hooks(tiny.model, "result")


def test_a_silent_point_can_be_chosen_once_it_is_turned_on(fresh):
    fresh.model.set_use_attn_result(True)
    assert select_hooks(fresh.model, "blocks.1.attn.hook_result") == ["blocks.1.attn.hook_result"]
    assert by_name(fresh.model)["blocks.1.attn.hook_result"].shape == (4, WIDTH)


@pytest.mark.parametrize(
    "layers", [[LAYERS], [-LAYERS - 1], [0, 99], [], "last", "1", [0.5], 1.0, np.array([0.5]), ["1"], True, None]
)
@pytest.mark.usefixtures("unchecked")
def test_layers_out_of_range_are_refused_with_the_range(tiny_llama, layers):
    with pytest.raises(InputError, match=f"from 0 to {LAYERS - 1}"):
        check_layers(tiny_llama.model, layers)


def test_layers_may_be_one_several_or_all(tiny_llama):
    assert check_layers(tiny_llama.model, "all") == [0, 1, 2]
    assert check_layers(tiny_llama.model, -1) == [2]
    assert check_layers(tiny_llama.model, range(1, 3)) == [1, 2]
    assert check_layers(tiny_llama.model, (2, 0, -1)) == [0, 2]


@pytest.mark.parametrize(
    "layers", [np.int64(-1), np.array(2), np.array([2, -1]), [np.int32(2)], torch.tensor([2]), torch.tensor(2)], ids=str
)
def test_layers_may_be_numbers_of_numpy_and_torch(tiny_llama, layers):
    assert check_layers(tiny_llama.model, layers) == [2]
    assert select_hooks(tiny_llama.model, "resid_post", layers) == ["blocks.2.hook_resid_post"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("model", ["organism", None, [1], torch.nn.Linear(2, 2)], ids=["name", "None", "list", "module"])
@pytest.mark.parametrize(
    "call",
    [psr.hook_points, lambda model: select_hooks(model, "all"), lambda model: psr.capture(model, [])],
    ids=["list", "select", "capture"],
)
def test_what_is_no_model_is_refused_with_how_to_load_one(call, model):
    with pytest.raises(InputError, match=r"model: got .*, expected a HookedTransformer or a TransformerBridge.*load_model"):
        call(model)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("hooks", [3, None, ["resid_post", 3], [("resid_post", 3)]], ids=str)
def test_hooks_that_are_no_names_are_refused(tiny_llama, hooks):
    with pytest.raises(InputError, match=r"hooks: got .*, expected 'all', a kind, a hook name"):
        select_hooks(tiny_llama.model, hooks)


def test_a_misspelt_kind_gets_a_did_you_mean(tiny_llama):
    with pytest.raises(InputError, match=r"got 'resid_psot'.*Did you mean 'resid_post'\? `psr_lens.hook_points"):
        select_hooks(tiny_llama.model, "resid_psot")


def test_listing_leaves_the_model_and_the_users_hooks_alone(fresh):
    seen = []
    fresh.model.add_hook("blocks.0.hook_resid_post", lambda activation, hook: seen.append(activation.shape))
    fresh.model.train(True)
    before, hooks = state_of(fresh.model), hook_count(fresh.model)
    psr.hook_points(fresh.model)
    assert hook_count(fresh.model) == hooks == 1
    assert_unchanged(fresh.model, before)


def test_a_point_that_gives_several_tensors_is_not_listed(tiny_llama):
    """Some routers of mixtures of experts do."""
    model = tiny_llama.model
    listed = [point.name for point in psr.hook_points(model)]
    fires = {id(model.hook_dict[name]) for name in listed}
    silent = next(point for point in model.hook_dict.values() if id(point) not in fires)
    handle = model.blocks[1].mlp.register_forward_pre_hook(
        lambda module, given: silent((torch.zeros(2, 2), torch.zeros(2))) and None
    )
    try:
        assert [point.name for point in psr.hook_points(model)] == listed
    finally:
        handle.remove()
