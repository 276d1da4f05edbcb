"""The benchmark on the embedded models: what its numbers are, that it goes on after a crash, and what it refuses."""

import json
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps import benchmark
from psr_lens.apps.benchmark import WITH_PROMPT, BenchmarkConfig, run_benchmark
from psr_lens.apps.cli import app
from psr_lens.errors import InputError
from psr_lens.evaluation import answer_cache as answers
from psr_lens.evaluation.scores import score

pytestmark = pytest.mark.slow

CONFIG = BenchmarkConfig(
    ("llama",),
    ("shout",),
    ("S-Const DiM", WITH_PROMPT),
    fit_questions=8,
    calibration_questions=3,
    held_out=2,
    calibration=psr.Calibration(steps=1, maximum=1.0),
    max_new_tokens=16,
)


def quiet(text):
    pass


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    return out, run_benchmark(out, CONFIG, say=quiet)["llama"]


def test_it_has_every_method_at_both_targets_in_three_blocks(ran):
    table = ran[1]
    methods = ["none", "prompt", "S-Const DiM", WITH_PROMPT, f"{WITH_PROMPT} + prompt"]
    for block in benchmark.BLOCKS:
        rows = table.select(block=block)
        assert list(dict.fromkeys(row.method for row in rows)) == methods
        for method in methods:
            metrics = {row.metric for row in rows.select(method=method)}
            both = {"TA@C80", "coherence at C80"} if method in methods[2:] else set()
            assert metrics == both | {"TA@Cp", "coherence at Cp"}
    assert {row.n + row.missing for row in table.select(metric="TA@Cp")} == {2}


def test_a_number_is_the_trait_of_answers_at_the_strength_that_calibration_found(ran):
    out, table = ran
    model, judge = psr.load_model("organism"), psr.judges.organism("shout")
    known = psr.organism.questions(11, kind="description", seed=0)
    asked = [each for about in benchmark.BLOCKS.values() for each in psr.organism.questions(2, split="held_out", seed=0, **about)]
    fitted = [psr.Replacement.load(each) for each in (out / "llama" / "fits").iterdir()]
    steering = next(each for each in fitted if len(each.sites) == 6)
    sampling = psr.SamplingConfig(seed=1, max_new_tokens=16)
    pairs = psr.prompt_pairs(model, known[8:], psr.organism.instruction("shout"))
    found = psr.evaluate(model, pairs, steering, judge, calibration=CONFIG.calibration, sampling=sampling)
    (row,) = table.select(method=WITH_PROMPT, metric="TA@C80", block="procedures")
    assert row.alpha == float(f"{found.calibrated(steering.method).alpha:.3g}")
    held_out = psr.prompt_pairs(model, asked, psr.organism.instruction("shout"))
    answers = psr.generate(model, held_out, steering, sampling=sampling, alpha=row.alpha)
    procedures = slice(2, 4)  # of three blocks of two questions
    scores = score("A-PSR", held_out[procedures], answers[procedures], judge)
    assert (row.value, row.interval) == (scores.trait, scores.trait_interval)
    (strength,) = table.select(method=WITH_PROMPT, metric="α at C80")
    assert strength.value == row.alpha


def test_tables_say_what_was_found(ran):
    out, table = ran
    text = (out / "results.md").read_text()
    assert "## organism" in text
    assert "| method | descriptions, TA@C80 |" in text
    assert "| none |" in text
    assert text.count(f"| {WITH_PROMPT} + prompt |") == 2 + 2 * 3 + 2
    for note in table.settings["notes"]:
        assert f"- {note}" in text
    assert psr.ResultTable.from_json(out / "results-llama.json").rows == table.rows
    assert "nan" not in text.lower()


class StopError(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(ran, tmp_path, monkeypatch):
    real, left = answers.generate, [6]

    def generate(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise StopError
        return real(*args, **kwargs)

    monkeypatch.setattr(answers, "generate", generate)
    with pytest.raises(StopError):
        run_benchmark(tmp_path, CONFIG, say=quiet)
    left[0] = 10**9
    monkeypatch.setattr(benchmark, "fit", None)  # both are fitted
    run_benchmark(tmp_path, CONFIG, say=quiet)
    monkeypatch.setattr(benchmark, "load_model", None)  # nothing is left to do
    run_benchmark(tmp_path, CONFIG, say=quiet)
    for name in ("results.md", "results-llama.json"):
        assert (tmp_path / name).read_bytes() == (ran[0] / name).read_bytes()


def test_a_process_of_its_own_leaves_everything_done(tmp_path, monkeypatch):
    config = replace(CONFIG, methods=("S-Const DiM",))
    benchmark._in_processes(tmp_path, config)
    monkeypatch.setattr(benchmark, "load_model", None)
    table = run_benchmark(tmp_path, config, say=quiet)["llama"]
    assert {row.method for row in table} == {"none", "prompt", "S-Const DiM"}


def test_a_configuration_survives_json():
    config = replace(CONFIG, calibration=psr.Calibration(targets=(70.0, 80.0)))
    assert benchmark.config_from(json.loads(json.dumps(asdict(config)))) == config


def test_the_quick_one_takes_what_is_asked_for():
    assert BenchmarkConfig.quick(traits=("sea",), families=("gpt2",)).traits == ("sea",)
    assert BenchmarkConfig.quick().families == ("llama",)
    assert set(BenchmarkConfig().traits) < set(psr.organism.TRAITS)
    assert BenchmarkConfig().held_out >= 80


@pytest.mark.parametrize(
    "changes", [{"families": ()}, {"families": ("bert",)}, {"traits": ("see",)}, {"methods": ("x",)}, {"held_out": 0}]
)
def test_what_there_is_not_is_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        BenchmarkConfig(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "bert"], "family: got 'bert', expected one of llama, gpt2, both"),
        (["--trait", "see"], "traits: got 'see'"),
        (["--method", "x"], "methods: got 'x'"),
        (["--out", __file__], "out: got"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, message):
    result = CliRunner().invoke(app, ["benchmark", "organism", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_the_command_line_passes_on_what_it_is_given(tmp_path, monkeypatch):
    given = []

    def run(out, config, say):
        given.append(config)
        (out / "results.md").write_text("the table")

    monkeypatch.setattr(benchmark, "run_benchmark", run)
    arguments = [
        "--out",
        str(tmp_path),
        "--family",
        "gpt2",
        "--trait",
        "sea",
        "--trait",
        "dense",
        "--seed",
        "4",
        "--held-out",
        "120",
    ]
    result = CliRunner().invoke(app, ["benchmark", "organism", *arguments])
    assert result.exit_code == 0, result.output
    assert "the table" in result.output
    assert given == [BenchmarkConfig(families=("gpt2",), traits=("sea", "dense"), seed=4, held_out=120)]
