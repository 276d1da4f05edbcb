"""The judge that asks a language model, against a real local server that answers well, badly, late or not at all."""

import asyncio
import copy
import math
import re
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from time import monotonic, time

import numpy as np
import pytest
from chat_server import KEY, Answer, ChatServer, completion, error, tops

import psr_lens as psr
from psr_lens.errors import InputError, JudgeError, MissingPackageError
from psr_lens.judges.llm import COHERENCE_PROMPT, Backoff, LLMJudge
from psr_lens.judges.llm.asking import GIVE_UP, run_blocking

TRAIT = "How piratic? Q: {question} A: {answer}"
COHERENCE = "How coherent? Q: {question} A: {answer}"
QUICK = Backoff(first=0.01, longest=0.02)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def serve() -> Iterator[Callable[..., ChatServer]]:
    """`serve(answer)`: a server that answers `answer(request, number)`."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(ChatServer(answer).running())


def judge_at(server: ChatServer, **options) -> LLMJudge:
    given = {"coherence_prompt": None, "timeout": 5.0, "max_retries": 3, "backoff": QUICK, "base_url": server.url}
    return psr.judges.llm(TRAIT, **(given | options))


def trait_of(judge: LLMJudge, *texts: str) -> list[float]:
    return judge(texts, ["why ?"] * len(texts)).trait.tolist()


def always(answer: Answer) -> Callable[..., Answer]:
    return lambda request, number: answer


def echo(request, number) -> Answer:
    """A score that is written in the answer to be judged."""
    return completion(re.search(r"A: (.*)", request["messages"][0]["content"], re.DOTALL)[1])


def prompt_of(request) -> str:
    return request["messages"][0]["content"]


# --- answers ----------------------------------------------------------------------------------------------------------------


def test_each_text_is_asked_about_the_trait_and_about_coherence(serve):
    server = serve(
        lambda request, number: completion(
            "90" if "coherent" in prompt_of(request) else "20" if "arr" in prompt_of(request) else "10"
        )
    )
    judge = judge_at(server, coherence_prompt=COHERENCE, model="some-model", max_tokens=7, seed=3, temperature=0.5)
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


def test_a_progress_bar_counts_replies(serve, capsys):
    trait_of(judge_at(serve(echo), progress=True), "1", "2", "3")
    assert "3/3" in capsys.readouterr().err


# --- servers that fail ------------------------------------------------------------------------------------------------------


def test_the_concurrency_limit_is_kept_and_used(serve):
    def slow(request, number):
        answer = echo(request, number)
        answer.delay = 0.05
        return answer

    server = serve(slow)
    start = monotonic()
    trait_of(judge_at(server, concurrency=4), *map(str, range(25)))
    assert server.busiest == 4
    assert monotonic() - start < 25 * 0.05


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


@pytest.mark.parametrize("header", ["retry-after", "retry-after-ms", "date"])
def test_retry_after_is_respected_by_every_request(serve, header):
    name, value = {"retry-after": ("Retry-After", "0.4"), "retry-after-ms": ("Retry-After-Ms", "400")}.get(
        header, ("Retry-After", None)
    )
    sent: list[float] = []

    def limited(request, number):
        if number == 1:  # the first is asked alone, so this one has company
            sent.append(time())
            return error(429, "slow down", headers={name: value or formatdate(time() + 2, usegmt=True)})
        return echo(request, number)

    server = serve(limited)
    assert trait_of(judge_at(server, concurrency=2), *map(str, range(12))) == [*range(12)]
    assert len(server.requests) == 13
    refused, *later = server.times[1:]
    waited = 0.4 if value else math.floor(sent[0] + 2) - sent[0]
    assert sum(when > refused + 0.9 * waited for when in later) >= 8  # few were on their way


def test_a_server_that_wants_too_much_patience_is_not_waited_for(serve):
    server = serve(
        lambda request, number: error(429, "tomorrow", headers={"Retry-After": "86400"}) if number == 1 else completion("40")
    )
    with pytest.warns(RuntimeWarning, match="wants 86400 s"):
        assert np.isnan(trait_of(judge_at(server), "a", "b", "c")).tolist() == [False, True, False]


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
        (error(401, "Incorrect API key provided"), ("401", "OPENAI_API_KEY")),
        (error(403, "no access"), ("403", "OPENAI_API_KEY")),
        (error(404, "The model does not exist"), ("404", "/v1", "gpt-4.1-mini")),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), ("429", "quota")),
    ],
    ids=["401", "403", "404", "quota"],
)
def test_a_wrong_key_address_or_model_stops_at_the_first_request(serve, answer, parts):
    server = serve(always(answer))
    with pytest.raises(JudgeError) as caught:
        trait_of(judge_at(server), *map(str, range(50)))
    assert all(part in str(caught.value) for part in (*parts, "any of 50 prompts"))
    assert len(server.requests) == 1


def test_a_key_that_is_revoked_later_stops_the_rest_and_keeps_what_there_is(serve):
    server = serve(lambda request, number: echo(request, number) if number < 5 else error(401, "revoked"))
    with pytest.warns(RuntimeWarning, match="45 of 50 prompts got no reply.*revoked"):
        found = judge_at(server, concurrency=2)([str(value) for value in range(50)], ["q"] * 50)
    assert np.isfinite(found.trait).sum() == 5
    assert "not asked, since others had failed" in found.reasons[-1]
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


# --- the cache --------------------------------------------------------------------------------------------------------------


def test_what_is_in_the_cache_is_not_asked_again_by_any_judge_and_needs_no_key(serve, tmp_path, monkeypatch):
    server = serve(lambda request, number: completion("80", logprobs=tops(("80", {"80": 0.5, "40": 0.5}))))
    first = judge_at(server, cache=tmp_path / "new" / "folder")
    found = first(["a", "b"], ["q"] * 2)
    monkeypatch.delenv("OPENAI_API_KEY")
    second = judge_at(server, cache=tmp_path / "new" / "folder")
    again = second(["b", "a", "a"], ["q"] * 3)
    assert len(server.requests) == 2
    assert again.trait.tolist() == [60, 60, 60]
    assert again.reasons[0] == found.reasons[0]
    assert second.usage == psr.judges.LLMUsage(cached=2)


@pytest.mark.parametrize("change", [{"model": "other"}, {"temperature": 1.0}, {"max_tokens": 4}, {"seed": 1}, {"logprobs": False}])
def test_other_settings_are_other_questions(serve, tmp_path, change):
    server = serve(echo)
    trait_of(judge_at(server, cache=tmp_path), "1")
    trait_of(judge_at(server, cache=tmp_path, concurrency=1, timeout=3.0, max_retries=1), "1")
    assert len(server.requests) == 1
    trait_of(judge_at(server, cache=tmp_path, **change), "1")
    assert len(server.requests) == 2


def test_a_failure_is_not_kept(serve, tmp_path):
    server = serve(lambda request, number: error(413, "no") if number == 1 else echo(request, number))
    judge = judge_at(server, cache=tmp_path)
    with pytest.warns(RuntimeWarning):
        assert np.isnan(trait_of(judge, "1", "2")).tolist() == [False, True]
    assert trait_of(judge, "1", "2") == [1, 2]


def test_at_whatever_byte_the_file_was_cut_off_or_damaged_the_rest_is_good(serve, tmp_path):
    server = serve(echo)
    judge = judge_at(server, cache=tmp_path)
    trait_of(judge, "11", "12", "13")
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    rng = np.random.default_rng(0)
    for cut in (start, start + 1, start + 30, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        asked = len(server.requests)
        ends_within_a_line = start < cut < len(whole) - 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert trait_of(judge_at(server, cache=tmp_path), "11", "12", "13") == [11, 12, 13]
        assert len(server.requests) == asked + (cut < len(whole) - 1)
        assert any("1 line is damaged" in str(each.message) for each in caught) == ends_within_a_line
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trait_of(judge_at(server, cache=tmp_path), "11", "12", "13")
        assert len(server.requests) == asked + (cut < len(whole) - 1)  # what was asked again was kept again
    for place in rng.choice(len(whole), 25, replace=False):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert trait_of(judge_at(server, cache=tmp_path), "11", "12", "13") == [11, 12, 13]


def test_what_the_cache_holds_of_another_kind_is_asked_again(serve, tmp_path):
    server = serve(echo)
    (tmp_path / "replies.jsonl").write_bytes(b'null\n[]\n{"key": 3}\n\xff\xfe\n' + b"[" * 100_000 + b"\n\n")
    with pytest.warns(RuntimeWarning, match="5 lines are damaged"):
        assert trait_of(judge_at(server, cache=tmp_path), "1") == [1]


WRITER = """
    import sys
    from psr_lens.judges.llm.cache import ReplyCache
    from psr_lens.judges.llm.reply import Reply
    cache = ReplyCache(sys.argv[1])
    for number in range(int(sys.argv[3])):
        cache.put(f"{sys.argv[2]}-{number}", Reply(sys.argv[2] * 2000))
        print(number, flush=True)
