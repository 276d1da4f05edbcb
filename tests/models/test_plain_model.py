"""Sampling on plain transformers with the same weights, compared with the model's own steps; and when it must not be taken."""

import copy

import pytest
import torch
from evaluated import WordJudge
from helpers import BACKENDS, generated, logits_of, pairs_of, random_replacement, replacement_at
from transformers import AutoModelForCausalLM

import psr_lens as psr
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.generation import decoding
from psr_lens.models import is_bridge, logits_at, plain_transformers

GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=8)


def ids_of(responses) -> list[tuple[int, ...]]:
    return [response.ids for response in responses]


@pytest.fixture
def on_the_model_itself(monkeypatch):
    """`with on_the_model_itself():` psr_lens does not look for plain transformers."""

    def switched():
        context = pytest.MonkeyPatch.context()
        patch = context.__enter__()
        patch.setattr(decoding, "plain_transformers", lambda model: None)
        return patch

    return switched


@pytest.mark.parametrize("kind", [None, "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z"])
def test_responses_are_those_of_the_models_own_steps(tiny, kind, on_the_model_itself):
    pairs = pairs_of(tiny.model, 3)
    steering = None if kind is None else replacement_at(tiny.model, kind, [0, 2], size=0.2)
    strengths = torch.tensor([0.5, 1.0, 1.5])
    found = ids_of(psr.generate(tiny.model, pairs, steering, alpha=strengths, sampling=GREEDY))
    patch = on_the_model_itself()
    try:
        assert ids_of(psr.generate(tiny.model, pairs, steering, alpha=strengths, sampling=GREEDY)) == found
    finally:
        patch.undo()


def test_weights_are_the_same_memory_and_modules_the_callers_own(tiny):
    plain = plain_transformers(tiny.model)
    if plain is None:
        assert tiny.family == "gpt-neox"  # whose bridge computes with copies
        return
    own = {each.untyped_storage().data_ptr() for each in tiny.model.parameters()}
    assert all(each.untyped_storage().data_ptr() in own for each in plain.parameters() if each.ndim == 2)
    plain.register_forward_hook(lambda *arguments: 1 / 0)
    logits_of(tiny.model, range(10, 20))
    plain_transformers(tiny.model)(torch.tensor([[1, 2]]))
    assert plain_transformers(tiny.model) is not plain


def test_it_attends_as_a_model_does_that_transformers_loads_by_itself(fresh):
    by_itself = AutoModelForCausalLM.from_pretrained(fresh.folder)
    assert plain_transformers(fresh.model).config._attn_implementation == by_itself.config._attn_implementation == "sdpa"


def edit_in_place(model):
    next(parameter for parameter in model.parameters() if parameter.ndim >= 2).data.mul_(-1.5)


def replace_weights(model):
    parameter = next(parameter for parameter in model.parameters() if parameter.ndim >= 2)
    parameter.data = parameter.data * -1.5


def edit_a_vector(model):
    if is_bridge(model):
        model.ln_final.original_component.weight.data[:16] *= -3
    else:
        model.unembed.b_U.data[:40] += 50


@pytest.mark.parametrize("edit", [edit_in_place, replace_weights, edit_a_vector])
def test_edited_weights_are_those_that_answer(fresh, edit):
    pairs = pairs_of(fresh.model, 2)
    before = ids_of(psr.generate(fresh.model, pairs, sampling=GREEDY))
    edit(fresh.model)
    found = ids_of(psr.generate(fresh.model, pairs, sampling=GREEDY))
    for pair, ids in zip(pairs, found, strict=True):
        assert list(ids) == generated(fresh.model, pair.base_ids, 8, cached=False)[: len(ids)]
    assert found != before


def test_an_edit_of_the_embedding_leaves_the_unembedding_alone(load, folders):
    model = psr.load_model("organism")
    if is_bridge(model):
        pytest.skip("a bridge ties them as transformers does")
    before = model.W_U.clone()
    model.W_E.data[50] = 0
    assert torch.equal(model.W_U, before)
    pairs = pairs_of(model, 1)
    assert list(psr.generate(model, pairs, sampling=GREEDY)[0].ids) == generated(model, pairs[0].base_ids, 8, cached=False)


def test_hooks_of_others_act_on_responses(fresh):
    pairs = pairs_of(fresh.model, 2)
    before = ids_of(psr.generate(fresh.model, pairs, sampling=GREEDY))
    hook = ("blocks.1.hook_mlp_out", lambda activation, hook: activation * -3)
    with fresh.model.hooks(fwd_hooks=[hook]):
        assert plain_transformers(fresh.model) is None
        found = ids_of(psr.generate(fresh.model, pairs, sampling=GREEDY))
        for pair, ids in zip(pairs, found, strict=True):
            assert list(ids) == generated(fresh.model, pair.base_ids, 8, cached=False)[: len(ids)]
    assert found != before
    assert plain_transformers(fresh.model) is not None
    module = next(iter(fresh.model.blocks)) if not is_bridge(fresh.model) else next(iter(fresh.model.original_model.children()))
    with_pre_hook = module.register_forward_pre_hook(lambda module, arguments: None)
    assert plain_transformers(fresh.model) is None
    with_pre_hook.remove()
    assert plain_transformers(fresh.model) is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_forward_acts_on_responses(folders, backend):
    model = psr.load_model(folders["llama"], backend=backend)
    pairs = pairs_of(model, 1)
    before = ids_of(psr.generate(model, pairs, sampling=GREEDY))
    mlp = model.original_model.model.layers[1].mlp.original_component if is_bridge(model) else model.blocks[1].mlp
    original = mlp.forward
    mlp.forward = lambda activation, *rest: original(activation, *rest) * -3
    found = ids_of(psr.generate(model, pairs, sampling=GREEDY))
    assert list(found[0]) == generated(model, pairs[0].base_ids, 8, cached=False)[: len(found[0])]
    assert found != before


