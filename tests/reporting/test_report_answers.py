"""Answers in a report: text stays text, each token has the colour of its magnitude, and other strengths can be turned to."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from made_up_results import comparison, side_by_side

import psr_lens as psr
from psr_lens.evaluation.answers_by_method import AnswersAtStrength
from psr_lens.evaluation.pushed_answers import PushedAnswer
from psr_lens.reporting.answer_blocks import FULL, answer_blocks

TEXT = " a<b>&amp; 'x' 漢</script>!"
PIECES = (" a", "<b>", "&", "amp;", " ", "'x'", " ", "", "", "漢", "</script>", "!", "")
PUSHES = (1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 1.0, 5.0, 0.5, 1.0, 0.2, 8.0, 7.0)  # the median of those above 0 is 1


def pushed(pieces, pushes, layers=2):
    return PushedAnswer(pieces, torch.tensor(pushes)[:, None] * torch.arange(1, layers + 1))


@pytest.fixture(scope="module")
def found():
    own = pushed(PIECES, PUSHES)
    prompted = pushed(("arr", ",\n", "matey"), (1.0, 1.0, 4.0))
    others = (
        AnswersAtStrength(-0.5, ("none <i>",), (pushed(("none", " <i>"), (0.0, 0.5)),), (0.0,)),
        AnswersAtStrength(2.0, ("",), (pushed(("",), (1.0,)),)),
    )
    answers = {"none": ("answer 0",), "prompt": ("arr,\nmatey",), "A-PSR": (TEXT,)}
    plain = psr.AnswersByMethod("talk like a <pirate>", ("what is number 0 ?",), answers, {"A-PSR": 1.25}, {})
    return replace(plain, pushed={"prompt": (prompted,), "A-PSR": (own,)}, at_strengths={"A-PSR": others})


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return psr.report(comparison(), tmp_path_factory.mktemp("answers") / "report.html", also=[found]).read_text(encoding="utf-8")


class Cells(HTMLParser):
    """The cells of the answers: their text as a browser has it, their coloured pieces, and the data of their steps."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.pieces, self.steps, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "dd":
            self.cells.append("")
            self.pieces.append([])
            self.inside = "dd"
        elif tag == "script":
            self.inside = "steps" if "steps" in (attrs.get("type") or "") else ""
        elif self.inside == "dd":
            assert (tag, attrs["class"]) == ("span", "push")
            self.pieces[-1].append([float(re.fullmatch(r"--push: ([\d.]+)", attrs["style"])[1]), attrs["title"], ""])
            self.inside = "piece"

    def handle_endtag(self, tag):
        if tag == "span" and self.inside == "piece":
            self.inside = "dd"
        elif tag in ("dd", "script"):
            self.inside = ""

    def handle_data(self, data):
        if self.inside in ("dd", "piece"):
            self.cells[-1] += data
        if self.inside == "piece":
            self.pieces[-1][-1][2] += data
        if self.inside == "steps":
            self.steps.append(json.loads(data))


@pytest.fixture(scope="module")
def cells(page):
    return Cells(page)


def test_the_text_is_the_answer_and_markup_in_it_stays_text(cells, page, found):
    assert cells.cells == [found.answers["none"][0], "arr,\nmatey", TEXT]
    assert "<b>&" not in page
    assert "漢</script>" not in page


def test_colours_are_multiples_of_the_median_and_the_number_is_said(cells):
    none, prompt, own = cells.pieces
    assert none == []
    assert prompt == [[0.5, "1.00 × the median", "arr"], [0.5, "1.00 × the median", ",\n"], [1.0, "4.00 × the median", "matey"]]
    assert [text for _, _, text in own] == [" a", "<b>", "&", "amp;", " ", "'x'", " ", "漢", "</script>", "!"]
    pushes = [1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 1.0, 5.0, 0.2, 8.0]  # the character of three tokens has the largest of theirs
    assert [share for share, _, _ in own] == [round(min(each / FULL, 1), 3) for each in pushes]
    assert [title for _, title, _ in own] == [f"{each:.2f} × the median" for each in pushes]