"""


def test_two_processes_share_a_cache_and_one_that_is_killed_loses_at_most_what_it_was_writing(tmp_path):
    from psr_lens.judges.llm.cache import ReplyCache

    run = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)]
    writers = [
        subprocess.Popen([*run, name, count], stdout=subprocess.PIPE)
        for name, count in (("a", "300"), ("b", "300"), ("c", "1000000"))
    ]
    for writer in writers[:2]:
        writer.communicate(timeout=60)
    while int(writers[2].stdout.readline()) < 20:
        pass
    writers[2].kill()
    written = 20 + len(writers[2].communicate()[0].splitlines())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = ReplyCache(tmp_path)
        cache.refresh()
    assert all(cache.get(f"{name}-{number}").text == name * 2000 for name in "ab" for number in range(300))
    assert all(cache.get(f"c-{number}") for number in range(written))


def test_a_cache_sees_what_others_add(tmp_path):
    from psr_lens.judges.llm.cache import ReplyCache
    from psr_lens.judges.llm.reply import Reply

    one, other = ReplyCache(tmp_path), ReplyCache(tmp_path)
    one.put("a", Reply("1"))
    other.refresh()
    one.put("b", Reply("2"))
    assert other.get("b") is None
    other.refresh()
    assert (other.get("a"), other.get("b")) == (Reply("1"), Reply("2"))
    one.path.unlink()
    other.refresh()
    assert other.get("a") is None


def test_replies_that_cannot_be_kept_are_not_lost(serve, tmp_path, monkeypatch):
    judge = judge_at(serve(echo), cache=tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.warns(RuntimeWarning, match="2 replies could not be kept"):
        assert trait_of(judge, "1", "2") == [1, 2]


def test_a_cache_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"^cache: got .*file'"):
        psr.judges.llm(TRAIT, cache=tmp_path / "file")


# --- the key ----------------------------------------------------------------------------------------------------------------


def all_text_of(fault: BaseException) -> str:
    seen = "".join(traceback.TracebackException.from_exception(fault, capture_locals=True).format())
    while fault is not None:
        seen += repr(fault) + str(vars(fault))
        fault = fault.__cause__ or fault.__context__
    return seen


def test_the_key_is_in_no_file_no_repr_no_setting_and_no_error(serve, tmp_path):
    def telltale(request, number):
        said = f"your key is {KEY}, Bearer {KEY}"
        if "bad" in prompt_of(request):
            return error(401 if "worse" in prompt_of(request) else 400, said, param=KEY)
        return completion(f"85 {said}", logprobs=tops(("85", {"85": 0.5, KEY: 0.5})))

    server = serve(telltale)
    judge = judge_at(server, cache=tmp_path)
    with pytest.warns(RuntimeWarning) as warned:
        found = judge(["good", "bad"], ["q"] * 2)
    with pytest.raises(JudgeError) as caught:
        judge(["bad worse"], ["q"])
    shown = [*found.reasons, repr(judge), str(judge), repr(judge.settings), repr(judge.usage), str(judge.settings.to_json())]
    shown += [str(each.message) for each in warned] + [repr(vars(judge)), repr(copy.deepcopy(judge)), all_text_of(caught.value)]
    assert "[key]" in " ".join(shown)
    assert "85" in found.reasons[0]
    assert not [text for text in shown if KEY in text]
    written = [path.read_bytes() for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert written
    assert not [content for content in written if KEY.encode() in content or b"Bearer " + KEY[:8].encode() in content]


@pytest.mark.parametrize("bad", [f"{KEY}\nx", f"{KEY} {KEY}", f"{KEY}é"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(JudgeError, match="OPENAI_API_KEY") as caught:
        psr.judges.llm(TRAIT)
    assert KEY not in str(caught.value)


def test_a_missing_key_is_missed_at_once_unless_there_is_a_server_that_may_need_none(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is not set"):
        psr.judges.llm(TRAIT)
    with pytest.raises(JudgeError, match="OTHER_KEY is not set"):
        psr.judges.llm(TRAIT, api_key_env="OTHER_KEY")
    server = serve(echo)
    assert trait_of(judge_at(server), "1") == [1]
    assert KEY not in str(server.keys)


def test_no_key_is_sent_where_none_is_wanted(serve):
    server = serve(lambda request, number: echo(request, number) if number == 0 else error(401, "who are you?"))
    judge = judge_at(server, api_key_env=None)
    assert trait_of(judge, "1") == [1]
    assert server.keys == ["Bearer none"]
    with pytest.raises(JudgeError, match="by api_key_env"):
        trait_of(judge, "2")


def test_without_the_openai_package_the_extra_is_named(serve, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingPackageError, match=re.escape("openai is not installed. `pip install psr-lens[llm]`")):
        judge_at(serve(echo))
    with pytest.raises(MissingPackageError):
        trait_of(judge_at(serve(echo), cache=tmp_path), "1")


# --- input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"trait_prompt": "no place"}, "trait_prompt: got a template without {answer}"),
        ({"trait_prompt": 3}, "trait_prompt: got int"),
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
        ({"timeout": 0}, "timeout: got 0"),
        ({"timeout": float("inf")}, "timeout: got inf"),
        ({"temperature": float("nan")}, "temperature: got nan"),
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
    import random

    backoff = Backoff(first=1.0, longest=8.0)
    rng = random.Random(0)
    for attempt, most in enumerate((1, 2, 4, 8, 8, 8)):
        waits = [backoff.wait(attempt, rng) for _ in range(200)]
        assert most / 2 <= min(waits) < 0.55 * most
        assert 0.95 * most < max(waits) <= most
    assert backoff.wait(10_000, rng) <= 8


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
        triplets = psr.sample_responses(organism.model, pairs, judge, progress=False)
    assert len(triplets) == 2
    assert {each.reason for each in triplets.dropped} == {"unjudged"}
    assert all(each.trait == each.coherence == 1.0 for each in triplets)
    with pytest.warns(RuntimeWarning, match="1 of 8 prompts got no reply"):
        scores = psr.evaluate(organism.model, pairs, judge)
    assert (scores.n, scores.missing, scores.trait, scores.coherence) == (2, 2, 100.0, 100.0)
