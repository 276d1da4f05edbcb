"""How differences are read: in whatever batches, in one forward or two, with shared prompts or without, accumulated or local."""

from dataclasses import replace
from itertools import pairwise

import oracles
import pytest
import torch
from helpers import LAYERS, assert_unchanged, pairs_of, random_replacement, random_triplets, state_of
from hypothesis import given
from hypothesis import strategies as st

import psr_lens as psr
from psr_lens.activations import batches as made_batches
from psr_lens.activations import paired_passes as passes
from psr_lens.activations import teacher_forced_pass
from psr_lens.activations.batches import length_batches, suffix_batch
from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.errors import InputError
from psr_lens.models import Decoder, forward, kv_cache

EVERYTHING = ["all", "pattern"]


def assert_same(found: psr.Captured, wanted: psr.Captured) -> None:
    assert list(found.deltas) == list(wanted.deltas)
    for name, rows in wanted.deltas.items():
        torch.testing.assert_close(found[name], rows, atol=1e-5 * max(1.0, float(rows.abs().max())), rtol=1e-5)


def one_by_one(model, triplets, hooks, **options) -> psr.Captured:
    """Each triplet alone, each context alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_fit_together", lambda base, prompted: False)
        patch.setattr(made_batches, "LEAST_SAVED", 2.0)
        return psr.capture(model, triplets, hooks, token_budget=1, **options)


def several_responses(model, prompts: int, each: int) -> list[psr.Triplet]:
    """Several responses to each prompt, in mixed order."""
    pairs = pairs_of(model, prompts)
    responses = [triplet.response_ids for triplet in random_triplets(model, prompts * each, seed=3)]
    return [psr.Triplet(pairs[index % prompts], ids, "") for index, ids in enumerate(responses)]


@pytest.mark.parametrize(
    ("difference", "span", "together"),
    [("accumulated", "R", True), ("accumulated", "QR", False), ("local", "QR", True), ("local", "R", False)],
)
def test_one_forward_or_two_make_no_difference(tiny, difference, span, together, monkeypatch):
    triplets = random_triplets(tiny.model, 5)
    wanted = one_by_one(tiny.model, triplets, EVERYTHING, difference=difference, span=span)
    forwards = []
    monkeypatch.setattr(passes, "_fit_together", lambda base, prompted: together)
    monkeypatch.setattr(passes, "forward", lambda *given: forwards.append(1) or psr.models.forward(*given))
    assert_same(psr.capture(tiny.model, triplets, EVERYTHING, difference=difference, span=span), wanted)
    assert len(forwards) == (1 if together and difference == "accumulated" else 2)


@pytest.mark.parametrize(("difference", "hooks"), [("accumulated", "all"), ("local", "blocks.1.*")])
def test_responses_to_one_prompt_share_it(tiny, difference, hooks, monkeypatch):
    triplets = several_responses(tiny.model, 2, 4)
    wanted = one_by_one(tiny.model, triplets, hooks, difference=difference)
    read = []
    monkeypatch.setattr(passes, "suffix_batch", lambda *given: read.append(suffix_batch(*given)) or read[-1])
    assert_same(psr.capture(tiny.model, triplets, hooks, difference=difference), wanted)
    assert [len(batch.prefix.tokens) for batch in read] == [2, 2]  # each prompt once, in both contexts
    assert [len(batch.tokens) for batch in read] == [8, 8]


@pytest.mark.parametrize(
    ("triplets", "hooks", "shared"),
    [
        (lambda model: several_responses(model, 2, 4), "resid_post", True),
        (lambda model: random_triplets(model, 4), "resid_post", False),  # each prompt once: nothing is saved
        (lambda model: several_responses(model, 2, 4), ["resid_post", "pattern"], False),  # a pattern needs every column
    ],
    ids=["several", "once", "pattern"],
)
def test_prompts_are_shared_only_if_it_saves_much_and_no_pattern_is_read(tiny_llama, triplets, hooks, shared, monkeypatch):
    read = []
    for make in (passes.context_batch, suffix_batch):
        monkeypatch.setattr(passes, make.__name__, lambda *given, make=make: read.append(make(*given)) or read[-1])
    psr.capture(tiny_llama.model, triplets(tiny_llama.model), hooks)
    assert [batch.prefix is not None for batch in read] == [shared, shared]  # one batch in each context


@pytest.mark.slow
@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=7),
    token_budget=st.integers(1, 400),
    span=st.sampled_from(["R", "QR"]),
    together=st.booleans(),
    saved=st.sampled_from([-1.0, 2.0]),
)
def test_any_mix_of_lengths_and_budgets_gives_what_one_triplet_at_a_time_gives(
    tiny_llama, lengths, token_budget, span, together, saved
):
    pairs = pairs_of(tiny_llama.model, 4)
    triplets = [psr.Triplet(pairs[which], tuple(range(10, 10 + length)), "") for which, length in lengths]
    hooks = ["resid_post", "z"]
    wanted = one_by_one(tiny_llama.model, triplets, hooks, span=span)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_fit_together", lambda base, prompted: together)
        patch.setattr(made_batches, "LEAST_SAVED", saved)
        assert_same(psr.capture(tiny_llama.model, triplets, hooks, span=span, token_budget=token_budget), wanted)


@given(counts=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=12), budget=st.integers(1, 300))
def test_batches_by_prompt_hold_every_triplet_once_within_the_budget(tiny_llama, counts, budget):
    pairs = pairs_of(tiny_llama.model, 5)
    triplets = [psr.Triplet(pairs[which], (10,) * length, "") for which, length in counts]
    batches = list(length_batches(triplets, budget, by_prompt=True))
    assert sorted(index for batch in batches for index in batch) == list(range(len(triplets)))
    for batch in batches:
        widest = max(len(triplets[index].pair.prompted_ids) + len(triplets[index].response_ids) for index in batch)
        assert len(batch) == 1 or len(batch) * widest <= budget
    order = [triplets[index].pair for batch in batches for index in batch]
    assert sum(one != other for one, other in pairwise(order)) == len(set(order)) - 1


def test_blocks_behind_the_last_point_are_not_run(tiny, monkeypatch):
    triplets, late = random_triplets(tiny.model, 3), []
    tiny_last = f"blocks.{LAYERS - 1}.hook_resid_pre"
    with tiny.model.hooks(fwd_hooks=[(tiny_last, lambda activation, hook: late.append(len(activation)))]):
        psr.hook_points(tiny.model)
        probes = len(late)
        psr.capture(tiny.model, triplets, "blocks.0.*")
        assert late.count(2) == len(late)  # the probes' batches only
        assert len(late) == 3 * probes
        psr.capture(tiny.model, triplets, ["blocks.0.hook_resid_post", tiny_last])
        assert late.count(2) < len(late)


def local_by_transformers(hf, triplet, span) -> dict[int, torch.Tensor]:
    """What each block adds by itself, by editing every block's output as plain transformers goes."""
    kept = triplet.pair.span_length(span)
    start, start_steered = len(triplet.pair.base_ids) - kept, len(triplet.pair.prompted_ids) - kept
    residuals = oracles.read(hf, (*triplet.pair.prompted_ids, *triplet.response_ids)).residuals
    prompted = [residual[start_steered:] for residual in residuals]
    made = {}

    def put_prompted(layer):
        def edit(residual):
            made[layer] = residual[start:].clone()
            return torch.cat([residual[:start], prompted[layer]])

        return edit

    oracles.read(hf, (*triplet.pair.base_ids, *triplet.response_ids), {layer: put_prompted(layer) for layer in range(LAYERS)})
    return {layer: prompted[layer] - made[layer] for layer in range(LAYERS)}


