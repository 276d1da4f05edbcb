"""The judge that asks a language model, of a real local server that answers badly, late, not at all, or in its own dialect."""

import math
from email.utils import formatdate
from time import time

import numpy as np
import pytest
from chat_server import QUICK, TRAIT, Answer, always, completion, echo, error, judge_at, prompt_of, tops, trait_of

import psr_lens as psr
from psr_lens.errors import JudgeError
from psr_lens.judges.llm_judge.chat import _retry_after
from psr_lens.judges.llm_judge.concurrency import GIVE_UP

# --- servers that fail ------------------------------------------------------------------------------------------------------


def test_the_concurrency_limit_is_kept_and_used(serve):
    def slow(request, number):
        answer = echo(request, number)
        answer.delay = 0.05
        return answer

    server = serve(slow)
    trait_of(judge_at(server, concurrency=4), *map(str, range(25)))
    assert server.busiest == 4


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_what_may_pass_is_asked_again(serve, status):
    server = serve(lambda request, number: error(status, "later") if number < 2 else completion("40"))
    judge = judge_at(server)
    assert trait_of(judge, "a") == [40]
    assert len(server.requests) == judge.usage.requests == 3


@pytest.mark.parametrize(
    "bad",
    [
        Answer(b'{"choices": [{"mess'),
        Answer(b"<html>busy</html>", headers={"Content-Type": "text/html"}),
        Answer(b""),
        Answer(b"\xff\xfe"),
        Answer({"choices": []}),
        Answer({"error": {"message": "busy"}}),
        Answer([1, 2]),
        Answer(completion("40").body, cut=20),
        Answer(completion("40").body, cut=0),
    ],
    ids=["broken", "html", "nothing", "bytes", "no choices", "error with 200", "list", "closed mid-answer", "closed before it"],
)
def test_a_broken_answer_is_asked_again_and_missing_if_it_stays_so(serve, bad):
    server = serve(lambda request, number: bad if number == 0 else completion("40"))
    assert trait_of(judge_at(server), "a") == [40]
    assert len(server.requests) == 2
    stubborn = serve(lambda request, number: bad if "bad" in prompt_of(request) else completion("40"))
    with pytest.warns(RuntimeWarning, match="1 of 3 prompts got no reply"):
        found = judge_at(stubborn, max_retries=1)(["good", "bad", "fine"], ["q"] * 3)
    assert found.trait[[0, 2]].tolist() == [40, 40]
    assert math.isnan(found.trait[1])
    assert "attempts: 2" in found.reasons[1]
    assert len(stubborn.requests) == 4


def test_a_time_out_is_asked_again(serve):
    server = serve(lambda request, number: Answer(completion("40").body, delay=1.5 if number == 0 else 0))
    assert trait_of(judge_at(server, timeout=0.7), "a") == [40]
    assert len(server.requests) == 2
    with pytest.raises(JudgeError, match=r"no answer within 0\.05 s \(attempts: 1\)"):
        trait_of(judge_at(serve(always(Answer({}, delay=0.3))), timeout=0.05, max_retries=0), "a")


@pytest.mark.parametrize("header", [("Retry-After", "0.4"), ("Retry-After-Ms", "400")], ids=["seconds", "milliseconds"])
def test_retry_after_is_respected_by_every_request(serve, header):
    def limited(request, number):
        if number == 1:  # the first is asked alone, so this one has company
            return error(429, "slow down", headers=dict([header]))
        return echo(request, number)

    server = serve(limited)
    assert trait_of(judge_at(server, concurrency=2), *map(str, range(12))) == [*range(12)]
    assert len(server.requests) == 13
    refused, *later = server.times[1:]
    assert sum(when > refused + 0.9 * 0.4 for when in later) >= 8  # few were on their way


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": formatdate(time() + 86_400, usegmt=True)}, 80_000, 86_401),
        ({"retry-after": formatdate(time() - 600, usegmt=True)}, 0, 0),
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "-7"}, 0, 0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5, 1.5),
    ],
    ids=["date", "date in the past", "seconds", "negative", "milliseconds"],
)
def test_retry_after_comes_as_a_date_too(headers, least, most):
    assert least <= _retry_after(headers) <= most


@pytest.mark.parametrize("value", [None, "", "soon", "nan", "inf", "Mon, 99 Foo 2026"])
def test_a_retry_after_that_cannot_be_read_is_none(value):
    assert _retry_after({} if value is None else {"retry-after": value}) is None


def test_a_server_that_wants_too_much_patience_is_not_waited_for(serve):
    server = serve(
        lambda request, _: (
            error(429, "tomorrow", headers={"Retry-After": "86400"}) if "busy" in prompt_of(request) else completion("40")
        )
    )
    with pytest.warns(RuntimeWarning, match="asks to wait 86400 s"):
        assert np.isnan(trait_of(judge_at(server), "a", "busy", "c")).tolist() == [False, True, False]


def test_a_prompt_of_its_own_fault_does_not_touch_the_others_and_is_not_asked_again(serve):
    server = serve(lambda request, number: error(413, "too long") if "bad" in prompt_of(request) else echo(request, number))
    texts = ["7", *(f"bad {number}" for number in range(2 * GIVE_UP)), "8"]
    judge = judge_at(server)
    with pytest.warns(RuntimeWarning, match=f"{2 * GIVE_UP} of {2 * GIVE_UP + 2} prompts got no reply.*413: too long"):
        found = trait_of(judge, *texts)
    assert (found[0], found[-1]) == (7, 8)
    assert np.isnan(found[1:-1]).all()
    assert len(server.requests) == len(texts)
    assert judge.usage.failed == 2 * GIVE_UP


