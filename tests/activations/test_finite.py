"""Activations that are NaN or infinite: every reading of a model refuses them by the name of the hook point."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import BACKENDS, assert_unchanged, pairs_of, random_replacement, random_triplets, state_of

import psr_lens as psr
from psr_lens.activations.capture import Captured
from psr_lens.activations.finite import check_finite, finite_logits
from psr_lens.activations.statistics import SecondMoments
from psr_lens.errors import FitError, ModelError
from psr_lens.fitting.fit import SOLVERS as SOLVERS_OF_FIT
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.interpretation.patching import patch
from psr_lens.prompts import token_table

POINT = "blocks.1.hook_resid_post"
BAD = (math.nan, math.inf, -math.inf)


def spoiled(model, value, point="blocks.1.hook_mlp_out"):
    """The model with one bad number at one token, the last of each sequence."""

    def spoil(activation, hook):
        activation = activation.clone()
        activation[:, -1, 3] = value
        return activation

    return model.hooks(fwd_hooks=[(point, spoil)])


READINGS = {
    "capture": lambda model, triplets, at: psr.capture(model, triplets),
    "local": lambda model, triplets, at: psr.capture(model, triplets, difference="local"),
    "statistics": lambda model, triplets, at: psr.capture(model, triplets, to=psr.Statistics()),
    "store": lambda model, triplets, at: psr.capture(model, triplets, to=psr.OnDisk(at / "store")),
    "attribute": lambda model, triplets, at: psr.attribute(model, triplets, layers=[0, 1]),
    "attribute to a target": lambda model, triplets, at: psr.attribute(model, triplets, target=1),
    "compare": lambda model, triplets, at: psr.compare(model, triplets, random_replacement(model, layers=[0])),
    "faithfulness": lambda model, triplets, at: psr.faithfulness(model, triplets, random_replacement(model, layers=[0])),
    "log_likelihoods": lambda model, triplets, at: log_likelihoods(model, triplets),
    "top_tokens": lambda model, triplets, at: psr.top_tokens(model, triplets, random_replacement(model, layers=[1])),
}


@pytest.mark.parametrize(("reading", "value"), [(name, BAD[index % 3]) for index, name in enumerate(READINGS)])
def test_every_reading_names_the_hook_point(tiny_llama, tmp_path, reading, value):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)
    before = state_of(model)
    with spoiled(model, value), pytest.raises(ModelError, match=r"blocks\.1\..*: the activations are not all finite\. Load"):
        READINGS[reading](model, triplets, tmp_path)
    assert_unchanged(model, before)


def test_a_bridge_names_it_too(tiny):
    with spoiled(tiny.model, math.nan), pytest.raises(ModelError, match=r"blocks\.1\.hook_mlp_out: the activations are not all"):
        psr.capture(tiny.model, random_triplets(tiny.model, 3), ["mlp_out", "resid_post"])


OF_ONE_HEAD = {
    "patterns": (lambda model, triplets: psr.capture(model, triplets, "z"), r"blocks\.1\.attn\.hook_z"),
    "attribution": (lambda model, triplets: psr.attribute(model, triplets), r"blocks\.1\.attn\.hook_z"),
    "a fit at heads": (lambda model, triplets: psr.fit(model, triplets, psr.DiM(hook="z")), r"blocks\.1\.attn\.hook_z"),
    "a regression at heads": (
        lambda model, triplets: psr.fit(model, triplets, psr.Sequential(hook="z", layers=1)),
        r"blocks\.1\.attn\.hook_z",
    ),
    "a comparison": (
        lambda model, triplets: psr.compare(model, triplets, random_replacement(model)),
        r"blocks\.1\.hook_resid_post",
    ),
    "a judge": (lambda model, triplets: psr.judges.perplexity(model, [each.pair for each in triplets])(["a"], ["b"]), "blocks"),
    "sampling": (lambda model, triplets: psr.generate(model, [each.pair for each in triplets]), r"blocks\.1\.hook_resid_post"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reading", OF_ONE_HEAD)
def test_one_number_of_one_head_is_enough(load, backend, reading):
    model = load("llama-gqa", backend).model

    def spoil(activation, hook):
        activation = activation.clone()
        activation[:, -1, 2, 0] = math.nan
        return activation

    read, named = OF_ONE_HEAD[reading]
    spoiled_head = model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", spoil)])
    with spoiled_head, pytest.raises((ModelError, FitError), match=named):
        read(model, random_triplets(model, 3))


def test_layers_before_a_bad_number_are_read(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    wanted = psr.capture(tiny_llama.model, triplets, "resid_post", layers=[0]).magnitude(("resid_post", 0))
    with spoiled(tiny_llama.model, math.nan):
        assert torch.equal(psr.capture(tiny_llama.model, triplets, "resid_post", layers=[0]).magnitude(("resid_post", 0)), wanted)


SOLVERS = (
    psr.Sequential(),
    psr.Local(),
    psr.Sequential(layers=0, polish=psr.Polish(epochs=1)),
    psr.Joint(epochs=1),
    psr.Joint(epochs=1, objective="ll"),
    psr.DiM(),
    psr.DiM(layers=1),
    psr.ActAdd(),
    psr.LastToken(),
    psr.Stolfo(),
    psr.ReFT(epochs=1),
)


@pytest.mark.parametrize("config", SOLVERS, ids=repr)
def test_every_solver_names_the_layer(tiny_llama, config):
    with spoiled(tiny_llama.model, math.nan), pytest.raises((ModelError, FitError), match=r"blocks\.1\.hook_resid_post"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), config)


def test_a_site_that_is_not_finite_is_an_error_whatever_it_came_from(tiny_llama, monkeypatch):
    site = random_replacement(tiny_llama.model).sites[POINT]
    monkeypatch.setitem(SOLVERS_OF_FIT, psr.DiM, lambda *_: {POINT: replace(site, bias=site.bias / 0)})
    with pytest.raises(FitError, match=r"dim: the fit at blocks\.1\.hook_resid_post is not finite"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), psr.DiM(layers=1))


def test_patching_refuses_logits_that_are_not_finite(tiny_llama):
    with spoiled(tiny_llama.model, math.nan), pytest.raises(ModelError, match="The logits are not all finite"):
        patch(tiny_llama.model, random_triplets(tiny_llama.model, 1))


def test_tokens_outside_of_the_span_may_be_anything(tiny_llama):
    """Padding, for one: its rows are not read."""
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)
    lengths = sorted(len(each.pair.base_ids) + len(each.response_ids) for each in triplets)  # as in the batch

    def spoil(activation, hook):
        activation = activation.clone()
        for row, length in enumerate(lengths):
            activation[row, length:] = math.nan
        return activation

    wanted = log_likelihoods(model, triplets)
    with model.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", spoil)]):
        found = log_likelihoods(model, triplets, token_budget=10_000)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_an_impossible_token_is_no_fault():
    logits = torch.tensor([[0.0, -math.inf, 1.0]])
    assert finite_logits(logits)
    for bad in (math.nan, math.inf):
        assert not finite_logits(torch.tensor([[0.0, bad, 1.0]]))
    assert not finite_logits(torch.full((1, 3), -math.inf))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_numbers_whose_sum_overflows_are_finite(dtype):
    largest = torch.full((4, 1000), torch.finfo(dtype).max, dtype=dtype)
    check_finite({"x": largest})
    largest[2, 7] = math.inf
    with pytest.raises(ModelError, match="y: the activations"):
        check_finite({"x": torch.ones(3), "y": largest})


# --- half precision ---------------------------------------------------------------------------------------------------------


def test_the_norm_of_a_difference_in_half_precision_does_not_overflow(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 1, longest=3)
    tokens = token_table(tiny_llama.model, triplets, "R")
    delta = torch.full((len(tokens), 4, 4), 48_000.0, dtype=torch.float16)
    for kept in (delta, delta.bfloat16(), delta.double()):
        magnitude = Captured({"x": kept}, tokens, "R").magnitude("x")
        assert magnitude.dtype == (torch.float64 if kept.dtype == torch.float64 else torch.float32)
        assert magnitude.tolist() == pytest.approx([192_000.0] * len(tokens), rel=4e-3)


@pytest.mark.parametrize("width", [64, 600])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_second_moments_of_half_precision_are_those_of_the_same_numbers_in_double(width, dtype):
    """600 is wider than what is kept in full: a sketch."""
    generator = torch.Generator().manual_seed(0)
    rows = (3e3 * torch.randn(40, 1, generator=generator) * torch.randn(1, width, generator=generator)).to(dtype)
    moments = SecondMoments(width)
    for part in rows.split(7):
        moments.add(part)
    values, _ = moments.leading(1)
    wanted = torch.linalg.svdvals(rows.double()).square()
    assert moments.energy == pytest.approx(float(wanted.sum()), rel=1e-5)
    assert float(values[0]) == pytest.approx(float(wanted[0]), rel=1e-3)


def large(model):
    """The model with an MLP output of about 1e6."""
    return model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda activation, hook: activation * 1e7)])


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_too_large_to_be_kept_is_an_error_that_names_type_and_hook_point(tiny_llama, tmp_path, kind):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)

    def kept_as(dtype):
        return psr.InMemory(getattr(torch, dtype)) if kind == "memory" else psr.OnDisk(tmp_path / dtype, dtype)

    with large(model):
        exact = psr.capture(model, triplets, "mlp_out").magnitude(("mlp_out", 1))
        assert exact.max() > 1e5
        with pytest.raises(ModelError, match=r"blocks\.1\.hook_mlp_out: .*too large for torch\.float16: keep them as bfloat16"):
            psr.capture(model, triplets, "mlp_out", to=kept_as("float16"))
        kept = psr.capture(model, triplets, "mlp_out", to=kept_as("bfloat16")).magnitude(("mlp_out", 1))
    torch.testing.assert_close(kept, exact, rtol=1e-2, atol=0)


def test_statistics_and_comparison_of_large_differences_in_bfloat16_are_those_of_float32(folders, tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    half = psr.load_model(folders["llama"], dtype=torch.bfloat16)
    for model in (half, tiny_llama.model):
        with large(model):
            statistics = psr.capture(model, triplets, to=psr.Statistics(rank=2))["resid_post", 1]
            captured = psr.capture(model, triplets).magnitude(("resid_post", 1)).double()
        assert statistics.mean_magnitude == pytest.approx(float(captured.mean()), rel=1e-3)
        assert statistics.energy == pytest.approx(float(captured.square().sum()), rel=1e-3)
        assert statistics.quantile(1.0) == pytest.approx(float(captured.max()), rel=0.02)


def test_pairs_are_still_read_after_a_refusal(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 1)
    with pytest.raises(ModelError), spoiled(tiny_llama.model, math.nan):
        psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2))
    assert len(psr.generate(tiny_llama.model, pairs)) == 1
