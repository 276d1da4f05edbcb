"""Answers that are made once: in memory, and in a folder from which an interrupted run continues."""

import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from evaluated import SAMPLING, SHORT, WordJudge, lines, two
from helpers import FORK, pairs_of, random_replacement

import psr_lens as psr
from psr_lens.errors import ArtifactError
from psr_lens.evaluation import answer_cache as answers
from psr_lens.evaluation.answer_cache import Answers, identity_of
from psr_lens.results.judgement import Judgement


@pytest.fixture
def model(tiny_llama):
    return tiny_llama.model


def test_strengths_that_are_asked_for_together_share_a_call_and_answer_as_each_by_itself(model, counted, tmp_path):
    pairs, steering = pairs_of(model, 3), two(model)["one"]
    wanted = [Answers(model, pairs, WordJudge(), SAMPLING, tmp_path).of(steering, alpha).texts for alpha in (0.0, 0.5, 2.0)]
    counted.clear()
    together = Answers(model, pairs, WordJudge(), SAMPLING)
    assert [judged.texts for judged in together.at(steering, [0.0, 0.5, 2.0])] == wanted
    assert [len(call) for call in counted] == [3, 2 * 3]
    resumed = Answers(model, pairs, WordJudge(), SAMPLING, tmp_path)
    assert [judged.texts for judged in resumed.at(steering, [0.5, 1.0, 2.0])][::2] == wanted[1:]
    assert [[strength for _, strength, *_ in call] for call in counted[2:]] == [[1.0] * 3]


def test_answers_in_parts_are_those_of_all_at_once(model, monkeypatch):
    pairs = pairs_of(model, 7)
    wanted = Answers(model, pairs, WordJudge(), SAMPLING).of(two(model)["one"]).texts
    monkeypatch.setattr(answers, "CHUNK", 3)
    assert Answers(model, pairs, WordJudge(), SAMPLING).of(two(model)["one"]).texts == wanted


