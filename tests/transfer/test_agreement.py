"""Agreement between models is what plain transformers, a hand-written regression and the correlation of the house say."""

import dataclasses

import numpy as np
import pytest
import torch
from two_models import by_hand, ridge_by_hand

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement import Site
from psr_lens.results.correlation import pearson
from psr_lens.transfer.gate_reading import gates_of
from psr_lens.transfer.normal_equations import FOLDS, RIDGES


@pytest.fixture(scope="module")
def found(two):
    return psr.transfer.agreement(two.source, two.target, two.triplets, two.fitted)


@pytest.fixture(scope="module")
def deltas(two):
    """‖Δ‖ after each layer of source and target."""
    sides = []
    for hf, base in ((two.source_hf, two.y), (two.target_hf, two.x)):
        prompted = by_hand(hf, two.triplets, "prompted")
        sides.append([(after - before).norm(dim=1) for after, before in zip(prompted, base, strict=True)])
    return sides


def test_magnitudes_correlate_as_the_definition_says(two, found, deltas) -> None:
    source, target = deltas
    text = two.text.numpy()
    for s, t in ((0, 0), (2, 4), (5, 1)):
        wanted = pearson(source[s].log().numpy(), target[t].log().numpy(), text, 8)
        one = found.at(s, t)
        for name in ("value", "low", "high"):
            assert float(getattr(one, name)) == pytest.approx(float(getattr(wanted, name)), abs=1e-3)
        assert float(found.magnitude[s, t]) == pytest.approx(float(wanted.value), abs=1e-3)
    assert found.texts == 8
    assert len(found.pairs.text) == len(two.text)
    assert found.massive == 0
    values = [float(found.magnitude[s, t]) for s, t in found.matching]
    np.testing.assert_allclose(found.matched().value, values, atol=1e-6)
    assert float(found.mean().value) == pytest.approx(np.mean(values), abs=1e-6)


def test_gates_are_what_the_sites_add_while_they_steer(two, found) -> None:
    sites = {layer: two.fitted.sites[f"blocks.{layer}.hook_resid_post"] for layer in range(6)}
    arriving = by_hand(two.source_hf, two.triplets, sites=sites)
    for layer, site in sites.items():
        rows = arriving[layer]
        added = torch.relu(rows @ site.weights.double().T + site.bias.double()) @ site.directions.double()
        torch.testing.assert_close(found.gates.gate[:, layer].double(), added.norm(dim=1), rtol=1e-3, atol=1e-3)


def test_gates_of_a_replacement_with_an_offset_are_those_at_its_strength(two) -> None:
    """It steers at α + b, and so adds that much more; with a negative strength a single direction is subtracted."""
    sites = {2: two.fitted.sites["blocks.2.hook_resid_post"]}
    one = Site(*(getattr(sites[2], name)[:1] for name in ("directions", "weights", "bias")), "relu")
    for offset in (0.5, -1.5):
        given = dataclasses.replace(two.fitted, sites={"blocks.2.hook_resid_post": one}, offset=offset)
        read = gates_of(two.source, two.triplets, given, 4_096).lengths(torch.arange(len(two.text)))[:, 0]
        wanted = torch.relu(two.y[2] @ one.weights.double().T + one.bias.double())[:, 0] * float(one.directions.norm())
        torch.testing.assert_close(read.double(), (1 + offset) * wanted, rtol=1e-3, atol=1e-3)


