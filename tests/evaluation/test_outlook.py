"""The outlook against the definition in NumPy, and against what fits reach."""

import html
import json

import numpy as np
import oracles
import pytest
from helpers import BENCHMARKS, benchmark_script, random_triplets
from massive_model import activations

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.evaluation import outlook_reading
from psr_lens.evaluation.outlook import FOLDS, RIDGE

RANKS = (1, 3)


@pytest.fixture(scope="module")
def triplets(tiny_llama):
    return random_triplets(tiny_llama.model, 9)


@pytest.fixture(scope="module")
def found(tiny_llama, triplets):
    return psr.outlook(tiny_llama.model, triplets, paraphrase="hello there", ranks=RANKS)


def by_definition(base, delta, owner, responses):
    """Energy, and by rank what is within the directions, missed by the probes, and spread about the mean, one row a response."""
    sums = np.zeros((responses, 1 + 3 * len(RANKS)))
    for fold in range(FOLDS):
        out = owner % FOLDS == fold
        mean_input = base[~out].mean(0)
        inputs = base[~out] - mean_input
        directions = np.linalg.svd(delta[~out], full_matrices=False)[2][: max(RANKS)].T
        wanted = delta[~out] @ directions
        mean = wanted.mean(0)
        ridge = RIDGE * (inputs**2).sum() / inputs.shape[1]
        stacked = np.vstack([inputs, np.sqrt(ridge) * np.eye(inputs.shape[1])])
        probes = np.linalg.lstsq(stacked, np.vstack([wanted - mean, np.zeros((inputs.shape[1], len(mean)))]), rcond=None)[0]
        c = delta[out] @ directions
        missed, spread = c - ((base[out] - mean_input) @ probes + mean), c - mean
        for response, *row in zip(owner[out], delta[out], c, missed, spread, strict=True):
            parts = [(row[0] ** 2).sum(), *((each[:rank] ** 2).sum() for each in row[1:] for rank in RANKS)]
            sums[response] += parts
    return sums


def test_sums_are_those_of_the_definition(tiny_llama, triplets, found):
    layer = 1
    hf = oracles.transformer(tiny_llama.folder)
    base, prompted = (activations(hf, triplets, context).double() for context in ("base", "prompted"))
    owner = np.repeat(np.arange(len(triplets)), [1 + len(triplet.response_ids) for triplet in triplets])
    local = psr.capture(tiny_llama.model, triplets, ["resid_post"], difference="local")["resid_post", layer].double()
    read = {"accumulated": base[layer], "local": prompted[layer] - local}
    for name, inputs in read.items():
        delta = (prompted[layer] - inputs).numpy()
        wanted, sums = by_definition(inputs.numpy(), delta, owner, len(triplets)), getattr(found, name)
        got = np.hstack([sums.energy[:, layer, None], sums.within[:, layer], sums.missed[:, layer], sums.spread[:, layer]])
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-5 * wanted.max())
    assert found.tokens == len(owner)
    assert found.massive == 0


def test_shares_are_of_the_whole_difference_and_errors_of_layers_add_up(found):
    whole = found.accumulated.energy.sum(0)
    one, every = found.accumulated, found.local
    at = RANKS.index(3)
    missed = {
        name: (each.energy - each.within[..., at] + each.missed[..., at]).sum(0) for name, each in (("one", one), ("all", every))
    }
    np.testing.assert_allclose(found.reachable("one", 3).value, 1 - missed["one"] / whole)
    np.testing.assert_allclose(found.reachable("all", 3).value, 1 - missed["all"].cumsum() / whole)
    np.testing.assert_allclose(found.ceiling("one", 3).value, one.within[..., at].sum(0) / whole)
    np.testing.assert_allclose(found.ceiling("all", 3).value, 1 - (every.energy - every.within[..., at]).sum(0).cumsum() / whole)
    np.testing.assert_allclose(found.readable("one", 3).value, 1 - one.missed[..., at].sum(0) / one.spread[..., at].sum(0))
    reached = found.reachable("one", 3)
    assert ((reached.low <= reached.value) & (reached.value <= reached.high)).all()


