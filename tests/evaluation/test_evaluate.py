"""Methods side by side: what is generated, what is kept on disk, what is made of missing scores, and differences between methods."""

import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers import FORK, pairs_of, random_replacement

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation import answer_cache as answers
from psr_lens.evaluation.answer_cache import Answers, content_digest, identity_of
from psr_lens.evaluation.evaluation_result import Evaluation, Point
from psr_lens.results.intervals import percentiles, resampled_means
from psr_lens.results.judgement import Judgement

SAMPLING = psr.SamplingConfig(max_new_tokens=6, seed=3)
QUICK = psr.Calibration(targets=(), at_prompt=False)
SHORT = psr.Calibration(targets=(50.0,), steps=2, maximum=2.0)


@dataclass(frozen=True)
class WordJudge:
    """Trait: how many words begin with a letter up to m; coherence: how many words are unlike the one before."""

    def __call__(self, texts, questions):
        words = [text.split() or ["x"] for text in texts]
        trait = [100 * np.mean([word[0] <= "m" for word in each]) for each in words]
        fresh = [100 * np.mean([a != b for a, b in zip(each, ["", *each], strict=False)]) for each in words]
        return Judgement(np.array(trait), np.array(fresh), tuple(f"{len(each)} words" for each in words))


@pytest.fixture
def model(tiny_llama):
    return tiny_llama.model


def two(model):
    return {"one": random_replacement(model, seed=1), "two": random_replacement(model, seed=2, layers=[1])}


@pytest.fixture
def counted(monkeypatch):
    """Every call of `generate`: which answers it was asked for."""
    calls = []
    real = answers.generate

    def generate(model, pairs, replacement, *, context, alpha, sampling, streams, **given):
        digest = None if replacement is None else content_digest(replacement)
        strengths = [alpha] * len(pairs) if isinstance(alpha, float) else alpha
        calls.append([(digest, strength, context, stream) for strength, stream in zip(strengths, streams, strict=True)])
        return real(model, pairs, replacement, context=context, alpha=alpha, sampling=sampling, streams=streams, **given)

    monkeypatch.setattr(answers, "generate", generate)
    return calls


def lines(found):
    """All that an evaluation holds, so that two can be compared to the last bit."""
    return repr(
        [[(name, p.alpha, p.trait.tolist(), p.coherence.tolist(), p.answers) for p in c] for name, c in found.curves.items()]
    )


# --- what is generated ------------------------------------------------------------------------------------------------------


def test_a_point_is_what_scores_at_gives_with_the_same_seed(model):
    pairs, methods = pairs_of(model, 5), two(model)
    found = psr.evaluate(
        model, pairs, methods, WordJudge(), alphas=[0.5, 1], calibration=QUICK, with_prompt=["two"], sampling=SAMPLING
    )
    assert {name: [point.alpha for point in curve] for name, curve in found.curves.items()} == {
        "none": [None],
        "prompt": [None],
        "one": [0.0, 0.5, 1.0],
        "two": [0.0, 0.5, 1.0],
        "two + prompt": [0.0, 0.5, 1.0],
    }
    for name, steering, context in (("one", methods["one"], "base"), ("two + prompt", methods["two"], "prompted")):
        wanted = psr.scores_at(model, pairs, steering, WordJudge(), alpha=0.5, context=context, sampling=SAMPLING)
        point = found.curves[name][1]
        assert (point.mean("trait"), point.mean("coherence")) == (wanted.trait, wanted.coherence)
    assert found.curves["one"][0].answers == found.curves["none"][0].answers
    assert found.curves["two + prompt"][0].answers == found.curves["prompt"][0].answers


def test_nothing_is_generated_twice(model, counted):
    methods = two(model)
    psr.evaluate(
        model,
        pairs_of(model, 3),
        methods | {"again": methods["one"]},
        WordJudge(),
        calibration=SHORT,
        with_prompt=True,
        sampling=SAMPLING,
    )
    each = [answer for call in counted for answer in call]
    assert len(each) == len(set(each))
    assert sum(digest is None for digest, *_ in each) == 2 * 3  # the model as it is, and the prompt


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


