"""Methods side by side: what is generated, what is made of missing scores, and differences between methods."""

from dataclasses import replace

import numpy as np
import pytest
from evaluated import QUICK, SAMPLING, SHORT, WordJudge, two
from helpers import pairs_of, random_replacement

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation.evaluation_result import Evaluation, Point
from psr_lens.results.bootstrap import percentile_interval, resampled_means
from psr_lens.results.judgement import Judgement


@pytest.fixture
def model(tiny_llama):
    return tiny_llama.model


# --- what is generated ------------------------------------------------------------------------------------------------------


def test_a_point_is_what_scores_at_gives_with_the_same_seed(model):
    pairs, methods = pairs_of(model, 5), two(model)
    found = psr.evaluate(
        model,
        pairs,
        methods,
        WordJudge(),
        calibration=replace(QUICK, alphas=(0.5, 1), with_prompt=["two"]),
        sampling=SAMPLING,
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
        calibration=replace(SHORT, with_prompt=True),
        sampling=SAMPLING,
    )
    each = [answer for call in counted for answer in call]
    assert len(each) == len(set(each))
    assert sum(digest is None for digest, *_ in each) == 2 * 3  # the model as it is, and the prompt


def test_where_an_offset_steers_at_strength_0_it_is_generated(model, counted):
    shifted = replace(random_replacement(model), offset=0.5)
    psr.evaluate(model, pairs_of(model, 2), shifted, WordJudge(), calibration=replace(QUICK, alphas=()), sampling=SAMPLING)
    assert [alpha for call in counted for digest, alpha, *_ in call if digest] == [0.0, 0.0]


# --- scores -----------------------------------------------------------------------------------------------------------------


def point(alpha, trait, coherence):
    return Point(alpha, np.array(trait, float), np.array(coherence, float), ("",) * len(trait))


def evaluation(curves, **targets):
    count = len(next(iter(curves.values()))[0].trait)
    return Evaluation(curves, {name.replace("_", "@"): value for name, value in targets.items()}, ("q",) * count)


def test_missing_scores_are_counted_and_never_0():
    nan = np.nan
    curve = (point(0.0, [0, 0, 0, 0], [90] * 4), point(1.0, [80, nan, 60, 10], [90, 80, nan, 50]))
    found = evaluation({"m": curve}, TA_C80=80.0)
    table = found.table(trait="sea", block="descriptions", settings={"seed": 3})
    at_one = {row.metric: row for row in table.select(alpha=1.0)}
    assert (at_one["trait"].value, at_one["trait"].n, at_one["trait"].missing) == (45.0, 2, 2)
    assert at_one["coherence"].value == 70.0
    (at_target,) = table.select(metric="TA@C80")
    assert (at_target.value, at_target.alpha, at_target.n, at_target.missing) == (22.5, 0.5, 2, 2)
    assert {(row.trait, row.block) for row in table} == {("sea", "descriptions")}
    assert table.settings["seed"] == 3
    assert found._repr_html_() == found.table()._repr_html_() == table._repr_html_()


def test_a_single_question_has_no_interval():
    found = evaluation({"m": (point(0.0, [0], [90]), point(1.0, [73], [70]))}, TA_C80=80.0)
    assert np.isnan([row.interval for row in found.table()]).all()
    assert np.isnan(found.difference("m", "m", "trait", alpha=1.0).interval).all()


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
        with pytest.raises(InputError, match=rf"method: got '{method}', expected a method with a strength, for TA@C80"):
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
    assert found.difference("a", "c", "trait", alpha=1.0).interval == pytest.approx(percentile_interval(by_hand, 60))


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
        "calm, TA@C80: coherence never falls to 80.0; this is the best trait, at α = 16.",
        "wild, TA@C80: coherence never reaches 80.0; this is the trait at the most coherent α = 0.",
    ]
    assert found.table().settings["notes"] == found.notes
    assert [found.calibrated(name).outcome for name in curves] == ["above", "below"]


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, "pairs: got an empty list"),
        ({"methods": {}}, "methods: got an empty mapping, expected at least one"),
        ({"methods": {"prompt": None}}, r"methods\['prompt'\]: got a value of type NoneType"),
        ({"methods": {"x": 3}}, r"methods\['x'\]: got a value of type int, expected a Replacement"),
        ({"methods": WordJudge()}, "methods: got a value of type WordJudge, expected a Replacement.* order model, pairs"),
        ({"judge": {"x": None}}, "judge: got a value of type dict, expected a judge.* order model, pairs"),
        ({"judge": WordJudge}, "judge: got the class WordJudge"),
        ({"judge": lambda texts, questions: None}, "judge: got one that returns a value of type NoneType"),
        ({"calibration": replace(QUICK, with_prompt=["three"])}, r"with_prompt: got \['three'\]"),
        (
            {"judge": lambda texts, questions: Judgement(np.zeros(1), np.zeros(1), ("",))},
            "judge: got 1 trait scores, 1 coherence scores and 1 reasons for 2 texts",
        ),
    ],
)
def test_bad_input_is_refused_by_name(model, changes, message):
    given = {"methods": two(model), "pairs": pairs_of(model, 2), "judge": WordJudge(), "sampling": SAMPLING, "calibration": QUICK}
    given |= changes
    with pytest.raises(InputError, match="methods: got the name 'prompt', expected names other than"):
        psr.evaluate(model, given["pairs"], {"prompt": random_replacement(model)}, WordJudge())
    with pytest.raises(InputError, match=message):
        psr.evaluate(model, given.pop("pairs"), given.pop("methods"), given.pop("judge"), **given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "settings",
    [
        {"alphas": (-1.0,)},
        {"alphas": (float("nan"),)},
        {"targets": (101.0,)},
        {"maximum": 0.5},
        {"steps": -1},
        {"steps": 1.5},
        {"tolerance": -1},
        {"prompt_margin": "1"},
        {"with_prompt": 1},
        {"with_prompt": ["one", 1]},
    ],
)
def test_invalid_calibrations_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        psr.Calibration(**settings)


@pytest.mark.usefixtures("unchecked")
def test_one_name_of_a_method_under_the_prompt_is_no_list():
    with pytest.raises(InputError, match="with_prompt: got 'one', expected a list of texts or True or False"):
        psr.Calibration(with_prompt="one")


def test_a_method_of_another_model_is_refused_before_anything_is_generated(model, counted):
    foreign = replace(random_replacement(model), model={"model_name": "other", "d_model": 7})
    with pytest.raises(ArtifactError, match="made for other with d_model=7"):
        psr.evaluate(model, pairs_of(model, 2), foreign, WordJudge(), calibration=QUICK, sampling=SAMPLING)
    assert not counted


def test_unknown_names_are_refused(model):
    found = evaluation({"m": (point(0.0, [1], [90]), point(1.0, [1], [70]))}, TA_C80=80.0)
    for call, message in (
        (lambda: found.calibrated("n"), "method: got 'n', expected one of m"),
        (lambda: found.calibrated("m", "TA@C70"), "metric: got 'TA@C70', expected one of trait, coherence, TA@C80"),
        (
            lambda: found.difference("m", "m", "trait", alpha=3.0),
            "alpha: got 3.0, expected a strength at which m was measured: 0, 1",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()
