"""`benchmarks/deploy.py`: its instructions, KV memory and tables, and that its requests to transformers answer as they should."""

import json

import pytest
import torch
import transformers
from architectures import save_tiny
from helpers import BENCHMARKS, benchmark_script, random_replacement

import psr_lens as psr

NEW, QUESTIONS = 6, [[11, 12, 13], [21, 22, 23]]


@pytest.fixture(scope="module")
def script():
    with benchmark_script("deploy") as found:
        yield found


@pytest.mark.parametrize("length", [1, 20, 200])
def test_an_instruction_has_exactly_so_many_tokens_and_begins_as_a_shorter_one_does(script, length):
    tokenizer = psr.load_model("organism").tokenizer
    found = script.instruction_ids(tokenizer, length)
    assert len(found) == length
    assert script.instruction_ids(tokenizer, length + 5)[:length] == found


def test_no_question_is_asked_twice(script):
    found = []

    def job(questions):
        found.extend(tuple(ids) for ids in questions)
        return script.Run(0.1, 0.2, 0.1, 0.2, None)

    for label in ("8 × 20", "8 × 60"):
        runs = script.cell({"prompt": job, "prompt, cached": job}, 1_000, 8, label)
        assert [len(each) for each in runs.values()] == [script.TURNS] * 2
    assert len(set(found)) == len(found) == 2 * 2 * 8 * (script.TURNS + 1)
    assert {len(ids) for ids in found} == {script.QUESTION}


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma3"])
def test_kv_memory_is_that_of_transformers_cache(script, family, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(family, tmp_path), dtype=torch.bfloat16)
    cache = model(input_ids=torch.tensor([QUESTIONS[0]])).past_key_values
    kept = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    assert script.kv_bytes_per_token(model.config, torch.bfloat16) * len(QUESTIONS[0]) == kept


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_kind_of_request_answers_as_transformers_does(script, family, tmp_path):
    from _deployed import ALPHA

    folder = save_tiny(family, tmp_path / "model")
    random_replacement(psr.load_model(folder, backend="bridge"), size=1.0).save(tmp_path / "psr")
    by = script.ByTransformers(folder, tmp_path / "psr", torch.float32, device="cpu", compiled=False)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    instruction = [30, 31, 32, 33]

    def greedy(before):
        ids = torch.tensor([[*before, *each] for each in QUESTIONS])
        settings = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return plain.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, ids.shape[1] :].tolist()

    with psr.Replacement.load(tmp_path / "psr").attach(plain, ALPHA):
        steered = greedy([])
    wanted = {"none": greedy([]), "PSR": steered, "prompt": greedy(instruction)}
    assert len({json.dumps(each) for each in wanted.values()}) == 3
    wanted |= {"none, gates": wanted["none"], "prompt, cached": wanted["prompt"]}
    for name, kind in script.KINDS.items():
        job = by.job(kind, instruction, NEW)
        assert [job(QUESTIONS).answers, job(QUESTIONS).answers] == [wanted[name]] * 2


# --- tables -----------------------------------------------------------------------------------------------------------------


def test_the_tables_in_the_page_are_those_of_the_numbers(script):
    tables = script.tables_of(json.loads((BENCHMARKS / "deploy.json").read_text(encoding="utf-8")))
    assert tables in (BENCHMARKS.parent / "docs" / "serving.md").read_text(encoding="utf-8")


def made_up():
    """One cell of two turns: the prompt takes twice as long as nothing, and PSR 1.25 times."""
    kinds = {"none": 1.0, "none, gates": 1.0, "PSR": 1.25, "prompt": 2.0, "prompt, cached": 1.0}
    runs = {name: [[0.01 * turn * by, turn * by, 1.0, 2.0 * by, 3.0] for turn in (1, 3)] for name, by in kinds.items()}
    settings = {
        "model": "tiny",
        "dtype": "bfloat16",
        "question": 32,
        "new": 33,
        "block": 32,
        "kv bytes per token": 10_000,
        "rank": 4,
    }
    way = {"machine": "here", "versions": "vllm 1", "cells": {"8 × 100": runs}}
    return {"settings": settings, "ways": {"vllm on cpu": way}}


def test_tables_have_medians_ratios_within_turns_and_memory(script):
    content = made_up()
    lines = script.tables_of(content).splitlines()
    assert "| 8 | 100 | 20 (10–30) | 25 (12–38) | 40 (20–60) | 20 (10–30) |" in lines
    assert "| 8 | 100 | 176 (88–264) | 141 (70–211) | 88 (44–132) | 176 (88–264) |" in lines
    assert "| 8 | 100 | 125 / 250 | 125 / 312 | 125 / 500 | 125 / 250 |" in lines
    assert "| 8 | PSR | 0.80 (0.80–0.80) | 0.80 (0.80–0.80) | 2 |" in lines
    assert "| 8 | none, gates | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) | 2 |" in lines
    # 32 + 33 − 1 tokens; with the prompt 100 more, of which 96 are in whole blocks
    assert "| 100 | 0.6 (3.0) | 0.6 (3.0) | 1.6 (3.0) | 0.7 (3.0) |" in lines


def test_tables_are_put_between_the_comments_of_a_page(script, tmp_path):
    page = tmp_path / "page.md"
    from _deploy_tables import BEGIN, END

    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for tables in ("first \\1\n", "second\n"):
        script.put_into(page, tables)
        assert page.read_text() == f"before\n{BEGIN}\n\n{tables}\n{END}\nafter\n"
    page.write_text("no comments")
    with pytest.raises(ValueError, match="expected the lines"):
        script.put_into(page, "tables")
