"""Scores by source: against weights multiplied out by hand in plain transformers, and against what the model itself computes."""

import importlib
import math

import pytest
import torch
from architectures import FAMILIES, TAKEN, hooked_gemma2
from helpers import (
    BACKENDS,
    LAYERS,
    assert_unchanged,
    random_replacement,
    random_triplets,
    replacement_at,
    state_of,
)

import psr_lens as psr
from psr_lens.activations.attention_patterns import align_keys
from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.interpretation.attribution import HeadReading, Source

SUM = 1e-5
"""How far the parts may be from the score, relative to it."""
HEADS = [(2, 3), (0, 1), (1, 2)]


QUICK = ("llama-gqa", "gpt2", "qwen3", "olmo2", "gemma2")
"""Families that are tested each time; the others take long to make."""


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        pytest.param(family, backend, marks=() if family in QUICK else pytest.mark.slow)
        for family in TAKEN
        for backend in BACKENDS
        if family not in ("mamba", "qwen3-next") and (backend == "bridge" or FAMILIES[family].in_hooked_transformer)
    ],
)
def test_parts_sum_to_the_score_in_every_architecture(load, family, backend):
    model = load(family, backend).model
    triplets = random_triplets(model, 2, longest=5)
    result = psr.score_attribution(model, triplets, {"A": random_replacement(model)}, HEADS)
    assert float(result.remainder.max()) < SUM
    known = ~result.score.isnan()
    assert bool((result.parts.isnan() == ~known[..., None]).all())
    for at, (layer, head) in enumerate(HEADS):
        torch.testing.assert_close(
            result.score[0, at], by_the_model(model, triplets, layer, head), atol=2e-5, rtol=1e-4, equal_nan=True
        )


def by_the_model(model, triplets, layer: int, head: int) -> torch.Tensor:
    """Score differences of the prompted run, one unpadded sequence after another."""
    found = []
    for triplet in triplets:
        ids = (*triplet.pair.prompted_ids, *triplet.response_ids)
        scores = model.run_with_cache(torch.tensor([ids]))[1][f"blocks.{layer}.attn.hook_attn_scores"][0, head]
        instruction = align_keys(triplet).instruction
        for query in range(len(triplet.pair.prompted_ids) - 1, len(ids)):
            seen = [key for key in range(query + 1) if scores[query, key] > -1e9]
            read = [scores[query, key] for key in seen if key in instruction]
            others = [scores[query, key] for key in seen if key not in instruction]
            found.append(sum(read) / len(read) - sum(others) / len(others) if read else torch.tensor(math.nan))
    return torch.stack(found)


@pytest.mark.skipif(hooked_gemma2() is None, reason="this TransformerLens has no HookedTransformer")
def test_a_hooked_transformer_of_gemma_2s_shape_with_a_softcap_that_bends():
    model = hooked_gemma2()
    result = psr.score_attribution(model, random_triplets(model, 3), random_replacement(model), HEADS)
    assert float(result.remainder.max()) < SUM


# --- by hand -----------------------------------------------------------------------------------------------------------------

OUTPUTS = {
    "llama-gqa": ("model.layers.{}.self_attn", "model.layers.{}.mlp"),
    "qwen2": ("model.layers.{}.self_attn", "model.layers.{}.mlp"),
    "qwen3": ("model.layers.{}.self_attn", "model.layers.{}.mlp"),
    "olmo2": ("model.layers.{}.post_attention_layernorm", "model.layers.{}.post_feedforward_layernorm"),
    "gemma2": ("model.layers.{}.post_attention_layernorm", "model.layers.{}.post_feedforward_layernorm"),
    "gpt2": ("transformer.h.{}.attn", "transformer.h.{}.mlp"),
}
"""Modules whose outputs enter the residual stream."""