# --- on disk ---------------------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "CHUNK", 2)
    given = (model, pairs_of(model, 5), two(model), WordJudge())
    options = {"calibration": SHORT, "with_prompt": ["one"], "sampling": SAMPLING}
    wanted = psr.evaluate(*given, **options)
    real, left = answers.generate, [4]

    def generate(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise StopError
        return real(*args, **kwargs)

    monkeypatch.setattr(answers, "generate", generate)
    stops = 0
    while True:
        left[0] = 4
        try:
            found = psr.evaluate(*given, cache=tmp_path, **options)
            break
        except StopError:
            stops += 1
    assert stops >= 3
    assert lines(found) == lines(wanted)
    assert repr(found.table()) == repr(wanted.table())
    left[0] = 0  # everything is there now
    assert lines(psr.evaluate(*given, cache=tmp_path, **options)) == lines(wanted)


def of_five(model, folder):
    steering, pairs = random_replacement(model, seed=1), pairs_of(model, 5)
    return psr.evaluate(model, pairs, steering, WordJudge(), calibration=SHORT, sampling=SAMPLING, cache=folder)


def die_at_the_fifth(model, folder):
    real, left = answers.generate, [4]

    def generate(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return real(*args, **kwargs)

    answers.generate, answers.CHUNK = generate, 2
    of_five(model, folder)


def test_a_process_that_died_leaves_what_it_had_and_the_next_ends_the_same(tiny_llama, tmp_path, monkeypatch):
    process = FORK.Process(target=die_at_the_fifth, args=(tiny_llama.model, tmp_path), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == 9
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers-*.jsonl")}
    assert len(kept) == 4
    monkeypatch.setattr(answers, "CHUNK", 2)
    assert lines(of_five(tiny_llama.model, tmp_path)) == lines(of_five(tiny_llama.model, None))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # read, and not made again


def test_other_models_methods_questions_and_settings_have_other_answers(model, load, tmp_path, counted):
    pairs, steering = pairs_of(model, 3), two(model)["one"]
    other = load("llama-gqa", "hooked_transformer" if "Hooked" in type(model).__name__ else "bridge").model

    def ask(model=model, pairs=pairs, config=SAMPLING, steering=steering, alpha=1.0, context="base"):
        before = len(counted)
        Answers(model, pairs, WordJudge(), config, tmp_path).of(steering, alpha, context)
        return len(counted) - before

    assert ask() == 1
    assert ask() == 0
    assert ask(config=replace(SAMPLING, token_budget=999)) == 0  # how many share a batch is no matter of content
    assert ask(alpha=2.0) == ask(context="prompted") == ask(pairs=pairs[::-1]) == ask(pairs=pairs[:2]) == 1
    assert ask(config=replace(SAMPLING, seed=4)) == ask(config=replace(SAMPLING, temperature=0)) == 1
    assert ask(steering=2.0 * steering) == ask(steering=replace(steering, span="QR", question_start=1)) == ask(model=other) == 1
    assert ask(steering=1.0 * steering) == ask(steering=replace(steering, method="another name")) == 0


@pytest.mark.parametrize("content", ["", "{", '{"format": 1, "lines": 9}\n', '{"format": 9, "lines": 2}\n{}\n{}\n'])
def test_a_damaged_file_is_named_with_a_remedy(model, tmp_path, content):
    Answers(model, pairs_of(model, 2), WordJudge(), SAMPLING, tmp_path).of()
    (path,) = tmp_path.glob("answers-*.jsonl")
    path.write_text(content)
    with pytest.raises(ArtifactError, match=rf"{path.name}: is damaged .* Delete it"):
        Answers(model, pairs_of(model, 2), WordJudge(), SAMPLING, tmp_path).of()


def test_scores_are_kept_where_the_judge_can_be_told_from_others_and_none_is_missing(model, tmp_path):
    @dataclass(frozen=True)
    class Counting:
        missing: bool = False

        def __call__(self, texts, questions):
            asked.append(len(texts))
            scores = np.array([np.nan if self.missing and not place else 50.0 for place in range(len(texts))])
            return Judgement(scores, np.full(len(texts), 60.0), ("why",) * len(texts))

    def run(judge):
        return Answers(model, pairs_of(model, 3), judge, SAMPLING, tmp_path).of().judgement

    asked = []
    first, again = run(Counting()), run(Counting())
    assert asked == [3]
    assert (again.trait.tolist(), again.coherence.tolist(), again.reasons) == (first.trait.tolist(), [60.0] * 3, ("why",) * 3)
    run(Counting(missing=True))
    run(Counting(missing=True))
    run(lambda texts, questions: Counting()(texts, questions))
    run(lambda texts, questions: Counting()(texts, questions))
    assert asked == [3] * 5


def test_judges_that_only_memory_tells_apart_have_no_identity():
    assert identity_of(psr.judges.organism("sea")) != identity_of(psr.judges.organism("pirate")) is not None
    assert identity_of(lambda texts, questions: None) is None

    @dataclass
    class Holder:
        what: object

        def __call__(self, texts, questions): ...

    assert identity_of(Holder(object())) is None
    judge = Holder(object())
    judge.identity = "mine"
    assert identity_of(judge) == "mine"


def test_a_file_of_answers_is_lines_of_json_that_anyone_can_read(model, tmp_path):
    pairs = pairs_of(model, 2)
    found = Answers(model, pairs, WordJudge(), SAMPLING, tmp_path).of()
    (path,) = tmp_path.glob("answers-*.jsonl")
    head, *rows = map(json.loads, path.read_text().splitlines())
    assert head == {"format": 1, "lines": 2}
    assert tuple(row["text"] for row in rows) == found.texts
    assert rows[0]["ids"] == list(psr.generate(model, pairs, sampling=SAMPLING)[0].ids)
    assert not list(tmp_path.glob(".*"))