def test_where_an_offset_steers_at_strength_0_it_is_generated(model, counted):
    shifted = replace(random_replacement(model), offset=0.5)
    psr.evaluate(model, pairs_of(model, 2), shifted, WordJudge(), alphas=(), calibration=QUICK, sampling=SAMPLING)
    assert [alpha for call in counted for digest, alpha, *_ in call if digest] == [0.0, 0.0]


def test_answers_in_parts_are_those_of_all_at_once(model, monkeypatch):
    pairs = pairs_of(model, 7)
    wanted = Answers(model, pairs, WordJudge(), SAMPLING).of(two(model)["one"]).texts
    monkeypatch.setattr(answers, "CHUNK", 3)
    assert Answers(model, pairs, WordJudge(), SAMPLING).of(two(model)["one"]).texts == wanted


# --- what is kept -----------------------------------------------------------------------------------------------------------


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


# --- scores -----------------------------------------------------------------------------------------------------------------


def point(alpha, trait, coherence):
    return Point(alpha, np.array(trait, float), np.array(coherence, float), ("",) * len(trait))


def evaluation(curves, **targets):
    count = len(next(iter(curves.values()))[0].trait)
    return Evaluation(
        curves, {name.replace("_", "@"): value for name, value in targets.items()}, ("q",) * count, "sea", "descriptions"
    )


def test_missing_scores_are_counted_and_never_0():
    nan = np.nan
    curve = (point(0.0, [0, 0, 0, 0], [90] * 4), point(1.0, [80, nan, 60, 10], [90, 80, nan, 50]))
    table = evaluation({"m": curve}, TA_C80=80.0).table()
    at_one = {row.metric: row for row in table.select(alpha=1.0)}
    assert (at_one["trait"].value, at_one["trait"].n, at_one["trait"].missing) == (45.0, 2, 2)
    assert at_one["coherence"].value == 70.0
    (found,) = table.select(metric="TA@C80")
    assert (found.value, found.alpha, found.n, found.missing) == (22.5, 0.5, 2, 2)
    assert {(row.trait, row.block) for row in table} == {("sea", "descriptions")}
    assert evaluation({"m": curve}, TA_C80=80.0)._repr_html_() == table._repr_html_()


@pytest.mark.parametrize("side", ["trait", "coherence"])
def test_a_judge_of_one_side_gives_that_sides_curve(side):
    sides = {"trait": [np.nan] * 3, "coherence": [np.nan] * 3} | {side: [10, 20, np.nan]}
    found = evaluation({"m": (point(0.0, **sides), point(1.0, **sides))}, TA_C80=80.0)
    rows = {row.metric: row for row in found.table().select(alpha=1.0)}
    other = "coherence" if side == "trait" else "trait"
    assert (rows[side].value, rows[side].n, rows[side].missing) == (15.0, 2, 1)
    assert np.isnan(rows[other].value)
    calibrated = found.calibrated("m")
    assert np.isnan(calibrated.trait)
    assert calibrated.outcome == ("unmeasured" if side == "trait" else "below")
    assert found.notes[0].startswith("m, TA@C80: coherence ")


def test_prompting_is_at_its_own_coherence_and_the_model_as_it_is_at_none():
    single = {"none": (point(None, [0, 0], [90, 90]),), "prompt": (point(None, [60, 80], [90, 70]),)}
    found = evaluation(single | {"m": (point(0.0, [0, 0], [90, 90]), point(1.0, [40, 60], [70, 70]))}, TA_C80=80.0, TA_Cp=80.0)
    at = {(row.method, row.metric): row.value for row in found.table() if row.metric.startswith("TA")}
    assert at == {("prompt", "TA@Cp"): 70.0, ("m", "TA@C80"): 25.0, ("m", "TA@Cp"): 25.0}
    for method in ("none", "prompt"):
        with pytest.raises(InputError, match=rf"method: got '{method}', expected one that has a strength, for TA@C80"):
            found.calibrated(method)


