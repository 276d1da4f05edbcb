"""What `pairs.show()` marks: the instruction, the question, the prefix, the response and the span, each to the token."""

import re
from html.parser import HTMLParser
from io import StringIO

import pytest
from chat_templates import KINDS, TEMPLATES, stub
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.generation.sampled_triplets import judged_triplets
from psr_lens.generation.sampling import Response
from psr_lens.prompts import PromptPairs

QUESTIONS = ("what is a bear ?", "user", "  what is <b>a fox</b> 🦊 & é ?\n", "a")


def pairs_for(name, kind, questions=QUESTIONS, instruction="talk like a pirate .", **chosen):
    return psr.prompt_pairs(stub(name, kind), questions, instruction, template_kwargs=dict(TEMPLATES[name].variables), **chosen)


def letters(tokens, part):
    return "".join(token.text for token in tokens if token.part == part)


def bare(text):
    return re.sub(r"\s|↵", "", text)


class Text(HTMLParser):
    """The text of a page, and that its tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.text, self._open = "", []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_parts_are_marked_to_the_token(name, kind):
    pairs = pairs_for(name, kind, prefix="a fox is")
    for index, question in enumerate(QUESTIONS):
        for span in ("R", "QR"):
            view = pairs.show(index, span)
            base, prompted = view.rows["base"], view.rows["prompted"]
            for tokens, ids in ((base, pairs[index].base_ids), (prompted, pairs[index].prompted_ids)):
                assert len(tokens) == len(ids)
                marked = bare(letters(tokens, "question")).replace("‹", "").replace("›", "")
                wanted = bare(question)
                if "🦊" in wanted:  # pieces of characters are shown as their bytes
                    marked, wanted = marked[:14], wanted[:14]
                assert wanted in marked
                assert bare(letters(tokens, "prefix")) == "afoxis"
                count = pairs[index].span_length(span)
                assert [token.steered for token in tokens] == [False] * (len(ids) - count) + [True] * count
            assert "talklikeapirate." in bare(letters(prompted, "instruction"))
            assert letters(base, "instruction") == ""
            if not TEMPLATES[name].glued and kind == "byte level":
                assert bare(letters(prompted, "instruction")) == "talklikeapirate."


@given(st.text(min_size=1, max_size=12).filter(str.strip), st.text(min_size=1, max_size=12).filter(str.strip))
def test_any_text_is_shown_escaped_with_its_borders(question, instruction):
    view = pairs_for("zephyr", "byte level", [question], instruction).show(span="QR")
    page = Text(view._repr_html_())
    assert "QR" in page.text
    assert "question" in page.text
    assert str(view).count("⟪") == 3  # both prompts and the legend
    assert len(view.rows["prompted"]) > len(view.rows["base"])


def test_the_html_has_every_tokens_text_and_no_tag_of_a_users():
    pairs = pairs_for("zephyr", "byte level", ['<script>alert("x")</script>'], "<b>be brief</b>")
    page = pairs.show()._repr_html_()
    assert "<script" not in page
    assert "<b>be" not in page
    assert 'alert("x")' in Text(page).text.replace("\n", "")
    assert pairs._repr_html_() == page


def test_without_colour_the_marks_say_the_same():
    [text] = [str(pairs_for("zephyr", "byte level", ["what is a bear ?"]).show())]
    assert "\x1b" not in text
    flat = " ".join(text.split())
    assert "instruction⟦talk like a pirate .⟧" in flat.replace("│", "")
    assert "question⟦what│ is│ a│ bear│ ?⟧" in flat
    assert "R⟪↵⟫" in flat
    assert "the last prompt token, which predicts the first response token" in flat
    assert "│ between tokens" in flat


def test_a_terminal_gets_colours():
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=200)
    console.print(pairs_for("zephyr", "byte level").show())
    text = console.file.getvalue()
    assert "48;2;255;216;168" in text  # the instruction's background
    assert "48;2;188;220;242" in text
    assert "48;2;244;182;194" in text


def test_a_triplet_shows_its_response_within_the_span():
    model = stub("zephyr", "byte level")
    pairs = pairs_for("zephyr", "byte level", ["what is a bear ?"])
    ids = tuple(model.tokenizer("arr , a bear .")["input_ids"])
    triplets = judged_triplets(pairs, [Response(ids, "arr , a bear .")], None)
    for tokens in triplets.show().rows.values():
        assert [token.text for token in tokens[-len(ids) :]] == ["ar", "r", " ,", " a", " bear", " ."] or letters(
            tokens, "response"
        ) == "arr , a bear ."
        assert all(token.steered for token in tokens[-len(ids) - 1 :])
        assert not tokens[-len(ids) - 2].steered
    assert triplets[:1].show().rows == triplets.show().rows


def test_pairs_behave_as_the_list_they_were():
    pairs = pairs_for("zephyr", "byte level")
    listed = list(pairs)
    assert len(pairs) == len(listed)
    assert pairs == listed
    assert listed == pairs
    assert pairs != listed[1:]
    assert pairs[1:3] == listed[1:3]
    assert isinstance(pairs[1:3], PromptPairs)
    assert isinstance(pairs + pairs, PromptPairs)
    assert pairs[:1] + pairs[1:] == pairs
    assert pairs[:1] + listed[1:] == listed[:1] + pairs[1:] == pairs
    assert (listed[:1] + pairs[1:]).show(3).rows == pairs.show(3).rows
    assert pairs[-1] in pairs
    assert pairs.index(pairs[2]) == 2
    assert hash(pairs) == hash(PromptPairs(tuple(listed)))
    assert repr(pairs) == "PromptPairs(4 pairs; `.show()` shows one with its spans)"
    assert repr(pairs.show(1, "QR")) == "PromptView(pair 1 of 4, span QR; `print` shows it)"
    assert pairs.show(-1).caption == pairs.show(3).caption == "pair 3 of 4"


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_shown_says_why():
    pairs = pairs_for("zephyr", "byte level")
    with pytest.raises(InputError, match="index: got 4, expected 0 to 3"):
        pairs.show(4)
    with pytest.raises(InputError, match="index: got 0, expected at least one pair to show"):
        PromptPairs(()).show()
    with pytest.raises(InputError, match="tokenizer: got None, expected a tokenizer to give the tokens' texts"):
        PromptPairs(tuple(pairs)).show()
    with pytest.raises(InputError, match="span"):
        pairs.show(0, span="RQ")
