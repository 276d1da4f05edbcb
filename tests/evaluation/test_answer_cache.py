"""Answers that are made once: in memory, and in a folder from which an interrupted run continues."""

import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from evaluated import SAMPLING, SHORT, WordJudge, lines, two
from helpers import FORK, pairs_of, random_replacement

import psr_lens as psr
from psr_lens.errors import ArtifactError
from psr_lens.evaluation import answer_cache as answers
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.results.judgement import Judgement


@pytest.fixture
def model(tiny_llama):
    return tiny_llama.model


def test_strengths_that_are_asked_for_together_share_a_call_and_answer_as_each_by_itself(model, counted, tmp_path):
    pairs, steering = pairs_of(model, 3), two(model)["one"]
    wanted = [AnswerCache(model, pairs, WordJudge(), SAMPLING, tmp_path).of(steering, alpha).texts for alpha in (0.0, 0.5, 2.0)]
    counted.clear()
    together = AnswerCache(model, pairs, WordJudge(), SAMPLING)
    assert [judged.texts for judged in together.at(steering, [0.0, 0.5, 2.0])] == wanted
    assert [len(call) for call in counted] == [3, 2 * 3]
    resumed = AnswerCache(model, pairs, WordJudge(), SAMPLING, tmp_path)
    assert [judged.texts for judged in resumed.at(steering, [0.5, 1.0, 2.0])][::2] == wanted[1:]
    assert [[strength for _, strength, *_ in call] for call in counted[2:]] == [[1.0] * 3]


def test_answers_in_parts_are_those_of_all_at_once(model, monkeypatch):
    pairs = pairs_of(model, 7)
    wanted = AnswerCache(model, pairs, WordJudge(), SAMPLING).of(two(model)["one"]).texts
    monkeypatch.setattr(answers, "CHUNK", 3)
    assert AnswerCache(model, pairs, WordJudge(), SAMPLING).of(two(model)["one"]).texts == wanted


# --- on disk ---------------------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "CHUNK", 2)
    given = (model, pairs_of(model, 5), two(model), WordJudge())
    options = {"calibration": replace(SHORT, with_prompt=["one"]), "sampling": SAMPLING}
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
        AnswerCache(model, pairs, WordJudge(), config, tmp_path).of(steering, alpha, context)
        return len(counted) - before

    assert ask() == 1
    assert ask() == 0
    assert ask(config=replace(SAMPLING, token_budget=999)) == 0  # how many share a batch is no matter of content
    assert ask(alpha=2.0) == ask(context="prompted") == ask(pairs=pairs[::-1]) == ask(pairs=pairs[:2]) == 1
    assert ask(config=replace(SAMPLING, seed=4)) == ask(config=replace(SAMPLING, temperature=0)) == 1
    assert ask(steering=2.0 * steering) == ask(steering=replace(steering, span="QR", question_start=1)) == ask(model=other) == 1
    assert ask(steering=1.0 * steering) == ask(steering=replace(steering, method="another name")) == 0


@pytest.mark.parametrize("content", ["", "{", '{"format": 2, "lines": 9}\n', '{"format": 9, "lines": 2}\n{}\n{}\n'])
def test_a_damaged_file_is_named_with_a_remedy(model, tmp_path, content):
    AnswerCache(model, pairs_of(model, 2), WordJudge(), SAMPLING, tmp_path).of()
    (path,) = tmp_path.glob("answers-*.jsonl")
    path.write_text(content)
    with pytest.raises(ArtifactError, match=rf"{path.name}: is damaged .* Delete it"):
        AnswerCache(model, pairs_of(model, 2), WordJudge(), SAMPLING, tmp_path).of()


def test_scores_are_kept_where_the_judge_can_be_told_from_others_and_none_is_missing(model, tmp_path):
    @dataclass(frozen=True)
    class Counting:
        missing: bool = False
        identity: str | None = "counting"

        def __call__(self, texts, questions):
            asked.append(len(texts))
            scores = np.array([np.nan if self.missing and not place else 50.0 for place in range(len(texts))])
            return Judgement(scores, np.full(len(texts), 60.0), ("why",) * len(texts))

    def run(judge):
        return AnswerCache(model, pairs_of(model, 3), judge, SAMPLING, tmp_path).of().judgement

    asked = []
    first, again = run(Counting()), run(Counting())
    assert asked == [3]
    assert (again.trait.tolist(), again.coherence.tolist(), again.reasons) == (first.trait.tolist(), [60.0] * 3, ("why",) * 3)
    run(Counting(missing=True, identity="missing"))
    run(Counting(missing=True, identity="missing"))
    run(lambda texts, questions: Counting()(texts, questions))
    run(lambda texts, questions: Counting()(texts, questions))
    run(Counting(identity=None))  # a dataclass is no exception: its fields need not be all that its scores depend on
    run(Counting(identity=None))
    assert asked == [3] * 7


