"""Tasks of several steps: their answers worked out by other means, and what counts as right."""

import contextlib
import io
import re

import pytest

import psr_lens as psr
from psr_lens.datasets import Procedure, procedures
from psr_lens.errors import InputError


def printed(question):
    """What the program in a question prints, by Python itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(question.partition("\n\n")[2], {})  # our own text
    return out.getvalue().strip()


def computed(question):
    found = int(re.match(r"Start with (\d+)", question)[1])
    for verb, number in re.findall(r"(Add|Multiply by|Subtract) (\d+)", question):
        found = {"Add": found + int(number), "Multiply by": found * int(number), "Subtract": found - int(number)}[verb]
    return str(found)


def transformed(question):
    word = re.search(r'word "(\w+)"', question)[1]
    for step in re.split(r"; |: ", question.partition("do these steps in order: ")[2].partition(". Say")[0]):
        letters, text = re.findall(r'"(\w)"', step), list(word)
        if "reverse" in step:
            text.reverse()
        elif "replace" in step:
            text = [letters[1] if each == letters[0] else each for each in text]
        elif "to the end" in step:
            text.append(text.pop(0))
        elif "remove" in step:
            del text[-1]
        elif "twice" in step:
            text.insert(0, text[0])
        else:
            assert "at the end" in step
            text += letters
        word = "".join(text)
    return word


def counted(question):
    letter, text = re.findall(r'"([^"]+)"', question)
    return str(sum(each == letter for each in text))


def ordered(question):
    return " ".join(sorted(re.findall(r"\w+", question.partition(": ")[2])))


def test_every_answer_is_what_the_question_says():
    ways = {"run": printed, "compute": computed, "transform": transformed, "count": counted, "sort": ordered}
    tasks = procedures(250, seed=1)
    assert {task.kind for task in tasks} == set(ways)
    for task in tasks:
        assert task.answer == ways[task.kind](task.question), task
        assert not task.is_right(task.question)  # an echo is wrong
        assert not task.is_right("")


def test_a_seed_gives_the_same_tasks_all_of_them_different():
    tasks = procedures(500)
    assert len({task.question for task in tasks}) == 500
    assert procedures(20) == tasks[:20]
    assert procedures(20, seed=1) != tasks[:20]


@pytest.mark.parametrize(
    ("answer", "kind", "text", "right"),
    [
        ("7", "compute", "3 + 4 = 7.", True),
        ("7", "compute", "**7**", True),
        ("7", "compute", "It is 7, not 8", False),
        ("7", "compute", "17", False),
        ("7", "compute", "7.5", False),
        ("7", "compute", "-7", False),
        ("-7", "compute", "C'est −7 !", True),
        ("1234", "compute", "1,234", True),
        ("0", "count", "none", False),
        ("dnim", "transform", 'Arr, it be "DNIM", matey', True),
        ("dnim", "transform", "dnimx", False),
        ("ant bee cat", "sort", "1. ant\n2. bee\n3. cat", True),
        ("ant bee cat", "sort", "Ant, bee et cat", True),
        ("ant bee cat", "sort", "ant, cat, bee", False),
        ("ant bee cat", "sort", "ant, bee, because, cat", False),
    ],
)
def test_right_is_the_result_whatever_the_words_around_it(answer, kind, text, right):
    assert Procedure("q", answer, kind).is_right(text) is right


@pytest.mark.parametrize(("given", "message"), [({"n": 0}, "n: got 0"), ({"n": 501}, "n: got 501"), ({"seed": -1}, "seed: got -1")])
def test_too_few_or_too_many_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        psr.datasets.procedures(**given)
