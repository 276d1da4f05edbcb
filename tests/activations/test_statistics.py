"""Streaming statistics, against numpy on the differences themselves."""

import math

import numpy as np
import pytest
import torch
from helpers import random_triplets
from hypothesis import given
from hypothesis import strategies as st

import psr_lens as psr
from psr_lens.activations import statistics
from psr_lens.activations.statistics import HookStatistics, SecondMoments, _Running
from psr_lens.errors import InputError

HOOKS = ["resid_post", "blocks.1.attn.hook_z", "embed"]


def assert_describes(found: HookStatistics, rows: np.ndarray, positions: np.ndarray) -> None:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    norms = np.linalg.norm(flat, axis=1)
    mean = flat.mean(0)
    assert found.tokens == len(flat)
    np.testing.assert_allclose(found.mean.numpy().reshape(-1), mean, rtol=1e-4, atol=1e-5)
    assert tuple(found.mean.shape) == rows.shape[1:]
    np.testing.assert_allclose(found.mean_magnitude, norms.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.energy, (norms**2).sum(), rtol=1e-5)
    if norms.any():
        cosines = flat @ mean / np.where(norms, norms, 1) / np.linalg.norm(mean)
        np.testing.assert_allclose(found.mean_cosine, cosines.mean(), rtol=1e-4, atol=1e-6)
        values, wanted = found.singular_values.numpy(), np.linalg.svd(flat, compute_uv=False)[: len(found.singular_values)]
        np.testing.assert_allclose(values[: len(wanted)], wanted, rtol=1e-3, atol=1e-3 * wanted[0])
        for rank in (1, 3):
            share = (wanted[:rank] ** 2).sum() / (norms**2).sum()
            assert found.rank_share(rank) == pytest.approx(share, rel=1e-4)
        leading = np.linalg.svd(flat, full_matrices=False)[2][0]
        assert abs(found.directions[0].numpy() @ leading) == pytest.approx(1, abs=1e-3)
    for q in (0, 0.1, 0.5, 0.9, 0.99, 1):
        assert found.quantile(q) == pytest.approx(np.quantile(norms, q, method="inverted_cdf"), rel=0.0101)
    for place, (count, strength) in enumerate(zip(found.tokens_by_position, found.magnitude_by_position, strict=True)):
        here = norms[positions == found.first_position + place]
        assert int(count) == len(here)
        assert float(strength) == pytest.approx(here.mean(), rel=1e-5) if len(here) else math.isnan(strength)


@pytest.mark.parametrize("span", ["R", "QR"])
@pytest.mark.parametrize("token_budget", [100, 8_192])
def test_statistics_are_those_of_the_differences(tiny, span, token_budget):
    triplets = random_triplets(tiny.model, 12)
    groups = ["ab"[index % 2] for index in range(12)]
    options = {"span": span, "token_budget": token_budget}
    captured = psr.capture(tiny.model, triplets, HOOKS, **options)
    found = psr.capture(tiny.model, triplets, HOOKS, to=psr.Statistics(groups=groups, rank=5), **options)
    assert list(found.overall) == list(captured.deltas)
    assert set(found.by_group) == {"a", "b"}
    positions = captured.tokens.position.numpy()
    owners = captured.tokens.triplet.numpy()
    for name, rows in captured.deltas.items():
        assert_describes(found[name], rows.numpy(), positions)
        for which, group in enumerate("ab"):
            mine = owners % 2 == which
            assert_describes(found.by_group[group][name], rows.numpy()[mine], positions[mine])


def test_where_nothing_changes_all_is_zero_and_shares_are_none(tiny_llama):
    found = psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 4), "embed", to=psr.Statistics())["hook_embed"]
    assert found.mean_magnitude == found.mean_cosine == found.energy == found.quantile(0.99) == 0
    assert math.isnan(found.rank_share(1))
    assert not found.mean.isnan().any()


def test_without_groups_there_are_none(tiny_llama):
    found = psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), to=psr.Statistics())
    assert found.by_group == {}
    assert found["blocks.0.hook_resid_post"].tokens > 0


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_sketch_of_a_wide_activation_has_its_leading_directions(noise, monkeypatch):
    monkeypatch.setattr(statistics, "EXACT_WIDTH", 100)
    generator = torch.Generator().manual_seed(0)
    strengths = torch.tensor([30.0, 12.0, 5.0, 2.0])
    directions = torch.linalg.qr(torch.randn(400, 4, generator=generator)).Q.T
    rows = (torch.randn(900, 4, generator=generator) * strengths) @ directions
    rows += noise * torch.randn(900, 400, generator=generator)
    moments = SecondMoments(400)
    for part in rows.split(170):
        moments.add(part)
    values, found = moments.leading(3)
    _, wanted, right = torch.linalg.svd(rows, full_matrices=False)
    torch.testing.assert_close(values.sqrt().float(), wanted[:3], rtol=2e-3, atol=0.0)
    assert (found.float() * right[:3]).sum(1).abs().min() > 0.999
    assert float(values.sum()) <= moments.energy * (1 + 1e-4)
    assert moments.energy == pytest.approx(float(rows.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_sketch_of_few_tokens_or_none_does_not_break_down(count, monkeypatch):
    monkeypatch.setattr(statistics, "EXACT_WIDTH", 100)
    rows = torch.randn(count, 200, generator=torch.Generator().manual_seed(1))
    moments, empty = SecondMoments(200), SecondMoments(200)
    moments.add(rows)
    wanted = torch.linalg.svdvals(rows)
    torch.testing.assert_close(moments.leading(count)[0].sqrt().float(), wanted, rtol=1e-2, atol=1e-3)
    empty.add(torch.zeros(5, 200))
    assert empty.leading(4)[0].tolist() == [0.0] * 4


@given(norms=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=60), q=st.floats(0, 1), cuts=st.integers(1, 7))
def test_quantiles_are_right_to_one_percent_in_whatever_pieces(norms, q, cuts):
    running = _Running((1,), -1, 5)
    rows = torch.tensor(norms, dtype=torch.float64)[:, None]
    for piece in rows.split(cuts):
        running.add(piece, torch.zeros(len(piece), dtype=torch.long))
    wanted = np.quantile(np.array(norms), q, method="inverted_cdf")
    assert running.finish(1).quantile(q) == pytest.approx(wanted, rel=0.0101)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (psr.Statistics(groups=["a"]), "groups: got a list of 1, expected 3, one group for each triplet"),
        (psr.Statistics(rank=0), "rank: got 0, expected at least 1"),
    ],
    ids=["groups", "rank"],
)
def test_bad_settings_are_named(tiny_llama, to, message):
    with pytest.raises(InputError, match=message):
        psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 3), to=to)


def test_what_was_not_kept_is_said(tiny_llama):
    found = psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 3), to=psr.Statistics(rank=2))
    with pytest.raises(InputError, match=r"hook: got 'hook_embed', expected one of those captured: blocks\.0–2\.hook_resid_post"):
        found["hook_embed"]
    with pytest.raises(InputError, match=r"rank: got 3, expected 1 to 2.*Statistics\(rank="):
        found["blocks.0.hook_resid_post"].rank_share(3)
    with pytest.raises(InputError, match=r"q: got 1\.5"):
        found["blocks.0.hook_resid_post"].quantile(1.5)
