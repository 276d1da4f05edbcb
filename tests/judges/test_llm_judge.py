"""The judge that asks a language model: what it asks, what it makes of the replies, and what it refuses."""

import asyncio
import random
import signal
import threading

import numpy as np
import pytest
from chat_server import (
    COHERENCE,
    KEY,
    TRAIT,
    Answer,
    always,
    completion,
    echo,
    error,
    judge_at,
    prompt_of,
    tops,
    trait_of,
)

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.judges.llm_judge import COHERENCE_PROMPT, Backoff
from psr_lens.judges.llm_judge.chat import backoff_wait
from psr_lens.judges.llm_judge.concurrency import run_blocking

# --- answers ----------------------------------------------------------------------------------------------------------------


def test_each_text_is_asked_about_the_trait_and_about_coherence(serve):
    server = serve(
        lambda request, number: completion(
            "90" if "coherent" in prompt_of(request) else "20" if "arr" in prompt_of(request) else "10"
        )
    )
    settings = {"model": "some-model", "max_tokens": 7, "seed": 3, "temperature": 0.5, "api_key_env": "OPENAI_API_KEY"}
    judge = judge_at(server, coherence_prompt=COHERENCE, **settings)
    found = judge(["arr", "hello"], ["who ?", "what ?"])
    assert found.trait.tolist() == [20, 10]
    assert found.coherence.tolist() == [90, 90]
    assert found.reasons[0] == "trait: 20, read from '20'; coherence: 90, read from '90'"
    assert sorted(server.prompts) == sorted(
        f"How {what}? Q: {question} A: {text}"
        for question, text in (("who ?", "arr"), ("what ?", "hello"))
        for what in ("piratic", "coherent")
    )
    sent = server.requests[0]
    assert (sent["model"], sent["max_tokens"], sent["seed"], sent["temperature"]) == ("some-model", 7, 3, 0.5)
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 20)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert judge.usage == psr.judges.LLMUsage(requests=4, prompt_tokens=40, completion_tokens=8)


def test_a_judge_of_one_side_leaves_the_other_missing(serve):
    server = serve(always(completion("70")))
    trait = judge_at(server)(["a"], ["q"])
    coherence = psr.judges.llm(None, base_url=server.url)(["a"], ["q"])
    assert (trait.trait.tolist(), coherence.coherence.tolist()) == ([70], [70])
    assert np.isnan([trait.coherence[0], coherence.trait[0]]).all()
    assert "0 to 100" in server.prompts[1]
    assert len(server.requests) == 2


def test_scores_are_weighted_where_the_server_gives_probabilities(serve):
    server = serve(always(completion("80", logprobs=tops(("80", {"80": 0.6, "40": 0.2, "x": 0.2})))))
    assert trait_of(judge_at(server), "a") == pytest.approx([70])
    assert trait_of(judge_at(server, logprobs=False), "a") == [80]
    assert "logprobs" not in server.requests[1]


def test_a_reply_that_is_no_score_is_missing_with_the_reason(serve):
    server = serve(echo)
    texts = ["REFUSAL", "", "-5", "hello", "85"]
    found = judge_at(server)(texts, ["q"] * 5)
    assert np.isnan(found.trait).tolist() == [True, True, True, True, False]
    for reason, part in zip(found.reasons, ("is a refusal", "is empty", "outside 0–100", "has no number", "85"), strict=True):
        assert part in reason


def test_texts_come_back_in_their_order_and_the_same_is_asked_once(serve):
    def slower_first(request, number):
        answer = echo(request, number)
        answer.delay = 0.05 if number < 4 else 0.0
        return answer

    server = serve(slower_first)
    texts = [str(value) for value in [*range(20), *range(20)]]
    assert trait_of(judge_at(server), *texts) == [float(text) for text in texts]
    assert len(server.requests) == 20


def test_no_texts_need_no_request(serve):
    server = serve(echo)
    assert judge_at(server)([], []).trait.shape == (0,)
    assert not server.requests


