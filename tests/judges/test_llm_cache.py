"""What the judge that asks a language model leaves behind: replies on disk, and never the key."""

import copy
import re
import subprocess
import sys
import textwrap
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from chat_server import KEY, TRAIT, completion, echo, error, judge_at, prompt_of, tops, trait_of

import psr_lens as psr
from psr_lens.errors import InputError, JudgeError, MissingPackageError
from psr_lens.judges.llm_judge.cache import ReplyCache
from psr_lens.judges.llm_judge.reply import Reply

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
    from psr_lens.judges.llm_judge.cache import ReplyCache
    from psr_lens.judges.llm_judge.reply import Reply

    cache = ReplyCache(sys.argv[1])
    for number in range(int(sys.argv[3])):
        cache.put(f"{sys.argv[2]}-{number}", Reply(sys.argv[2] * 2000))
        print(number, flush=True)
"""


def test_two_processes_share_a_cache_and_one_that_is_killed_loses_at_most_what_it_was_writing(tmp_path):
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
    with pytest.warns(RuntimeWarning, match="2 replies could not be written"):
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
    judge = judge_at(server, cache=tmp_path, api_key_env="OPENAI_API_KEY")
    with pytest.warns(RuntimeWarning) as warned:
        found = judge(["good", "bad"], ["q"] * 2)
    with pytest.raises(JudgeError) as caught:
        judge(["bad worse"], ["q"])
    shown = [*found.reasons, repr(judge), str(judge), repr(judge.settings), repr(judge.usage), str(asdict(judge.settings))]
    shown += [str(each.message) for each in warned] + [repr(vars(judge)), repr(copy.deepcopy(judge)), all_text_of(caught.value)]
    shown += [judge.identity]
    assert server.keys[0] == f"Bearer {KEY}"
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
    with pytest.raises(JudgeError, match="in api_key_env"):
        trait_of(judge, "2")


def test_without_the_openai_package_the_extra_is_named(serve, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingPackageError, match=re.escape("openai is not installed. `pip install psr-lens[llm]`")):
        judge_at(serve(echo))
    with pytest.raises(MissingPackageError):
        trait_of(judge_at(serve(echo), cache=tmp_path), "1")
