"""Massive activations: which tokens have them, against their definition and plain transformers."""

from dataclasses import replace

import pytest
import torch
from helpers import random_triplets
from massive_model import DIMENSION, FLIPS, LAYER, STAYS, activations

import psr_lens as psr
from psr_lens.activations.massive_finder import MassiveFinder, is_massive
from psr_lens.errors import InputError
from psr_lens.evaluation.rank1_share import Rank1Shares
from psr_lens.generation.sampled_triplets import Triplets
from psr_lens.prompts import token_table


def test_a_token_is_massive_if_one_number_outweighs_nine_ordinary_tokens():
    rows = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.norm(dim=1, keepdim=True) * 10
    rows[3, 7], rows[5, 0], rows[8] = 31.0, -40.0, 5.0  # the last has norm 40, but no number that is large by itself
    rows[9, 2] = 29.0
    for each in (rows, rows * 1e-3, rows.double(), rows.bfloat16(), rows.reshape(200, 4, 16), (rows * 1000).half()):
        assert is_massive(each).nonzero().flatten().tolist() == [3, 5]
    assert is_massive(rows, ratio=2.5).nonzero().flatten().tolist() == [3, 5, 9]
    assert is_massive(rows[3:4], typical=10.0).tolist() == [True]
    assert not is_massive(torch.zeros(5, 4)).any()
    assert not is_massive(torch.eye(5, 8) * torch.tensor([0, 0, 0, 0, 9.0])[:, None]).any()
    assert is_massive(rows[:0]).shape == (0,)