@pytest.mark.parametrize(
    "text", ["\ud800 arr \udfff", "a\x00b\x1b[31m\x85", "\ud83d\ude00", "{answer} {question} {{}}", "a" * 100_000]
)
def test_texts_of_any_kind_can_be_sent(serve, text):
    server = serve(always(completion("50")))
    assert trait_of(judge_at(server), text) == [50]
    [prompt] = server.prompts
    expected = {"\ud83d\ude00": "😀", "\ud800 arr \udfff": "� arr �", "a\x00b\x1b[31m\x85": "a�b�[31m�"}.get(text, text)
    assert prompt == f"How piratic? Q: why ? A: {expected}"


def test_within_a_running_event_loop_as_in_a_notebook(serve):
    server = serve(echo)
    judge = judge_at(server)

    async def cell() -> list[float]:
        return trait_of(judge, "12", "34")

    assert asyncio.run(cell()) == [12, 34]
    assert trait_of(judge, "56") == [56]


def test_an_error_within_a_running_event_loop_comes_out_as_it_is():
    async def broken() -> None:
        raise KeyError("x")

    async def cell() -> None:
        run_blocking(broken)

    with pytest.raises(KeyError, match="x"):
        asyncio.run(cell())


def test_an_interrupt_in_a_notebook_ends_the_asking(serve):
    server = serve(always(Answer(completion("1").body, delay=0.4)))
    judge = judge_at(server, concurrency=1)

    def interrupt(*args):
        raise KeyboardInterrupt

    async def cell() -> None:
        trait_of(judge, *map(str, range(100)))

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(cell())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    asked = len(server.requests)
    assert 1 <= asked <= 4
    assert judge.usage.requests == asked
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge")]


@pytest.mark.usefixtures("bars_at_once")
def test_a_progress_bar_counts_replies(serve, capsys):
    trait_of(judge_at(serve(echo)), "1", "2", "3")
    assert "3/3" in capsys.readouterr().err


# --- input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"trait_prompt": "no place"}, "trait_prompt: got a template without {answer}"),
        ({"trait_prompt": 3}, "trait_prompt: got 3"),
        ({"coherence_prompt": "only {question}"}, "coherence_prompt: got a template without"),
        ({"trait_prompt": None, "coherence_prompt": None}, "trait_prompt: got None"),
        ({"model": ""}, "model: got ''"),
        ({"model": "\ud800"}, "model: got"),
        ({"base_url": "localhost:8000"}, "base_url: got 'localhost:8000'"),
        ({"base_url": "http://[x"}, "base_url: got"),
        ({"base_url": "ftp://x/v1"}, "base_url: got"),
        ({"base_url": "http://x:99999/v1"}, "base_url: got"),
        ({"base_url": "http://x/\x00"}, "base_url: got"),
        ({"base_url": 3}, "base_url: got int"),
        ({"base_url": f"https://user:{KEY}@x/v1"}, "base_url: got an address with a user"),
        ({"base_url": f"https://x/v1?key={KEY}"}, "base_url: got an address with a user"),
        ({"base_url": f"user:{KEY}@x"}, "base_url: got an address with"),
        ({"api_key_env": KEY}, "api_key_env: got something"),
        ({"api_key_env": "gsk_0123456789"}, "api_key_env: got something"),
        ({"logprobs": "yes"}, "logprobs: got 'yes'"),
        ({"concurrency": 0}, "concurrency: got 0"),
        ({"concurrency": True}, "concurrency: got True"),
        ({"max_retries": -1}, "max_retries: got -1"),
        ({"max_tokens": 1.5}, "max_tokens: got 1.5"),
        ({"seed": "x"}, "seed: got 'x'"),
        ({"timeout": 0}, "timeout: got 0"),
        ({"timeout": float("inf")}, "timeout: got inf"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"backoff": {"first": 1.0}}, "backoff: got {'first': 1.0}, expected a `psr_lens.judges.Backoff`"),
        ({"backoff": None}, "backoff: got None, expected a `psr_lens.judges.Backoff`"),
        ({"modle": "gpt-4.1-mini"}, "llm: unknown setting 'modle'. Did you mean 'model'?"),
        ({"coherence_promt": "{answer}"}, "llm: unknown setting 'coherence_promt'. Did you mean 'coherence_prompt'?"),
        ({"top_p": 0.9}, "llm: unknown setting 'top_p'. "),
    ],
)
def test_bad_settings_are_refused_by_name_and_without_secrets(options, argument):
    with pytest.raises(InputError) as caught:
        psr.judges.llm(**({"trait_prompt": TRAIT} | options))
    assert str(caught.value).startswith(argument)
    assert KEY not in str(caught.value)
    assert "gsk_" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_bad_waits_are_refused():
    with pytest.raises(InputError, match=r"backoff\.first: got -1"):
        Backoff(first=-1)


