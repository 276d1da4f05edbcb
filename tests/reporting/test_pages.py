"""In a real browser: the report and notebooks' pages draw every figure, say nothing in the console, and answer to the pointer."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import browser
import nbformat
import pytest
import torch
from made_up_results import comparison, further_results

import psr_lens as psr

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "a browser is there")]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="module")
def tab():
    with browser.browser() as page:
        yield page


@pytest.fixture(scope="module")
def report(tiny_llama, tmp_path_factory):
    both = {"pirate": comparison(), "shout": comparison()}
    also = {"pirate": further_results(tiny_llama.model)}
    return psr.report(both, tmp_path_factory.mktemp("pages") / "report.html", also=also)


@pytest.fixture(scope="module", params=browser.WIDTHS)
def opened(request, tab, report):
    """The report with all its figures drawn, at each width."""
    tab.open(report, request.param)
    tab.js("document.getElementById('unfold')?.click()")
    tab.wait_for("document.documentElement.dataset.figures === 'drawn'")
    return tab


def check(page, count):
    """Every visible figure is drawn, nothing sticks out, and the console is empty."""
    figures = [each for each in page.figures() if each["visible"]]
    assert len(figures) == count
    for each in figures:
        assert each["drawn"] >= 1, each
        assert each["marks"] > 0, each
        assert each["height"] > 100, each
        assert not each["overflow"], each
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    assert page.errors == []


def pointed_at(page, title):
    """What is said where the pointer stands in the middle of a figure's first panel."""
    box = page.js(
        f"(() => {{ const plot = [...document.querySelectorAll('.js-plotly-plot')].find("
        f"(each) => each.offsetParent && each.layout.title?.text.startsWith({title!r}));"
        " scrollTo(0, plot.getBoundingClientRect().top + scrollY - 100);"
        " const box = plot.querySelector('.nsewdrag').getBoundingClientRect();"
        " return {x: box.left + box.width / 2, y: box.top + box.height / 2 + scrollY}; })()"
    )
    page.hover(box["x"], box["y"])
    page.wait_for("document.querySelector('.hoverlayer .hovertext')")
    return page.js("[...document.querySelectorAll('.hoverlayer .hovertext')].map((each) => each.textContent).join(' ')")


def test_every_figure_of_a_report_is_drawn(opened):
    figures = 2 * (2 + 3 + 1) + 3 + 1 + 1 + 1 + 3 + 2 + 3 + 1 + 1
    check(opened, opened.js("[...document.querySelectorAll('.figure')].filter((each) => each.offsetParent).length"))
    assert opened.js("document.querySelectorAll('.js-plotly-plot').length") >= figures


def test_the_pointer_is_told_token_layer_and_value(opened):
    said = pointed_at(opened, "Magnitude of steering by token and layer")
    assert "layer" in said
    assert "magnitude" in said
    assert opened.errors == []


def test_the_reader_can_choose_another_response(opened):
    opened.js(
        "(() => { const choice = document.querySelector('select[data-block]'); choice.value = '2';"
        " choice.dispatchEvent(new Event('change')); })()"
    )
    opened.wait_for("[...document.querySelectorAll('#s1-3-1-2 .figure')].every((each) => each.querySelector('.main-svg'))")
    assert opened.js("document.getElementById('s1-3-1-0').hidden")
    opened.wait_for("[...document.querySelectorAll('.figure')].every((each) => !each.offsetParent || each.dataset.drawn)")
    check(opened, opened.js("[...document.querySelectorAll('.figure')].filter((each) => each.offsetParent).length"))


def test_the_first_screen_has_answers_and_scores_and_parts_are_drawn_when_first_seen(tab, report):
    tab.open(report, max(browser.WIDTHS))
    tab.wait_for("document.documentElement.dataset.figures === 'drawn'")
    for what in (".answers", "table"):
        assert tab.js(f"document.querySelector('{what}').getBoundingClientRect().top < innerHeight"), what
    folded = "[...document.querySelectorAll('#s1 details.part:not([open]) .figure')]"
    assert tab.js(f"{folded}.length") > 3
    assert tab.js(f"{folded}.every((each) => !each.dataset.drawn)")
    key = tab.js("document.querySelector('#s1 details.part:not([open]) h3').id")
    tab.js(f"document.querySelector('nav a[href=\"#{key}\"]').click()")
    tab.wait_for(f"document.getElementById('{key}').closest('details').querySelector('.figure .main-svg')")
    assert tab.errors == []


