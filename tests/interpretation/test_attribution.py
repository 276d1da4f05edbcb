"""Δ in parts: every part against plain loops over an unpadded sequence, and all of them summing to Δ."""

import math

import pytest
import torch
from architectures import hooked_gemma2
from helpers import BACKENDS, LAYERS, assert_unchanged, pairs_of, random_replacement, random_triplets, replacement_at, state_of
from safetensors.torch import load_file

import psr_lens as psr
from psr_lens.activations.attention_patterns import INSTRUCTION, align_keys
from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.interpretation.attribution import PARTS, HeadReading, Split, measure
from psr_lens.prompts import PromptPair, Triplet

SUM = 1e-4
"""How far the parts may be from Δ, relative to it."""


def replaced_system_prompts(model, count: int = 5) -> list[Triplet]:
    """Triplets whose base prompt has words of its own in the instruction's place, as a default system message is."""
    made = []
    for place, triplet in enumerate(random_triplets(model, count)):
        pair, own = triplet.pair, tuple(range(30, 32 + place))
        base = (*pair.base_ids[:1], *own, *pair.base_ids[1:])
        swapped = PromptPair(pair.question, pair.instruction, base, pair.prompted_ids, pair.question_length)
        made.append(Triplet(swapped, triplet.response_ids, ""))
    return made


def assert_sums(model, triplets, **settings) -> psr.Attribution:
    """The parts sum to Δ: as vectors, and as shares on every token where there is a Δ."""
    result = psr.attribute(model, triplets, **settings)
    assert float(result.remainder.max()) < SUM
    total = result.share.total()
    whole = total if result.target is None else total.sum(1, keepdim=True)
    size = result.magnitude if result.target is None else result.magnitude[:, -1:]
    settled = whole != 0
    assert bool((size[~settled] < 1e-4).all())  # nothing but rounding there
    torch.testing.assert_close(whole[settled], torch.ones_like(whole[settled]), atol=SUM, rtol=0)
    assert bool((result.norm.heads >= 0).all())
    return result


WAYS = [{}, {"span": "QR"}, {"difference": "local"}, {"target": -1}]


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_parts_sum_to_delta_on_tiny_models(tiny, settings):
    result = assert_sums(tiny.model, random_triplets(tiny.model, 3), **settings)
    assert bool((result.share.heads[..., PARTS.index("norm")] == 0).all())
    assert bool((result.share.heads[..., PARTS.index("removed")] == 0).all())


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_parts_sum_to_delta_on_the_organisms(shipped, settings):
    assert_sums(shipped.model, random_triplets(shipped.model, 3), **settings)


@pytest.mark.parametrize(
    ("family", "backend"),
    [(family, "bridge") for family in ("gemma2", "gpt-neox", "olmo2")] + [("gpt-neox", each) for each in BACKENDS[:-1]],
)
def test_parts_sum_to_delta_with_norms_behind_blocks_and_with_parallel_attention(load, family, backend):
    model = load(family, backend).model
    for settings in WAYS:
        result = assert_sums(model, random_triplets(model, 4), **settings)
        assert bool((result.share.heads[..., PARTS.index("norm")] != 0).any()) == (family != "gpt-neox")
    assert_sums(model, replaced_system_prompts(model))


@pytest.mark.skipif(hooked_gemma2() is None, reason="this TransformerLens has no HookedTransformer")
def test_parts_sum_to_delta_in_a_hooked_transformer_of_gemma_2s_shape():
    model = hooked_gemma2()
    for settings in WAYS:
        result = assert_sums(model, random_triplets(model, 4), **settings)
        assert bool((result.share.heads[..., PARTS.index("norm")] != 0).any())


def test_what_only_the_base_prompt_has_is_a_part_of_its_own(tiny):
    result = assert_sums(tiny.model, replaced_system_prompts(tiny.model))
    assert bool((result.norm.heads[..., PARTS.index("removed")] > 0).any())