def test_waits_double_up_to_a_limit_with_jitter():
    backoff = Backoff(first=1.0, longest=8.0)
    rng = random.Random(0)
    for attempt, most in enumerate((1, 2, 4, 8, 8, 8)):
        waits = [backoff_wait(backoff, attempt, rng) for _ in range(200)]
        assert most / 2 <= min(waits) < 0.55 * most
        assert 0.95 * most < max(waits) <= most
    assert backoff_wait(backoff, 10_000, rng) <= 8


@pytest.mark.usefixtures("unchecked")
def test_texts_without_their_questions_are_refused(serve):
    judge = judge_at(serve(echo))
    with pytest.raises(InputError, match="1 for 2 texts"):
        judge(["a", "b"], ["q"])
    with pytest.raises(InputError, match="texts: got one text"):
        judge("ab", ["q", "q"])


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{question}|{answer}", "Q|{answer} A"),
        ("{answer}", "{answer} A"),
        ('{answer} as {"score": 85, "why": {}}', '{answer} A as {"score": 85, "why": {}}'),
        ('{answer} as {{"score": 85}}', '{answer} A as {"score": 85}'),
        ('{answer} } { {x} {"a": {"b": 1}}', '{answer} A } { {x} {"a": {"b": 1}}'),
        ("{answer!r} {answer}", "{answer!r} {answer} A"),
        ("{answer:>9} {answer} {0} {}", "{answer:>9} {answer} A {0} {}"),
    ],
)
def test_braces_that_are_no_places_stand_for_themselves(serve, template, filled):
    server = serve(always(completion("5")))
    psr.judges.llm(template, None, base_url=server.url)(["{answer} A"], ["Q"])
    assert server.prompts == [filled]


def test_the_default_prompt_has_both_places():
    assert "{question}" in COHERENCE_PROMPT
    assert "{answer}" in COHERENCE_PROMPT


# --- with the rest of the package -------------------------------------------------------------------------------------------


def test_sampling_and_evaluating_with_it_drop_and_count_what_is_missing(serve, organism):
    """Answers about bears are refused, those about foxes lost, and the others get full scores: nothing is taken for 0."""

    def picky(request, number):
        prompt = prompt_of(request)
        if "bear" in prompt:
            return completion("REFUSAL")
        return error(413, "too long") if "fox" in prompt and "coherent" in prompt else completion("100")

    judge = judge_at(serve(picky), coherence_prompt=COHERENCE)
    questions = ["what is a bee ?", "what is a bear ?", "what is a fox ?", "what is a lion ?"]
    pairs = psr.prompt_pairs(organism.model, questions, psr.organism.INSTRUCTIONS["pirate"])
    with pytest.warns(RuntimeWarning, match="1 of 8 prompts got no reply"):
        triplets = psr.sample_responses(organism.model, pairs, judge)
    assert len(triplets) == 2
    assert {each.reason for each in triplets.dropped} == {"without a score"}
    assert all(each.trait == each.coherence == 100.0 for each in triplets)
    with pytest.warns(RuntimeWarning, match="1 of 8 prompts got no reply"):
        scores = psr.scores_at(organism.model, pairs, None, judge)
    assert (scores.n, scores.missing, scores.trait, scores.coherence) == (2, 2, 100.0, 100.0)