def test_how_hard_a_special_token_was_pushed_is_not_shown_on_the_next_token(found):
    own = replace(pushed(("a", "", " b", "", "漢"), (1.0, 50.0, 1.0, 7.0, 1.0)), special=(False, True, False, False, False))
    (block,) = answer_blocks(replace(found, pushed={"A-PSR": (own,)}, at_strengths={}))
    assert [(each.text, each.push) for each in block.answers[2].shown.pieces] == [("a", 1.0), (" b", 1.0), ("漢", 7.0)]


def test_the_scale_is_stated(page):
    words = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "0 median 2× A token’s colour is how hard it was pushed where it was predicted, at the token before it" in words
    assert "− and + show the answers at others, to all questions." in words


def test_all_strengths_are_in_the_page_from_the_lowest_up_relative_to_the_same_medians(cells, page):
    (steps,) = cells.steps
    assert [(each["alpha"], each["chosen"], each["trait"]) for each in steps] == [
        ("−0.5", False, "0"),
        ("1.25", True, ""),
        ("2", False, ""),
    ]
    assert steps[0]["pieces"] == [["none", 0.0], [" <i>", 0.5]]
    assert "".join(text for text, _ in steps[1]["pieces"]) == TEXT
    assert steps[2]["pieces"] == [["(nothing)", None]]
    assert '<output aria-live="off">α = 1.25</output>' in page  # what is read without a script


def test_answers_that_were_not_looked_at_are_shown_as_plain_text(tmp_path):
    page = psr.report(comparison(), tmp_path / "report.html", also=[side_by_side(3)]).read_text(encoding="utf-8")
    found = Cells(page)
    assert len(found.cells) == 9
    assert not any(found.pieces)
    assert found.steps == []
    for absent in ('class="push"', 'class="turned"', 'class="scale"'):
        assert absent not in page
    assert "A-PSR (α = 1.25)" in page


def test_only_as_many_answers_as_there_are_at_a_strength_can_be_turned_to(found):
    """Answers at further strengths are to the first questions alone."""
    two = replace(side_by_side(2), at_strengths={"A-PSR": found.at_strengths["A-PSR"]})
    first, second = answer_blocks(two)
    assert [each.alpha for each in first.answers[2].steps] == ["−0.5", "1.25", "2"]
    assert [each.alpha for each in second.answers[2].steps] == ["1.25"]
    assert not second.answers[2].has_choice
    assert second.answers[2].method == "A-PSR (α = 1.25)"


def test_each_result_of_a_section_is_turned_by_itself(found, tmp_path):
    """What is turned together has one `data-of`: a method's answers to all questions of one result, at the same strengths."""
    two = replace(side_by_side(2), at_strengths={"A-PSR": (AnswersAtStrength(0.5, ("a", "b")),)})
    page = psr.report(comparison(), tmp_path / "report.html", also=[found, two]).read_text(encoding="utf-8")
    keys = re.findall(r'class="turned" data-of="([^"]+)"', page)
    strengths = [[each["alpha"] for each in steps] for steps in Cells(page).steps]
    assert strengths == [["−0.5", "1.25", "2"], ["0.5", "1.25"], ["0.5", "1.25"]]
    assert keys[1] == keys[2] != keys[0]


def luminance(color):
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in color]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("which", ["light", "dark", "print"])
def test_text_can_be_read_on_every_colour(page, which):
    begin = {"light": ":root { --page", "dark": ':root[data-theme="dark"] {', "print": "@media print { :root, :root[data-theme] {"}[
        which
    ]
    rule = page[page.index(begin) :]
    variables = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", rule[: rule.index("}")]))
    colors = {
        name: [
            int(each * (2 // len(each)), 16) / 255 for each in re.findall(r"[0-9a-f]{2}" if len(value) == 7 else r"[0-9a-f]", value)
        ]
        for name, value in variables.items()
    }
    for share in (0, 0.25, 0.5, 0.75, 1):
        below = [(1 - share) * one + share * other for one, other in zip(colors["tint"], colors["hot"], strict=True)]
        light, dark = sorted((luminance(below), luminance(colors["ink"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (which, share)