def test_a_paraphrase_in_the_same_words_reproduces_everything(organism, pirate_triplets):
    words = pirate_triplets[0].pair.instruction
    alike = [each for each in pirate_triplets if each.pair.instruction == words][:8]
    same = psr.outlook(organism.model, alike, paraphrase=words, ranks=[1])
    np.testing.assert_allclose(same.paraphrase().value, 1.0, atol=1e-6)


def test_layers_are_read_in_as_many_passes_as_memory_needs_with_the_same_result(tiny_llama, triplets, found, monkeypatch):
    monkeypatch.setattr(outlook_reading, "_AT_ONCE", 1)
    again = psr.outlook(tiny_llama.model, triplets, paraphrase="hello there", ranks=RANKS)
    np.testing.assert_array_equal(again.local.missed, found.local.missed)


def test_both_contexts_are_read_twice_and_no_more(tiny_llama, triplets):
    """Once for Δ, in which massive tokens are found, and once for what each layer adds."""
    sequences: list[int] = []
    handle = tiny_llama.model.embed.register_forward_hook(lambda module, given, out: sequences.append(len(out)))
    psr.outlook(tiny_llama.model, triplets, ranks=[1])
    handle.remove()
    assert sum(sequences) == 4 * len(triplets)


@pytest.mark.parametrize("at_once", [2**30, 1])
def test_massive_tokens_are_left_out(massive, monkeypatch, at_once):
    monkeypatch.setattr(outlook_reading, "_AT_ONCE", at_once)  # with 1, a layer at a time: the first pass sees all
    found = psr.outlook(massive.model, massive.triplets * 4, ranks=[1])
    assert found.massive == 8  # two of each of the four copies
    largest = max(
        float(activations(massive.hf, massive.triplets, context)[1].norm(dim=1).max()) for context in ("base", "prompted")
    )
    assert found.accumulated.energy[:, 1].max() < largest**2 / 4


def test_it_says_what_a_fit_then_reaches(organism, pirate_triplets):
    """On responses that neither has seen, A-PSR comes as close as was expected."""
    known, others = pirate_triplets[:40], pirate_triplets[40:]
    pirate = psr.outlook(organism.model, known, paraphrase=psr.organism.instruction("pirate", 1), ranks=[1, 4])
    fitted = psr.compare(organism.model, others, psr.fit(organism.model, known)).methods["A-PSR"]
    assert pirate.reachable("all", 4).value[-1] == pytest.approx(1 - float(fitted.relative_rmse[-1]) ** 2, abs=0.03)
    assert pirate.rank == 4
    assert "at all layers, 9" in pirate.summary
    assert "A paraphrase of the instruction reproduces" in pirate.summary
    assert html.escape(pirate.summary) in pirate._repr_html_()
    assert "at rank 4, 9" in repr(pirate)
    figure = psr.plots.outlook(pirate)
    drawn = {trace.name: trace.y for trace in figure.data}
    np.testing.assert_allclose(drawn["at all layers"], pirate.reachable().value)
    np.testing.assert_allclose(drawn["their ceiling"], pirate.ceiling().value)


def test_bad_input_is_said(tiny_llama, triplets, found):
    with pytest.raises(InputError, match="triplets: got 3 of them, expected at least 4"):
        psr.outlook(tiny_llama.model, triplets[:3])
    with pytest.raises(InputError, match=r"ranks: got \[0, 2\], expected whole numbers of at least 1"):
        psr.outlook(tiny_llama.model, triplets, ranks=[0, 2])
    with pytest.raises(InputError, match="rank: got 2, expected one of 1, 3"):
        found.reachable(rank=2)
    with pytest.raises(InputError, match="paraphrase: got None, expected the instruction in other words"):
        psr.outlook(tiny_llama.model, triplets, ranks=[1]).paraphrase()


def test_the_table_in_the_guide_is_that_of_the_numbers_in_benchmarks():
    with benchmark_script("outlook") as script:
        lines = script.lines_of(json.loads((BENCHMARKS / "outlook.json").read_text())["rows"])
    text = (BENCHMARKS.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert len(lines) == 6
    for line in lines:
        assert f"| {' | '.join(line)} |\n" in text