def by_loops(model, triplet: Triplet, layer: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Parts of each head on the span R, `[token, head, d_model]`, and Δ after the layer, one product after another."""
    caches, starts = {}, {}
    for context in ("base", "prompted"):
        ids = (*triplet.pair.ids(context), *triplet.response_ids)
        caches[context] = model.run_with_cache(torch.tensor([ids]))[1]
        starts[context] = len(triplet.pair.ids(context)) - 1

    def read(context: str, kind: str) -> torch.Tensor:
        return caches[context][f"blocks.{layer}.{kind}"][0]

    pattern, other_pattern = read("base", "attn.hook_pattern"), read("prompted", "attn.hook_pattern")
    values, other_values = read("base", "attn.hook_v"), read("prompted", "attn.hook_v")
    count, heads = len(triplet.response_ids) + 1, pattern.shape[0]
    output = model.blocks[layer].attn.W_O
    parts = {part: torch.zeros(count, heads, model.cfg.d_model) for part in PARTS}
    alignment = align_keys(triplet)
    for token in range(count):
        here, there = starts["base"] + token, starts["prompted"] + token
        for head in range(heads):
            shared = head // (heads // values.shape[1])
            for key in alignment.instruction:
                parts["instruction"][token, head] += other_pattern[head, there, key] * other_values[key, shared] @ output[head]
            for key, other in enumerate(alignment.counterpart):
                before, value = pattern[head, here, key], values[key, shared]
                if other is None:
                    parts["removed"][token, head] -= before * value @ output[head]
                    continue
                after, new = other_pattern[head, there, other], other_values[other, shared]
                parts["dilution"][token, head] += (after - before) * (value + new) / 2 @ output[head]
                parts["inputs"][token, head] += (before + after) / 2 * (new - value) @ output[head]
    delta = read("prompted", "hook_resid_post")[starts["prompted"] :] - read("base", "hook_resid_post")[starts["base"] :]
    return parts, delta


@pytest.mark.parametrize("swapped", [False, True])
def test_every_part_is_that_of_plain_loops(tiny, swapped):
    model = tiny.model
    triplets = replaced_system_prompts(model, 2)[1:] if swapped else random_triplets(model, 1, seed=3, longest=4)
    result = psr.attribute(model, triplets)
    for index, triplet in enumerate(triplets):
        rows = result.tokens.rows(index)
        for layer in (0, LAYERS - 1):
            parts, delta = by_loops(model, triplet, layer)
            torch.testing.assert_close(result.magnitude[rows, layer], delta.norm(dim=-1), atol=1e-4, rtol=1e-4)
            for place, part in enumerate(PARTS):
                wanted = parts[part]
                torch.testing.assert_close(result.norm.heads[rows, layer, :, place], wanted.norm(dim=-1), atol=1e-4, rtol=1e-3)
                if float(delta.norm(dim=-1).min()) > 1e-3:
                    share = (wanted * delta[:, None]).sum(-1) / delta.square().sum(-1)[:, None]
                    torch.testing.assert_close(result.share.heads[rows, layer, :, place], share, atol=1e-4, rtol=1e-3)


def test_the_norm_behind_the_attention_scales_each_context_by_itself(folders):
    """Gemma-2's own weights and formula, on the sum over the parts of each head."""
    model = psr.load_model(folders["gemma2"], backend="bridge")
    (triplet,) = random_triplets(model, 1, longest=4)
    result = psr.attribute(model, [triplet], layers=1, project={1: torch.eye(model.cfg.d_model)})
    heads = torch.stack([split.heads[:, 0].sum(-1) for split in result.projections], dim=-1)  # [token, head, d_model]
    added = []
    for context in ("base", "prompted"):
        prompt = triplet.pair.ids(context)
        cache = model.run_with_cache(torch.tensor([(*prompt, *triplet.response_ids)]))[1]
        z = cache["blocks.1.attn.hook_z"][0, len(prompt) - 1 :]
        outputs = torch.einsum("thd,hdm->thm", z, model.blocks[1].attn.W_O)
        scale = (outputs.sum(1).square().mean(-1) + model.cfg.eps).rsqrt()
        gains = 1 + load_file(folders["gemma2"] / "model.safetensors")["model.layers.1.post_attention_layernorm.weight"]
        added.append(outputs * scale[:, None, None] * gains)
    torch.testing.assert_close(heads, added[1] - added[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"difference": "local"}, {"span": "QR"}], ids=str)
def test_delta_is_the_one_that_capture_takes(tiny, settings):
    triplets = random_triplets(tiny.model, 4)
    result = psr.attribute(tiny.model, triplets, **settings)
    captured = psr.capture(tiny.model, triplets, ["resid_post", "mlp_out", "resid_pre"], **settings)
    for layer in range(LAYERS):
        for kind, found in (("resid_post", result.magnitude), ("mlp_out", result.norm.mlp), ("resid_pre", result.norm.direct)):
            if settings.get("difference") != "local" or kind != "resid_pre":  # capture takes it before it is replaced
                torch.testing.assert_close(found[:, layer], captured.magnitude(f"blocks.{layer}.hook_{kind}"), atol=1e-4, rtol=1e-4)
    if settings.get("difference") == "local":
        assert bool((result.norm.direct[:, 1:] == 0).all())


def test_with_a_target_the_embeddings_are_all_that_comes_in_from_below(load):
    llama, gpt2 = (load(family, BACKENDS[0]).model for family in ("llama", "gpt2"))
    unrolled = psr.attribute(llama, random_triplets(llama, 3), target=1)
    assert unrolled.layers == (0, 1)
    assert float(unrolled.share.direct.abs().max()) == 0  # the same words, and rotary positions
    shifted = psr.attribute(gpt2, random_triplets(gpt2, 3), target=-1)
    assert float(shifted.share.direct[:, 0].abs().max()) > 0
    assert float(shifted.share.direct[:, 1:].abs().max()) == 0


