"""One observation says nothing about how it varies: its number has no interval, whatever measured it."""

import math

import numpy as np
from evaluated import QUICK, SAMPLING, WordJudge
from helpers import pairs_of, random_replacement, random_triplets

import psr_lens as psr
from psr_lens.judges import Judgement


def has_no_interval(row):
    return all(map(math.isnan, row.interval))


def test_no_measurement_on_one_question_or_response_has_an_interval(tiny_llama):
    model, [pair], [triplet] = tiny_llama.model, pairs_of(tiny_llama.model, 1), random_triplets(tiny_llama.model, 1)
    method, judge = random_replacement(model), WordJudge()
    calibration = psr.Calibration(targets=(50.0,), steps=1, maximum=1.0)
    tables = (
        psr.evaluate(model, [pair], method, judge, calibration=calibration, sampling=SAMPLING).table(),
        psr.collateral(model, [pair], method, judge, sampling=SAMPLING).table(),
        psr.robustness(model, [pair], method, judge, counter="just answer .", sampling=SAMPLING).table(),
        psr.faithfulness(model, [triplet], method).table(),
    )
    for table in tables:
        assert len(table) > 5
        assert all(map(has_no_interval, table))
        assert all(map(has_no_interval, table.mean_over("trait")))
    scores = psr.scores_at(model, [pair], method, judge, sampling=SAMPLING)
    assert np.isnan([*scores.trait_interval, *scores.coherence_interval]).all()


def test_nor_has_the_only_answer_that_has_a_score(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)

    def judge(texts, questions):
        scores = np.array([80.0 if question == pairs[1].asked else np.nan for question in questions])
        return Judgement(scores, scores, ("",) * len(texts))

    found = psr.evaluate(model, pairs, random_replacement(model), judge, calibration=QUICK, sampling=SAMPLING)
    for row in [*found.table(), found.difference(*list(found.curves)[:2], "trait")]:
        assert (row.n, has_no_interval(row)) == (1, True)
    assert {(row.value, row.missing) for row in found.table()} == {(80.0, 2)}
    scores = psr.scores_at(model, pairs, None, judge, sampling=SAMPLING)
    assert (scores.n, scores.missing, scores.trait, np.isnan(scores.trait_interval).all()) == (1, 2, 80.0, True)