def test_inside_a_knock_out_the_answers_are_those_of_the_knocked_out_model(organism, tmp_path):
    """The whole of what the organism says goes through its heads: without them, no answer is of the trait."""
    model, judge = organism.model, psr.judges.organism("pirate")
    pairs = psr.prompt_pairs(model, psr.organism.questions(4, split="held_out"), psr.organism.instruction("pirate"))
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    sampling = psr.SamplingConfig(max_new_tokens=30)
    options = {"calibration": psr.Calibration(targets=(), at_prompt=False), "sampling": sampling, "cache": tmp_path}
    method = random_replacement(model, size=1e-3)

    def prompted():
        return psr.evaluate(model, pairs, method, judge, **options).curves["prompt"][0].mean("trait")

    assert prompted() == 100.0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with psr.patching.knock_out(model, pairs, heads), pytest.warns(RuntimeWarning, match="cache: there are hooks on the model"):
        assert prompted() == 0.0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert prompted() == 100.0


@pytest.mark.filterwarnings("ignore:cache")
def test_answers_under_hooks_are_neither_read_nor_kept_in_memory_or_on_disk(fresh, tmp_path):
    model = fresh.model
    module = model.original_model if "Bridge" in type(model).__name__ else model
    inside = [each for each in module.modules() if "mlp" in type(each).__name__.lower()][-1]

    def other(module, inputs, output):
        return torch.randn_like(output, generator=None) * 0 + torch.linspace(-9, 9, output.shape[-1])

    answers = AnswerCache(model, pairs_of(model, 3), WordJudge(), SAMPLING, tmp_path)
    plain = answers.of().texts
    for place in (inside.register_forward_hook, torch.nn.modules.module.register_module_forward_pre_hook):
        handle = place(other if place == inside.register_forward_hook else lambda module, inputs: None)
        generated = answers.generated
        changed = answers.of().texts
        assert answers.generated == generated + 3
        assert (changed != plain) == (place == inside.register_forward_hook)
        handle.remove()
        assert answers.of().texts == plain
        assert answers.generated == generated + 3
    assert len(list(tmp_path.glob("answers-*"))) == len(list(tmp_path.glob("scores-*"))) == 1


def test_a_changed_weight_makes_other_answers_and_the_old_value_finds_the_old_ones(fresh, tmp_path, counted):
    model = fresh.model

    def ask():
        before = len(counted)
        found = AnswerCache(model, pairs_of(model, 2), WordJudge(), SAMPLING, tmp_path).of().texts
        return len(counted) - before, found

    bias = next(each for each in model.parameters() if each.ndim == 1)
    kept = bias.detach().clone()
    first = ask()
    bias.data[3] += 2.5
    assert ask()[0] == 1
    bias.data.copy_(kept)
    assert ask() == (0, first[1])


def test_plans_whose_parts_or_factors_are_exchanged_are_other_methods(model):
    one, two_ = two(model).values()
    plans = [one + 0.5 * two_, 0.5 * one + two_, one + two_, one, 0.5 * one, replace(one, tokens="last"), replace(one, offset=1.0)]
    assert len({answers.steering_digest(plan) for plan in plans}) == len(plans)
    assert answers.steering_digest(one) == answers.steering_digest(1 * one) == answers.steering_digest(replace(one, method="x"))


def test_a_file_of_answers_is_lines_of_json_that_anyone_can_read(model, tmp_path):
    pairs = pairs_of(model, 2)
    found = AnswerCache(model, pairs, WordJudge(), SAMPLING, tmp_path).of()
    (path,) = tmp_path.glob("answers-*.jsonl")
    head, *rows = map(json.loads, path.read_text().splitlines())
    assert head == {"format": 2, "lines": 2}
    assert tuple(row["text"] for row in rows) == found.texts
    assert rows[0]["ids"] == list(psr.generate(model, pairs, sampling=SAMPLING)[0].ids)
    assert not list(tmp_path.glob(".*"))
