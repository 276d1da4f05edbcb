"""`psr-lens run`: the whole line on a model and questions of one's own, what it goes on from, and what it refuses."""

import html
import json
import os
import re
import signal

import numpy as np
import pytest
import yaml
from helpers import FORK, save_tiny
from run_command import QUICK, run, written
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import psr_lens as psr
from psr_lens.apps import pipeline
from psr_lens.apps.pipeline import read_config
from psr_lens.apps.pipeline import steps as runs
from psr_lens.evaluation import answer_cache as answers
from psr_lens.evaluation.answers_by_method import SHOWN

FILES = ["answers.jsonl", "artifacts", "kept", "report.html", "results.json", "run.yaml"]


def contents(folder, leave_out=("run.yaml", "kept")):
    """Every file's bytes; of the wall times of a learning curve, which no two runs share, only that they are there."""
    return {
        str(path.relative_to(folder)): re.sub(rb'"seconds": \[[^]]*\]', b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in leave_out
    }


@pytest.mark.slow
def test_the_whole_line_without_a_judge(folders, tmp_path, questions, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--model", folders["llama"], "--questions", questions, "--instruction", "talk like a pirate ."]
    arguments += ["--max-new-tokens", 6, "--layers", "0,2", "--held-out", 4, "--seed", 1, "--prefix", "arr"]
    arguments += ["--temperature", 0.8, "--top-p", 0.9, "--place", "after"]
    code, output = run(*arguments, "--out", out)
    assert code == 0, output
    assert sorted(each.name for each in out.iterdir()) == FILES
    for told in (
        "no judge: methods are fitted on all responses",
        "instruction⟦talk│",
        "prefix⟦",
        "fitted A-PSR on",
        "A-PSR: relative RMSE",
    ):
        assert told in output
    assert re.search(
        r"A-PSR: relative RMSE after the last layer [\d.]+ \([\d.]+ without massive tokens, [\d.]+ at the median token\)", output
    )
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert list(rows[0]) == ["question", "instruction", "none", "prompt", "A-PSR", "S-Const DiM"]
    assert rows[0]["instruction"] == "talk like a pirate ."
    found = json.loads((out / "results.json").read_text())
    assert found["methods"] == {}
    assert set(found["relative_rmse"]) == {"A-PSR", "S-Const DiM"}
    assert found["fitted_on"]["kept"] + found["fitted_on"]["dropped"] == 8
    learned = psr.Replacement.load(out / "artifacts" / "A-PSR")
    assert list(learned.sites) == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    assert list(psr.Replacement.load(out / "artifacts" / "S-Const-DiM").sites) == ["blocks.2.hook_resid_post"]
    settings = yaml.safe_load((out / "run.yaml").read_text())
    assert (settings["sampling"]["temperature"], settings["sampling"]["top_p"], settings["chat"]["place"]) == (0.8, 0.9, "after")
    page = html.unescape((out / "report.html").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    assert tokenizer.chat_template in page
    question = rows[0]["question"]
    for content in (question, f"{question} talk like a pirate ."):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(chat, add_special_tokens=False)["input_ids"] + tokenizer("arr", add_special_tokens=False)["input_ids"]
        assert f"<td>{tokenizer.decode(ids)}</td>" in page
    # The settings that it wrote give the same in another folder.
    code, output = run("--config", out / "run.yaml", "--out", tmp_path / "again")
    assert code == 0, output
    assert contents(tmp_path / "again") == contents(out)
    assert yaml.safe_load((out / "run.yaml").read_text()) == {
        **yaml.safe_load((tmp_path / "again" / "run.yaml").read_text()),
        "out": str(out),
    }

    # A second run in the same folder makes nothing anew, and ends the same.
    def refuse(*args, **kwargs):
        raise AssertionError("made again")

    before = contents(out, ())
    for module, name in ((answers, "generate"), (runs, "fit")):
        monkeypatch.setattr(module, name, refuse)
    code, output = run(*arguments, "--out", out)
    assert code == 0, output
    assert "resuming the run" in output
    assert contents(out, ()) == before


def scored_at(table, method):
    """Mean trait score by strength."""
    return {row.alpha: row.value for row in table if (row.method, row.metric) == (method, "trait")}


def pirate_task(folder, count, **settings):
    """Settings of a run on the organism, with so many questions in a file."""
    (folder / "q.txt").write_text("\n".join(psr.organism.questions(count)))
    return {
        "model": "organism",
        "questions": str(folder / "q.txt"),
        "instruction": psr.organism.instruction("pirate"),
        "out": str(folder / "out"),
        **settings,
    }


@pytest.mark.slow
def test_a_judge_filters_scores_and_its_scores_are_in_the_results(tmp_path, monkeypatch, no_report):
    given = pirate_task(
        tmp_path,
        24,
        judge={"trait": "organism:pirate", "coherence": "perplexity"},
        calibration={"targets": [80], "steps": 0, "maximum": 1, "at_prompt": False},
        sampling={"max_new_tokens": 24},
        methods={"A-PSR": {"regression_steps": 10}, "S-Const DiM": {"solver": "dim", "layers": 3}},
    )
    code, output = run("--config", written(tmp_path, given))
    assert code == 0, output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["methods"]) == ["none", "prompt", "A-PSR", "S-Const DiM"]
    assert found["methods"]["none"]["trait"] < 10
    assert found["methods"]["prompt"]["trait"] > 90
    assert found["methods"]["A-PSR"]["trait"] > found["methods"]["S-Const DiM"]["trait"] + 30
    assert found["methods"]["A-PSR"]["n"] == 6
    table = psr.ResultTable.from_json(tmp_path / "out" / "evaluation.json")
    assert {row.metric for row in table} == {"trait", "coherence", "TA@C80"}
    assert "A-PSR: trait" in output
    (side_by_side,) = no_report
    for name, scores in found["methods"].items():
        assert np.mean(side_by_side.trait[name]) == pytest.approx(scores["trait"], abs=0.01)
        assert psr.judges.organism("pirate")(side_by_side.answers[name], side_by_side.questions).trait.tolist() == list(
            side_by_side.trait[name]
        )
    assert [each.alpha for each in side_by_side.at_strengths["A-PSR"]] == [0, 0.5, 1.5]
    evaluated = {alpha: f"{trait:.1f}" for alpha, trait in scored_at(table, "A-PSR").items()}
    for each in side_by_side.at_strengths["A-PSR"]:
        assert "".join(each.pushed[0].pieces) == each.texts[0]
        assert (f"{np.mean(each.trait):.1f}" if each.trait else None) == evaluated.get(each.alpha)
    assert side_by_side.at_strengths["A-PSR"][0].texts == side_by_side.answers["none"]
    before = contents(tmp_path / "out", ())
    monkeypatch.setattr(answers, "generate", None)  # the judge's references are kept too, and the answers at further strengths
    assert run("--config", written(tmp_path, given))[0] == 0
    assert contents(tmp_path / "out", ()) == before


@pytest.mark.slow
def test_answers_that_are_known_are_not_sampled_again_for_the_report(tmp_path, monkeypatch, no_report):
    """More held-out questions than the report shows: those at strength 0 and at strengths that were evaluated are known."""
    given = pirate_task(
        tmp_path,
        21,
        held_out=SHOWN + 1,
        judge="organism:pirate",
        alphas=[0.5, 1],
        calibration={"targets": [], "at_prompt": False},
        sampling={"max_new_tokens": 16},
        methods={"S-Const DiM": {"solver": "dim", "layers": 3}},
    )
    sampled, generate = [], answers.generate

    def recorded(model, pairs, *others, alpha=1.0, **settings):
        sampled.append((len(pairs), alpha))
        return generate(model, pairs, *others, alpha=alpha, **settings)

    monkeypatch.setattr(answers, "generate", recorded)
    code, output = run("--config", written(tmp_path, given))
    assert code == 0, output
    assert [each for each in sampled if each[0] % (SHOWN + 1) and each[0] != 21 - SHOWN - 1] == [(SHOWN, 1.5)]
    (side_by_side,) = no_report
    judge, asked = psr.judges.organism("pirate"), side_by_side.questions[:SHOWN]
    at_0, at_half, new = side_by_side.at_strengths["S-Const DiM"]
    assert [each.alpha for each in (at_0, at_half, new)] == [0, 0.5, 1.5]
    assert at_0.texts == side_by_side.answers["none"][:SHOWN]
    for each in (at_0, at_half):
        assert each.trait == tuple(judge(each.texts, asked).trait.tolist())
    assert new.trait == ()


def test_a_strength_that_is_too_strong_is_left_out_of_the_report(tmp_path, settings, no_report):
    """The fit is done and everything else is known by then."""
    given = {**settings, "methods": {"A-PSR": QUICK["A-PSR"]}, "also_at": [0.5, 3e38]}
    code, output = run("--config", written(tmp_path, given))
    assert code == 0, output
    assert "the report leaves out the answers of A-PSR at α = 3e+38: model: the logits for token" in output
    (side_by_side,) = no_report
    assert [each.alpha for each in side_by_side.at_strengths["A-PSR"]] == [0.5]


def test_a_dry_run_loads_no_weights_and_writes_nothing(folders, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(runs, "load_model", None)
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {**settings, "judge": "perplexity"})
    before = sorted(tmp_path.rglob("*"))
    code, output = run("--config", path, "--dry-run")
    assert code == 0, output
    for told in (
        "3 layers, width 32, context of 96 tokens, float32",
        "9 to fit on, 3 held out, split by seed 3",
        "9 under the prompt, at most 54 tokens",
        "sequential, rank 4, span R, at blocks.{0–2}.hook_resid_post",
        "2 forward passes over the training responses; activations: 128 bytes per token and hook point",
        "3 epochs forward and backward",
        "dim, rank 1, span R, at blocks.1.hook_resid_post",
        "3 × 5 (none, prompt, A-PSR, joint, S-Const DiM) at α = 1: at most 90 tokens",
        "the first 3 of each method at α = 0.5, 1.5 too, for the report: at most 108 tokens",
        "6 forward passes over the held-out responses",
        "a search over at most",
        "artifacts/S-Const-DiM/",
        "instruction⟦talk│",
        "R⟪",
    ):
        assert told in output, told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_choosing_ranks_and_weighing_tokens_takes(folders, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(runs, "load_model", None)
    method = {"solver": "local", "rank": "auto", "token_weights": "kl", "layers": [0, 2]}
    code, output = run("--config", written(tmp_path, settings | {"methods": {"A-PSR": method}}), "--dry-run")
    assert code == 0, output
    assert "local, rank auto, span R" in output
    assert "4 forward passes over the training responses" in output
    assert "artifact: at most 16.6 kB" in output  # 2 layers × rank 32 × (2 × 32 + 1) numbers of 4 bytes


@pytest.mark.usefixtures("no_report")
def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_lost(tmp_path, settings):
    given = {**settings, "methods": {"S-Const DiM": QUICK["S-Const DiM"]}}
    assert run("--config", written(tmp_path, given))[0] == 0
    out = tmp_path / "out"
    before = contents(out, ())
    (tmp_path / "questions.txt").write_text("\n".join(psr.organism.questions(12, seed=5)))
    for options, name in ((["--seed", 4], "seed"), (["--max-new-tokens", 7], "sampling"), ([], "questions")):
        for dry in ([], ["--dry-run"]):
            code, output = run("--config", tmp_path / "given.yaml", *options, *dry)
            assert code == 2, output
            assert "which holds another run (different: " in output
            assert name in output
            assert "start over" in output
    assert contents(out, ()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    code, output = run("--config", tmp_path / "given.yaml", "--out", tmp_path / "mine")
    assert code == 2
    assert "which holds other files" in output
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def die_at(given, step):
    """Run until something is said for the `step`th time, or until as many answers or checkpoints were written; then die."""
    left = [step]

    def count(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in ((answers.AnswerCache, "_write"), (psr.Replacement, "save"), (pipeline.run_folder, "write_text")):
        inner = getattr(owner, name)

        def wrapped(*args, _inner=inner, **kwargs):
            count()
            return _inner(*args, **kwargs)

        setattr(owner, name, wrapped)
    runs.run(read_config(None, given), say=count)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_run_that_is_killed_goes_on_and_ends_the_same_to_the_byte(tmp_path, settings):
    whole = tmp_path / "whole"
    runs.run(read_config(None, {**settings, "out": str(whole)}), say=lambda text: None)
    wanted = contents(whole)
    assert len(wanted) == 2 + 3 * 3  # answers, results, and three files an artifact, its card among them
    for step in (4, 9, 15):
        given = {**settings, "out": str(tmp_path / f"killed-{step}")}
        process = FORK.Process(target=die_at, args=(given, step))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        runs.run(read_config(None, given), say=lambda text: None)
        assert contents(tmp_path / f"killed-{step}") == wanted, step


@pytest.mark.usefixtures("no_report")
def test_responses_of_the_file_are_learned_from(tmp_path, folders):
    lines = [
        {"question": text, "response": "arr , " + text, "trait": 50, "instruction": "be brief ."}
        for text in psr.organism.questions(6)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = {"model": str(folders["llama"]), "questions": str(tmp_path / "q.jsonl"), "out": str(tmp_path / "out"), "held_out": 2}
    given |= {"methods": {"S-Const DiM": QUICK["S-Const DiM"]}, "sampling": {"max_new_tokens": 4}}
    result = runs.run(read_config(None, given), say=lambda text: None)
    assert len(result.triplets) == 4
    assert {each.response for each in result.triplets} <= {line["response"] for line in lines}
    assert {each.trait for each in result.triplets} == {50.0}
    assert result.comparison.instruction == "be brief ."


@pytest.mark.slow
def test_a_token_without_text_can_be_sampled_fitted_on_and_shown(tmp_path, questions):
    """Qwen2.5 and Phi-3 have more rows than their tokenizers have tokens, and their models can sample such an id."""
    folder = save_tiny("llama", tmp_path / "model", settings={"vocab_size": 400})
    known = len(AutoTokenizer.from_pretrained(folder))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][known:] *= 6  # these are likely
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    arguments = ["--model", folder, "--questions", questions, "--instruction", "talk like a pirate .", "--max-new-tokens", 6]
    code, output = run(*arguments, "--layers", 1, "--held-out", 4, "--temperature", 1, "--out", out)
    assert code == 0, output
    shown = re.findall(r"&lt;(\d+)&gt;", (out / "report.html").read_text(encoding="utf-8"))
    assert set(map(int, shown)) & set(range(known, 400))
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert not re.search(r"None|<3\d\d>", " ".join(str(text) for row in rows for text in row.values()))


@pytest.mark.slow
def test_a_judge_of_coherence_alone_is_enough(tmp_path, settings, no_report):
    """`--judge perplexity`: fluent responses are kept whatever their trait, and there is a curve of coherence."""
    one = {"S-Const DiM": QUICK["S-Const DiM"]}
    given = {
        **settings,
        "model": "organism",
        "judge": "perplexity",
        "methods": one,
        "held_out": 3,
        "sampling": {"max_new_tokens": 20},
    }
    code, output = run("--config", written(tmp_path, {**given, "calibration": {"targets": [80], "at_prompt": False, "steps": 1}}))
    assert code == 0, output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["fitted_on"]["kept"] > 0
    table = psr.ResultTable.from_json(tmp_path / "out" / "evaluation.json")
    assert all(row.n == (3 if row.metric == "coherence" else 0) for row in table)


@pytest.mark.slow
def test_methods_whose_names_differ_in_a_character_are_fitted_and_kept_apart(tmp_path, folders, questions):
    from psr_lens.apps.pipeline import RunConfig
    from psr_lens.apps.pipeline import run as run_all

    def run(methods, **changes):
        given = {
            "model": str(folders["llama"]),
            "questions": str(questions),
            "instruction": "talk like a pirate .",
            "methods": methods,
        }
        sampling = {"max_new_tokens": 6}
        return run_all(RunConfig(**{**given, "out": str(tmp_path / "out"), "sampling": sampling, **changes}), say=lambda text: None)

    fits = {"rank 1": {"rank": 1}, "rank-1": {"rank": 2}, "Rank-1": {"rank": 3}}
    found = run({name: settings | {"regression_steps": 5} for name, settings in fits.items()}).methods
    assert [next(iter(each.sites.values())).rank for each in found.values()] == [1, 2, 3]
    kept = {path: path.read_bytes() for path in (tmp_path / "out" / "artifacts").rglob("*.safetensors")}
    assert len(kept) == 3
    again = run({name: settings | {"regression_steps": 5} for name, settings in fits.items()}).methods
    assert [next(iter(each.sites.values())).rank for each in again.values()] == [1, 2, 3]
    assert {path: path.read_bytes() for path in kept} == kept
    # As an older version left it, with both names in the folder "rank-1", which holds the fit of the first.
    for path in (tmp_path / "out" / "kept" / "fits").iterdir():
        path.unlink()
    found["rank 1"].save(tmp_path / "out" / "artifacts" / "rank-1")
    mended = run({name: settings | {"regression_steps": 5} for name, settings in fits.items()}).methods
    assert [next(iter(each.sites.values())).rank for each in mended.values()] == [1, 2, 3]