def by_definition(rows, ratio=3.0):
    """Which tokens are massive, from `[layer, token, d_model]`."""
    typical = torch.stack([layer.norm(dim=1).sort().values[(layer.shape[0] - 1) // 2] for layer in rows])
    return rows.abs().amax(dim=2) >= ratio * typical[:, None], typical


def test_tokens_are_found_by_layer_in_either_context(massive):
    found = psr.massive_activations(massive.model, massive.triplets)
    rows = {context: activations(massive.hf, massive.triplets, context) for context in ("base", "prompted")}
    masks = {}
    for context, each in rows.items():
        masks[context], typical = by_definition(each)
        torch.testing.assert_close(found.count(context), masks[context].sum(dim=1))
        torch.testing.assert_close(found.typical[context], typical, rtol=0.01, atol=0)
    either = masks["base"] | masks["prompted"]
    assert either.sum(dim=1).tolist() == [0, 2, 2]  # what was built
    table = token_table(massive.model, massive.triplets, "R")
    assert found.mask(table).T.equal(either)
    torch.testing.assert_close(found.count(), either.sum(dim=1))
    flips, stays = found.tokens
    assert ((flips.triplet, flips.position), (stays.triplet, stays.position)) == (FLIPS, STAYS)
    assert (flips.contexts, stays.contexts) == (("prompted",), ("base", "prompted"))
    assert flips.layers == stays.layers == (LAYER, LAYER + 1)
    assert flips.dimensions == stays.dimensions == (DIMENSION,)
    assert flips.string == table.strings[5 * FLIPS[0] + 1 + FLIPS[1]]
    for token in found.tokens:
        row = 5 * token.triplet + 1 + token.position
        for context, norms in token.norm.items():
            assert norms == pytest.approx(rows[context][LAYER:, row].norm(dim=1).tolist(), rel=1e-3)


def test_what_was_found_is_said_in_a_line_a_table_and_a_data_frame(massive):
    found = psr.massive_activations(massive.model, massive.triplets)
    where = "after layers 1–2; 1 of them in only one of the two contexts"
    assert repr(found) == f"MassiveActivations(2 of 10 tokens of 2 responses, {where})"
    assert found.summary == f"2 of 10 tokens have a massive activation, {where}"
    assert repr(found.tokens[0]).startswith(
        f"MassiveToken({found.tokens[0].string!r} at position 2 of response 0, after layers 1–2; norm "
    )
    html = found._repr_html_()
    assert html.count("<tr>") == 3
    assert "prompted</td>" in html
    assert "all</td>" in html
    frame = found.to_pandas()
    assert frame[["triplet", "position", "layer", "massive_base", "massive_prompted"]].to_numpy().tolist() == [
        [0, 2, 1, False, True],
        [0, 2, 2, False, True],
        [1, 1, 1, True, True],
        [1, 1, 2, True, True],
    ]
    assert (frame["norm_prompted"] > 3 * frame["typical_prompted"]).all()
    assert (frame["norm_base"] < 2 * frame["typical_base"]).tolist() == [True, True, False, False]
    assert (found.count("base").tolist(), found.count("prompted").tolist()) == ([0, 1, 1], [0, 2, 2])
    with pytest.raises(InputError, match="context: got 'steered', expected one of 'base', 'prompted', or None"):
        found.count("steered")


@pytest.mark.parametrize("span", ["R", "QR"])
def test_batches_and_the_choice_of_layers_do_not_matter(massive, span):
    triplets = [*massive.triplets, *random_triplets(massive.model, 3)]
    whole = psr.massive_activations(massive.model, triplets, span=span)
    parts = psr.massive_activations(massive.model, triplets, span=span, token_budget=1)
    last = psr.massive_activations(massive.model, triplets, span=span, layers=-1)
    assert parts.to_pandas()[["triplet", "position", "layer"]].equals(whole.to_pandas()[["triplet", "position", "layer"]])
    assert whole.searched == len(token_table(massive.model, triplets, span))
    assert (last.layers, last.count().tolist()) == ((2,), whole.count().tolist()[2:])


def test_the_organisms_have_none(shipped):
    pairs = psr.prompt_pairs(shipped.model, psr.organism.questions(5), psr.organism.instruction("pirate"))
    triplets = psr.sample_responses(shipped.model, pairs, sampling=psr.SamplingConfig(max_new_tokens=24))
    found = psr.massive_activations(shipped.model, triplets, span="QR")
    assert (len(found), found.count().tolist()) == (0, [0] * 6)
    assert found.summary.startswith("No massive activations in ")
    assert found._repr_html_().count("<tr>") == 1
    assert found.to_pandas().empty


def test_many_tokens_in_any_order_are_found_by_the_median_of_all_and_few_are_kept():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 16, generator=generator)
    rows *= torch.linspace(0.4, 1.6, 3000)[:, None]  # the first batches are shorter than the median
    rows[[7, 2900], [2, 3]] = 40.0
    rows[1500, 4] = 3.2 * rows.norm(dim=1).median()
    rows[1501, 4] = 2.8 * rows.norm(dim=1).median()
    for order in (torch.arange(3000), torch.arange(3000).flip(0), torch.randperm(3000, generator=generator)):
        finder = MassiveFinder(1, 2)
        for batch in order.split(100):
            finder.look(0, 0, rows[batch])
            finder.look(0, 1, rows[batch] / 10)
            finder.add(batch)
        found = finder.finish()
        assert found.row.tolist() == [7, 1500, 2900]
        assert found.mask(3000).nonzero().flatten().tolist() == [7, 1500, 2900]
        assert found.massive.all()
        assert found.dimension[:, 0, 0].tolist() == [2, 4, 3]
        assert sum(len(each[0]) for each in finder._kept) < 600
    assert is_massive(rows).nonzero().flatten().tolist() == [7, 1500, 2900]


def test_the_summary_of_triplets_counts_them_if_it_is_given_the_model(massive):
    triplets = Triplets(tuple(massive.triplets))
    assert triplets.summary() == "2 triplets kept, 0 dropped"
    counted = "2 of 10 tokens have a massive activation, after layers 1–2; 1 of them in only one of the two contexts"
    assert triplets.summary(massive.model) == f"2 triplets kept, 0 dropped. {counted}"
    assert Triplets(()).summary(massive.model) == "0 triplets kept, 0 dropped"


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(massive):
    with pytest.raises(InputError, match=r"ratio: got 1\.0, expected a number above 1"):
        psr.massive_activations(massive.model, massive.triplets, ratio=1.0)
    with pytest.raises(InputError, match="ratio: got nan, expected a number above 1"):
        psr.massive_activations(massive.model, massive.triplets, ratio=float("nan"))
    with pytest.raises(InputError, match="triplets: got an empty list"):
        psr.massive_activations(massive.model, [])
    with pytest.raises(InputError, match="layers: got"):
        psr.massive_activations(massive.model, massive.triplets, layers=[3])


def test_the_summary_counts_in_sentences(massive):
    found = psr.massive_activations(massive.model, massive.triplets)
    [flips] = [token for token in found.tokens if not token.in_all_contexts]
    [stays] = [token for token in found.tokens if token.in_all_contexts]
    only = "in only one of the two contexts"
    for tokens, wanted in (
        ((flips,), f"1 of 10 tokens has a massive activation, after layers 1–2, {only}"),
        ((stays,), "1 of 10 tokens has a massive activation, after layers 1–2"),
        ((flips, flips), f"2 of 10 tokens have a massive activation, after layers 1–2; all of them {only}"),
        ((stays, flips), f"2 of 10 tokens have a massive activation, after layers 1–2; 1 of them {only}"),
    ):
        assert replace(found, tokens=tokens).summary == wanted


def test_a_share_without_massive_tokens_leaves_out_exactly_those_that_are_listed():
    """Also where the median token of the first batches is far from that of all."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.cat([torch.full((400,), 10.0), torch.full((900,), 1.0)])
    activations = torch.nn.functional.normalize(torch.randn(1300, 24, generator=generator), dim=1) * sizes[:, None]
    activations[1290, 3] = 500.0
    finder, shares = MassiveFinder(1, 1), Rank1Shares(1, 24)
    for rows in torch.arange(1300).split(100):
        finder.look(0, 0, activations[rows])
        finder.add(rows)
        possible = finder.possible(rows)
        shares.add(0, activations[rows], possible)
        shares.end(rows[possible])
    massive = finder.finish().mask(1300)
    assert massive[1290]
    assert massive[:256].sum() > 50
    everything, without = shares.finish(massive)
    for found, kept in ((everything, activations), (without, activations[~massive])):
        values = torch.linalg.svdvals(kept.double()).square()
        assert float(found) == pytest.approx(float(values[0] / values.sum()), rel=1e-4)
