"""`psr-lens fit`: the same artifact as the library makes, from lines or from a store; and what it refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps.cli import app
from psr_lens.replacement import Replacement

RESPONSES = ("arr , the bear is a strong animal .", "arr , the fox is a clever animal .", "the owl is a quiet bird .")


def run(*arguments):
    result = CliRunner().invoke(app, ["fit", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def lines(tmp_path):
    """Two lines of a group and one of another, with scores."""
    content = [
        {"question": "what is a bear ?", "instruction": "talk like a pirate .", "group": "pirate", "trait": 50},
        {"question": "what is a fox ?", "instruction": "talk like a pirate .", "group": "pirate"},
        {"question": "what is an owl ?", "instruction": "be gloomy .", "group": "gloomy", "coherence": 75},
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps(line | {"response": text}) for line, text in zip(content, RESPONSES, strict=True)))
    return path


@pytest.fixture
def pirates(organism):
    """The triplets that the lines of the group `pirate` stand for."""
    pairs = psr.prompt_pairs(organism.model, ["what is a bear ?", "what is a fox ?"], "talk like a pirate .")
    first, second = psr.with_responses(organism.model, pairs, RESPONSES[:2])
    return [psr.Triplet(first.pair, first.response_ids, first.response, trait=50.0), second]


def assert_same(one, other):
    assert list(one.sites) == list(other.sites)
    for name, site in one.sites.items():
        torch.testing.assert_close(site.directions, other.sites[name].directions, atol=1e-5, rtol=1e-4)


def test_the_artifact_is_the_one_that_the_library_fits(organism, tmp_path, lines, pirates):
    (tmp_path / "fit.yaml").write_text("solver: sequential\nlayers: [1, 2]\nregression_steps: 4\n")
    code, output = run("--triplets", lines, "--out", tmp_path / "a", "--config", tmp_path / "fit.yaml", "--group", "pirate")
    assert code == 0, output
    assert "fitted on 2 triplets" in output
    wanted = psr.fit(organism.model, pirates, psr.Sequential(layers=[1, 2], regression_steps=4))
    found = Replacement.load(tmp_path / "a")
    assert_same(found, wanted)
    assert found.settings["instructions"] == ["talk like a pirate ."]


def test_a_store_serves_as_well(organism, tmp_path, lines, pirates):
    to = psr.OnDisk(tmp_path / "store", groups=["pirate", "pirate"])
    psr.capture(organism.model, pirates, "resid_post", to=to, layers=[0])
    (tmp_path / "fit.yaml").write_text("solver: dim\nlayers: 1\n")
    for source in (lines, tmp_path / "store"):
        out = tmp_path / f"from-{source.name}"
        code, output = run("--triplets", source, "--group", "pirate", "--config", tmp_path / "fit.yaml", "--out", out)
        assert code == 0, output
    assert_same(Replacement.load(tmp_path / "from-store"), Replacement.load(tmp_path / "from-lines.jsonl"))


def test_without_responses_the_model_gives_them(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(
        "\n".join(json.dumps({"question": text, "instruction": "shout ."}) for text in ("what is a bear ?", "what is tea ?"))
    )
    (tmp_path / "fit.yaml").write_text("solver: dim\n")
    for seed in (0, 0, 1):
        out = tmp_path / f"seed-{seed}"
        code, output = run("--triplets", path, "--config", tmp_path / "fit.yaml", "--out", out, "--seed", seed)
        assert code == 0, output
    assert Replacement.load(tmp_path / "seed-0").settings["triplets"] == 2


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ("solver: dim", ["--group", "sad"], "error: group: got 'sad', expected a group in"),
        ("solvr: dim", [], "error: config: unknown setting 'solvr'. Did you mean 'solver'?"),
        ("- dim", [], "expected a mapping with one setting per line, such as `solver: sequential`"),
        ("solver: [", [], "expected a readable YAML file"),
        ("layers: 99", [], "99"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_code_2(tmp_path, lines, config, arguments, message):
    (tmp_path / "fit.yaml").write_text(config)
    code, output = run("--triplets", lines, "--out", tmp_path / "a", "--config", tmp_path / "fit.yaml", *arguments)
    assert code == 2, output
    assert message in output
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("score", ["100.5", "-0.1", "true", '"1"', "null"])
def test_a_score_outside_0_to_100_is_refused(tmp_path, score):
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"question": "a", "instruction": "b", "response": "c", "trait": {score}}}')
    with pytest.raises(psr.errors.InputError, match=r"line 1: trait is .*, expected a number from 0 to 100"):
        psr.datasets.read_pairs(path)
