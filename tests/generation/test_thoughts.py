"""Thoughts as the end of both prompts: which tokens are read, fitted, steered and judged, on texts and with a marker of our own making."""

import json
import re
from dataclasses import replace
from typing import Any, NamedTuple

import chat_templates
import numpy as np
import oracles
import pytest
import torch
from helpers import BACKENDS, pairs_of, random_replacement, random_triplets, save_tiny

import psr_lens as psr
from psr_lens.activations.store.triplets import pair_from, pair_json
from psr_lens.errors import InputError
from psr_lens.evaluation.judge_settings import check_judge, judge_at, load_judge
from psr_lens.generation.sampled_triplets import Dropped, Triplets
from psr_lens.generation.sampling import Response
from psr_lens.prompts import PromptPairs, remade
from psr_lens.results.judgement import Judgement, identity_of

FEW = psr.SamplingConfig(max_new_tokens=6, temperature=0)
MARK = "</think>"


class Thinker(NamedTuple):
    """A tiny model whose vocabulary has the marker as a word, as Qwen3's has."""

    model: Any
    hf: Any
    marker: int


@pytest.fixture(scope="module", params=BACKENDS)
def thinker(request, tmp_path_factory) -> Thinker:
    folder = save_tiny("llama", tmp_path_factory.mktemp("thinker"), settings={"vocab_size": 370})
    model = psr.load_model(folder, backend=request.param, verify=False)
    assert model.tokenizer.add_tokens([MARK]) == 1
    marker = model.tokenizer.convert_tokens_to_ids(MARK)
    assert marker < model.cfg.d_vocab
    return Thinker(model, oracles.transformer(folder), marker)


def test_a_response_is_divided_at_its_marker_and_none_of_its_ids_changes(thinker):
    model, _, marker = thinker
    [one, two, three] = pairs_of(model, 3)
    wholes = [
        psr.Triplet(one, (40, 41, marker, 50, marker, 51), "", trait=70),
        psr.Triplet(two, (40, 41), "no end"),
        psr.Triplet(three, (42, marker), ""),
    ]
    found = psr.answers_after(model, wholes)
    [answer] = found
    assert answer.pair.base_ids == (*one.base_ids, 40, 41, marker)
    assert answer.pair.prompted_ids == (*one.prompted_ids, 40, 41, marker)
    assert answer.response_ids == (50, marker, 51)  # only the first marker ends the thought
    assert answer.pair.question_length == one.question_length + 3
    assert answer.trait == 70
    assert answer.pair.thought_ids == (40, 41, marker)
    assert [each.reason for each in found.dropped] == ["without the marker", "empty"]
    assert found.summary() == "1 triplet kept, 2 dropped (1 without the marker, 1 empty)"
    judged = Triplets(tuple(wholes), (Dropped("q", "r", "incoherent"),), model.tokenizer)
    assert [each.reason for each in psr.answers_after(model, judged).dropped] == ["incoherent", "without the marker", "empty"]


def test_activations_are_those_of_the_answer_alone(thinker):
    """From the marker's token on, which predicts the answer's first, as transformers reads the whole sequence."""
    model, hf, marker = thinker
    wholes = [replace(each, response_ids=(40, marker, *each.response_ids, 60)) for each in random_triplets(model, 3)]
    found = psr.answers_after(model, wholes)
    captured = psr.capture(model, found, "resid_post")
    for layer in range(model.cfg.n_layers):
        wanted = []
        for whole in wholes:
            base, prompted = (
                oracles.read(hf, [*ids, *whole.response_ids]).residuals[layer][len(ids) + 1 :]
                for ids in (whole.pair.base_ids, whole.pair.prompted_ids)
            )
            wanted.append(prompted - base)
        torch.testing.assert_close(captured["resid_post", layer].float(), torch.cat(wanted), atol=2e-4, rtol=2e-3)