def test_gates_are_read_as_a_regression_of_what_is_added_reads_them(two, found) -> None:
    """Whole vectors in place of coordinates in their span: the squared error is the same."""
    sites = {layer: two.fitted.sites[f"blocks.{layer}.hook_resid_post"] for layer in range(6)}
    arriving = by_hand(two.source_hf, two.triplets, sites=sites)
    for gate, reader in ((2, 1), (4, 5)):
        site = sites[gate]
        added = torch.relu(arriving[gate] @ site.weights.double().T + site.bias.double()) @ site.directions.double()
        errors = []
        for ridge in RIDGES:
            predicted, constant = torch.zeros_like(added), torch.zeros_like(added)
            for fold in range(FOLDS):
                out = two.text % FOLDS == fold
                matrix, offset = ridge_by_hand(two.x[reader][~out], added[~out], ridge)
                predicted[out], constant[out] = two.x[reader][out] @ matrix.T + offset, added[~out].mean(0)
            errors.append((added - predicted).square().sum(1))
        best = min(errors, key=lambda each: float(each.sum()))
        spread = (added - constant).square().sum(1)
        wanted = 1 - float(best.sum() / spread.sum())
        assert float(found.gates.r2[gate, reader]) == pytest.approx(wanted, abs=2e-3)
        assert float(found.gates.at(gate, reader).value) == pytest.approx(wanted, abs=2e-3)
        by_text = [float(best[two.text == text].sum()) for text in range(8)]
        np.testing.assert_allclose(found.gates.errors.error[:, gate, reader], by_text, rtol=5e-3)
    assert [gate for gate, _ in found.gates.matching] == list(range(6))
    assert float(found.gates.control_mean().value) < 0.1 < 0.4 < float(found.gates.mean().value)
    gate, reader = found.gates.matching[5]
    assert np.corrcoef(found.gates.gate[:, 5], found.gates.read[:, 5])[0, 1] > 0.8


@pytest.mark.slow
def test_back_is_the_same_measurement_with_the_models_exchanged(two) -> None:
    texts = [each.target for each in two.paired]
    own = psr.fit(two.target, texts, psr.Sequential(layers=[2], rank=1, regression_steps=0))
    back = psr.transfer.agreement(two.source, two.target, two.triplets, target_replacement=own)
    there = psr.transfer.agreement(two.target, two.source, texts, own)
    assert back.gates is None
    torch.testing.assert_close(back.back.r2, there.gates.r2)
    assert back.back.gate_layers == (2,)
    assert back.back.reader_layers == tuple(range(6))
    torch.testing.assert_close(back.magnitude, there.magnitude.T)
    names = {row.method for row in back.table() if "R²" in row.metric}
    assert names == {"organism-gpt2 → organism"}


def test_the_table_has_every_number_with_its_interval(found, tmp_path) -> None:
    table = found.table()
    rows = table.select(metric="correlation of log ‖Δ‖", layer=3).rows
    assert rows[0].value == pytest.approx(float(found.matched().value[3]))
    assert rows[0].interval == pytest.approx(found.matched().interval(3))
    assert rows[0].block == f"from layer {found.matching[3][0]}"
    assert len(table) == 7 + 7 + 1
    assert psr.ResultTable.from_json(table.to_json(tmp_path / "agreement.json")).rows == table.rows
    assert len(found.to_pandas()) == len(table)
    assert "\n" not in repr(found)
    assert "\n" not in repr(found.gates)


def test_wrong_arguments_are_refused(two, found) -> None:
    with pytest.raises(InputError, match=r"^triplets: got 3"):
        psr.transfer.agreement(two.source, two.target, two.triplets[:3], two.fitted)
    for layers in ((6, 0), (0, -1)):
        with pytest.raises(InputError, match="_layer"):
            found.at(*layers)
        with pytest.raises(InputError, match="_layer"):
            found.gates.at(*layers)
    own = psr.fit(two.source, two.triplets, psr.DiM(layers=1))
    one = psr.transfer.agreement(two.source, two.target, two.triplets[:4], own)
    assert bool(one.gates.r2.isnan().all())  # a constant has nothing to be read
    wider = dataclasses.replace(two.fitted, model={**two.fitted.model, "d_model": 5})
    with pytest.raises(ArtifactError, match="d_model=5"):
        psr.transfer.agreement(two.source, two.target, two.triplets, wider)
