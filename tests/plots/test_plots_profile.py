"""The distribution of magnitudes by kind of hook point holds the statistics' own quantiles."""

import numpy as np
import pytest
from helpers import random_triplets

import psr_lens as psr
from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.plots.distribution import MAX_KINDS


def test_lines_are_medians_and_bands_span_the_percentiles(tiny_llama):
    statistics = psr.capture(
        tiny_llama.model, random_triplets(tiny_llama.model, 4), ["attn_out", "resid_post"], to=psr.Statistics(rank=1)
    )
    figure = plots.magnitude_distribution(statistics)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines) == ["residual", "attention"]
    for name, kind in (("residual", "resid_post"), ("attention", "attn_out")):
        found = [statistics[f"blocks.{layer}.hook_{kind}"] for layer in range(3)]
        assert lines[name].x == (0, 1, 2)
        quantiles = [[each.quantile(q) for q in (0.01, 0.25, 0.5, 0.75, 0.99)] for each in found]
        np.testing.assert_allclose(lines[name].customdata, quantiles)
        np.testing.assert_allclose(lines[name].y, np.log10(quantiles)[:, 2])
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert [len(band.x) for band in bands] == [6] * 4
    tokens = statistics["blocks.0.hook_resid_post"].tokens
    assert f"{tokens} tokens" in figure.layout.annotations[-1].text.replace("<br>", " ")


def test_many_kinds_are_thinned_and_the_note_says_so(tiny_llama):
    statistics = psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), "all", to=psr.Statistics(rank=1))
    figure = plots.magnitude_distribution(statistics)
    lines = [trace.name for trace in figure.data if trace.name]
    assert len(lines) == MAX_KINDS
    assert lines[:3] == ["residual", "attention", "MLP"]
    assert f"{MAX_KINDS} of" in figure.layout.annotations[-1].text.replace("<br>", " ")


def test_without_a_layer_there_is_nothing_to_draw(tiny_llama):
    statistics = psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), "embed", to=psr.Statistics(rank=1))
    with pytest.raises(InputError, match="result: got hook_embed, expected at least one hook point of a layer"):
        plots.magnitude_distribution(statistics)
