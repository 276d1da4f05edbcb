"""`psr-lens transfer`: the same map and replacements as the library makes, none of them twice, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import BACKENDS
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens._utils.digests import digest_of
from psr_lens.apps import transfer as carrying
from psr_lens.apps.cli import app
from psr_lens.models import model_content
from psr_lens.replacement import Replacement

QUESTIONS = ("what is a bear ?", "what is a fox ?", "what is an owl ?", "what is a river ?", "what is tea ?")
RUNGS = ("--rung", "gates", "--rung", "whole-procrustes")


def run(*arguments):
    result = CliRunner().invoke(app, ["transfer", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def given(organism, tmp_path_factory):
    """An artifact and the source's texts, as arguments of the command; and both as they are in the library."""
    folder = tmp_path_factory.mktemp("given")
    pairs = psr.prompt_pairs(organism.model, list(QUESTIONS), "talk like a pirate .")
    triplets = psr.sample_responses(organism.model, pairs, sampling=psr.SamplingConfig(max_new_tokens=16))
    replacement = psr.fit(organism.model, triplets, psr.Sequential(rank=2, regression_steps=2))
    replacement.save(folder / "pirate")
    lines = [{"question": each.pair.question, "instruction": each.pair.instruction, "response": each.response} for each in triplets]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    models = ("--source-model", "organism", "--target-model", "organism-gpt2", "--no-verify", "--max-new-tokens", 16)
    return ("--from", folder / "pirate", "--texts", folder / "texts.jsonl", *models), replacement


@pytest.fixture(scope="module")
def made(given, tmp_path_factory):
    """The folder of a finished transfer."""
    out = tmp_path_factory.mktemp("transfers") / "out"
    code, output = run(*given[0], *RUNGS, "--out", out)
    assert code == 0, output
    return out


def test_map_and_rungs_are_those_of_the_library(organism, load, given, made):
    other = load("organism-gpt2", BACKENDS[0]).model
    replacement = given[1]
    pairs = psr.prompt_pairs(organism.model, list(QUESTIONS), "talk like a pirate .")
    lines = [json.loads(line) for line in given[0][3].read_text().splitlines()]
    texts = psr.with_responses(organism.model, pairs, [line["response"] for line in lines])
    answers = psr.generate(organism.model, pairs, sampling=psr.SamplingConfig(max_new_tokens=16))
    plain = psr.with_responses(organism.model, pairs, [each.text for each in answers])
    plain = [psr.Triplet(each.pair, answer.ids, each.response) for each, answer in zip(plain, answers, strict=True)]
    mapped = psr.transfer.fit_activation_map(organism.model, other, psr.transfer.pair_texts(organism.model, other, plain))
    found = psr.transfer.ActivationMap.load(made / "map", source=organism.model, target=other)
    for layer, each in mapped.by_target_layer.items():
        torch.testing.assert_close(found.by_target_layer[layer].matrix, each.matrix, rtol=1e-3, atol=1e-4)
    carried = [each.target for each in psr.transfer.pair_texts(organism.model, other, texts)]
    wanted = psr.transfer.gates(other, carried, replacement, mapped)
    gates = Replacement.load(made / "gates")
    assert gates.origin == ("gates", "organism")
    for name, site in wanted.sites.items():
        torch.testing.assert_close(gates.sites[name].directions, site.directions, rtol=1e-2, atol=1e-3)
    assert Replacement.load(made / "whole-procrustes").origin == ("whole, procrustes", "organism")


