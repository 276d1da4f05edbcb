"""Answers side by side: the texts are those of `generate`, the scores those of the judge, and both are shown as text."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_replacement

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.reporting.figures_by_result import _FURTHER as FURTHER

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


def test_of_several_instructions_each_answer_shows_its_own(organism_model, random_site_replacement):
    """In one place for all results: the label counts the others, and an answer stands beside the instruction that it was given."""
    questions = psr.organism.questions(3)
    mixed = psr.prompt_pairs(organism_model, questions, [psr.organism.instruction(trait) for trait in ("pirate", "shout", "brief")])
    few = psr.SamplingConfig(max_new_tokens=2)
    found = psr.answers_by_method(organism_model, mixed, random_site_replacement, sampling=few)
    assert found.instructions == tuple(pair.instruction for pair in mixed)
    assert found.instruction == f"{mixed[0].instruction} (and 2 others)"
    page, blocks = found._repr_html_(), FURTHER[psr.AnswersByMethod][1](found, 1000)
    for question, pair, block in zip(questions, mixed, blocks, strict=True):
        assert f"{question} [{pair.instruction}]" in page
        assert block.question == f"{question} [{pair.instruction}]"
    triplets = psr.with_responses(organism_model, mixed, ["a cold stone"] * 3)
    results = [
        psr.compare(organism_model, triplets[:2], random_site_replacement, layers=0),
        psr.faithfulness(organism_model, {"one": triplets[:1], "other": triplets[1:2]}, random_site_replacement, layers=0),
    ]
    assert {each.instruction for each in results} == {f"{mixed[0].instruction} (and 1 other)"}
    alike = psr.compare(organism_model, triplets[:1] * 2, random_site_replacement, layers=0)
    assert alike.instruction == mixed[0].instruction
    with pytest.raises(InputError, match=r"instructions: got 1 of them, expected one for each of 3 questions"):
        replace(found, instructions=("one",))
