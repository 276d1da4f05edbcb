"""What a report and results.json say about massive activations."""

import math
from dataclasses import replace

import pytest
from helpers import random_replacement, random_triplets
from html_page import Page
from made_up_results import comparison

import psr_lens as psr
from psr_lens.apps.results_json import comparison_json
from psr_lens.reporting.comparison_text import summary


@pytest.fixture(scope="module")
def compared(massive):
    methods = {"A-PSR": random_replacement(massive.model, size=0.05)}
    return psr.compare(massive.model, massive.triplets, methods, paraphrase="be a pirate .")


def shown(value):
    return f"{value:.2f}".rstrip("0").rstrip(".")


def test_a_report_lists_massive_tokens_and_every_distance_with_and_without_them(compared, tmp_path):
    page = Page(psr.report(compared, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert compared.massive.summary.startswith("2 of 10 tokens have a massive activation, after layers 1–2; ")
    assert page.words.count(compared.massive.summary) == 3  # in the summary, over the tables and among the settings
    anchors = [attrs["id"] for tag, attrs in page.tags if tag in ("section", "h3", "footer")]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == [f"#{anchor}" for anchor in anchors]
    assert "relative RMSE without massive tokens median token A-PSR" in page.words
    for layer in (1, 2):
        counts = " ".join(str(int(compared.massive.count(context)[layer])) for context in compared.massive.typical)
        each = [compared.distances[name] for name in ("A-PSR", "paraphrase")]
        three = " ".join(" / ".join(shown(float(v[layer])) for v in (d.relative_rmse, d.without_massive, d.median)) for d in each)
        assert f" {layer} {counts} {three} " in page.words
    for token in compared.massive.tokens:
        assert f" {token.triplet} {token.position} 1–2 " in page.words


def test_the_summary_says_where_they_change_the_numbers_most(compared):
    lead, baseline = (compared.distances[name] for name in ("A-PSR", "paraphrase"))
    factors = [
        max(
            max(float(a / b), float(b / a))
            for a, b in ((each.relative_rmse[at], each.without_massive[at]) for each in (lead, baseline))
        )
        for at in range(3)
    ]
    layer = factors.index(max(factors))
    assert layer > 0
    assert summary(compared, "A-PSR").endswith(
        f"{compared.massive.summary}. Where they change it most, after layer {layer}, the relative RMSE of A-PSR is "
        f"{shown(float(lead.relative_rmse[layer]))} with them and {shown(float(lead.without_massive[layer]))} without; that of the "
        f"paraphrase baseline is {shown(float(baseline.relative_rmse[layer]))} and {shown(float(baseline.without_massive[layer]))}."
    )
    alone = replace(compared, paraphrase_rmse=None, paraphrase_error=None)
    assert summary(alone, "A-PSR").endswith(f"{compared.massive.summary}. They hardly change the relative RMSE.")


def test_without_any_a_report_says_so_and_shows_no_table(tiny_llama, tmp_path):
    triplets = random_triplets(tiny_llama.model, 2)
    plain = psr.compare(tiny_llama.model, triplets, {"A-PSR": random_replacement(tiny_llama.model)})
    page = Page(psr.report(plain, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"massive activations {plain.massive.summary}" in page.words
    assert "relative RMSE median token A-PSR" in page.words
    assert "without massive tokens" not in page.words
    older = Page(psr.report(comparison(), tmp_path / "older.html").read_text(encoding="utf-8"))
    assert "massive activations not looked for" in older.words
    assert "relative error of the median token" not in older.words


def test_results_json_has_every_distance_and_the_counts(compared):
    found = comparison_json(compared)
    for name, each in compared.distances.items():
        for key, values in (
            ("relative_rmse", each.relative_rmse),
            ("relative_rmse_without_massive", each.without_massive),
            ("median_relative_error", each.median),
        ):
            assert found[key][name] == pytest.approx(values.tolist(), abs=1e-4)
    counts = {context: compared.massive.count(context).tolist() for context in ("base", "prompted", "paraphrase")}
    wanted = {**counts, "any": compared.massive.count().tolist()}
    assert found["massive_activations"] == {"searched": 10, "tokens": 2, "by_layer": wanted}
    older = comparison_json(comparison())
    assert older["massive_activations"] is None
    assert older["median_relative_error"]["A-PSR"] == [None] * 4
    assert not any(math.isnan(value) for value in older["relative_rmse"]["A-PSR"])