def test_the_sources_sum_to_what_is_read_from_the_instruction(tiny, monkeypatch):
    monkeypatch.setattr(measure, "TOKEN_BUDGET", 90)  # several batches
    triplets = random_triplets(tiny.model, 4)
    for target in (None, -1):
        result = psr.attribute(tiny.model, triplets, by_source=True, target=target)
        patterns = psr.capture(tiny.model, triplets, "pattern")
        for index, triplet in enumerate(triplets):
            rows = result.tokens.rows(index)
            sources = align_keys(triplet).instruction
            ids = [triplet.pair.prompted_ids[at] for at in sources]
            assert result.sources.strings[index] == tuple(tiny.model.tokenizer.convert_ids_to_tokens(ids))
            energy = result.magnitude[rows].square() if target is None else result.magnitude[rows, -1:].square().expand(-1, LAYERS)
            wanted = torch.einsum("tlh,tl->lh", result.share.heads[rows, :, :, 0], energy / energy.sum(0))
            torch.testing.assert_close(result.sources.share[index].nansum(-1), wanted, atol=1e-4, rtol=1e-3)
            assert bool(result.sources.share[index, ..., len(sources) :].isnan().all())
            assert not bool(result.sources.share[index, ..., : len(sources)].isnan().any())
            for layer in range(LAYERS):
                attention = patterns[f"blocks.{layer}.attn.hook_pattern{INSTRUCTION}"][rows].mean(0)[:, : len(sources)]
                torch.testing.assert_close(
                    result.sources.attention[index, layer, :, : len(sources)], attention, atol=1e-5, rtol=1e-4
                )


def test_sources_of_gemma_2_carry_the_norms_scale(folders):
    model = psr.load_model(folders["gemma2"], backend="bridge")
    triplets = random_triplets(model, 3)
    result = psr.attribute(model, triplets, by_source=True, target=-1)
    for index in range(3):
        rows = result.tokens.rows(index)
        energy = result.magnitude[rows, -1].square()
        wanted = torch.einsum("tlh,t->lh", result.share.heads[rows, :, :, 0], energy / energy.sum())
        torch.testing.assert_close(result.sources.share[index].nansum(-1), wanted, atol=1e-4, rtol=1e-3)


def test_projections_sum_to_delta_along_the_directions(tiny):
    triplets = random_triplets(tiny.model, 4)
    replacement = random_replacement(tiny.model, layers=[0, 2], rank=2)
    result = psr.attribute(tiny.model, triplets, project=replacement)
    captured = psr.capture(tiny.model, triplets)
    assert len(result.projections) == 2
    for rank, split in enumerate(result.projections):
        assert bool(split.total()[:, 1].isnan().all())
        for layer in (0, 2):
            direction = replacement.sites[f"blocks.{layer}.hook_resid_post"].directions[rank]
            wanted = captured[f"blocks.{layer}.hook_resid_post"] @ (direction / direction.norm())
            torch.testing.assert_close(split.total()[:, layer], wanted, atol=1e-3, rtol=1e-3)
    by_layer = {2: replacement.sites["blocks.2.hook_resid_post"].directions}
    unrolled = psr.attribute(tiny.model, triplets, project=by_layer, target=2).projections
    for rank in range(2):
        torch.testing.assert_close(unrolled[rank].total().sum(1), result.projections[rank].total()[:, 2], atol=1e-3, rtol=1e-3)


