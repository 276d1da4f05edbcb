"""What a judge of the user's own may return as scores, and what is refused."""

import math
import re

import numpy as np
import pytest
import torch

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.results.judgement import Judgement, judged

pytestmark = pytest.mark.usefixtures("unchecked")
NAN = math.nan


@pytest.mark.parametrize(
    "given",
    [
        [90, None, 80],
        (90.0, NAN, np.float32(80)),
        np.array([90, None, 80], dtype=object),
        np.array([90, NAN, 80], dtype=np.float16),
        torch.tensor([90, NAN, 80]),
    ],
    ids=["list with None", "tuple", "array of objects", "half precision", "tensor"],
)
def test_scores_come_in_any_sequence_and_none_is_missing(given):
    found = judged(lambda texts, questions: Judgement(given, [None] * 3, ("",) * 3), ["a", "b", "c"], ["q"] * 3)
    assert found.trait.dtype == found.coherence.dtype == np.float64
    np.testing.assert_array_equal(found.trait, [90, NAN, 80])
    assert (found.sides, found.present.tolist()) == (("trait",), [True, False, True])


def test_an_evaluation_of_a_judge_with_lists_is_that_of_one_with_arrays(tiny_llama):
    pairs = psr.prompt_pairs(tiny_llama.model, ["what is a bear ?", "what ?", "tell me ."], "be brief .")
    options = {"sampling": psr.SamplingConfig(max_new_tokens=2)}
    kinds = ([60, None, 90], np.array([60, NAN, 90]))
    found = [
        psr.scores_at(
            tiny_llama.model, pairs, None, lambda texts, questions, kind=kind: Judgement(kind, kind, ("",) * 3), **options
        )
        for kind in kinds
    ]
    for scores in found:
        assert (scores.n, scores.missing, scores.trait, scores.coherence) == (2, 1, 75, 75)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ([True, False], "the score True"),
        (np.array([True, False]), "the score True"),
        (["90", 80], "the score '90'"),
        ([90 + 0j, 80], "the score (90+0j)"),
        ([[90], [80]], "scores of shape (2, 1)"),
        (np.array(90.0), "scores of shape ()"),
        (None, "scores of shape ()"),
        ([[90], [80, 70]], "a value of type list ("),
        (torch.ones(2, requires_grad=True), "a value of type Tensor ("),
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["trait", "coherence"])
def test_what_are_no_scores_is_named(side, given, got):
    scores = {"trait": [1.0, 2.0], "coherence": [1.0, 2.0]} | {side: given}
    with pytest.raises(InputError, match=re.escape(f"{side}: got {got}") + ".*, expected one number from 0 to 100 a text"):
        Judgement(**scores, reasons=("", ""))


@pytest.mark.parametrize("reasons", [None, "ab", ["a", None], 3, {"a": 1}], ids=str)
def test_what_are_no_reasons_is_named(reasons):
    with pytest.raises(InputError, match=r"^reasons: got .*, expected a tuple of texts, one a scored text\. Without reasons: "):
        Judgement([1.0, 2.0], [1.0, 2.0], reasons)
    assert Judgement([1.0], [2.0], ["why"]).reasons == ("why",)


@pytest.mark.parametrize("gives", ["trait", ("traits",), ["coherence", "x"], 1])
def test_kinds_of_score_that_there_are_not_are_refused(gives):
    with pytest.raises(
        InputError, match=re.escape(f"gives: got {gives!r}, expected None, or a tuple of") + r'.*`gives=\("trait",\)`'
    ):
        Judgement([1.0], [1.0], ("",), gives=gives)