@pytest.mark.parametrize("span", ["R", "QR"])
def test_local_differences_are_those_of_blocks_that_start_from_the_prompted_stream(tiny, span):
    triplets = random_triplets(tiny.model, 4)
    captured = psr.capture(tiny.model, triplets, "resid_post", span=span, difference="local")
    wanted = [local_by_transformers(tiny.hf, triplet, span) for triplet in triplets]
    for layer in range(LAYERS):
        rows = torch.cat([each[layer] for each in wanted])
        torch.testing.assert_close(captured[f"blocks.{layer}.hook_resid_post"], rows, atol=1e-4, rtol=1e-4)
    assert captured.difference == "local"


def test_the_first_block_adds_the_same_locally_as_accumulated_and_later_ones_start_from_nothing(tiny):
    triplets = random_triplets(tiny.model, 3)
    whole, local = (psr.capture(tiny.model, triplets, "all", difference=each) for each in ("accumulated", "local"))
    for name in ("blocks.0.hook_resid_post", "blocks.0.hook_attn_out"):
        torch.testing.assert_close(local[name], whole[name], atol=1e-5, rtol=1e-4)
    for layer in range(1, LAYERS):
        assert local[f"blocks.{layer}.hook_resid_pre"].abs().max() == 0
        assert local[f"blocks.{layer}.hook_resid_post"].abs().max() > 0.01


def test_heads_add_up_to_the_attentions_output(fresh):
    fresh.model.set_use_attn_result(True)
    captured = psr.capture(fresh.model, random_triplets(fresh.model, 3), ["result", "attn_out"])
    for layer in range(LAYERS):
        heads = captured[f"blocks.{layer}.attn.hook_result"]
        assert heads.shape[1] == 4
        torch.testing.assert_close(heads.sum(1), captured[f"blocks.{layer}.hook_attn_out"], atol=1e-4, rtol=1e-4)


