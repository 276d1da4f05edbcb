"""Checkpoints with further neurons in vLLM, without the plugin and without psr_lens."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

import random

import torch
from random_neurons import random_neurons
from transformers import AutoModelForCausalLM
from vllm_models import CONTEXT

import psr_lens as psr

COUNT = 8
CODE = f"""
import json, sys
sys.modules["psr_lens"] = None
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
greedy, found = SamplingParams(temperature=0, max_tokens={COUNT}, ignore_eos=True), []
for folder, prompts in json.loads(sys.argv[1]):
    llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len={CONTEXT}, max_num_seqs=8, block_size=32)
    answers = llm.generate([{{"prompt_token_ids": ids}} for ids in prompts], greedy)
    found.append([list(each.outputs[0].token_ids) for each in answers])
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
print(json.dumps(found))
"""


def greedy(hf, prompts):
    settings = {"max_new_tokens": COUNT, "min_new_tokens": COUNT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [hf.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts]


def test_answers_are_those_of_plain_transformers(tiny_for_vllm, tmp_path, monkeypatch):
    rng, given, expected = random.Random(0), [], []
    for family in ("llama", "qwen2", "gpt2"):
        tiny = tiny_for_vllm(family)
        model = psr.load_model(tiny.folder, backend="bridge")
        neurons = random_neurons(SimpleNamespace(model=model, family=family))
        folder = neurons.to_checkpoint(model, tmp_path / family)
        prompts = [[rng.randrange(5, 300) for _ in range(rng.randint(3, 60))] for _ in range(8)]
        given.append([str(folder), prompts])
        expected.append(greedy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), prompts))
        assert sum(one != other for one, other in zip(expected[-1], greedy(tiny.hf, prompts), strict=True)) > 4
    monkeypatch.setenv("VLLM_PLUGINS", "")
    command = [sys.executable, "-c", CODE, json.dumps(given)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == expected
