"""The figures of two models show the result's own numbers, and which tokens have none."""

import dataclasses

import numpy as np
import pytest

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.reporting.figures_by_result import further_parts
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


def test_a_report_has_the_figures_of_both_models_with_the_control(found) -> None:
    [part] = further_parts([found], 10_000)
    assert part.title == "Two models on the same texts"
    assert [each.name for each in part.blocks] == ["agreement", "agreement_gates", "gates_by_family"]
    assert f"Shuffled over tokens it is {float(found.gates.control_mean().value):.2f}." in part.blocks[1].caption
    alone = further_parts([dataclasses.replace(found, gates=None)], 10_000)[0].blocks
    assert [each.name for each in alone] == ["agreement"]


def table(*rows: tuple[str, str, float]) -> psr.ResultTable:
    return psr.ResultTable(
        tuple(psr.Result(name, "trait", value, 40, (value - 3, value + 1), trait) for name, trait, value in rows)
    )


def test_bars_stand_between_the_floor_and_the_ceiling() -> None:
    figure = psr.plots.rungs(
        table(("native", "sea", 98), ("a", "sea", 40), ("b", "sea", 90), ("random", "sea", 7)), "native", "random"
    )
    [bars] = figure.data
    assert (bars.y, bars.x) == (("b", "a"), (90, 40))
    assert (bars.error_x.array, bars.error_x.arrayminus) == ((1, 1), (3, 3))
    band, floor, ceiling = figure.layout.shapes
    assert (band.x0, band.x1, floor.x0, ceiling.x0) == (7, 98, 7, 98)
    assert [each.text for each in figure.layout.annotations[:2]] == ["floor: random", "ceiling: native"]


def test_bars_over_several_traits_are_means_with_a_point_for_each() -> None:
    rows = [
        (name, trait, value)
        for name, values in (("n", (90, 100)), ("a", (40, 60)), ("r", (0, 4)))
        for trait, value in zip("xy", values, strict=True)
    ]
    figure = psr.plots.rungs(table(*rows), "n", "r")
    bars, points = figure.data
    assert bars.x == (50,)
    assert list(bars.customdata[0][1:]) == list(table(*rows[2:4]).mean_over("trait").rows[0].interval)
    assert (points.x, points.text) == ((40, 60), ("x", "y"))
    assert figure.layout.shapes[0].x1 == 95
    assert psr.plots.rungs(table(*rows), "n", "r", trait="y").data[0].x == (60,)
    for bad, match in (
        ((table(*rows), "n", "q"), "^floor: got 'q'"),
        ((table(*rows[1:]), "n", "r"), "^table"),
        ((table(), "n", "r"), "^table"),
    ):
        with pytest.raises(InputError, match=match):
            psr.plots.rungs(*bad)


def test_tokens_without_a_pair_are_grey(found) -> None:
    pairs = PairedRows(*(each[1:] for each in found.pairs))
    gates = dataclasses.replace(found.gates, gate=found.gates.gate[1:], read=found.gates.read[1:])
    figure = psr.plots.gates_by_family(dataclasses.replace(found, pairs=pairs, gates=gates), 0, layer=2)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [(each.name, len(each.x), list(each.text)) for each in bars[1::2]] == [
        ("organism", 1, ["prompt"]),
        ("organism-gpt2", 1, ["prompt"]),
    ]