def test_a_thought_is_not_steered_and_the_answer_is(thinker, monkeypatch):
    """Greedy answers with a replacement in force, against plain transformers steered from the marker on."""
    model, hf, marker = thinker
    pairs = pairs_of(model, 3)
    thoughts = [Response((44, 45, marker), f"a b{MARK}"), Response((46, 47), "a b"), Response((48, marker), f"a{MARK}")]
    asked = []

    def generate(model, given, *, context, sampling):
        asked.append((context, sampling.stop, sampling.max_new_tokens))
        return thoughts

    monkeypatch.setattr("psr_lens.generation.thoughts.generate", generate)
    with pytest.warns(UserWarning, match=rf"^1 of 3 thoughts did not end in '{MARK}' within 6 tokens"):
        thinking = psr.think(model, pairs, sampling=replace(FEW, stop=("x",)))
    assert asked == [("base", ("x", MARK), 6)]
    assert [pair.question for pair in thinking] == [pairs[0].question, pairs[2].question]
    steering = random_replacement(model, rank=2, size=0.3)
    found = psr.generate(model, thinking, steering, sampling=FEW)
    for pair, thought, answer in zip(thinking, (thoughts[0], thoughts[2]), found, strict=True):
        edits = oracles.layer_edits(steering.sites, 1.0, len(pair.base_ids) - 1)
        wanted = oracles.greedy(hf, pair.base_ids, len(answer.ids), edits)
        assert pair.base_ids[-len(thought.ids) :] == thought.ids
        assert list(answer.ids) == wanted


def test_everything_after_that_is_about_the_answer(organism):
    model = organism.model
    pairs = psr.prompt_pairs(model, psr.organism.questions(6), psr.organism.instruction("pirate"))
    thinking = psr.think(model, pairs, ",", context="prompted", sampling=psr.SamplingConfig(temperature=0))
    assert all(model.tokenizer.decode(pair.thought_ids).endswith(",") for pair in thinking)
    shown = thinking.show(0).rows["base"]
    assert [token.part for token in shown if token.steered] == ["prefix"]
    triplets = psr.sample_responses(model, thinking)
    assert all(not triplet.response.startswith("arr") for triplet in triplets)  # that word was the thought
    both = [pair.base_ids[-pair.question_length :] for pair in thinking]
    assert both == [pair.prompted_ids[-pair.question_length :] for pair in thinking]
    other = psr.rephrase(model, triplets, "speak as a pirate would .")
    for old, new in zip(triplets, other, strict=True):
        assert new.pair.prompted_ids[-new.pair.question_length :] == old.pair.base_ids[-new.pair.question_length :]
        assert new.pair.base_ids == old.pair.base_ids  # the thought stands in the paraphrased prompt too
    captured = psr.capture(model, triplets, "resid_post")
    assert len(captured.tokens) == sum(1 + len(each.response_ids) for each in triplets)


@pytest.mark.parametrize("kind", chat_templates.KINDS)
@pytest.mark.parametrize("template", ["qwen", "mistral"])
def test_a_thought_keeps_its_ids_wherever_its_prompts_are_made_again(template, kind):
    """Ids that the tokenizer would not make of the same text, and after templates that put a space before an answer."""
    model = chat_templates.stub(template, kind)
    pairs = psr.prompt_pairs(model, ["what is a bear ?", "where is the sea ?"], "talk like a pirate .", prefix="well ,")
    letter = {text: model.tokenizer.encode(text, add_special_tokens=False)[-1] for text in "bear,"}
    thought = (*(letter[each] for each in "bear"), model.tokenizer.eos_token_id, letter[","])
    text = model.tokenizer.decode(thought, skip_special_tokens=True)
    assert tuple(model.tokenizer.encode(text, add_special_tokens=False)) != thought
    answers = psr.answers_after(model, [psr.Triplet(pair, (*thought, *thought[:2]), "x") for pair in pairs], ",")
    for old, new, pair in zip(answers, psr.rephrase(model, answers, "sing of the sea ."), pairs, strict=True):
        assert old.pair.base_ids == new.pair.base_ids == (*pair.base_ids, *thought)
        assert old.pair.thought_ids == new.pair.thought_ids == thought
        [alone] = psr.prompt_pairs(model, [pair.question], "sing of the sea .", prefix="well ,")
        assert new.pair.prompted_ids == (*alone.prompted_ids, *thought)
        assert new.pair.question_length == alone.question_length + len(thought)
    asked = remade(model, [each.pair for each in answers], questions=["why ?"] * 2)
    [alone] = psr.prompt_pairs(model, ["why ?"], "talk like a pirate .", prefix="well ,")
    assert {pair.ids("base") for pair in asked} == {(*alone.base_ids, *thought)}
    assert pair_from(json.loads(json.dumps(pair_json(answers[0].pair)))) == answers[0].pair
    # A thought after a thought:
    [again] = psr.answers_after(model, [replace(answers[0], response_ids=(thought[0], letter[","], thought[1]))], ",")
    assert again.pair.thought_ids == (*thought, thought[0], letter[","])
    shown = PromptPairs((again.pair,), model.tokenizer).show(0).rows["prompted"]
    last = [token.part for token in shown][-len(again.pair.thought_ids) - 1 :]
    assert set(last) == {"prefix"}
    assert [token.part for token in shown].count("prefix") >= len(again.pair.thought_ids) + 2  # "well ," too


