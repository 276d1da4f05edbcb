"""What identifies a judge from one run to the next: all that its scores depend on, and nothing else."""

import threading
from dataclasses import dataclass

import pytest
import torch
from chat_server import KEY, TRAIT
from evaluated import SAMPLING, WordJudge
from helpers import pairs_of
from transformers import GPT2Config, GPT2ForSequenceClassification

import psr_lens as psr
from psr_lens.datasets import IfevalRow, Instruction
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.results.judgement import Judgement, identity_of

URL = "http://127.0.0.1:9/v1"


def asking(trait=TRAIT, coherence=None, **settings):
    return psr.judges.llm(trait, coherence, **({"base_url": URL} | settings))


def all_differ(*judges):
    found = [identity_of(judge) for judge in judges]
    return None not in found and len(set(found)) == len(found)


def test_a_language_model_is_told_apart_by_its_prompts_model_address_and_sampling(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    polite = "How polite is it? {answer}"
    changes = [
        {"model": "x"},
        {"temperature": 0.5},
        {"max_tokens": 17},
        {"seed": None},
        {"seed": 1},
        {"logprobs": False},
        {"base_url": URL + "/x"},
    ]
    others = [
        asking(polite),
        asking(None, TRAIT),
        asking(TRAIT, polite),
        asking(polite, TRAIT),
        *(asking(**change) for change in changes),
    ]
    assert all_differ(asking(), *others)
    same = asking(cache=tmp_path, concurrency=1, timeout=1.0, max_retries=0, api_key_env="OPENAI_API_KEY", temperature=0)
    assert identity_of(same) == identity_of(asking())
    assert KEY not in identity_of(same)
    assert "OPENAI_API_KEY" not in identity_of(same)


def test_a_judge_of_politeness_does_not_get_the_scores_of_one_of_pirates(serve, tiny_llama, tmp_path):
    """Both have the same `repr`: 90 where piracy is asked about, 10 where politeness is."""
    from chat_server import completion, judge_at, prompt_of

    server = serve(lambda request, number: completion("90" if "piratic" in prompt_of(request) else "10"))
    pirate, polite = judge_at(server), psr.judges.llm("How polite? {answer}", None, base_url=server.url)
    warm = judge_at(server, temperature=1.0)
    assert repr(pirate) == repr(polite) == repr(warm)

    def scores(judge):
        return AnswerCache(tiny_llama.model, pairs_of(tiny_llama.model, 2), judge, SAMPLING, tmp_path).of().judgement.trait.tolist()

    assert scores(pirate) == [90.0, 90.0]
    asked = len(server.requests)
    assert scores(pirate) == [90.0, 90.0]
    assert len(server.requests) == asked
    assert scores(polite) == [10.0, 10.0]
    assert scores(warm) == [90.0, 90.0]
    assert len(server.requests) > asked + 2


def test_perplexity_is_told_apart_by_its_model_prompts_and_scale(fresh):
    pairs = pairs_of(fresh.model, 3)

    scale = {"given": "base", "fluent": 1.0, "garbage": 4.0, "natural": 0.1}
    given = {"model": fresh.model, "pairs": {each.asked: each for each in pairs}, **scale}

    def judge(**changes):
        return psr.judges.PerplexityJudge(**(given | changes))

    first = judge()
    few = {each.asked: each for each in pairs[:2]}
    changed = ({"given": "either"}, {"fluent": 1.0000001}, {"garbage": 5.0}, {"natural": 0.2}, {"pairs": few})
    assert all_differ(first, *(judge(**each) for each in changed))
    before = first.identity
    with fresh.model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value)]):
        assert first.identity is None
    assert first.identity == before
    fresh.model.blocks[0].extra = threading.Lock()
    assert first.identity is None
    fresh.model.blocks[0].extra = 2.0
    assert first.identity not in (None, before)
    del fresh.model.blocks[0].extra
    assert first.identity == before
    next(fresh.model.parameters()).data[0, 0] += 1.0
    assert first.identity != before


