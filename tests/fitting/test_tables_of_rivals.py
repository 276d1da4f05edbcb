"""The tables of trained rivals in the docs are those of the numbers that are committed, and a script that is cut off goes on."""

import json

import numpy as np
import pytest
import torch
from helpers import BENCHMARKS, benchmark_script

import psr_lens as psr
from psr_lens.replacement import Site


@pytest.fixture(scope="module")
def rivals():
    with benchmark_script("rivals") as script:
        yield script


def test_the_tables_in_the_guide_are_those_of_the_numbers_in_benchmarks(rivals):
    lines = rivals.tables_of(json.loads((BENCHMARKS / "rivals.json").read_text(encoding="utf-8"))).splitlines()
    text = (BENCHMARKS.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| LoRA") for line in lines) >= 2
    for line in lines:
        assert f"{line}\n" in text


def test_learned_numbers_are_counted_by_what_is_trained(rivals, tiny_llama):
    model = tiny_llama.model
    width, layers = model.cfg.d_model, model.cfg.n_layers

    def counted(rule, method, rank=1):
        site = Site(torch.zeros(rank, width), torch.zeros(rank, width), torch.zeros(rank), rule)
        sites = {f"blocks.{layer}.hook_resid_post": site for layer in range(layers)}
        return rivals.parameters(psr.Replacement(sites, "R", method, {}))

    assert counted("constant", "A-Const MSE") == layers * width
    assert counted("linear", "A-CLAS") == layers * (width + 1)
    assert counted("linear", "A-LoReFT", 4) == layers * 4 * (2 * width + 1)
    assert counted("relu", "A-PSR", 4) == layers * 4 * (2 * width + 1)


def test_a_cell_that_the_file_holds_is_not_measured_again(rivals, monkeypatch):
    measured = []
    triplets = [object()] * 30
    scores = {"n": 1, "trait": 1.0, "trait_interval": [0.0, 2.0], "coherence": 99.0}
    monkeypatch.setattr(rivals.psr, "sample_responses", lambda *_, **__: triplets)
    monkeypatch.setattr(rivals, "answers_to", lambda *_, **__: scores)

    def cell(setting, config, some, least):
        measured.append((type(config).__name__, len(some), least))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return {"seconds": 2.0, "parameters": 1234, "alpha": 0.75, "questions": scores}

    monkeypatch.setattr(rivals, "cell", cell)
    setting = rivals.Setting("pirate", None, None, [], [], {"questions": []}, None, 1)
    held, saved = {}, []
    with pytest.raises(KeyboardInterrupt):
        list(rivals.measured(setting, ["LoRA", "A-PSR sequential"], (10, 30), held, lambda: saved.append(1)))
    assert len(saved) == 3
    list(rivals.measured(setting, ["LoRA", "A-PSR sequential"], (10, 30), held, lambda: saved.append(1)))
    kinds = [("LoRA", 10), ("Sequential", 10), ("LoRA", 30), ("LoRA", 30), ("Sequential", 30)]
    assert measured == [(kind, count, 94.0) for kind, count in kinds]
    assert rivals.table_of("tiny", "pirate", "questions", held)[4:] == [
        "| unsteered | – | 1 [0, 2] / 99 | 1 [0, 2] / 99 | – |",
        "| prompt | – | 1 [0, 2] / 99 | 1 [0, 2] / 99 | – |",
        "| LoRA | 1,234 | 1 [0, 2] / 99, α 0.75 | 1 [0, 2] / 99, α 0.75 | 2.0 s |",
        "| A-PSR sequential | 1,234 | 1 [0, 2] / 99, α 0.75 | 1 [0, 2] / 99, α 0.75 | 2.0 s |",
        "",
    ]
    with pytest.raises(rivals.typer.BadParameter, match="got 30 triplets of pirate, expected at least 100"):
        list(rivals.measured(setting, ["LoRA"], (100,), held, lambda: None))


def test_every_trained_method_takes_as_many_steps_whatever_the_number_of_examples(rivals):
    for count in rivals.EXAMPLES:
        for name, settings in rivals.METHODS.items():
            config = settings(1, count)
            if hasattr(config, "epochs"):
                steps = config.epochs * int(np.ceil(count / config.batch_size))
                assert rivals.STEPS <= steps < 1.2 * rivals.STEPS, name
