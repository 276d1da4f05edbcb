"""Interventions against transformers' own reading: cells patched by hand, prompts without the instruction, generation."""

import pytest
import torch
from helpers import BACKENDS, assert_unchanged, generated, pairs_of, random_replacement, random_triplets, replacement_at, state_of
from oracles import read
from torch.nn.functional import kl_div

import psr_lens as psr
from psr_lens.activations.attention_patterns import align_keys
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation.scores import scores_at
from psr_lens.generation.sampling import SamplingConfig, generate
from psr_lens.interpretation.patching import PatchGrid, ablate, grid_loop, knock_out, patch, transplant, transplanted_scores
from psr_lens.models import Decoder, forward
from psr_lens.prompts import Triplet, with_responses

GREEDY = SamplingConfig(temperature=0, max_new_tokens=8)


def ids_of(triplet: Triplet, context: str) -> tuple[int, ...]:
    return (*triplet.pair.ids(context), *triplet.response_ids)


def divergence(full: torch.Tensor, other: torch.Tensor, count: int) -> float:
    """KL on the last `count` positions but the last of all."""
    full, other = (logits[-count:-1].log_softmax(-1) for logits in (full, other))
    return float(kl_div(other, full, log_target=True, reduction="sum"))


# --- patching between the contexts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["base", "prompted"])
def test_a_cell_is_what_transformers_gives_with_that_token_replaced(tiny, into, monkeypatch):
    monkeypatch.setattr(grid_loop, "TOKEN_BUDGET", 100)  # several batches of copies
    (triplet,) = random_triplets(tiny.model, 1, seed=3, longest=4)
    source = "prompted" if into == "base" else "base"
    count = len(triplet.response_ids) + 1
    there, here = (read(tiny.hf, ids_of(triplet, context)) for context in (source, into))
    grid = patch(tiny.model, [triplet], into=into)
    full, base = (there, here) if into == "base" else (here, there)
    effect = divergence(full.logits, base.logits, count)
    assert float(grid.effect[0]) == pytest.approx(effect, rel=1e-4)
    assert bool(grid.of(0)[-1].isnan().all())  # the last token predicts nothing more
    for layer in grid.layers:
        for row in range(count - 1):

            def edit(residual, layer=layer, row=row):
                changed = residual.clone()
                changed[row - count] = there.residuals[layer][row - count]
                return changed

            apart = divergence(full.logits, read(tiny.hf, ids_of(triplet, into), {layer: edit}).logits, count) / effect
            wanted = 1 - apart if into == "base" else apart
            assert float(grid.of(0)[row, layer, 0]) == pytest.approx(wanted, abs=1e-3)