def test_a_classifier_is_told_apart_by_all_of_its_weights(tiny_llama, tmp_path):
    lock = threading.Lock()
    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, num_labels=3, vocab_size=400, n_positions=64)
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config)
    for folder, shift in (("first", 0.0), ("other", 0.25)):
        model.transformer.h[0].ln_1.bias.data[3] += shift
        model.save_pretrained(tmp_path / folder)
        tiny_llama.model.tokenizer.save_pretrained(tmp_path / folder)

    def judge(folder="first", label=0, **settings):
        return psr.judges.classifier(tmp_path / folder, label, device="cpu", **settings)

    first = judge()
    assert all_differ(first, judge("other"), judge(label=1), judge(side="coherence"), judge(pair=True), judge(max_length=8))
    assert judge(token_budget=100).identity == first.identity
    handle = first._model.score.register_forward_pre_hook(lambda *inputs: None)
    assert first.identity is None
    handle.remove()
    assert first.identity == judge().identity
    block = first._model.transformer.h[0]
    kept, block.ln_1.eps = block.ln_1.eps, 1.0
    assert first.identity not in (None, judge().identity)
    block.ln_1.eps, activation = kept, block.mlp.act
    block.mlp.act = torch.nn.Tanh()
    assert first.identity not in (None, judge().identity)
    block.mlp.act, block.mlp.extra = activation, lambda value: (lock, value)[1]
    assert first.identity is None
    del block.mlp.extra
    assert first.identity == judge().identity


def test_ifeval_is_told_apart_by_instructions_arguments_rows_and_settings():
    wanted = [Instruction("keywords:existence", {"keywords": [word]}) for word in ("a", "b")]
    rows = [IfevalRow(key=1, prompted="p", base="b", instructions=(each,)) for each in wanted]
    judges = [
        psr.judges.ifeval("punctuation:no_comma"),
        psr.judges.ifeval("punctuation:no_comma", accuracy="loose"),
        psr.judges.ifeval("punctuation:no_comma", score="share"),
        psr.judges.ifeval("keywords:existence", keywords=["a"]),
        psr.judges.ifeval("keywords:existence", keywords=["b"]),
        psr.judges.ifeval(rows[:1]),
        psr.judges.ifeval(rows[1:]),
        psr.judges.ifeval(rows),
        psr.judges.ifeval(rows[::-1]),
        psr.judges.organism("sea"),
        psr.judges.organism("pirate"),
    ]
    assert all_differ(*judges)


def test_fractions_and_languages_are_told_apart_by_what_they_look_for():
    fraction, language = psr.judges.fraction, psr.judges.language
    assert all_differ(fraction("a"), fraction("(?i)a"), fraction("a", of="letters"), language("fr"), language("de"))


def test_two_judges_together_are_both_and_unknown_if_one_is():
    sea, pirate, words = psr.judges.organism("sea"), psr.judges.organism("pirate"), WordJudge()
    both = psr.judges.combine
    assert all_differ(both(sea, pirate), both(pirate, sea), both(sea, words), both(both(sea, pirate), words), sea, words)
    assert identity_of(both(sea, lambda texts, questions: None)) is None
    assert identity_of(both(both(lambda texts, questions: None, sea), sea)) is None


def test_a_judge_of_ones_own_is_what_it_says_and_nothing_is_guessed():
    @dataclass(frozen=True)
    class Fields:
        number: int = 3

        def __call__(self, texts, questions) -> Judgement: ...

    def function(texts, questions) -> Judgement: ...

    assert identity_of(Fields()) is None
    assert identity_of(function) is None
    function.identity = "mine, 2"
    assert identity_of(function) == "mine, 2"
    function.identity = 3
    assert identity_of(function) is None


@pytest.mark.parametrize(
    "name",
    [
        *(
            "AnswerOnlyJudge",
            "CombinedJudge",
            "ClassifierJudge",
            "FractionJudge",
            "IfevalJudge",
            "LLMJudge",
            "LanguageJudge",
            "OrganismJudge",
        ),
        "PerplexityJudge",
    ],
)
def test_every_judge_of_the_package_says_what_it_is(name):
    assert isinstance(getattr(psr.judges, name).identity, property)
    assert name in psr.judges.__all__