def run(hf, family: str, ids) -> dict[str, torch.Tensor]:
    """What enters each block, and what attention and MLP add, `[position, d_model]`."""
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            found[name] = (output[0] if isinstance(output, tuple) else output).detach().reshape(len(ids), -1)

        return hook

    def entering(name):
        def hook(module, inputs):
            found[name] = inputs[0].detach()[0]

        return hook

    blocks = hf.transformer.h if family == "gpt2" else hf.model.layers
    handles = [block.register_forward_pre_hook(entering(f"stream {layer}")) for layer, block in enumerate(blocks)]
    handles += [
        hf.get_submodule(path.format(layer)).register_forward_hook(keep(f"{kind} {layer}"))
        for layer in range(LAYERS)
        for kind, path in zip(("attention", "MLP"), OUTPUTS[family], strict=True)
    ]
    with torch.no_grad():
        hf(torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return found


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def scores_by_hand(hf, family: str, layer: int, head: int, source, stream, keys_from, positions) -> torch.Tensor:
    """Scores of one part of queries with all keys, norms' scales as `stream` has them; `[query, key]`. With None, those of biases."""
    config = hf.config
    empty = source is None
    source = torch.zeros_like(stream) if empty else source
    if family == "gpt2":
        block = hf.transformer.h[layer]
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        width = config.n_embd
        scale = (stream.var(-1, unbiased=False, keepdim=True) + block.ln_1.eps).sqrt()
        normed = (source - source.mean(-1, keepdim=True)) / scale * block.ln_1.weight + empty * block.ln_1.bias
        size = width // config.n_head
        query = (normed @ weight[:, :width] + empty * bias[:width])[:, head * size : (head + 1) * size]
        key = (block.ln_1(keys_from) @ weight[:, width : 2 * width] + bias[width : 2 * width])[:, head * size : (head + 1) * size]
        return query @ key.T / size**0.5
    block = hf.model.layers[layer]
    attention, eps = block.self_attn, config.rms_norm_eps
    if family == "olmo2":
        normed, whole, keys = source, stream, keys_from
    else:
        gain = block.input_layernorm.weight + (family == "gemma2")
        normed, whole = (each / rms(stream, eps) * gain for each in (source, stream))
        keys = block.input_layernorm(keys_from)
    plain, full = normed @ attention.q_proj.weight.T, attention.q_proj(whole)
    if empty and attention.q_proj.bias is not None:
        plain = plain + attention.q_proj.bias
    key = attention.k_proj(keys)
    if family == "olmo2":  # one norm over all heads
        plain, key = plain / rms(full, eps) * attention.q_norm.weight, attention.k_norm(key)
    size = attention.head_dim
    plain, full, key = (each.unflatten(-1, (-1, size)).transpose(0, 1)[None] for each in (plain, full, key))
    if family == "qwen3":
        plain, key = plain / rms(full, eps) * attention.q_norm.weight, attention.k_norm(key)
    code = importlib.import_module(type(hf).__module__)
    turned, _ = code.apply_rotary_pos_emb(plain, plain, *hf.model.rotary_emb(plain, positions[None]))
    _, key = code.apply_rotary_pos_emb(key, key, *hf.model.rotary_emb(key, torch.arange(key.shape[2])[None]))
    return turned[0, head] @ key[0, head // (turned.shape[1] // key.shape[1])].T * attention.scaling


@pytest.mark.parametrize("family", OUTPUTS)
def test_every_part_is_that_of_weights_multiplied_out_by_hand(load, family):
    case = load(family, "bridge")
    layer, head = 1 if family == "gemma2" else 2, 3  # Gemma-2's layer 2 has a window
    hf, (triplet,), steered = case.hf, random_triplets(case.model, 1, longest=4), random_replacement(case.model)
    result = psr.score_attribution(case.model, [triplet], {"A": steered}, [(layer, head)])
    start = {context: len(triplet.pair.ids(context)) - 1 for context in ("base", "prompted")}
    ids = {context: (*triplet.pair.ids(context), *triplet.response_ids) for context in start}
    prompted, base = (run(hf, family, ids[context]) for context in ("prompted", "base"))
    with steered.attach(hf, start=start["base"]):
        pushed = run(hf, family, ids["base"])
    positions = torch.arange(start["prompted"], len(ids["prompted"]))
    instruction = list(align_keys(triplet).instruction)
    for context, (found, begin) in enumerate([(prompted, start["prompted"]), (base, start["base"]), (pushed, start["base"])]):
        rows = {name: values[begin:] for name, values in found.items()}
        stream = rows[f"stream {layer}"]
        named = {"embedding": rows["stream 0"], "bias": None}
        for below in range(layer):
            named |= {f"{kind} {below}": rows[f"{kind} {below}"] for kind in ("attention", "MLP")}
            outputs = rows[f"attention {below}"] + rows[f"MLP {below}"]
            named[f"replacement {below}"] = rows[f"stream {below + 1}"] - rows[f"stream {below}"] - outputs
        parts = {}
        for name, source in named.items():
            parts[name] = scores_by_hand(hf, family, layer, head, source, stream, prompted[f"stream {layer}"], positions)
            if family == "gemma2":
                whole = scores_by_hand(hf, family, layer, head, stream, stream, prompted[f"stream {layer}"], positions)
                cap = hf.config.attn_logit_softcapping
                parts[name] = parts[name] * cap * (whole / cap).tanh() / whole
        for row, query in enumerate(positions.tolist()):
            others = [key for key in range(query + 1) if key not in instruction]
            for source, part in zip(result.sources, result.parts[context, 0, row], strict=True):
                wanted = parts[str(source)][row]
                torch.testing.assert_close(part, wanted[instruction].mean() - wanted[others].mean(), atol=2e-4, rtol=2e-3)


# --- what must hold ----------------------------------------------------------------------------------------------------------


def test_contexts_that_are_alike_score_alike(shipped):
    model = shipped.model
    triplets = random_triplets(model, 3)
    nothing, something = random_replacement(model), random_replacement(model, seed=1)
    methods = {"off": nothing, "on": something}
    result = psr.score_attribution(model, triplets, methods, HEADS, alpha={"off": 0.0, "on": 1.0})
    at = {name: index for index, name in enumerate(result.contexts)}
    torch.testing.assert_close(result.parts[at["off"]], result.parts[at["none"]], atol=1e-4, rtol=1e-4)
    assert float((result.parts[at["on"]] - result.parts[at["none"]]).abs().max()) > 1e-2
    added = [column for column, source in enumerate(result.sources) if source.kind == "replacement"]
    assert bool((result.parts[:2][..., added] == 0).all())
    assert float(result.parts[at["on"], 0][:, added].abs().max()) > 1e-3
    assert bool((result.parts[:, HEADS.index((0, 1)), :, 1:-1] == 0).all())  # nothing is below the first layer


def test_what_a_method_adds_before_a_head_is_a_part_wherever_it_acts(tiny):
    model = tiny.model
    for kind in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z"):
        result = psr.score_attribution(model, random_triplets(model, 2), replacement_at(model, kind, [0, 1, 2]), [(2, 0)])
        assert float(result.remainder.max()) < SUM
        assert float((result.score[2] - result.score[1]).abs().max()) > 1e-3


def test_what_a_method_adds_counts_to_the_block_where_it_adds_and_to_no_other(tiny):
    model = tiny.model
    for kind, layer, block in (("hook_resid_post", 1, 1), ("hook_resid_pre", 1, 0)):
        with torch.inference_mode():
            result = psr.score_attribution(model, random_triplets(model, 2), replacement_at(model, kind, [layer]), [(2, 0)])
        sizes = {
            source.layer: float(result.parts[2, 0, :, at].abs().max())
            for at, source in enumerate(result.sources)
            if source.kind == "replacement"
        }
        assert sizes.pop(block) > 1e-4
        assert set(sizes.values()) == {0.0}


def test_attention_is_that_of_the_prompted_run(tiny):
    model, triplets = tiny.model, random_triplets(tiny.model, 2)
    result = psr.score_attribution(model, triplets, random_replacement(model), HEADS)
    for at, (layer, head) in enumerate(HEADS):
        for index, triplet in enumerate(triplets):
            ids = torch.tensor([(*triplet.pair.prompted_ids, *triplet.response_ids)])
            pattern = model.run_with_cache(ids)[1][f"blocks.{layer}.attn.hook_pattern"][0, head]
            wanted = pattern[len(triplet.pair.prompted_ids) - 1 :, list(align_keys(triplet).instruction)].sum(-1)
            torch.testing.assert_close(result.attention[0, at][result.tokens.rows(index)], wanted, atol=1e-5, rtol=1e-4)


def test_batches_and_the_order_of_heads_change_nothing(shipped, monkeypatch):
    model = shipped.model
    triplets, method = random_triplets(model, 5), random_replacement(model)
    whole = psr.score_attribution(model, triplets, method, HEADS)
    monkeypatch.setattr("psr_lens.interpretation.attribution.score_measure.TOKEN_BUDGET", 30)
    one_by_one = psr.score_attribution(model, triplets, method, [HeadReading(*head, 0.0) for head in HEADS[::-1]])
    assert one_by_one.heads == tuple(HEADS[::-1])
    torch.testing.assert_close(one_by_one.parts.flip(1), whole.parts, atol=2e-4, rtol=1e-3)


def test_means_are_those_of_all_tokens_and_the_model_is_left_as_it_was(tiny):
    before = state_of(tiny.model)
    result = psr.score_attribution(tiny.model, random_triplets(tiny.model, 4), random_replacement(tiny.model), HEADS)
    assert_unchanged(tiny.model, before)
    for at, context in enumerate(result.contexts):
        found = result.mean(context, 1)
        assert float(found.value) == pytest.approx(float(result.score[at, 1].mean()), abs=1e-5)
        assert float(found.value) == pytest.approx(float(result.by_source()[at, 1].sum()), abs=1e-4)
        assert found.low <= found.value <= found.high
        assert float(result.mean_attention(context, 1).value) == pytest.approx(float(result.attention[at, 1].mean()), abs=1e-5)
    assert str(result.sources[2]) == str(Source("mlp", 0)) == "MLP 0"
    assert "L0H1" in result._repr_html_()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("head", [("1", 0), (0.5, 1), (0, 1, 2, 3), (True, 0), (0,), "01", 3])
def test_what_is_no_head_is_refused(tiny_llama, head):
    model = tiny_llama.model
    with pytest.raises(InputError, match=r"heads(\[0\])?: got"):
        psr.score_attribution(model, random_triplets(model, 1), random_replacement(model), [head])


def test_refusals(tiny, load):
    model, triplets = tiny.model, random_triplets(tiny.model, 1)
    method = random_replacement(model)
    with pytest.raises(InputError, match="at least one head"):
        psr.score_attribution(model, triplets, method, [])
    with pytest.raises(InputError, match="heads: got"):
        psr.score_attribution(model, triplets, method, [(0, 9)])
    with pytest.raises(InputError, match="methods"):
        psr.score_attribution(model, triplets, {"none": method}, HEADS)
    result = psr.score_attribution(model, triplets, method, HEADS)
    with pytest.raises(InputError, match="context: got 'other'"):
        result.mean("other")
    with pytest.raises(InputError, match="head: got 3"):
        result.mean("none", 3)
    with pytest.raises(ArtifactError):
        psr.score_attribution(load("organism", "bridge").model, triplets, method, HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["parallel", "ALiBi"])
def test_queries_with_a_layer_norm_and_scores_with_an_addend_are_refused(tmp_path, variant):
    from architectures import save_tiny

    family = "stablelm" if variant == "parallel" else "falcon"
    folder = save_tiny(family, tmp_path, settings=FAMILIES[family].variants[variant])
    try:
        model = psr.load_model(str(folder), backend="bridge")
        triplets = random_triplets(model, 1)
    except ModelError:
        pytest.skip("this TransformerLens does not take it")
    with pytest.raises(ModelError, match="linear neither"):
        psr.score_attribution(model, triplets, random_replacement(model), HEADS)