def of_block(model, part):
    """The module of transformers, or of `HookedTransformer`, that computes a part of the second block."""
    found = getattr(model.blocks[1], {"norm": "ln1", "mlp": "mlp", "attention": "attn"}[part])
    return found.original_component if is_bridge(model) else found


SETTINGS = {
    "activation function": lambda model: ("mlp", "act_fn", torch.nn.Tanh() if is_bridge(model) else torch.tanh),
    "epsilon": lambda model: ("norm", "variance_epsilon" if is_bridge(model) else "eps", 9.0),
    "scale": lambda model: ("attention", "scaling" if is_bridge(model) else "attn_scale", 0.01),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_functions_and_settings_of_modules_act_on_responses_and_are_kept_apart(folders, backend, setting, tmp_path):
    model = psr.load_model(folders["llama"], backend=backend)
    pairs = pairs_of(model, 2)
    before = ids_of(psr.generate(model, pairs, sampling=GREEDY))
    assert plain_transformers(model) is not None
    assert AnswerCache(model, pairs, WordJudge(), GREEDY, tmp_path).of().texts
    kept = sorted(tmp_path.iterdir())
    part, name, value = SETTINGS[setting](model)
    module = of_block(model, part)
    original = getattr(module, name)
    setattr(module, name, value)
    assert plain_transformers(model) is None
    found = psr.generate(model, pairs, sampling=GREEDY)
    for pair, ids in zip(pairs, ids_of(found), strict=True):
        assert list(ids) == generated(model, pair.base_ids, 8, cached=False)[: len(ids)]
    assert ids_of(found) != before
    for made in (len(pairs), 0):
        cache = AnswerCache(model, pairs, WordJudge(), GREEDY, tmp_path)
        assert cache.of().texts == tuple(each.text for each in found)
        assert cache.generated == made
    assert set(kept) < set(tmp_path.iterdir())
    setattr(module, name, original)
    again = AnswerCache(model, pairs, WordJudge(), GREEDY, tmp_path)
    assert again.of().texts
    assert again.generated == 0
    assert plain_transformers(model) is not None


def test_an_edited_buffer_acts_on_responses(folders):
    model = psr.load_model(folders["llama"], backend=BACKENDS[0])
    pairs = pairs_of(model, 1)
    before = ids_of(psr.generate(model, pairs, sampling=GREEDY))
    if is_bridge(model):
        rotary = model.original_model.model.rotary_emb
        getattr(rotary, "original_component", rotary).inv_freq.mul_(20)
    else:
        model.blocks[0].attn.rotary_sin.zero_()
    found = ids_of(psr.generate(model, pairs, sampling=GREEDY))
    assert list(found[0]) == generated(model, pairs[0].base_ids, 8, cached=False)[: len(found[0])]
    assert found != before


def test_a_steer_block_around_it_acts_too(fresh):
    pairs, steering = pairs_of(fresh.model, 2), random_replacement(fresh.model, size=0.4)
    wanted = ids_of(psr.generate(fresh.model, pairs[:1], steering, sampling=GREEDY))
    with steering.steer(fresh.model):
        assert ids_of(psr.generate(fresh.model, pairs[:1], sampling=GREEDY)) == wanted


def test_a_copy_of_the_model_answers_with_its_own_weights(fresh):
    other = copy.deepcopy(fresh.model)
    edit_in_place(other)
    pairs = pairs_of(fresh.model, 1)
    assert list(psr.generate(other, pairs, sampling=GREEDY)[0].ids) == generated(other, pairs[0].base_ids, 8, cached=False)


def test_logits_at_some_positions_of_plain_transformers(fresh):
    plain, tokens = plain_transformers(fresh.model), torch.arange(10, 22).view(2, 6)
    rows = torch.tensor([1, 4, 11])
    with torch.no_grad():
        wanted = plain(tokens).logits.flatten(0, 1)[rows]
        with logits_at(plain, rows) as taken:
            found = plain(tokens).logits
            assert found.shape[:2] == (1, 3)
            torch.testing.assert_close(taken(found), wanted, atol=1e-5, rtol=1e-5)
        head = plain.get_output_embeddings()
        uncalled = torch.nn.Linear(head.in_features, head.out_features, bias=False)
        with pytest.MonkeyPatch.context() as patch:  # a model whose head is not called as a module computes all logits
            patch.setattr(type(plain), "get_output_embeddings", lambda self: uncalled)
            with logits_at(plain, rows) as taken:
                torch.testing.assert_close(taken(plain(tokens).logits), wanted)
