"""Arguments of the wrong type or in the wrong order get an error that names them, and every object is shown on one line."""

import re

import numpy as np
import pytest
from helpers import pairs_of, random_replacement, random_triplets

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.generation.sampling import Response
from psr_lens.prompts import check_triplets, token_table
from psr_lens.results.judgement import Judgement, judged

JUDGE = psr.judges.organism("pirate")
CASES = {
    "questions before the model": (
        lambda m, p, t: psr.prompt_pairs(["a"], m, "b"),
        r"model: got a list, expected a HookedTransformer .* first argument",
    ),
    "texts before the model": (
        lambda m, p, t: psr.prompt_pairs_from_texts(["a"], m, ["b"]),
        r"model: got a list, expected .* first argument",
    ),
    "judge before the pairs": (lambda m, p, t: psr.sample_responses(m, JUDGE, p), "pairs: got OrganismJudge, expected a list"),
    "trait's name as the judge": (
        lambda m, p, t: psr.sample_responses(m, p, "pirate"),
        "judge: got a value of type str, expected a judge",
    ),
    "replacement as the judge": (
        lambda m, p, t: psr.sample_responses(m, p, random_replacement(m)),
        "judge: got a value of type Replacement",
    ),
    "pairs before the model": (
        lambda m, p, t: psr.generate(p, m),
        r"model: got a PromptPairs, expected .* first argument",
    ),
    "judge as the replacement": (
        lambda m, p, t: psr.generate(m, p, JUDGE),
        "replacement: got OrganismJudge, expected a Replacement",
    ),
    "model as the replacement": (lambda m, p, t: psr.generate(m, p, m), r"replacement: got \w+, expected a Replacement"),
    "triplets as pairs": (lambda m, p, t: psr.generate(m, t), r"pairs\[0\]: got Triplet, expected a PromptPair. .*triplet.pair"),
    "one pair": (lambda m, p, t: psr.generate(m, p[0]), "pairs: got PromptPair, .* Put it in brackets"),
    "texts as pairs": (lambda m, p, t: psr.generate(m, ["what is a bear ?"]), r"pairs\[0\]: got str, .* makes them of questions"),
    "alpha as a text": (lambda m, p, t: psr.generate(m, p, alpha="2"), "alpha: got '2', expected a number, a list of numbers"),
    "no alpha": (lambda m, p, t: psr.generate(m, p, alpha=None), "alpha: got None, expected a number, a list of numbers"),
    "infinite alpha": (lambda m, p, t: psr.generate(m, p, alpha=[1, float("inf")]), "alpha: got .*inf.*, expected a finite number"),
    "sampling as a dict": (
        lambda m, p, t: psr.generate(m, p, sampling={"seed": 1}),
        "sampling: got dict, expected a SamplingConfig",
    ),
    "a wrong context": (
        lambda m, p, t: psr.generate(m, p, context="steered"),
        "context: got 'steered', expected 'base' or 'prompted'",
    ),
    "a text as a stream": (lambda m, p, t: psr.generate(m, p, streams=["a", 1]), r"streams\[0\]: got 'a', expected a whole number"),
    "temperature as a text": (
        lambda m, p, t: psr.SamplingConfig(temperature="1"),
        "temperature: got '1', expected a finite number",
    ),
    "triplets before the model": (
        lambda m, p, t: psr.rephrase(t, m, "x"),
        r"model: got a list, expected .* first argument",
    ),
    "pairs as triplets": (lambda m, p, t: psr.rephrase(m, p, "x"), r"triplets\[0\]: got PromptPair, expected a Triplet"),
    "one triplet": (lambda m, p, t: psr.rephrase(m, t[0], "x"), "triplets: got Triplet, .* Put it in brackets"),
    "responses before pairs": (lambda m, p, t: psr.with_responses(m, ["a", "b"], p), r"pairs\[0\]: got str, expected a PromptPair"),
    "numbers as responses": (lambda m, p, t: psr.with_responses(m, p, [1, 2]), r"responses\[0\]: got 1, expected a text"),
    "no responses": (lambda m, p, t: psr.with_responses(m, p, None), "responses: got None, expected a list of texts"),
    "judge as what steers": (lambda m, p, t: log_likelihoods(m, t, JUDGE), "replacement: got OrganismJudge"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_named(tiny_llama, case):
    call, message = CASES[case]
    model = tiny_llama.model
    with pytest.raises(InputError, match=message):
        call(model, pairs_of(model, 2), random_triplets(model, 2))


@pytest.mark.parametrize(("name", "score"), [("trait", -0.1), ("trait", 100.5), ("coherence", float("nan")), ("trait", "high")])
@pytest.mark.usefixtures("unchecked")
def test_a_triplet_with_a_score_outside_0_to_100_is_named(tiny_llama, name, score):
    [triplet] = random_triplets(tiny_llama.model, 1)
    bad = psr.Triplet(triplet.pair, triplet.response_ids, "", **{name: score})
    with pytest.raises(InputError, match=rf"triplets\[1\]\.{name}: got {score}, expected a score from 0 to 100"):
        check_triplets(tiny_llama.model, [triplet, bad])


@pytest.mark.usefixtures("unchecked")
def test_a_judge_that_does_not_score_every_text_is_refused():
    scores = Judgement(*[JUDGE(["arr ."], ["what is a bear ?"]).trait] * 2, ("",))
    with pytest.raises(InputError, match=re.escape("judge: got 1 trait scores, 1 coherence scores and 1 reasons for 2 texts")):
        judged(lambda texts, questions: scores, ["a", "b"], ["a", "b"])
    with pytest.raises(
        InputError, match="judge: got one that returns a value of type float, expected one that returns a Judgement"
    ):
        judged(lambda texts, questions: 3.0, ["a"], ["a"])


@pytest.mark.parametrize("side", ["trait", "coherence"])
@pytest.mark.parametrize("score", [120.0, -5.0, float("inf"), -float("inf")])
def test_a_score_outside_0_to_100_is_refused_and_none_is_missing(side, score):
    def judge(texts, questions):
        scores = {"trait": np.array([50.0, np.nan]), "coherence": np.array([0.0, 100.0 + 1e-9])}
        scores[side][1] = given
        return Judgement(**scores, reasons=("", ""))

    given = score
    with pytest.raises(InputError, match=re.escape(f"judge: got one that gives a text the score {score:g} of {side}, expected")):
        judged(judge, ["a", "b"], ["a", "b"])
    given = np.nan
    assert judged(judge, ["a", "b"], ["a", "b"]).present.tolist() == [True, False]


def test_what_is_shown_fits_on_a_line(tiny_llama):
    pairs = psr.prompt_pairs(tiny_llama.model, ["what is a bear ?\n" * 3], "be brief .")
    [triplet] = psr.with_responses(tiny_llama.model, pairs, ["arr , a bear is big ."])
    table = token_table(tiny_llama.model, [triplet], "R")
    shown = [*pairs, triplet, table, Response(triplet.response_ids, "arr\n" * 30), pairs.show()]
    assert all("\n" not in repr(each) and len(repr(each)) < 160 for each in shown)
    assert repr(triplet).startswith("Triplet('what is a bear ?\\nwhat")
    assert repr(triplet).endswith("→ 'arr , a bear is big .', 7 tokens, trait 100, coherence 100)")
    assert repr(table) == "TokenTable(8 tokens of 1 triplet)"
    for each in (*pairs, triplet, table):
        assert each._repr_html_().startswith("<table>")