@pytest.mark.parametrize("after", ["", " ", "<special>"])
def test_a_marker_that_cannot_be_found_is_refused(thinker, after):
    model = thinker.model
    marker = model.tokenizer.eos_token if after == "<special>" else after
    for call in (lambda: psr.think(model, pairs_of(model, 1), marker), lambda: psr.answers_after(model, [], marker)):
        with pytest.raises(InputError, match=rf"after: got {re.escape(repr(marker))}, expected (the|a) text"):
            call()


def test_thoughts_that_never_end_are_an_error(thinker):
    model = thinker.model
    with pytest.raises(InputError, match=r"after: got 'Answer:', which ended none of 2 thoughts of up to 6 tokens.*max_new_tokens"):
        psr.think(model, pairs_of(model, 2), "Answer:", sampling=FEW)


# --- judging the answer alone -----------------------------------------------------------------------------------------------


def lengths(texts, questions):
    scores = np.array([float(len(text)) for text in texts])
    return Judgement(scores, scores + 1, tuple(f"{text}|{question}" for text, question in zip(texts, questions, strict=True)))


def test_a_judge_of_the_answer_does_not_see_the_thought():
    judge = psr.judges.answer_only(lengths)
    found = judge([f"so{MARK}\n yes", "never ends", f"{MARK}no {MARK} x", f"a{MARK}"], ["p", "q", "r", "s"])
    np.testing.assert_array_equal(found.trait, [3, np.nan, 13, 0])
    np.testing.assert_array_equal(found.coherence, [4, np.nan, 14, 1])
    assert found.reasons == ("yes|p", f"missing: the text has no '{MARK}'", f"no {MARK} x|r", "|s")
    assert judge([], []).trait.shape == (0,)
    one_sided = psr.judges.answer_only(psr.judges.fraction("a"), after="Answer:")(["b Answer: a"], ["q"])
    assert (one_sided.gives, one_sided.trait[0]) == (("trait",), 100)


def test_it_is_told_apart_by_its_judge_and_its_marker():
    fraction, only = psr.judges.fraction, psr.judges.answer_only
    found = [identity_of(each) for each in (only(fraction("a")), only(fraction("b")), only(fraction("a"), "x"), fraction("a"))]
    assert len({*found}) == 4
    assert None not in found
    assert only(lengths).identity is None
    with pytest.raises(InputError, match="after: got an empty text"):
        only(lengths, "")


def test_settings_name_the_judge_within():
    given = {"name": "answer_only", "judge": {"name": "fraction", "pattern": "a"}, "after": "x"}
    assert load_judge(given, None, []) == psr.judges.answer_only(psr.judges.fraction("a"), "x")
    with pytest.raises(InputError, match=r"judge\.judge: got 'nobody'"):
        check_judge({"name": "answer_only", "judge": "nobody"})
    with pytest.raises(InputError, match=r"judge\.judge\.api_key_env"):
        check_judge({"name": "answer_only", "judge": {"name": "llm", "api_key_env": "SECRET"}})
    with pytest.raises(InputError, match=r"judge\.judge: got None"):
        check_judge({"name": "answer_only"})
    inside = {"name": "answer_only", "judge": "llm:p.txt"}
    both = judge_at({"trait": inside, "coherence": "llm:c.txt"}, "http://here")
    assert both["trait"]["judge"]["base_url"] == both["coherence"]["base_url"] == "http://here"
    assert judge_at({"trait": inside, "coherence": "perplexity"}, "http://here")["coherence"] == "perplexity"
    moved = judge_at(inside, "http://here")
    assert moved["judge"] == {"name": "llm", "trait_prompt": "p.txt", "base_url": "http://here"}