def test_what_is_finished_is_not_made_again_and_what_is_damaged_is(given, made, monkeypatch):
    def never(*arguments, **more):
        raise AssertionError

    makers = {name: getattr(carrying.transfer, name) for name in ("fit_activation_map", "gates", "whole")}
    for name in makers:
        monkeypatch.setattr(carrying.transfer, name, never)
    monkeypatch.setattr(carrying, "generate", never)
    code, output = run(*given[0], *RUNGS, "--out", made)
    assert code == 0, output
    assert "gates: finished before" in output
    before = (made / "gates" / "replacement.safetensors").read_bytes()
    # Another artifact in its place is not what was written there, and is made again, though it can be read.
    given[1].save(made / "gates")
    monkeypatch.setattr(carrying.transfer, "gates", makers["gates"])
    code, output = run(*given[0], *RUNGS, "--out", made)
    assert code == 0, output
    assert "map: finished before" in output
    assert (made / "gates" / "replacement.safetensors").read_bytes() == before
    (made / "map" / "activation_map.safetensors").write_bytes(b"")
    (made / "whole-procrustes" / "replacement.json").unlink()
    (made / "plain.jsonl").write_text("")
    monkeypatch.undo()
    code, output = run(*given[0], *RUNGS, "--out", made)
    assert code == 0, output
    assert "plain: 5 of the source's" in output
    assert "map: ActivationMap" in output
    assert "gates: finished before" in output  # for the map has the content that it had
    assert "whole-procrustes: Replacement" in output


def test_what_is_made_of_something_else_than_is_there_is_made_again(organism, load, given, made, tmp_path, monkeypatch):
    """Other answers for the map, then another map for the gates, though all that was written is whole."""
    out, other = tmp_path / "out", load("organism-gpt2", BACKENDS[0]).model
    shutil.copytree(made, out)
    (out / "plain.jsonl").write_text("")
    known = psr.transfer.ActivationMap.load(out / "map", source=organism.model, target=other)
    moved = {layer: replace(each, offset=each.offset + 1) for layer, each in known.by_target_layer.items()}
    generate, gates = carrying.generate, Replacement.load(out / "gates")
    monkeypatch.setattr(carrying, "generate", lambda *one, sampling: generate(*one, sampling=replace(sampling, max_new_tokens=3)))
    monkeypatch.setattr(carrying.transfer, "fit_activation_map", lambda *_: replace(known, by_target_layer=moved))
    monkeypatch.setattr(carrying.transfer, "gates", lambda *_: gates)
    code, output = run(*given[0], "--rung", "gates", "--out", out)
    assert code == 0, output
    for name in ("texts: no response has an end token", "plain: 5 of", "map: ActivationMap", "gates: Replacement"):
        assert name in output
    code, output = run(*given[0], "--rung", "gates", "--out", out)
    assert "gates: finished before" in output


def test_a_transfer_from_before_settings_were_recorded_goes_on(given, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    state = json.loads((out / "transfer.json").read_text())
    for part, name in (("source", "organism"), ("target", "organism-gpt2")):
        content = model_content(psr.load_model(name, verify=False))  # as the command was told
        assert state["about"][part] == digest_of(content)
        del content["settings"]
        state["about"][part] = digest_of(content)
    (out / "transfer.json").write_text(json.dumps(state))
    code, output = run(*given[0], *RUNGS, "--out", out)
    assert code == 0, output
    assert "map: finished before" in output
    state["about"]["source"], state["about"]["target"] = state["about"]["target"], state["about"]["source"]
    (out / "transfer.json").write_text(json.dumps(state))
    code, output = run(*given[0], *RUNGS, "--out", out)
    assert code == 2, output
    assert "holds another transfer (different: source, target)" in output


def test_another_transfer_and_unknown_rungs_are_refused(given, made, tmp_path):
    code, output = run(*given[0], "--seed", 1, "--out", made)
    assert code == 2, output
    assert "holds another transfer (different: texts, settings)" in output
    code, output = run(*given[0], "--map", made / "map", "--out", made)
    assert code == 2, output
    assert "(different: map)" in output
    code, output = run(*given[0], "--rung", "magic", "--out", tmp_path / "new")
    assert code == 2, output
    assert "rung: got 'magic', expected one of through-text, gates," in output
    assert not (tmp_path / "new").exists()
    (tmp_path / "other.txt").write_text("")
    code, output = run(*given[0], "--out", tmp_path)
    assert code == 2, output
    assert "which holds other files" in output
    backwards = [*given[0], "--out", tmp_path / "new"]
    backwards[5], backwards[7] = backwards[7], backwards[5]
    code, output = run(*backwards)
    assert code == 2, output
    assert "made for organism" in output
    assert not (tmp_path / "new").exists()