def test_a_difference_is_paired_question_by_question():
    rng = np.random.default_rng(1)
    easy = rng.uniform(0, 100, size=60)
    coherence = np.full(60, 90.0)
    curves = {
        name: (point(0.0, np.zeros(60), coherence + 5), point(1.0, easy + shift + noise * rng.normal(size=60), coherence - 20))
        for name, shift, noise in (("a", 5, 0), ("b", 0, 0), ("c", 0, 3))
    }
    found = evaluation(curves, TA_C80=80.0)
    exact = found.difference("a", "b", "trait", alpha=1.0)
    assert (exact.method, exact.alpha, exact.n) == ("a − b", 1.0, 60)
    assert exact.value == pytest.approx(5)
    assert exact.interval == pytest.approx((5, 5))
    paired = found.difference("a", "c")
    one, other = (found.calibrated(name) for name in ("a", "c"))
    assert paired.value == pytest.approx(one.trait - other.trait)
    width = paired.interval[1] - paired.interval[0]
    assert width < 0.3 * (one.interval[1] - one.interval[0])
    by_hand = resampled_means(curves["a"][1].trait - curves["c"][1].trait, np.ones(60, bool))
    assert found.difference("a", "c", "trait", alpha=1.0).interval == pytest.approx(percentiles(by_hand))


def test_the_target_of_prompting_moves_with_the_questions():
    rng = np.random.default_rng(2)
    coherence = rng.uniform(60, 100, size=50)
    prompt = point(None, np.full(50, 70.0), coherence)
    curve = (point(0.0, np.zeros(50), coherence + 10), point(1.0, np.full(50, 100.0), coherence - 10))
    found = evaluation({"prompt": (prompt,), "m": curve}, TA_Cp=float(coherence.mean()))
    at = found.calibrated("m", "TA@Cp")
    assert (at.alpha, at.trait) == (pytest.approx(0.5), pytest.approx(50.0))
    assert at.interval == pytest.approx((50.0, 50.0))  # in every resample prompting lies halfway between the two


def test_a_target_that_is_not_reached_is_said():
    curves = {"calm": (point(0.0, [0], [99]), point(16.0, [5], [98])), "wild": (point(0.0, [0], [70]), point(1.0, [5], [60]))}
    found = evaluation(curves, TA_C80=80.0)
    assert found.notes == [
        "calm, TA@C80: coherence never falls to 80.0; its best trait above that, at α = 16.",
        "wild, TA@C80: coherence never reaches 80.0; the trait at its most coherent, α = 0.",
    ]
    assert found.table().settings["notes"] == found.notes
    assert [found.calibrated(name).outcome for name in curves] == ["above", "below"]


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, "pairs: got an empty list"),
        ({"methods": {}}, "methods: got none, expected at least one"),
        ({"methods": {"prompt": None}}, "methods: got the name 'prompt'"),
        ({"methods": {"x": 3}}, "methods: got x = int"),
        ({"alphas": [-1.0]}, "alphas: got -1.0, expected a finite number of at least 0"),
        ({"alphas": [float("nan")]}, "alphas: got nan"),
        ({"with_prompt": "one"}, "with_prompt: got 'one', expected True, or a list of some of one, two"),
        ({"with_prompt": ["three"]}, r"with_prompt: got \['three'\]"),
        ({"judge": lambda texts, questions: Judgement(np.zeros(1), np.zeros(1), ("",))}, r"judge: got \(1, 1, 1\) trait scores"),
    ],
)
def test_bad_input_is_refused_by_name(model, changes, message):
    given = {"methods": two(model), "pairs": pairs_of(model, 2), "judge": WordJudge(), "sampling": SAMPLING} | changes
    with pytest.raises(InputError, match=message):
        psr.evaluate(model, given.pop("pairs"), given.pop("methods"), given.pop("judge"), calibration=QUICK, **given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "settings", [{"targets": (101.0,)}, {"maximum": 0.5}, {"steps": -1}, {"steps": 1.5}, {"tolerance": -1}, {"prompt_margin": "1"}]
)
def test_calibrations_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        psr.Calibration(**settings)


def test_names_that_are_not_there_are_refused(model):
    found = evaluation({"m": (point(0.0, [1], [90]), point(1.0, [1], [70]))}, TA_C80=80.0)
    for call, message in (
        (lambda: found.calibrated("n"), "method: got 'n', expected one of m"),
        (lambda: found.calibrated("m", "TA@C70"), "metric: got 'TA@C70', expected one of trait, coherence, TA@C80"),
        (lambda: found.difference("m", "m", "trait", alpha=3.0), "alpha: got 3.0, expected a strength at which m was tried: 0, 1"),
    ):
        with pytest.raises(InputError, match=message):
            call()
