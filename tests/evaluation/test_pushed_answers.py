"""Answers token by token: their text is the answer's, their magnitudes are those that are recorded while the same answer is generated."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_tokenizers
import torch
from helpers import pairs_of, random_replacement, replacement_at

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import SHOWN
from psr_lens.evaluation.pushed_answers import PushedAnswer, answer_pieces, layer_relative, pushed_answers
from psr_lens.generation.sampling import Response
from psr_lens.prompts.token_text import is_special
from psr_lens.results.judgement import Judgement

FEW = psr.SamplingConfig(max_new_tokens=9, seed=3)
ALPHAS = {"PSR": 0.5, "QR": 1.0, "heads": 1.5, "last": 1.0}
ALSO_AT = [2, 0.5, 0, 1]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama.model


@pytest.fixture(scope="module")
def pairs(model):
    return pairs_of(model, 3)


@pytest.fixture(scope="module")
def methods(model):
    return {
        "PSR": random_replacement(model),
        "QR": random_replacement(model, layers=[1], span="QR", seed=1),
        "heads": replacement_at(model, "attn.hook_z", [0, 1]),
        "last": replacement_at(model, "hook_resid_post", [0], tokens="last", rule="constant"),
    }


@pytest.fixture(scope="module")
def found(model, pairs, methods):
    return psr.answers_by_method(model, pairs, methods, alpha=ALPHAS, also_at=ALSO_AT, sampling=FEW)


def streamed(model, pair, methods, column, alpha, number):
    tokens = psr.stream(model, pair, methods, alpha=alpha, columns=[column], sampling=FEW, number=number)
    return [(token.text, list(token.magnitudes.values())) for token in tokens]


@pytest.mark.parametrize("column", ["prompt", *ALPHAS])
def test_text_and_magnitudes_are_those_of_the_stream(model, pairs, methods, found, column):
    assert set(found.pushed) == {"prompt", *methods}
    for number, (pair, answer) in enumerate(zip(pairs, found.pushed[column], strict=True)):
        assert "".join(answer.pieces) == found.answers[column][number]
        texts, magnitudes = zip(*streamed(model, pair, methods, column, ALPHAS, number), strict=True)
        assert "".join(texts) == found.answers[column][number]
        torch.testing.assert_close(answer.magnitudes, torch.tensor(magnitudes), atol=2e-4, rtol=2e-4)
        assert answer.magnitudes.max() > 0.01


@pytest.mark.parametrize("column", ALPHAS)
def test_at_further_strengths_answers_are_those_of_generate_and_magnitudes_those_of_the_stream(
    model, pairs, methods, found, column
):
    others = found.at_strengths[column]
    assert [each.alpha for each in others] == sorted({*ALSO_AT} - {ALPHAS[column]})
    for each in others:
        wanted = psr.generate(model, pairs, methods[column], alpha=each.alpha, sampling=FEW)
        assert each.texts == tuple(response.text for response in wanted)
        assert each.trait == ()
        _, magnitudes = zip(*streamed(model, pairs[1], methods, column, {**ALPHAS, column: each.alpha}, 1), strict=True)
        torch.testing.assert_close(each.pushed[1].magnitudes, torch.tensor(magnitudes), atol=2e-4, rtol=2e-4)
        assert (each.alpha == 0) == (not each.pushed[1].magnitudes.any())
    unsteered = next((each.texts for each in others if each.alpha == 0), None)
    assert unsteered == found.answers["none"]


def test_at_strength_0_a_replacement_with_an_offset_still_steers(model, pairs):
    always = replace(random_replacement(model), offset=1.0)
    (at_0,) = psr.answers_by_method(model, pairs, always, also_at=[0], sampling=FEW).at_strengths["random"]
    assert at_0.texts == tuple(each.text for each in psr.generate(model, pairs, always, alpha=0, sampling=FEW))
    assert at_0.pushed[0].magnitudes.any()


def test_only_the_first_questions_are_looked_at_and_the_judge_scores_them(model, methods):
    many = pairs_of(model, SHOWN + 2)
    given = {"PSR": methods["PSR"]}
    judge = psr.judges.organism("pirate")
    found = psr.answers_by_method(model, many, given, judge, also_at=[2], sampling=FEW)
    (at_2,) = found.at_strengths["PSR"]
    assert len(found.answers["PSR"]) == len(found.trait["PSR"]) == SHOWN + 2
    assert len(found.pushed["PSR"]) == len(found.pushed["prompt"]) == len(at_2.texts) == len(at_2.pushed) == SHOWN
    assert at_2.trait == tuple(judge(at_2.texts, [pair.asked for pair in many[:SHOWN]]).trait.tolist())


def test_at_strength_0_the_score_is_that_of_no_steering_and_nothing_is_judged_again(model, methods):
    many, asked = pairs_of(model, SHOWN + 1), []

    def judge(texts, questions):
        asked.append(len(texts))
        return Judgement(np.array([len(text) % 100.0 for text in texts]), np.full(len(texts), 100.0), ("",) * len(texts))

    found = psr.answers_by_method(model, many, {"PSR": methods["PSR"]}, judge, also_at=[0], sampling=FEW)
    (at_0,) = found.at_strengths["PSR"]
    assert at_0.trait == found.trait["none"][:SHOWN]
    assert sum(asked) == 3 * len(many)


def test_a_strength_must_be_finite(model, pairs, methods):
    with pytest.raises(InputError, match=r"also_at: got \[1, nan\], expected a list of strengths"):
        psr.answers_by_method(model, pairs, methods, also_at=[1, float("nan")], sampling=FEW)


# Pieces


@pytest.mark.parametrize("kind", tiny_tokenizers.LOSSLESS)
@pytest.mark.parametrize("text", ["ünï 漢字 🏴‍☠️ arr , the bear .", "🦜", "a  b\n\nc", ""])
def test_pieces_make_up_the_text_and_no_character_is_cut(kind, text):
    tokenizer = tiny_tokenizers.tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = answer_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_with_the_last_of_them():
    tokenizer = tiny_tokenizers.tokenizer("byte level")
    ids = tokenizer("the 🦜 bear", add_special_tokens=False)["input_ids"]
    pieces = answer_pieces(tokenizer, ids)
    at = pieces.index("🦜")
    assert pieces[at - 3 : at] in ((" ", "", ""), ("", "", ""))
    assert pieces[at + 1] == " bear"


def test_an_answer_that_ends_within_a_character_keeps_what_there_is_of_it():
    tokenizer = tiny_tokenizers.tokenizer("byte level")
    ids = tokenizer("🦜", add_special_tokens=False)["input_ids"][:2]
    assert "".join(answer_pieces(tokenizer, ids)) == tokenizer.decode(ids)
    assert "\ufffd" in answer_pieces(tokenizer, ids)[-1]


def test_a_special_token_has_no_text():
    tokenizer = tiny_tokenizers.tokenizer("byte level")
    ids = [*tokenizer("the bear", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert answer_pieces(tokenizer, ids)[-1] == ""


@pytest.mark.parametrize("kind", tiny_tokenizers.LOSSLESS)
def test_a_special_token_is_told_from_a_piece_of_a_character(kind):
    tokenizer = tiny_tokenizers.tokenizer(kind)
    ids = tokenizer("the 🦜 bear", add_special_tokens=False)["input_ids"]
    # One of them knows no parrot, and its token for what it does not know is special.
    assert [is_special(tokenizer, each) for each in ids] == [each == tokenizer.unk_token_id for each in ids]
    assert len(ids) > 3
    assert is_special(tokenizer, tokenizer.eos_token_id)
    assert is_special(tokenizer, len(tokenizer) + 1000)


def test_an_answer_says_which_of_its_tokens_are_special(model, pairs, methods):
    tokenizer = model.tokenizer
    word, eos = tokenizer(" bear", add_special_tokens=False)["input_ids"][-1], tokenizer.eos_token_id
    response = Response((word, eos, word, eos), "")
    (found,) = pushed_answers(model, pairs[:1], [response], psr.SteeringPlan.of(methods["PSR"]), 1.0, 256)
    assert found.special == (False, True, False, True)
    assert [bool(piece) for piece in found.pieces] == [True, False, True, False]


# Relative magnitudes


def pushed(*rows):
    return PushedAnswer(("a",) * len(rows), torch.tensor(rows))


def test_relative_magnitudes_are_over_the_median_of_what_is_pushed_and_mean_over_layers():
    answers = [pushed([1.0, 0.0, 0.0], [3.0, 4.0, 0.0]), pushed([5.0, 0.0, 0.0])]
    one, other = layer_relative(answers)  # medians 3 and 4; nothing is pushed at the last point
    torch.testing.assert_close(one, torch.tensor([(1 / 3 + 0) / 2, (1 + 1) / 2], dtype=torch.float64))
    torch.testing.assert_close(other, torch.tensor([(5 / 3 + 0) / 2], dtype=torch.float64))


def test_medians_may_be_those_of_other_answers():
    (found,) = layer_relative([pushed([1.0, 6.0])], [pushed([2.0, 3.0], [4.0, 3.0])])
    torch.testing.assert_close(found, torch.tensor([(1 / 3 + 2) / 2], dtype=torch.float64))
    (nowhere,) = layer_relative([pushed([1.0, 6.0])], [pushed([0.0, 0.0])])
    assert nowhere.isnan().all()


def test_without_answers_or_tokens_there_is_no_median():
    assert layer_relative(()) == ()
    empty = PushedAnswer((), torch.zeros(0, 2))
    (alone,) = layer_relative([empty])
    assert alone.shape == (0,)
    beside, one = layer_relative([empty, pushed([2.0, 4.0])])
    assert (beside.tolist(), one.tolist()) == ([], [1.0])
    for units in ((), (empty,)):
        (unknown,) = layer_relative([pushed([1.0, 6.0], [2.0, 3.0])], units)
        assert unknown.shape == (2,)
        assert unknown.isnan().all()