def test_figures_follow_the_scheme_and_the_button_and_tokens_stay_as_they_are(tab, report):
    paper = "getComputedStyle(document.querySelector('.figure .main-svg')).backgroundColor"
    lines = "document.querySelector('.js-plotly-plot').data.map((trace) => trace.name)"
    try:
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        tab.open(report, max(browser.WIDTHS))
        tab.wait_for("document.querySelector('.figure .main-svg')")
        names = tab.js(lines)
        assert tab.js(paper) == "rgb(23, 24, 26)"
        tab.js("document.getElementById('theme').click()")
        tab.wait_for(f"document.querySelector('.figure .main-svg') && {paper} === 'rgb(255, 255, 255)'")
        assert tab.js(lines) == names
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        assert tab.errors == []
    finally:
        tab.send("Emulation.setEmulatedMedia", features=[])


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A report whose second section has answers at three strengths too, some of them markup."""
    other = psr.AnswersAtStrength(2.0, ("<i>loud</i> arr", "aye"), (pushed("<i>loud</i>", " arr"), pushed("aye")), (100.0, 90.0))
    weak = psr.AnswersAtStrength(0.5, ("plain", "words"), (pushed("plain"), pushed("words")))
    own = (pushed("ahoy", ",\n", "matey"), pushed("a", "ye"))
    answers = {"none": ("a", "b"), "A-PSR": ("ahoy,\nmatey", "aye"), "CAA": ("c", "d")}
    shown = [
        psr.AnswersByMethod(
            "be", ("q ?", "r ?"), answers, {"A-PSR": 1.0, "CAA": 1.0}, {}, (), {"A-PSR": own}, {"A-PSR": (weak, other)}
        )
        for _ in range(2)
    ]
    results = {"pirate": comparison(), "shout": comparison()}
    also = dict(zip(results, ([each] for each in shown), strict=True))
    return psr.report(results, tmp_path_factory.mktemp("answered") / "report.html", also=also)


def pushed(*pieces):
    return psr.PushedAnswer(pieces, torch.arange(1.0, 1 + len(pieces))[:, None])


def columns(page, section):
    """What a method's answers are in a section: strength, score, text and coloured pieces."""
    return page.js(
        f"[...document.querySelectorAll('#{section} .turned')].map((each) => [each.querySelector('output').textContent,"
        " each.querySelector('.score').textContent, each.querySelector('dd').textContent, each.querySelectorAll('.push').length])"
    )


def test_the_keyboard_turns_the_strength_of_a_method_in_one_section(tab, answered):
    tab.open(answered, 390)
    first = [["α = 1", "", "ahoy,\nmatey", 3], ["α = 1", "", "aye", 2]]
    assert columns(tab, "s1") == columns(tab, "s2") == first
    tab.js("document.querySelector('#s1 .stronger').focus()")
    press(tab, "Enter")
    assert columns(tab, "s1") == [["α = 2", "trait 100", "<i>loud</i> arr", 2], ["α = 2", "trait 90", "aye", 1]]
    assert columns(tab, "s2") == first
    assert tab.js("document.querySelector('#s1 .push').title") == "0.50 × the median"
    assert tab.js("document.querySelectorAll('#s1 dd i').length") == 0
    press(tab, "Enter")  # there is no stronger one
    assert columns(tab, "s1")[0][0] == "α = 2"
    assert tab.js("document.activeElement.getAttribute('aria-disabled')") == "true"
    tab.js("document.querySelectorAll('details.more').forEach((each) => { each.open = true; })")
    tab.js("document.querySelectorAll('#s1 .weaker')[1].focus()")
    press(tab, " ")
    press(tab, " ")
    assert columns(tab, "s1") == [["α = 0.5", "", "plain", 1], ["α = 0.5", "", "words", 1]]
    assert tab.js("document.querySelectorAll('#s1 dd')[0].textContent") == "a"
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    assert tab.errors == []


def test_each_result_of_a_section_is_turned_by_itself(tab, tmp_path):
    """Two results with the same method, the first at four strengths, the second at two."""
    answers = {"none": ("a",), "A-PSR": ("own",)}
    plain = psr.AnswersByMethod("be", ("q ?",), answers, {"A-PSR": 1.25}, {})
    also = [
        replace(plain, at_strengths={"A-PSR": tuple(psr.AnswersAtStrength(alpha, (f"at {alpha:g}",)) for alpha in alphas)})
        for alphas in ((0.0, 2.0, 3.0), (0.5,))
    ]
    tab.open(psr.report(comparison(), tmp_path / "report.html", also=also), 1440)
    tab.js("document.querySelectorAll('.stronger')[0].click()")
    tab.js("document.querySelectorAll('.stronger')[0].click()")
    tab.js("document.querySelectorAll('.weaker')[1].click()")
    assert [each[:3] for each in columns(tab, "s1")] == [["α = 3", "", "at 3"], ["α = 0.5", "", "at 0.5"]]
    assert tab.errors == []


def press(page, key):
    """Press a key and let it go."""
    code = {"Enter": 13, " ": 32}[key]
    text = "\r" if key == "Enter" else key
    page.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
    page.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)