def test_a_server_that_has_answered_before_may_refuse_all_of_the_next_texts_for_their_own_fault(serve, tmp_path):
    server = serve(lambda request, number: error(413, "too long") if "bad" in prompt_of(request) else echo(request, number))
    judge = judge_at(server, cache=tmp_path)
    with pytest.raises(JudgeError, match="413: too long"):
        trait_of(judge, "bad")
    assert trait_of(judge, "5") == [5]
    for later in (judge, judge_at(server, cache=tmp_path)):
        with pytest.warns(RuntimeWarning, match="1 of 1 prompts"):
            found = trait_of(later, "5", "bad")
        assert found[0] == 5
        assert math.isnan(found[1])


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_prompt_that_the_server_filters_is_missing_even_if_it_is_the_only_one(serve, code):
    found = judge_at(serve(always(error(400, "no", code=code))))(["a"], ["q"])
    assert math.isnan(found.trait[0])
    assert "for its content" in found.reasons[0]


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (error(401, "Incorrect API key provided"), ("401", "OPENAI_API_KEY right")),
        (error(403, "no access"), ("403", "OPENAI_API_KEY use")),
        (error(404, "The model does not exist"), ("404", "/v1", "gpt-4.1-mini")),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), ("429", "quota")),
    ],
    ids=["401", "403", "404", "quota"],
)
def test_a_wrong_key_address_or_model_stops_at_the_first_request(serve, answer, parts):
    server = serve(always(answer))
    with pytest.raises(JudgeError) as caught:
        trait_of(judge_at(server, api_key_env="OPENAI_API_KEY"), *map(str, range(50)))
    assert all(part in str(caught.value) for part in (*parts, "any of 50 prompts"))
    assert len(server.requests) == 1


def test_a_key_that_is_revoked_later_stops_the_rest_and_keeps_what_there_is(serve):
    server = serve(lambda request, number: echo(request, number) if number < 5 else error(401, "revoked"))
    with pytest.warns(RuntimeWarning, match="45 of 50 prompts got no reply.*revoked"):
        found = judge_at(server, concurrency=2)([str(value) for value in range(50)], ["q"] * 50)
    assert np.isfinite(found.trait).sum() == 5
    assert "not asked, because other prompts failed" in found.reasons[-1]
    assert len(server.requests) <= 7


def test_where_nothing_is_answered_it_gives_up_soon(serve):
    server = serve(always(error(500, "on fire")))
    with pytest.raises(JudgeError, match="500: on fire"):
        trait_of(judge_at(server, max_retries=1, concurrency=4), *map(str, range(200)))
    assert len(server.requests) <= 2 * (GIVE_UP + 4)


def test_no_server_at_all_is_our_error():
    judge = psr.judges.llm(TRAIT, base_url="http://127.0.0.1:9/v1", max_retries=1, backoff=QUICK)
    with pytest.raises(JudgeError, match=r"no reply to any of 2 prompts: no connection .*attempts: 2"):
        judge(["a"], ["q"])


# --- what a server does not understand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["logprobs is not supported", "bad request"])
def test_a_server_without_logprobs_is_asked_without_them_from_then_on(serve, message):
    server = serve(lambda request, number: error(400, message) if "logprobs" in request else echo(request, number))
    judge = judge_at(server)
    assert trait_of(judge, "1", "2", "3") == [1, 2, 3]
    assert ["logprobs" in request for request in server.requests] == [True, False, False, False]
    assert trait_of(judge, "4") == [4]
    assert "logprobs" not in server.requests[-1]


def test_logprobs_that_were_given_are_not_to_blame_for_a_later_refusal(serve):
    given = completion("80", logprobs=tops(("80", {"80": 0.9})))
    server = serve(lambda request, number: error(400, "context length") if "bad" in prompt_of(request) else given)
    with pytest.warns(RuntimeWarning, match="context length"):
        trait_of(judge_at(server), "a", "bad", "b")
    assert all("logprobs" in request for request in server.requests)
    assert len(server.requests) == 3


@pytest.mark.parametrize("answer", [error(400, "logprobs is not supported"), completion("80")], ids=["refused", "ignored"])
def test_logprobs_that_are_insisted_on_and_not_given_are_an_error(serve, answer):
    with pytest.raises(JudgeError, match="logprobs"):
        trait_of(judge_at(serve(always(answer)), logprobs=True), "a", "b")


def test_a_server_that_knows_parameters_by_other_names_is_understood(serve):
    def modern(request, number):
        if "max_tokens" in request:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens")
        for name in ("temperature", "seed"):
            if name in request:
                return error(400, f"Unsupported value: '{name}'", param=name)
        return error(400, "logprobs are not allowed") if "logprobs" in request else echo(request, number)

    server = serve(modern)
    assert trait_of(judge_at(server), "1", "2") == [1, 2]
    assert len(server.requests) == 6
    assert set(server.requests[-1]) == {"model", "messages", "max_completion_tokens"}
