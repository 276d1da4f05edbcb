"""The report is one file that opens offline, holds what the result says, and replaces an older one only when it is whole."""

import ast
import inspect
import json
import math
import re
import sys
from dataclasses import replace

import pytest
from html_page import Page
from made_up_results import METHODS, comparison
from plotly.offline import get_plotlyjs

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.reporting import report
from psr_lens.reporting.page import script_safe
from psr_lens.reporting.provenance import outline_in_python


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    path = tmp_path_factory.mktemp("five") / "report.html"
    return report({name: comparison() for name in ("pirate", "shout", "sea", "gloomy", "<brief>")}, path)


@pytest.fixture(scope="module")
def page(five):
    return Page(five.read_text(encoding="utf-8"))


def test_plotly_is_in_the_file_once(five):
    text = five.read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1


def test_nothing_is_fetched(page):
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attrs.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
        assert tag not in {"link", "iframe", "object", "embed", "base"}
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_five_sections_with_their_figures_and_a_list_of_contents(page):
    anchors = [attrs["id"] for tag, attrs in page.tags if tag in ("section", "h3", "footer")]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links[:5] == ["#s1", "#s1-1", "#s1-2", "#s1-3", "#s2"]
    assert links == [f"#{anchor}" for anchor in anchors]
    assert len(page.figures) == 5 * (2 + 3 * 2 + 2)
    assert all("template" not in figure["layout"] for figure in page.figures)


def test_size(five):
    assert five.stat().st_size < 8_000_000


def test_a_large_comparison_stays_small_enough(tmp_path):
    large = comparison(("<a>", *["word"] * 599), responses=2, layers=48)
    path = report({str(position): large for position in range(5)}, tmp_path / "large.html")
    assert path.stat().st_size < 8_000_000


def test_figures_hold_the_numbers_of_the_result(page):
    result = comparison()
    lines = {trace["name"]: trace for trace in page.figures[0]["data"]}
    assert set(lines) == {*METHODS, "paraphrase baseline"}
    assert lines["A-PSR"]["x"] == list(result.layers)


def test_tokens_names_and_instructions_are_escaped(five, page):
    text = five.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<pirate>" not in text
    assert "<brief>" not in text
    assert "talk like a <pirate>" in page.words
    assert "<brief>" in page.words


def test_instruction_cannot_end_a_script(tmp_path):
    words = ("<a>", "</script><img src=x>", "\u2028")
    page = Page(report(replace(comparison(words), instruction="</script>"), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert len(page.figures) == 10


def test_data_cannot_end_its_script_early():
    data = {"</script>": ["<!--", "\u2028", "ü"]}
    assert not {"<", ">", "\u2028"} & set(script_safe(data))
    assert json.loads(script_safe(data)) == data


def test_summary_says_what_was_measured(page):
    assert (
        "A-PSR scores trait 100 and coherence 99.8; the prompt scores 100 and 99.5, the unsteered model 2 and 99. "
        "Constant steering (S-Const DiM, α = 2) reaches trait 3 and coherence 95. After layer 3 the relative RMSE of A-PSR is 0.10, "
        "where 0 is the prompt and 1 no steering: closer than the paraphrase baseline, which is at 0.20."
    ) in page.words


def test_table_has_scores_intervals_and_rmse(page):
    assert "S-PSR 70.0 68.0 to 70.0 91.8 90.8 to 92.0 1 40 0.30" in page.words
    assert "missing" not in page.words


def test_missing_scores_are_shown_as_missing(tmp_path):
    result = comparison()
    lost = replace(
        result.scores[2],
        n=0,
        missing=40,
        trait=math.nan,
        coherence=math.nan,
        trait_interval=(math.nan,) * 2,
        coherence_interval=(math.nan,) * 2,
    )
    page = Page(report(replace(result, scores=(*result.scores[:2], lost)), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "The judge could not score 40 answers." in page.words
    assert "A-PSR – – 1 0 40 0.10" in page.words


def test_without_scores_or_paraphrase_baseline(tmp_path):
    result = replace(comparison(), scores=(), paraphrase_rmse=None)
    page = Page(report(result, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "No answers were scored for this comparison. After layer 3 the relative RMSE of A-PSR is 0.10" in page.words
    assert "coherence" not in page.words
    assert "paraphrase" not in page.words


def test_settings_and_versions_to_run_it_again(page):
    for expected in (
        "model: model_name toy",
        "24 tokens of 3 responses",
        "seed 0",
        '{"solver": "sequential"}',
        "A-PSR acts at layers 0–3, at hook_resid_post",
        "A-PSR was fitted with solver sequential, rank 4, polish null",
        "S-PSR acts at layers 2, at hook_resid_post",
    ):
        assert expected in page.words
    for package in ("psr-lens", "torch", "transformer-lens", "transformers", "plotly", "python"):
        assert re.search(rf"\b{package} \d", page.words), package


def test_provenance_has_the_calls_with_what_is_known_of_their_arguments_and_the_paper(page):
    code = outline_in_python(comparison())
    ast.parse(code)
    called = set(re.findall(r"psr\.([A-Za-z_]+)", code))
    assert called >= {"load_model", "prompt_pairs", "sample_responses", "Replacement", "compare", "report"}
    assert called <= set(psr.__all__)
    assert "'talk like a <pirate>'" in code
    made = next(
        each for each in ast.walk(ast.parse(code)) if isinstance(each, ast.Call) and ast.unparse(each.func) == "psr.compare"
    )
    given = {each.arg: each.value for each in made.keywords}
    assert set(given) <= set(inspect.signature(psr.compare).parameters)
    assert ast.literal_eval(given["span"]) == comparison().span
    assert ast.literal_eval(given["layers"]) == list(comparison().layers)
    assert ast.literal_eval(given["alpha"]) == dict(comparison().alphas)
    assert ("paraphrase" in given) == (comparison().paraphrase_rmse is not None)
    assert "arxiv.org/abs/2605.03907" in page.words
    assert " ".join(code.split()) in page.words


def test_reader_picks_among_the_first_responses(page):
    options = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    assert options == ["0", "1", "2"] * 5
    hidden = [attrs["id"] for tag, attrs in page.tags if attrs.get("class") == "option" and "hidden" in attrs]
    assert hidden[:2] == ["s1-2-1-1", "s1-2-1-2"]


def test_the_same_result_gives_the_same_file(tmp_path):
    first, second = (report(comparison(), tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_folders_are_made_and_nothing_is_left_beside_the_file(tmp_path):
    path = report(comparison(), tmp_path / "deep" / "er" / "report.html", title="A <title>")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    assert "<title>A &lt;title&gt;</title>" in path.read_text(encoding="utf-8")


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise RuntimeError("no figure")

    monkeypatch.setattr(sys.modules["psr_lens.reporting.comparison_figures"], "magnitude_distribution", fail)
    with pytest.raises(RuntimeError, match="no figure"):
        report(comparison(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self: object, *_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="disk full"):
        report(comparison(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_empty_mapping(tmp_path):
    with pytest.raises(InputError, match="result: got an empty mapping, expected at least one Comparison"):
        report({}, tmp_path / "r.html")


def test_path_is_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"path: got the folder .*, expected a file name. For example .*report\.html"):
        report(comparison(), tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"pirate": 3}, r"result\['pirate'\]: got 3, expected a Comparison from `psr.compare`"),
        ([1], "result: got a list, expected a Comparison from `psr.compare` or a mapping of names to Comparisons."),
    ],
)
def test_values_that_are_no_comparisons(value, message, tmp_path):
    with pytest.raises(InputError, match=message):
        report(value, tmp_path / "r.html")
