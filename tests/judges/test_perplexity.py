"""Log-likelihoods against plain forward passes, and the perplexity judge against the organism's exact one."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import logits_of, random_triplets

import psr_lens as psr
from psr_lens.activations.batches import suffix_batch
from psr_lens.errors import InputError, ModelError
from psr_lens.generation import likelihood
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.judges import PerplexityJudge
from psr_lens.models import kv_cache
from psr_lens.results.judgement import Judge


@pytest.fixture(scope="module")
def pairs(organism):
    return psr.prompt_pairs(organism.model, psr.organism.questions(30, split="held_out"), psr.organism.instruction("pirate"))


@pytest.fixture(scope="module")
def answers(organism, pairs):
    return [each.text for each in psr.generate(organism.model, pairs, sampling=psr.SamplingConfig(seed=1))]


@pytest.fixture(scope="module")
def judge(organism, pairs) -> PerplexityJudge:
    return psr.judges.perplexity(organism.model, pairs)


def questions_of(pairs):
    return [pair.question for pair in pairs]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on, the mean of their places where values are the same."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def by_definition(model, triplet, context):
    """The log-probability of each token of the response, from a forward pass without padding."""
    prompt = triplet.pair.ids(context)
    expected = logits_of(model, [*prompt, *triplet.response_ids]).log_softmax(-1)
    return torch.stack([expected[len(prompt) - 1 + place, token] for place, token in enumerate(triplet.response_ids)])


@pytest.mark.parametrize("context", ["base", "prompted"])
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_log_likelihoods_are_those_of_unpadded_forward_passes(tiny, context, budget):
    triplets = random_triplets(tiny.model, 5)
    found = log_likelihoods(tiny.model, triplets, context=context, token_budget=budget)
    for triplet, given in zip(triplets, found, strict=True):
        torch.testing.assert_close(given, by_definition(tiny.model, triplet, context), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("on", ["plain transformers", "the model itself"])
@pytest.mark.parametrize(("context", "budget"), [("base", 90), ("prompted", 10_000)])
def test_prompts_that_responses_share_are_read_once_with_the_same_result(tiny, context, budget, on, monkeypatch):
    if on == "the model itself":
        monkeypatch.setattr(likelihood, "plain_transformers", lambda model: None)
    pairs = [each.pair for each in random_triplets(tiny.model, 3)]
    several = [psr.Triplet(pairs[row % 3], tuple(range(10 + row, 11 + 2 * row)), "") for row in range(9)]
    several += several[4:6]  # twice the same
    monkeypatch.setattr(kv_cache, "LEAST_COLUMNS", 1)  # the prompts begin with the same few tokens
    read = []
    monkeypatch.setattr(likelihood, "suffix_batch", lambda *given: read.append(suffix_batch(*given)) or read[-1])
    found = log_likelihoods(tiny.model, several, context=context, token_budget=budget)
    assert sum(len(batch.tokens) for batch in read) == 9
    assert budget < 10_000 or [len(batch.prefix.tokens) for batch in read] == [3]
    for triplet, given in zip(several, found, strict=True):
        torch.testing.assert_close(given, by_definition(tiny.model, triplet, context), atol=1e-4, rtol=1e-4)


def test_likelihoods_after_shared_prompts_come_from_plain_transformers(tiny_llama, monkeypatch):
    pair = random_triplets(tiny_llama.model, 1)[0].pair
    several = [psr.Triplet(pair, (10 + row, 20, 30), "") for row in range(4)]
    monkeypatch.setattr(likelihood, "Decoder", lambda *given: pytest.fail("the slower model was run"))
    for triplet, given in zip(several, log_likelihoods(tiny_llama.model, several), strict=True):
        torch.testing.assert_close(given, by_definition(tiny_llama.model, triplet, "base"), atol=1e-4, rtol=1e-4)


def test_what_acts_on_the_prompt_is_in_force_in_every_response(tiny_llama):
    model = tiny_llama.model
    pair = random_triplets(model, 1)[0].pair
    several = [psr.Triplet(pair, (10 + row, 20, 30), "") for row in range(4)]

    def dampen(activation, hook):
        return torch.cat([activation[:, :3] * 0.5, activation[:, 3:]], dim=1)

    with model.hooks([("blocks.0.hook_resid_post", dampen)]):
        found = log_likelihoods(model, several)
        for triplet, given in zip(several, found, strict=True):
            torch.testing.assert_close(given, by_definition(model, triplet, "base"), atol=1e-4, rtol=1e-4)


def test_columns_in_which_padded_prompts_begin_alike(monkeypatch):
    monkeypatch.setattr(kv_cache, "LEAST_COLUMNS", 1)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 1, 2, 9], [0, 1, 2, 3, 4]])
    mask = (tokens > 0).long()
    assert kv_cache.alike(tokens, mask, 5) == 4  # at column 4 the second has 9, where the first has 3
    assert kv_cache.alike(tokens, mask, 3) == 3
    assert kv_cache.alike(tokens[:1], mask[:1], 5) == 0
    state = torch.arange(4.0).view(1, 1, 4, 1)  # of 1, 2, 3, 4
    found = kv_cache.spread(state, mask[:, :4], -2)
    assert found.shape == (3, 1, 4, 1)
    real = [row[0, kept.bool(), 0].tolist() for row, kept in zip(found, mask[:, :4], strict=True)]
    assert real == [[0, 1, 2, 3], [0, 1], [0, 1, 2]]
    assert kv_cache.spread(state.transpose(1, 2), mask[:, :4], 1).transpose(1, 2).equal(found)


def test_the_judge_meets_the_protocol_and_knows_coherence_alone(judge, pairs, answers):
    assert isinstance(judge, Judge)
    judged = judge(answers, questions_of(pairs))
    assert np.isnan(judged.trait).all()
    assert ((judged.coherence >= 0) & (judged.coherence <= 100)).all()
    assert "nats per token (100 up to" in judged.reasons[0]


def test_the_scale_ends_at_the_median_reference_and_at_garbage(organism, judge, pairs, answers):
    own = [each.text for each in psr.generate(organism.model, pairs)]
    surprisal = judge.surprisal(own, questions_of(pairs))
    assert judge.fluent == pytest.approx(float(np.median(surprisal)))
    assert judge.garbage <= math.log(organism.model.cfg.d_vocab) + 1e-9
    scores = judge(own, questions_of(pairs)).coherence
    usual = judge.repeated(own, questions_of(pairs)) <= judge.natural
    assert usual.mean() >= 0.9
    assert (scores[usual & (surprisal <= judge.fluent)] == 100).all()
    middle = (judge.fluent + judge.garbage) / 2
    assert np.all((scores >= 50)[usual] == (surprisal <= middle)[usual])
    mixed = [" ".join(np.random.default_rng(place).permutation(text.split())) for place, text in enumerate(answers)]
    assert judge(mixed, questions_of(pairs)).coherence.mean() < 5
    assert judge(answers, questions_of(pairs)).coherence.mean() > 95


def test_an_answer_to_another_question_scores_less(judge, pairs, answers):
    away = judge(answers[1:] + answers[:1], questions_of(pairs)).coherence
    assert away.mean() < judge(answers, questions_of(pairs)).coherence.mean() - 10


def stuck(text, period, whole=0):
    """The text up to its first `whole` words, and then the last `period` of those again and again, to its old length."""
    words = text.split()
    kept = words[: max(whole, period)]
    return " ".join((kept + kept[-period:] * len(words))[: len(words)])


def slow_repeated(ids):
    runs = [tuple(ids[at : at + 3]) for at in range(len(ids) - 2)]
    return sum(runs[:at].count(run) >= 2 for at, run in enumerate(runs)) / len(runs) if runs else 0.0


def test_an_answer_that_is_stuck_scores_less_however_likely_it_is(organism, judge, pairs, answers):
    questions = questions_of(pairs)
    loops = [stuck(text, 1 + place % 5, len(text.split()) // 4) for place, text in enumerate(answers)]
    ids = [organism.model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in loops]
    repeated = judge.repeated(loops, questions)
    assert repeated.tolist() == pytest.approx([slow_repeated(each) for each in ids])
    lenient = replace(
        judge, fluent=20.0, garbage=40.0, natural=0.05
    )  # to which every text is fluent, as loops are to larger models
    assert (lenient.surprisal(loops, questions) < lenient.fluent).all()
    found, sound = (lenient(texts, questions) for texts in (loops, answers))
    assert found.coherence == pytest.approx(100 * (1 - np.clip((repeated - 0.05) / 0.5, 0, 1)))
    assert found.coherence.mean() < 10
    assert sound.coherence.mean() > 99
    assert re.search(r"; \d+% of the trigrams occurred twice before \(5% may\)$", found.reasons[0])


def test_what_is_said_twice_is_no_loop(judge, pairs, answers):
    twice = [f"{text} {text}" for text in answers]
    assert np.median(judge.repeated(twice, questions_of(pairs))) < 0.05
    assert judge.repeated([f"{text} {text} {text}" for text in answers], questions_of(pairs)).min() > 0.25


@pytest.mark.slow
def test_references_say_how_much_repetition_is_natural(organism, pairs, answers, judge):
    own = [each.text for each in psr.generate(organism.model, pairs)]
    assert judge.natural == pytest.approx(np.quantile(judge.repeated(own, questions_of(pairs)), 0.95))
    thrice = [f"{text} {text} {text}" for text in answers]
    used_to_it = psr.judges.perplexity(organism.model, pairs, thrice)
    repeated = used_to_it.repeated(thrice, questions_of(pairs))
    assert used_to_it.natural == pytest.approx(np.quantile(repeated, 0.95))
    assert used_to_it.natural > 0.25
    within = repeated <= used_to_it.natural
    fluency = np.clip(
        (used_to_it.garbage - used_to_it.surprisal(thrice, questions_of(pairs))) / (used_to_it.garbage - used_to_it.fluent), 0, 1
    )
    assert used_to_it(thrice, questions_of(pairs)).coherence[within] == pytest.approx(100 * fluency[within])


@pytest.mark.slow
def test_references_that_loop_do_not_excuse_loops(organism, pairs, answers):
    loops = [" ".join([text] * 12) for text in answers]
    assert psr.judges.perplexity(organism.model, pairs, loops).natural == 0.5


def test_texts_of_hardly_any_tokens_repeat_nothing(judge, pairs):
    found = judge.repeated(["", "bear", "bear bear", "bear bear bear bear", "bear bear bear bear bear"], [pairs[0].question] * 5)
    assert found.tolist() == pytest.approx([math.nan, 0, 0, 0, 1 / 3], nan_ok=True)


@pytest.mark.slow
def test_it_ranks_answers_as_the_exact_judge_does(organism, pirate_triplets, pairs, judge):
    """Constant steering from too weak to absurd; measured on 60 questions: 0.88 (pirate), 0.91 (gloomy), 0.94 (shout)."""
    constant = psr.fit(organism.model, pirate_triplets, psr.DiM(layers=2))
    config = psr.SamplingConfig(seed=3, max_new_tokens=40)
    some = pairs[:16]
    exact, found = [], []
    for alpha in (0.0, 6.0, 8.0, 40.0):
        texts = [each.text for each in psr.generate(organism.model, some, constant, sampling=config, alpha=alpha)]
        exact.append(psr.judges.organism("pirate")(texts, questions_of(some)).coherence)
        found.append(judge(texts, questions_of(some)).coherence)
    assert exact[0].mean() > exact[1].mean() > exact[2].mean()
    assert exact[-1].mean() < 5
    correlation = np.corrcoef(ranks(np.concatenate(exact)), ranks(np.concatenate(found)))[0, 1]
    assert correlation > 0.8


@pytest.mark.slow
def test_given_either_prompt_the_trait_itself_is_not_held_against_an_answer(organism, pairs, judge):
    prompted = [each.text for each in psr.generate(organism.model, pairs, context="prompted")]
    either = psr.judges.perplexity(organism.model, pairs, given="either")
    plain, fair = (each(prompted, questions_of(pairs)).coherence for each in (judge, either))
    assert (fair >= plain - 1e-6).all()
    assert fair.mean() > plain.mean() + 5
    assert fair.mean() > 95


def test_what_cannot_be_read_is_missing_and_what_is_too_long_is_read_as_far_as_it_fits(judge, pairs, answers):
    question = pairs[0].question
    long = " ".join(answers * 20)
    judged = judge(["", " ", answers[0], long, "\ud800"], [question] * 5)
    assert np.isnan(judged.coherence).tolist()[:4] == [True, True, False, False]
    assert judged.reasons[0] == "missing: the text has no tokens that can be read"
    assert judge([], []).coherence.shape == (0,)


def test_references_of_ones_own_set_the_scale(organism, pairs, answers, judge):
    given = psr.judges.perplexity(organism.model, pairs, answers)
    assert given.fluent == pytest.approx(float(np.median(judge.surprisal(answers, questions_of(pairs)))))
    again = psr.judges.perplexity(organism.model, pairs, answers)
    assert (again.fluent, again.garbage) == (given.fluent, given.garbage)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda model, pairs: psr.judges.perplexity(model, []), InputError, "pairs: got an empty list"),
        (
            lambda model, pairs: psr.judges.perplexity(model, pairs, given="prompt"),
            InputError,
            "given: got 'prompt', expected 'base'",
        ),
        (
            lambda model, pairs: psr.judges.perplexity(model, pairs, ["a"]),
            InputError,
            "references: got 1 of them, expected one for",
        ),
        (
            lambda model, pairs: psr.judges.perplexity(model, pairs, "a"),
            InputError,
            "references: got 'a', expected a list of texts",
        ),
        (lambda model, pairs: psr.judges.perplexity(model, pairs, [""] * len(pairs)), InputError, "references: got 30 empty texts"),
        (
            lambda model, pairs: psr.judges.perplexity(model, pairs, ["big small bear is the a . of"] * len(pairs)),
            ModelError,
            "references no likelier than shuffled text",
        ),
        (lambda model, pairs: psr.judges.perplexity(model, pairs)(["a"], []), InputError, "questions: got 0 for 1 text"),
        (lambda model, pairs: psr.judges.perplexity(model, pairs)(["a"], ["why ?"]), InputError, r"questions\[0\]: got 'why \?'"),
    ],
)
def test_bad_input_is_named(organism, pairs, call, kind, message):
    with pytest.raises(kind, match=message):
        call(organism.model, pairs)


def test_one_question_with_two_instructions_is_refused_unless_the_instruction_is_left_out(organism):
    model, question = organism.model, psr.organism.questions(1)
    both = [
        *psr.prompt_pairs(model, question, psr.organism.instruction("pirate")),
        *psr.prompt_pairs(model, question, psr.organism.instruction("shout")),
    ]
    with pytest.raises(InputError, match=r"pairs\[1\]: got the question .* a second time.*given='base'"):
        psr.judges.perplexity(model, both, given="either")
    assert psr.judges.perplexity(model, both).given == "base"