def test_paper_shows_the_strength_without_buttons_and_folds_again_what_was_folded(tab, answered):
    try:
        tab.open(answered, 1440)
        folded = "[...document.querySelectorAll('details')].map((each) => each.open)"
        before = tab.js(folded)
        assert False in before
        tab.js("document.querySelector('#s1 .stronger').click()")
        tab.send("Emulation.setEmulatedMedia", media="print")
        assert tab.js("[...document.querySelectorAll('.turn button')].every((each) => each.offsetParent === null)")
        assert tab.js("document.querySelector('#s1 output').offsetParent !== null")
        assert tab.js("getComputedStyle(document.querySelector('.push')).printColorAdjust") == "exact"
        tab.send("Emulation.setEmulatedMedia", media="")
        tab.js("dispatchEvent(new Event('beforeprint'))")  # some browsers say so twice
        tab.send("Page.printToPDF")
        tab.wait_for(f"JSON.stringify({folded}) === {str(before).lower().replace(' ', '')!r}")
        assert columns(tab, "s1")[0][0] == "α = 2"
        assert tab.errors == []
    finally:
        tab.send("Emulation.setEmulatedMedia", media="")


def test_contents_lead_to_their_parts(opened):
    assert opened.js("[...document.querySelectorAll('nav a')].every((link) => document.querySelector(link.getAttribute('href')))")


@pytest.mark.parametrize("figure", ["magnitude_heatmap", "magnitude_strips"])
def test_a_slider_goes_from_response_to_response(tab, tmp_path, figure):
    shown = psr.plots.by_response(getattr(psr.plots, figure), comparison())
    shown.write_html(tmp_path / "figure.html", include_plotlyjs=True)
    tab.open(tmp_path / "figure.html", 390)
    tab.wait_for("document.querySelector('.slider-group')")
    point = tab.js(
        "(() => { const box = document.querySelector('.slider-rail-touch-rect').getBoundingClientRect();"
        " return {x: box.right - 2, y: box.top + box.height / 2 + scrollY}; })()"
    )
    tab.click(point["x"], point["y"])
    count = len(shown.data) // 3
    tab.wait_for(f"document.querySelector('.js-plotly-plot').data.slice(-{count}).every((trace) => trace.visible)")
    assert "response 2" in tab.js("document.querySelector('.slider-label').textContent")
    visible = tab.js("document.querySelector('.js-plotly-plot').data.map((trace) => trace.visible)")
    assert visible == [owner == 2 for owner in range(3) for _ in range(count)]
    assert tab.js("document.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active") == 2
    assert tab.errors == []


def execute():
    """The script that makes pages of notebooks."""
    spec = importlib.util.spec_from_file_location("execute", NOTEBOOKS / "execute.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["execute"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_every_figure_of_a_notebooks_page_is_drawn(tab, tmp_path, name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    script = execute()
    page = tmp_path / f"{name}.html"
    page.write_text(script.as_page(notebook), encoding="utf-8")
    count = len(list(script.figures(notebook)))
    tab.open(page, min(browser.WIDTHS))  # where there is least room
    tab.wait_for(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {count}")
    check(tab, count)


def test_a_broken_fragment_or_figure_stops_nothing_else(tab, report, tmp_path):
    text = report.read_text(encoding="utf-8")
    broken = tmp_path / "report.html"
    first = text.index('<script type="application/json">') + len('<script type="application/json">')
    broken.write_text(text[:first] + "{" + text[first:], encoding="utf-8")
    tab.show(broken.as_uri() + "#100%", 1440)
    tab.js("document.getElementById('unfold').click()")
    tab.wait_for("document.documentElement.dataset.figures === 'drawn'")
    drawn = tab.js("document.querySelectorAll('.js-plotly-plot').length")
    assert drawn >= 5
    tab.js(
        "(() => { const choice = document.querySelector('select[data-block]'); choice.value = '1';"
        " choice.dispatchEvent(new Event('change')); })()"
    )
    tab.wait_for(f"document.querySelectorAll('.js-plotly-plot').length > {drawn}")


def test_nothing_offers_what_needs_a_script_where_none_runs_and_it_is_dark_all_the_same(tab, report, tmp_path):
    bare = tmp_path / "report.html"
    bare.write_text(re.sub(r"<script.*?</script>", "", report.read_text(encoding="utf-8"), flags=re.DOTALL), encoding="utf-8")
    for scheme, page in (("dark", "rgb(23, 24, 26)"), ("light", "rgb(255, 255, 255)")):
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(bare, 1440)
        assert tab.js("getComputedStyle(document.body).backgroundColor") == page
        assert tab.js("[...document.querySelectorAll('button')].every((each) => each.offsetParent === null)")