def test_batches_make_no_difference_and_the_model_is_left_as_it_was(fresh, monkeypatch):
    fresh.model.train()
    before = state_of(fresh.model)
    triplets = random_triplets(fresh.model, 6)
    results = []
    for budget in (10_000, 1):
        monkeypatch.setattr(measure, "TOKEN_BUDGET", budget)
        results.append(psr.attribute(fresh.model, triplets, by_source=True))
    whole, single = results
    assert_unchanged(fresh.model, before)
    for name in ("heads", "mlp", "direct"):
        torch.testing.assert_close(getattr(whole.norm, name), getattr(single.norm, name), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(whole.sources.attention, single.sources.attention, atol=1e-4, rtol=1e-3, equal_nan=True)


def test_prompts_that_are_the_same_have_no_parts(tiny_llama):
    model = tiny_llama.model
    pair = pairs_of(model, 1)[0]
    same = Triplet(PromptPair("", "", pair.base_ids, pair.base_ids, pair.question_length), (20, 21, 22), "")
    result = psr.attribute(model, [same], by_source=True)
    for split in (result.norm, result.share):
        assert all(float(getattr(split, name).abs().max()) == 0 for name in ("heads", "mlp", "direct"))
    assert result.sources.strings == ((),)
    assert result.top_heads(1)[0].value == 0


def made_up(tiny_llama) -> psr.Attribution:
    return psr.attribute(tiny_llama.model, random_triplets(tiny_llama.model, 3), target=-1)


def test_means_weigh_tokens_by_their_energy_and_heads_are_ordered_by_them(tiny_llama):
    result = made_up(tiny_llama)
    energy = result.magnitude[:, -1] ** 2
    wanted = sum(energy[row] * result.share.heads[row, :, :, 2] for row in range(len(energy))) / energy.sum()
    torch.testing.assert_close(result.reading("dilution"), wanted, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(result.reading(measure="norm"), result.norm.heads[..., 0].mean(0))
    assert torch.equal(result.reading("inputs", token=2), result.share.heads[2, :, :, 3])
    assert math.isclose(float(sum(shares.sum() for shares in result.by_layer().values())), 1, abs_tol=1e-4)
    assert math.isclose(float(sum(shares.sum() for shares in result.by_layer(1).values())), 1, abs_tol=1e-4)
    heads = result.top_heads(12)
    assert sorted(heads, key=lambda each: -each.value) == list(heads)
    assert {(each.layer, each.head) for each in heads} == {(layer, head) for layer in range(LAYERS) for head in range(4)}
    assert str(heads[0]) == f"L{heads[0].layer}H{heads[0].head}"
    assert heads[0].value == float(result.reading().max())


def test_the_organism_reads_its_instruction_with_the_heads_that_are_named(organism, pirate_triplets):
    """One head of the first layer; that it carries the trait is tested in `test_patching`."""
    assert psr.attribute(organism.model, pirate_triplets[:20]).top_heads(1)[0][:2] == (0, 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difference": "both"}, "difference"),
        ({"layers": 7}, "layers"),
        ({"target": 9}, "target"),
        ({"target": True}, "target"),
        ({"target": -1, "layers": [0]}, "layers"),
        ({"target": -1, "difference": "local"}, "target"),
        ({"span": "Q"}, "span"),
        ({"project": {0: torch.ones(2, 5)}}, "project"),
        ({"project": {0: torch.ones(32)}}, "project"),
        ({"project": {9: torch.ones(1, 32)}}, "layers"),
    ],
)
def test_bad_settings_are_refused_by_name(tiny_llama, settings, message):
    with pytest.raises(InputError, match=f"^{message}: "):
        psr.attribute(tiny_llama.model, random_triplets(tiny_llama.model, 2), **settings)


@pytest.mark.usefixtures("unchecked")
def test_bad_questions_to_a_result_are_refused_by_name(tiny_llama):
    result = made_up(tiny_llama)
    for call, name in (
        (lambda: result.reading("values"), "part"),
        (lambda: result.reading(measure="length"), "measure"),
        (lambda: result.reading(token=10_000), "token"),
        (lambda: result.top_heads(0), "count"),
        (lambda: result.top_heads(13), "count"),
    ):
        with pytest.raises(InputError, match=f"^{name}: "):
            call()


def test_no_triplets_and_replacements_that_do_not_fit_are_refused(tiny_llama, organism):
    model = tiny_llama.model
    with pytest.raises(InputError, match=r"^triplets: "):
        psr.attribute(model, [])
    with pytest.raises(InputError, match=r"^project: .*hook_z"):
        psr.attribute(model, random_triplets(model, 1), project=replacement_at(model, "attn.hook_z", [0]))
    with pytest.raises(ArtifactError):
        psr.attribute(model, random_triplets(model, 1), project=random_replacement(organism.model))


@pytest.mark.parametrize(("point", "what"), [("hook_attn_out", "attention output of layer 1"), ("hook_resid_post", "at layer 1")])
def test_an_architecture_that_adds_up_otherwise_is_refused(fresh, point, what):
    """Something between the heads and the stream, or between the parts of a layer, that attribution does not know of."""

    def squash(activation, hook):
        return torch.tanh(activation)

    with fresh.model.hooks(fwd_hooks=[(f"blocks.1.{point}", squash)]), pytest.raises(ModelError, match=what):
        psr.attribute(fresh.model, random_triplets(fresh.model, 3))


def test_a_split_totals_its_parts():
    split = Split(torch.ones(2, 3, 4, 5), torch.full((2, 3), 2.0), torch.full((2, 3), 3.0))
    assert torch.equal(split.total(), torch.full((2, 3), 25.0))


def test_a_split_and_a_reading_are_shown_on_one_line():
    split = Split(torch.ones(2, 1, 4, 5), torch.ones(2, 1), torch.ones(2, 1))
    assert repr(split) == "Split(2 tokens × 1 layer; 4 heads in 5 parts each, MLP, direct)"
    assert repr(HeadReading(3, 1, 0.123456)) == "HeadReading(L3H1, 0.123)"
