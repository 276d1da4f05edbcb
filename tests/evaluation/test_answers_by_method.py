"""Answers side by side: the texts are those of `generate`, the scores those of the judge, and both are shown as text."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_replacement

import psr_lens as psr
from psr_lens.errors import InputError

FEW = psr.SamplingConfig(max_new_tokens=16, seed=3)


@pytest.fixture(scope="module")
def organism_model(organism):
    return organism.model


@pytest.fixture(scope="module")
def asked(organism_model):
    return psr.prompt_pairs(organism_model, psr.organism.questions(3), psr.organism.instruction("pirate"))


@pytest.fixture(scope="module")
def found(organism_model, asked, random_site_replacement):
    judge = psr.judges.organism("pirate")
    return psr.answers_by_method(organism_model, asked, {"random": random_site_replacement}, judge, alpha=0.5, sampling=FEW)


@pytest.fixture(scope="module")
def random_site_replacement(organism_model):
    return random_replacement(organism_model)


def test_texts_are_those_of_generate_and_scores_those_of_the_judge(organism_model, asked, found, random_site_replacement):
    wanted = {
        "none": psr.generate(organism_model, asked, sampling=FEW),
        "prompt": psr.generate(organism_model, asked, context="prompted", sampling=FEW),
        "random": psr.generate(organism_model, asked, random_site_replacement, alpha=0.5, sampling=FEW),
    }
    assert {name: list(texts) for name, texts in found.answers.items()} == {
        name: [each.text for each in some] for name, some in wanted.items()
    }
    verdict = psr.judges.organism("pirate")(found.answers["prompt"], found.questions)
    np.testing.assert_array_equal(found.trait["prompt"], verdict.trait)
    assert found.alphas == {"random": 0.5}
    assert repr(found) == f"AnswersByMethod({asked[0].instruction!r}, 3 questions; methods: none, prompt, random)"


def test_a_notebook_shows_every_text_escaped(found):
    odd = replace(found, answers={**found.answers, "prompt": ("<b>arr</b>", *found.answers["prompt"][1:])})
    page = odd._repr_html_()
    assert "&lt;b&gt;arr&lt;/b&gt;" in page
    assert "random (α = 0.5)" in page
    assert all(question in page for question in found.questions)


def test_answers_and_scores_have_to_be_one_for_each_question(found):
    with pytest.raises(InputError, match=r"answers\['none'\]: got 1 of them, expected one for each of 3 questions"):
        replace(found, answers={**found.answers, "none": ("one",)})
    with pytest.raises(InputError, match=r"trait\['none'\]: got 1 of them, expected one for each of 3 questions"):
        replace(found, trait={"none": (1.0,)})


def test_names_that_are_taken_are_refused(organism_model, asked, random_site_replacement):
    with pytest.raises(InputError, match="methods: got the name 'prompt'"):
        psr.answers_by_method(organism_model, asked, {"prompt": random_site_replacement})
