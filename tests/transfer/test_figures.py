"""The figures of two models show the result's own numbers, and which tokens have none."""

import dataclasses

import numpy as np
import pytest

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.transfer.pairing import PairedRows


@pytest.fixture(scope="module")
def found(two):
    return psr.transfer.agreement(two.source, two.target, two.triplets[:4], two.fitted)


def test_the_heatmap_has_the_correlations_and_outlines_the_matching(found) -> None:
    figure = psr.plots.agreement(found)
    np.testing.assert_array_equal(figure.data[0].z, found.magnitude.numpy())
    corners = [each for each in zip(figure.data[1].x, figure.data[1].y, strict=True) if each[0] is not None]
    cells = [corners[at : at + 4] for at in range(0, len(corners), 5)]
    centres = {(round(np.mean([y for _, y in cell])), round(np.mean([x for x, _ in cell]))) for cell in cells}
    assert centres == set(found.matching)
    gates = psr.plots.agreement(found, "gates")
    np.testing.assert_array_equal(gates.data[0].z, found.gates.r2.numpy())
    with pytest.raises(InputError, match="target_replacement"):
        psr.plots.agreement(found, "back")


def test_strips_show_both_models_on_their_own_tokens(two, found) -> None:
    figure = psr.plots.gates_by_family(found, 1, layer=2)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    rows = (found.pairs.text == 1).numpy()
    np.testing.assert_array_equal(bars[0].customdata, found.gates.gate[rows, 2].numpy())
    np.testing.assert_array_equal(bars[1].customdata, found.gates.read[rows, 2].numpy())
    assert bars[0].text[0] == bars[1].text[0] == "prompt"
    assert [each.name for each in bars] == ["organism", "organism-gpt2"]
    for given, name in (({"text": 4}, "text"), ({"layer": 9}, "layer")):
        with pytest.raises(InputError, match=f"^{name}"):
            psr.plots.gates_by_family(found, **given)


def test_tokens_without_a_pair_are_grey(found) -> None:
    pairs = PairedRows(*(each[1:] for each in found.pairs))
    gates = dataclasses.replace(found.gates, gate=found.gates.gate[1:], read=found.gates.read[1:])
    figure = psr.plots.gates_by_family(dataclasses.replace(found, pairs=pairs, gates=gates), 0, layer=2)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [(each.name, len(each.x), list(each.text)) for each in bars[1::2]] == [
        ("organism", 1, ["prompt"]),
        ("organism-gpt2", 1, ["prompt"]),
    ]