def test_the_whole_span_at_the_last_layer_is_the_whole_effect(tiny):
    triplets = random_triplets(tiny.model, 3)
    for into in ("base", "prompted"):
        grid = patch(tiny.model, triplets, layers=-1, into=into, cells="all")
        torch.testing.assert_close(grid.values, torch.ones(3, 1, 1), atol=1e-4, rtol=0)
        torch.testing.assert_close(grid.mean(), torch.ones(1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cells", ["token", "all"])
def test_heads_are_patched_one_by_one(load, cells):
    model = load("llama-gqa", "bridge").model
    (triplet,) = random_triplets(model, 1, seed=3, longest=4)
    count = len(triplet.response_ids) + 1
    grid = patch(model, [triplet], "z", layers=[1], cells=cells)
    prompted, plain = (torch.tensor([ids_of(triplet, context)]) for context in ("prompted", "base"))
    given = model.run_with_cache(prompted)[1]["blocks.1.attn.hook_z"][0, -count:]
    full, base = model(prompted)[0], model(plain)[0]
    for row in range(count - 1) if cells == "token" else [slice(None)]:
        for head in range(4):

            def put(z, hook, row=row, head=head):
                z = z.clone()
                z[0, -count:][row, head] = given[row, head]
                return z

            found = model.run_with_hooks(plain, fwd_hooks=[("blocks.1.attn.hook_z", put)])[0]
            wanted = 1 - divergence(full, found, count) / divergence(full, base, count)
            at = row if cells == "token" else 0
            assert float(grid.of(0)[at, 0, head]) == pytest.approx(wanted, abs=1e-3)


def test_grids_are_averaged_over_responses_and_positions(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 4)
    grid = patch(tiny_llama.model, triplets, layers=[0, 2])
    assert grid.values.shape == (len(grid.tokens), 2, 1)
    positions, means = grid.by_position()
    assert positions.tolist() == sorted(set(grid.tokens.position.tolist()))
    first = torch.stack([grid.of(index)[0] for index in range(4)])
    torch.testing.assert_close(means[0], first.mean(0))
    sums = torch.stack([grid.of(index)[:-1].sum(0) for index in range(4)])
    torch.testing.assert_close(grid.mean(), sums.mean(0))
    alike = [Triplet(each.pair, each.response_ids[:1], "") for each in triplets]
    alike = [Triplet(psr.PromptPair("", "", *[each.pair.base_ids] * 2, 1), each.response_ids, "") for each in alike]
    assert bool(patch(tiny_llama.model, alike).mean().isnan().all())  # no effect, no share


def test_patching_leaves_the_model_as_it_was(fresh):
    fresh.model.train()
    before = state_of(fresh.model)
    triplets = random_triplets(fresh.model, 1)
    patch(fresh.model, triplets, layers=0)
    ablate(fresh.model, triplets, random_replacement(fresh.model, layers=[1]))
    with knock_out(fresh.model, triplets, [(0, 1)]), pytest.raises(InputError, match=r"^pairs: "):
        fresh.model(torch.tensor([[11, 12, 13]]))
    assert_unchanged(fresh.model, before)


# --- a replacement taken apart ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["skip", "only"])
@pytest.mark.parametrize("reference", ["replacement", "prompt"])
def test_a_site_is_skipped_on_one_token(tiny, mode, reference):
    (triplet,) = random_triplets(tiny.model, 1, seed=3, longest=4)
    ids, count = ids_of(triplet, "base"), len(triplet.response_ids) + 1
    replacement = random_replacement(tiny.model, layers=[0, 2], size=0.3)

    def edits(acts):
        def edit_of(layer):
            site = replacement.sites[f"blocks.{layer}.hook_resid_post"]

            def edit(residual):
                on = torch.tensor([acts(layer, row) for row in range(count)])[:, None]
                steered = residual[-count:] + 0.7 * site.intervention(residual[-count:])
                return torch.cat([residual[:-count], torch.where(on, steered, residual[-count:])])

            return edit

        return {layer: edit_of(layer) for layer in (0, 2)}

    base, run = read(tiny.hf, ids).logits, read(tiny.hf, ids, edits(lambda layer, row: True)).logits
    full = run if reference == "replacement" else read(tiny.hf, ids_of(triplet, "prompted")).logits
    effect = divergence(full, base, count)
    grid = ablate(tiny.model, [triplet], replacement, mode=mode, reference=reference, alpha=0.7)
    assert grid.layers == (0, 2)
    for column, layer in enumerate(grid.layers):
        for row in range(count - 1):
            cell = (layer, row)
            found = read(tiny.hf, ids, edits(lambda *here, cell=cell: (here == cell) == (mode == "only"))).logits
            apart = divergence(full, found, count)
            wanted = (apart - divergence(full, run, count) if mode == "skip" else effect - apart) / effect
            assert float(grid.of(0)[row, column, 0]) == pytest.approx(wanted, abs=2e-3)


def test_all_of_a_single_site_is_all_there_is(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    for replacement in (random_replacement(tiny_llama.model, layers=[1]), replacement_at(tiny_llama.model, "attn.hook_z", [1])):
        for mode in ("skip", "only"):
            grid = ablate(tiny_llama.model, triplets, replacement, mode=mode, cells="all")
            torch.testing.assert_close(grid.values, torch.ones(3, 1, 1), atol=1e-4, rtol=0)


# --- heads knocked out ------------------------------------------------------------------------------------------------------


def test_with_every_head_knocked_out_the_instruction_is_not_there(tiny):
    """Transformers, given the base prompt with its tokens at the places that they have behind the instruction."""
    triplets = random_triplets(tiny.model, 4)
    every = [(layer, head) for layer in range(3) for head in range(4)]
    for triplet in triplets:
        ids, hidden = ids_of(triplet, "prompted"), align_keys(triplet).instruction
        kept = [place for place in range(len(ids)) if place not in hidden]
        with torch.no_grad():
            wanted = tiny.hf(torch.tensor([[ids[place] for place in kept]]), position_ids=torch.tensor([kept])).logits[0]
        with knock_out(tiny.model, triplets, every), torch.no_grad():
            found = tiny.model(torch.tensor([ids]))[0]
        torch.testing.assert_close(found[kept], wanted, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(found[list(hidden)], read(tiny.hf, ids).logits[list(hidden)], atol=2e-4, rtol=1e-3)


def test_only_the_heads_named_lose_sight_of_the_instruction(tiny):
    (triplet,) = random_triplets(tiny.model, 1)
    ids = torch.tensor([ids_of(triplet, "prompted")])
    name, hidden = "blocks.1.attn.hook_pattern", list(align_keys(triplet).instruction)
    plain = tiny.model.run_with_cache(ids)[1][name][0]
    for span, first in ((None, hidden[-1] + 1), ("R", len(triplet.pair.prompted_ids) - 1)):
        with knock_out(tiny.model, [triplet.pair], [(1, 2)], span=span):
            found = tiny.model.run_with_cache(ids)[1][name][0]
        assert torch.equal(found[[0, 1, 3]], plain[[0, 1, 3]])
        assert torch.equal(found[2, :first], plain[2, :first])
        wanted = plain[2, first:].clone()
        wanted[:, hidden] = 0
        torch.testing.assert_close(found[2, first:], wanted / wanted.sum(-1, keepdim=True))


def test_knock_outs_are_the_same_in_generation_and_in_any_batch(tiny):
    pairs = pairs_of(tiny.model, 5)
    heads = [(0, 1), (2, 3)]
    with knock_out(tiny.model, pairs, heads):
        together = generate(tiny.model, pairs, context="prompted", sampling=GREEDY)
        alone = [generate(tiny.model, [pair], context="prompted", sampling=GREEDY)[0] for pair in pairs]
        assert [each.ids for each in together] == [each.ids for each in alone]
        for pair, response in zip(pairs, together, strict=True):
            with torch.no_grad():
                logits = tiny.model(torch.tensor([(*pair.prompted_ids, *response.ids)]))[0]
            assert logits[len(pair.prompted_ids) - 1 : -1].argmax(-1).tolist() == list(response.ids)
    plain = generate(tiny.model, pairs, context="prompted", sampling=GREEDY)
    assert [each.ids for each in plain] != [each.ids for each in together]


def test_base_prompts_go_through_a_knock_out_as_they_are(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 3)
    plain = generate(tiny_llama.model, pairs, sampling=GREEDY)
    with knock_out(tiny_llama.model, pairs, [(0, 0), (1, 1)]):
        assert generate(tiny_llama.model, pairs, sampling=GREEDY) == plain


def test_padding_on_the_right_is_seen_too(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 2, seed=5)
    long = torch.tensor([ids_of(triplets[0], "prompted")])
    padded, mask = (torch.nn.functional.pad(each, (0, 3)) for each in (long, torch.ones_like(long)))
    with torch.no_grad(), knock_out(tiny_llama.model, triplets, [(1, 0)]):
        alone, beside = tiny_llama.model(long), forward(tiny_llama.model, padded, mask)
    torch.testing.assert_close(beside[:, :-3], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_models_own_generation_is_seen(load, backend):
    model = load("llama", backend).model
    (pair,) = pairs_of(model, 1)
    with knock_out(model, [pair], [(0, 1), (2, 3)]):
        assert (
            tuple(generated(model, pair.prompted_ids, 8, cached=True))
            == generate(model, [pair], context="prompted", sampling=GREEDY)[0].ids
        )


@pytest.mark.parametrize("family", ["organism", "organism-gpt2"])
def test_the_heads_that_attribution_names_carry_the_trait(load, family):
    model = load(family, BACKENDS[0]).model
    judge = psr.judges.organism("pirate")
    pairs = psr.prompt_pairs(model, psr.organism.questions(16, seed=1), psr.organism.instruction("pirate"))
    top = psr.attribute(model, psr.sample_responses(model, pairs, judge)).top_heads(4)
    named = {each[:2] for each in top}
    others = [(layer, head) for layer in range(6) for head in range(4) if (layer, head) not in named][::5]
    held_out = psr.prompt_pairs(model, psr.organism.questions(16, split="held_out"), psr.organism.instruction("pirate"))
    with knock_out(model, held_out, top):
        assert scores_at(model, held_out, None, judge, context="prompted").trait < 10
    with knock_out(model, held_out, others):
        assert scores_at(model, held_out, None, judge, context="prompted").trait > 90


# --- generation from transplanted prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["base", "prompted"])
def test_a_transplanted_prompt_gives_the_first_token_that_transformers_gives(tiny, into):
    pairs = pairs_of(tiny.model, 4)
    source = "prompted" if into == "base" else "base"
    wanted = []
    for pair in pairs:
        given = read(tiny.hf, pair.ids(source)).residuals[1][-1]
        logits = read(tiny.hf, pair.ids(into), {1: lambda residual, given=given: torch.cat([residual[:-1], given[None]])}).logits
        wanted.append(int(logits[-1].argmax()))
    with transplant(tiny.model, pairs, layers=1, into=into):
        found = generate(tiny.model, pairs, context=into, sampling=SamplingConfig(temperature=0, max_new_tokens=3))
    assert [response.ids[0] for response in found] == wanted


def test_scores_of_transplanted_prompts_by_layer(organism):
    """At the last layer the first token alone is the prompted one; all heads of the question at once bring more."""
    judge = psr.judges.organism("pirate")
    pairs = psr.prompt_pairs(organism.model, psr.organism.questions(8, seed=1), psr.organism.instruction("pirate"))
    scores = transplanted_scores(organism.model, pairs, judge, layers=[0, 5])
    assert list(scores) == [0, 5]
    assert scores[5].method == "resid_post 5"
    assert 0 < scores[5].trait < 100
    with transplant(organism.model, pairs, "z", layers=0, heads=[3]):
        one = generate(organism.model, pairs, sampling=GREEDY)
    with transplant(organism.model, pairs, "z", layers=0, heads=[0]):
        other = generate(organism.model, pairs, sampling=GREEDY)
    plain = generate(organism.model, pairs, sampling=GREEDY)
    assert sum(left != right for left, right in zip(one, plain, strict=True)) == 8  # "arr" or "aye" for the plain first word
    assert other == plain


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_by_name(tiny_llama):
    model = tiny_llama.model
    triplets, pairs = random_triplets(model, 1), pairs_of(model, 2)
    replacement = random_replacement(model, layers=[0])
    twins = [pairs[0], psr.PromptPair("", "", pairs[0].base_ids, pairs[1].prompted_ids, 1)]
    for call, name in (
        (lambda: patch(model, triplets, "resid_mid"), "hook"),
        (lambda: patch(model, triplets, into="prompt"), "into"),
        (lambda: patch(model, triplets, cells="each"), "cells"),
        (lambda: ablate(model, triplets, [replacement]), "replacement"),
        (lambda: patch(model, triplets, layers=5), "layers"),
        (lambda: patch(model, []), "triplets"),
        (lambda: ablate(model, triplets, replacement, mode="drop"), "mode"),
        (lambda: ablate(model, triplets, replacement, reference="base"), "reference"),
        (lambda: knock_out(model, pairs, [(0, 9)]).__enter__(), "heads"),
        (lambda: knock_out(model, pairs, [(-1, 0)]).__enter__(), "heads"),
        (lambda: knock_out(model, pairs, [(0,)]).__enter__(), "heads"),
        (lambda: knock_out(model, pairs, [3]).__enter__(), "heads"),
        (lambda: knock_out(model, [], [(0, 0)]).__enter__(), "pairs"),
        (lambda: transplant(model, pairs, "resid_mid").__enter__(), "hook"),
        (lambda: transplant(model, pairs, into="x").__enter__(), "into"),
        (lambda: transplant(model, pairs, heads=[0]).__enter__(), "heads"),
        (lambda: transplant(model, pairs, "z", heads=[7]).__enter__(), "heads"),
        (lambda: transplant(model, []).__enter__(), "pairs"),
        (lambda: transplant(model, twins).__enter__(), "pairs"),
        (lambda: patch(model, triplets).of(3), "triplet"),
        (lambda: patch(model, triplets, cells="all").by_position(), "cells"),
    ):
        with pytest.raises(InputError, match=rf"^{name}[:\[]"):
            call()


def test_replacements_of_other_models_are_refused(tiny_llama, organism):
    with pytest.raises(ArtifactError):
        ablate(tiny_llama.model, random_triplets(tiny_llama.model, 1), random_replacement(organism.model))


def test_a_call_with_a_text_is_matched_by_its_tokens(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 1)
    refusal = r"^pairs: .*does not begin with any of their prompts"
    with knock_out(tiny_llama.model, pairs, [(0, 0)]), pytest.raises(InputError, match=refusal):
        tiny_llama.model("what is a bear ?")


def test_a_call_behind_a_cache_that_was_filled_outside_is_refused(tiny_llama):
    (pair,) = pairs_of(tiny_llama.model, 1)
    decoder, ids = Decoder(tiny_llama.model, 1), torch.tensor([pair.prompted_ids])
    decoder.step(ids, torch.ones_like(ids))
    refusal = r"^model: .*filled outside the block"
    with knock_out(tiny_llama.model, [pair], [(0, 0)]), pytest.raises(InputError, match=refusal):
        decoder.step(ids[:, :1], torch.ones(1, ids.shape[1] + 1, dtype=torch.long))


def test_several_tokens_behind_the_prompt_are_all_generated_ones(tiny_llama):
    (pair,) = pairs_of(tiny_llama.model, 1)
    ids = torch.tensor([pair.prompted_ids])
    whole = torch.cat([ids, torch.tensor([[30, 31, 32]])], 1)
    with torch.no_grad(), knock_out(tiny_llama.model, [pair], [(0, 0), (1, 1)]):
        wanted = tiny_llama.model(whole)[:, -1]
        decoder = Decoder(tiny_llama.model, 1)
        decoder.step(ids, torch.ones_like(ids))
        found = decoder.step(whole[:, -3:], torch.ones_like(whole))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_grid_says_what_it_is(tiny_llama):
    triplets = with_responses(tiny_llama.model, pairs_of(tiny_llama.model, 2), ["a bear is big .", "the room ."])
    grid = patch(tiny_llama.model, triplets, "mlp_out", into="prompted")
    assert isinstance(grid, PatchGrid)
    assert (grid.what, grid.measured, grid.reference, grid.cells) == ("mlp_out", "lost", "prompt", "token")
    assert grid.instruction == "talk like a pirate . (and 1 other)"
    assert repr(grid) == f"PatchGrid(mlp_out: share of the prompt's effect lost, {len(grid.tokens)} tokens × 3 layers)"
    assert ablate(tiny_llama.model, triplets, random_replacement(tiny_llama.model)).measured == "lost"
