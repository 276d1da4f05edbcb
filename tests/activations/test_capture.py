"""The paired teacher-forced passes, against transformers' own hidden states."""

import numpy as np
import oracles
import pytest
import torch
from helpers import LAYERS, WIDTH, assert_unchanged, random_replacement, random_triplets, state_of

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import InputError

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def rows_of(case, triplet, context, span, state: int) -> torch.Tensor:
    """One hidden state of transformers on the span of one triplet, read alone and without padding."""
    prompt = triplet.pair.ids(context)
    states = oracles.hidden_states(case.hf, (*prompt, *triplet.response_ids))
    kept = 1 if span == "R" else triplet.pair.question_length
    return states[state][len(prompt) - kept :]


def delta_by_transformers(case, triplets, span, state: int) -> torch.Tensor:
    return torch.cat([rows_of(case, each, "prompted", span, state) - rows_of(case, each, "base", span, state) for each in triplets])


@pytest.mark.parametrize("span", ["R", "QR"])
def test_the_difference_is_that_of_transformers_hidden_states(tiny, span):
    triplets = random_triplets(tiny.model, 6)
    captured = psr.capture(tiny.model, triplets, ["resid_pre", "resid_post"], span=span)
    for layer in range(LAYERS):
        wanted = delta_by_transformers(tiny, triplets, span, layer)
        torch.testing.assert_close(captured[f"blocks.{layer}.hook_resid_pre"], wanted, **TOLERANCE)
        if layer < LAYERS - 1:  # transformers gives the last one only after the final norm
            wanted = delta_by_transformers(tiny, triplets, span, layer + 1)
            torch.testing.assert_close(captured[f"blocks.{layer}.hook_resid_post"], wanted, **TOLERANCE)
    assert captured["blocks.1.hook_resid_post"].norm() > 1.0  # there is something to compare


def test_the_difference_on_the_organism_is_that_of_transformers_hidden_states(shipped):
    pairs = psr.prompt_pairs(shipped.model, psr.organism.questions(5), psr.organism.INSTRUCTIONS["shout"])
    triplets = psr.sample_responses(shipped.model, pairs)
    captured = psr.capture(shipped.model, triplets)
    for layer in range(5):
        wanted = delta_by_transformers(shipped, triplets, "R", layer + 1)
        torch.testing.assert_close(captured[f"blocks.{layer}.hook_resid_post"], wanted, atol=5e-4, rtol=1e-4)


def test_the_last_blocks_output_is_that_of_transformers_too(tiny):
    triplets = random_triplets(tiny.model, 4)
    captured = psr.capture(tiny.model, triplets, f"blocks.{LAYERS - 1}.hook_resid_post")
    wanted = []
    for triplet in triplets:
        base, prompted = (
            oracles.read(tiny.hf, (*ids, *triplet.response_ids)).residuals[-1][len(ids) - 1 :]
            for ids in (triplet.pair.base_ids, triplet.pair.prompted_ids)
        )
        wanted.append(prompted - base)
    torch.testing.assert_close(captured[f"blocks.{LAYERS - 1}.hook_resid_post"], torch.cat(wanted), **TOLERANCE)


@pytest.mark.parametrize("span", ["R", "QR"])
def test_a_token_has_the_same_embedding_in_both_contexts(tiny, span):
    captured = psr.capture(tiny.model, random_triplets(tiny.model, 5), "embed", span=span)
    assert torch.equal(captured["hook_embed"], torch.zeros(len(captured), WIDTH))