def test_nothing_is_left_after_a_destination_that_fails(fresh):
    class Fails:
        def receive(self, reading):
            reading.read([0], lambda name, rows: None)
            raise RuntimeError("no room")

    fresh.model.train(True)
    fresh.model.requires_grad_(True)
    before = state_of(fresh.model)
    with pytest.raises(RuntimeError, match="no room"):
        psr.capture(fresh.model, random_triplets(fresh.model, 2), to=Fails())
    assert_unchanged(fresh.model, before)
    assert torch.is_grad_enabled()


def test_memory_keeps_the_type_that_is_asked_for(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    whole, half = (psr.capture(tiny_llama.model, triplets, to=psr.InMemory(dtype)) for dtype in (None, torch.bfloat16))
    for name, rows in whole.deltas.items():
        assert torch.equal(half[name], rows.bfloat16())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difference": "total"}, "difference: got 'total', expected 'accumulated' or 'local'"),
        ({"token_budget": 0}, "token_budget: got 0, expected at least 1"),
        ({"span": "Q"}, "span: got 'Q', expected 'R' or 'QR'"),
        ({"to": "store"}, r"to: got 'store', expected InMemory\(\), Statistics\(\), OnDisk\(folder\)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_arguments_are_named(tiny_llama, options, message):
    with pytest.raises(InputError, match=message):
        psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), **options)


def test_passes_that_need_no_logits_make_hardly_any(tiny):
    """Not even where the last layer is read; whoever asks for logits gets all of them."""
    model, triplets, shapes = tiny.model, random_triplets(tiny.model, 3), []
    before = state_of(model)
    handle = model.unembed.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape[:2])))
    last = model.cfg.n_layers - 1
    psr.massive_activations(model, triplets)
    psr.capture(model, triplets, "resid_post", layers=last)
    psr.capture(model, triplets, "resid_post", difference="local")
    psr.capture(
        model, [replace(triplets[0], response_ids=ids) for ids in [(1, 2), (3,), (4,), (5,)] * 4], "resid_post", layers=last
    )
    psr.compare(model, triplets, random_replacement(model))
    probe = (2, 5)  # a short text, by which the shapes of hook points are found
    assert {positions for batch, positions in shapes if (batch, positions) != probe} == {1}
    longest = max(len(each.pair.prompted_ids) + len(each.response_ids) for each in triplets)
    shapes.clear()
    psr.capture(model, triplets, "unembed.hook_in")
    assert max(positions for _, positions in shapes) >= longest
    handle.remove()
    assert_unchanged(model, before)
    asked = forward(model, torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long))
    assert asked.shape[1] == 3


@pytest.mark.parametrize("span", ["R", "QR"])
@pytest.mark.parametrize("steering", [None, "R", "QR", "last"])
def test_what_all_sequences_begin_with_is_run_once_with_the_same_result(tiny, span, steering, monkeypatch):
    model = tiny.model
    triplets = random_triplets(model, 4, longest=6)
    replacement = None if steering is None else random_replacement(model, seed=2, size=0.2)
    if replacement is not None:
        replacement = replace(
            replacement, span="R" if steering == "last" else steering, tokens="last" if steering == "last" else "span"
        )
    names = [f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in ("hook_resid_post", "hook_attn_out")]
    steered = None if replacement is None else PassSteering(replacement, 0.7, ["blocks.1.hook_resid_post"])

    def read(logits):
        return read_batch(model, triplets, names, "prompted", span, steered=steered, logits=logits)

    begun = []
    of = Decoder.begin
    monkeypatch.setattr(Decoder, "begin", lambda self, *given: begun.append(of(self, *given)) or begun[-1])
    wanted = read(True)
    assert begun == []  # the prompts begin with too few tokens alike
    monkeypatch.setattr(kv_cache, "LEAST_COLUMNS", 1)
    monkeypatch.setattr(teacher_forced_pass, "LEAST_ALIKE", 0.0)
    for found in (read(True), read(False)):
        for kind in ("rows", "arriving"):
            for name, rows in getattr(wanted, kind).items():
                torch.testing.assert_close(getattr(found, kind)[name], rows, atol=1e-4, rtol=1e-4)
        if found.logits is not None:
            torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)
    assert len(begun) == 2
    assert min(begun) > 0


def test_hooks_of_others_see_all_tokens(tiny, monkeypatch):
    monkeypatch.setattr(kv_cache, "LEAST_COLUMNS", 1)
    monkeypatch.setattr(teacher_forced_pass, "LEAST_ALIKE", 0.0)
    triplets = random_triplets(tiny.model, 4)
    seen = []
    with tiny.model.hooks([("blocks.1.hook_resid_post", lambda activation, hook: seen.append(activation.shape[1]))]):
        read_batch(tiny.model, triplets, ["blocks.2.hook_resid_post"], "base", "R")
    assert seen == [max(len(each.pair.base_ids) + len(each.response_ids) for each in triplets)]