def test_all_hooks_have_one_row_a_token(tiny):
    triplets = random_triplets(tiny.model, 5)
    captured = psr.capture(tiny.model, triplets, hooks="all")
    tokens = sum(1 + len(triplet.response_ids) for triplet in triplets)
    assert len(captured) == tokens
    assert {len(rows) for rows in captured.deltas.values()} == {tokens}
    for layer in range(LAYERS):
        assert captured[f"blocks.{layer}.attn.hook_z"].shape == (tokens, 4, WIDTH // 4)
        for name in ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"):
            assert captured[f"blocks.{layer}.{name}"].shape == (tokens, WIDTH)
    assert all(rows.isfinite().all() for rows in captured.deltas.values())


def test_the_residual_stream_adds_up(tiny):
    captured = psr.capture(tiny.model, random_triplets(tiny.model, 4), hooks="all")
    for layer in range(LAYERS):
        pre, attn, mid, mlp, post = (
            captured[f"blocks.{layer}.hook_{name}"] for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        )
        torch.testing.assert_close(pre + attn, mid, **TOLERANCE)
        torch.testing.assert_close(mid + mlp, post, **TOLERANCE)


@pytest.mark.parametrize("token_budget", [1, 90, 100_000])
def test_the_batching_changes_nothing(tiny, token_budget):
    triplets = random_triplets(tiny.model, 7)
    hooks = ["resid_post", "z", "mlp_out"]
    captured, other = (psr.capture(tiny.model, triplets, hooks, token_budget=budget) for budget in (8_192, token_budget))
    for name in captured.deltas:
        torch.testing.assert_close(other[name], captured[name], atol=1e-5, rtol=1e-5)


def test_rows_follow_the_order_of_the_triplets(tiny):
    triplets = random_triplets(tiny.model, 6)
    captured, backwards = psr.capture(tiny.model, triplets), psr.capture(tiny.model, triplets[::-1])
    for index, triplet in enumerate(triplets):
        here, there = captured.tokens.rows(index), backwards.tokens.rows(5 - index)
        assert captured.tokens.token_ids[here].tolist() == [triplet.pair.base_ids[-1], *triplet.response_ids]
        for name in captured.deltas:
            torch.testing.assert_close(captured[name][here], backwards[name][there], atol=1e-5, rtol=1e-5)


def test_kinds_patterns_and_layers_choose_what_is_captured(tiny):
    triplets = random_triplets(tiny.model, 2)
    assert list(psr.capture(tiny.model, triplets).deltas) == [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
    assert list(psr.capture(tiny.model, triplets, "mlp_out", layers=[-1]).deltas) == [f"blocks.{LAYERS - 1}.hook_mlp_out"]
    found = psr.capture(tiny.model, triplets, ["blocks.[02].attn.hook_z", "blocks.1.hook_attn_out"]).deltas
    assert list(found) == ["blocks.0.attn.hook_z", "blocks.1.hook_attn_out", "blocks.2.attn.hook_z"]


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_base_norms_are_those_of_transformers_hidden_states(tiny, dtype):
    triplets = random_triplets(tiny.model, 4)
    captured = psr.capture(tiny.model, triplets, ["resid_pre", "z"], to=psr.InMemory(dtype))
    assert set(captured.base_norms) == set(captured.deltas)
    for layer in range(LAYERS):
        wanted = torch.cat([rows_of(tiny, each, "base", "R", layer) for each in triplets]).norm(dim=1)
        torch.testing.assert_close(captured.base_norms[f"blocks.{layer}.hook_resid_pre"], wanted, **TOLERANCE)
    assert captured.base_norms["blocks.1.attn.hook_z"].shape == (len(captured),)


def test_magnitude_is_the_norm_of_every_tokens_difference(tiny):
    captured = psr.capture(tiny.model, random_triplets(tiny.model, 3), ["resid_post", "z"])
    delta = captured["blocks.1.hook_resid_post"]
    wanted = torch.stack([row.square().sum().sqrt() for row in delta])
    torch.testing.assert_close(captured.magnitude("blocks.1.hook_resid_post"), wanted)
    assert captured.magnitude("blocks.1.attn.hook_z").shape == (len(captured),)


def test_a_hook_that_was_not_captured_is_named(tiny_llama):
    captured = psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), layers=[0])
    with pytest.raises(InputError, match=r"blocks\.2\.hook_resid_post.*blocks\.0\.hook_resid_post"):
        captured["blocks.2.hook_resid_post"]


@pytest.fixture(scope="module")
def wherever(tiny_llama, tmp_path_factory):
    """The same differences in memory, as statistics and on disk."""
    triplets = random_triplets(tiny_llama.model, 2)
    folder = tmp_path_factory.mktemp("captured") / "store"
    destinations = {"memory": psr.InMemory(), "statistics": psr.Statistics(), "disk": psr.OnDisk(folder)}
    hooks = ["resid_post", "z", "embed", "pattern"]
    return {name: psr.capture(tiny_llama.model, triplets, hooks, to=to) for name, to in destinations.items()}


DESTINATIONS = ["memory", "statistics", "disk"]


def numbers_at(found, hook):
    """What was captured at a hook point, as a tensor."""
    rows = found[hook]
    return rows if isinstance(rows, torch.Tensor) else rows.mean if hasattr(rows, "mean") else rows.tensor()


@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("resid_post", 1), "blocks.1.hook_resid_post"),
        (("resid_post", np.int64(1)), "blocks.1.hook_resid_post"),
        (("resid_post", -1), f"blocks.{LAYERS - 1}.hook_resid_post"),
        (("z", 0), "blocks.0.attn.hook_z"),
        (("attn.hook_z", 0), "blocks.0.attn.hook_z"),
        (("pattern:instruction", 2), "blocks.2.attn.hook_pattern:instruction"),
        ("embed", "hook_embed"),
    ],
    ids=str,
)
def test_a_hook_point_is_found_by_kind_and_layer(wherever, destination, key, name):
    found = wherever[destination]
    assert torch.equal(numbers_at(found, key), numbers_at(found, name))
    if destination != "statistics":
        assert torch.equal(found.magnitude(key), found.magnitude(name))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("resid_post", r"hook: got 'resid_post', expected one of .*Give a layer too: \['resid_post', 0\]"),
        (("resid_pots", 1), r"got \('resid_pots', 1\), expected one of those captured: .*Did you mean 'resid_post'\?"),
        (("resid_post", LAYERS), rf"got \('resid_post', {LAYERS}\).*blocks\.0–{LAYERS - 1}\.hook_resid_post"),
        (("resid_post", -LAYERS - 1), "expected one of those captured"),
        (("mlp_out", 0), "expected one of those captured: hook_embed"),
        ("blocks.0.hook_resid_pots", "Did you mean 'blocks.0.hook_resid_post'"),
        (3, r"got 3, .*a kind and a layer such as \['resid_post', 0\]"),
        (("resid_post", 0, 1), "a kind and a layer such as"),
        (("resid_post", "0"), "a kind and a layer such as"),
    ],
    ids=str,
)
def test_a_wrong_hook_point_is_answered_with_those_captured(wherever, destination, key, message):
    with pytest.raises(InputError, match=message):
        wherever[destination][key]


def test_what_was_captured_shows_itself_in_one_line(wherever):
    for found in (*wherever.values(), wherever["statistics"]["embed"]):
        assert "\n" not in repr(found)
    assert repr(wherever["memory"]).startswith(f"Captured({3 * LAYERS + LAYERS + 1} hook points, ")


def test_the_users_own_hooks_survive_and_stay_in_force(fresh):
    triplets = random_triplets(fresh.model, 3)
    plain = psr.capture(fresh.model, triplets)
    calls = []

    def double(activation, hook):
        calls.append(activation.shape)
        return 2 * activation

    fresh.model.add_hook("blocks.0.hook_mlp_out", double)
    before = state_of(fresh.model)
    hooked = psr.capture(fresh.model, triplets)
    assert calls
    assert not torch.allclose(plain["blocks.0.hook_resid_post"], hooked["blocks.0.hook_resid_post"])
    assert_unchanged(fresh.model, before)
    assert before.hooks == 1


def test_the_model_is_left_as_it_was_and_read_without_dropout(fresh):
    triplets = random_triplets(fresh.model, 3)
    wanted = psr.capture(fresh.model, triplets)
    fresh.model.train(True)
    fresh.model.requires_grad_(True)
    before = state_of(fresh.model)
    captured = psr.capture(fresh.model, triplets)
    assert_unchanged(fresh.model, before)
    for name in wanted.deltas:
        assert torch.equal(captured[name], wanted[name])
        assert not captured[name].requires_grad


@pytest.mark.parametrize("context", ["base", "prompted"])
def test_a_steered_reading_sees_what_the_model_goes_on_with(tiny, context):
    triplets = random_triplets(tiny.model, 4)
    replacement = random_replacement(tiny.model, layers=[0, 2], size=0.3)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
    found = collect(tiny.model, triplets, names, context, "QR", steered=PassSteering(replacement, 0.7), token_budget=150)
    wanted = {name: [] for name in names}
    for triplet in triplets:
        prompt = triplet.pair.ids(context)
        edits = oracles.layer_edits(replacement.sites, 0.7, len(prompt) - 1)
        residuals = oracles.read(tiny.hf, (*prompt, *triplet.response_ids), edits).residuals
        for name, residual in zip(names, residuals, strict=True):
            wanted[name].append(residual[len(prompt) - triplet.pair.question_length :])
    for name in names:
        torch.testing.assert_close(found[name], torch.cat(wanted[name]), **TOLERANCE)


@pytest.mark.parametrize("arriving", [False, True])
def test_a_reading_where_the_replacement_acts_sees_what_arrives_or_what_goes_on(tiny, arriving):
    triplets, name = random_triplets(tiny.model, 3), "blocks.1.hook_resid_post"
    replacement = random_replacement(tiny.model, layers=[1])
    steered = PassSteering(replacement, arriving=[name] if arriving else ())
    found = collect(tiny.model, triplets, [name], "base", "R", steered=steered)[name]
    plain = collect(tiny.model, triplets, [name], "base", "R")[name]
    wanted = plain if arriving else plain + replacement.sites[name].intervention(plain)
    torch.testing.assert_close(found, wanted, **TOLERANCE)
