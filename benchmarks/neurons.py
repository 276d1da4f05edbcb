"""A replacement as ordinary weights: A-PSR, neurons of the same rank in force, and their checkpoint in plain transformers.

python benchmarks/neurons.py organism --json benchmarks/neurons.json
python benchmarks/neurons.py --tables-of benchmarks/neurons.json

All answers are greedy. The checkpoint is loaded and run by transformers alone. The numbers are saved after every trait, and what the file
holds is not measured again; `--trait` chooses some, and `--cell` measures neurons with other settings beside the default ones.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from _divergence import Divergence
from _numbers import opened, traits_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import psr_lens as psr
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair

FITTED, HELD_OUT, CLOSENESS = 100, 60, 30
"""Numbers of questions: to fit on, to score on, and to measure KL on."""
KINDS = ("description", "procedure")
"""Kinds of held-out question; the first is that of the fit."""
RANK, TOKENS, BATCH = 4, 48, 20
CELLS = {
    "neurons": psr.Neurons(rank=RANK),
    "prompt_weight 1": psr.Neurons(rank=RANK, prompt_weight=1.0),
    "prompt_weight 0.01": psr.Neurons(rank=RANK, prompt_weight=0.01),
    "sharpness 10": psr.Neurons(rank=RANK, sharpness=10.0),
    "constant_ridge 0.0001": psr.Neurons(rank=RANK, constant_ridge=1e-4),
    "rank 8": psr.Neurons(rank=2 * RANK),
    "both kinds": psr.Neurons(rank=RANK),
}
"""Settings by name; the first are the default ones, and the last are fitted on as many questions, half of them procedures."""
GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=TOKENS)
CLOSE = 2.0
"""Points of trait and of coherence within which neurons count as equal to the replacement."""


def scored(judge: Any, pairs: Sequence[PromptPair], answers: Sequence[str]) -> dict[str, float]:
    """Mean trait and coherence."""
    found = judge(list(answers), [pair.question for pair in pairs])
    return {"trait": float(np.mean(found.trait)), "coherence": float(np.mean(found.coherence))}


def answers_of(model: HookedModel, pairs: Sequence[PromptPair], steering: Any = None, **given: Any) -> list[str]:
    """Greedy answers of the model."""
    return [each.text for each in psr.generate(model, pairs, steering, sampling=GREEDY, **given)]


def plain_answers(folder: Path, pairs: Sequence[PromptPair]) -> list[str]:
    """Greedy answers of a checkpoint, by transformers alone, in left-padded batches."""
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found: list[str] = []
    for at in range(0, len(pairs), BATCH):
        prompts = [list(pair.base_ids) for pair in pairs[at : at + BATCH]]
        width = max(map(len, prompts))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(each)) + each for each in prompts])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        with torch.no_grad():
            answered = hf.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS)
        found += tokenizer.batch_decode(answered[:, width:], skip_special_tokens=True)
    return [text.strip() for text in found]


def measured(model: HookedModel, trait: str, cells: Sequence[str], held: dict[str, Any]) -> None:
    """Measure what `held` lacks of one trait."""
    judge, instruction = psr.judges.organism(trait), psr.organism.INSTRUCTIONS[trait]
    asked = psr.prompt_pairs(model, psr.organism.questions(FITTED, split="train", kind="description", seed=1), instruction)
    asked_of = {
        f"{kind}s": psr.prompt_pairs(model, psr.organism.questions(HELD_OUT, split="held_out", kind=kind), instruction)
        for kind in KINDS
    }
    pairs = asked_of["descriptions"]
    triplets = psr.sample_responses(model, asked, judge, sampling=psr.SamplingConfig(max_new_tokens=TOKENS))
    closeness = Divergence(model, psr.sample_responses(model, pairs[:CLOSENESS], sampling=GREEDY))
    if "A-PSR" not in held:
        replacement = psr.fit(model, triplets, psr.Sequential(rank=RANK))
        held["triplets"], held["A-PSR"], held["prompt"] = len(triplets), {"kl": closeness.of(replacement)}, {}
        for kind, each in asked_of.items():
            held["A-PSR"][kind] = scored(judge, each, answers_of(model, each, replacement))
            held["prompt"][kind] = scored(judge, each, answers_of(model, each, context="prompted"))
    for name in cells:
        if name in held:
            continue
        began = time.perf_counter()
        learned_from = _of_both_kinds(model, instruction, judge) if name == "both kinds" else triplets
        neurons = psr.adapt(model, learned_from, CELLS[name])
        row: dict[str, Any] = {"seconds": time.perf_counter() - began}
        row |= {"kl": closeness.of(neurons), "fidelity": asdict(neurons.fidelity), "house": {}, "checkpoint": {}, "same": 0, "n": 0}
        with tempfile.TemporaryDirectory() as folder:
            written = neurons.to_checkpoint(model, Path(folder) / "wide")
            for kind, each in asked_of.items():
                ours, exported = answers_of(model, each, neurons), plain_answers(written, each)
                row["house"][kind], row["checkpoint"][kind] = (scored(judge, each, texts) for texts in (ours, exported))
                row["same"], row["n"] = row["same"] + sum(map(str.__eq__, ours, exported)), row["n"] + len(each)
        held[name] = row


def _of_both_kinds(model: HookedModel, instruction: Any, judge: Any) -> list[psr.Triplet]:
    """Triplets of as many questions as the others are fitted on, half of each kind."""
    questions = [each for kind in KINDS for each in psr.organism.questions(FITTED // len(KINDS), split="train", kind=kind, seed=1)]
    asked = psr.prompt_pairs(model, questions, instruction)
    return psr.sample_responses(model, asked, judge, sampling=psr.SamplingConfig(max_new_tokens=TOKENS))


def is_close(held: dict[str, Any], name: str) -> bool:
    """Whether a checkpoint is within `CLOSE` points of the replacement in trait and coherence, or better, on the kind of the fit."""
    found, wanted = (each["descriptions"] for each in (held[name]["checkpoint"], held["A-PSR"]))
    return all(found[side] >= wanted[side] - CLOSE for side in ("trait", "coherence"))


def tables_of(content: dict[str, Any]) -> str:
    """The numbers as Markdown: a table for each model with the default settings, and one of the others."""
    lines: list[str] = []
    for model, found in content["models"].items():
        traits = found["traits"]
        name = next(iter(CELLS))
        close = sum(is_close(held, name) for held in traits.values())
        lines += [f"`{model}`: {close} of {len(traits)} traits within {CLOSE:g} points", ""]
        heads = ["trait", "prompt", "A-PSR", "neurons", "checkpoint", "procedures: A-PSR", "procedures: checkpoint", "same answers"]
        heads += ["KL, A-PSR", "KL, neurons", "to ReLU", "on prompts"]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for trait, held in traits.items():
            row = held[name]
            cells = [_cell(each["descriptions"]) for each in (held["prompt"], held["A-PSR"], row["house"], row["checkpoint"])]
            cells += [_cell(each["procedures"]) for each in (held["A-PSR"], row["checkpoint"])]
            cells += [f"{row['same']} of {row['n']}", _kl(held["A-PSR"]["kl"]), _kl(row["kl"])]
            cells += [f"{row['fidelity']['form']:.1g}", f"{row['fidelity']['on_prompts']:.2g}"]
            lines.append(f"| {' | '.join([trait, *cells])} |")
        lines.append("")
    lines += ["| model, trait | settings | descriptions | procedures | KL | on prompts |", "|---" * 6 + "|"]
    for model, found in content["models"].items():
        for trait, held in found["traits"].items():
            if any(name in held for name in list(CELLS)[1:]):
                lines += [_other(f"{model}, {trait}", name, held[name]) for name in CELLS if name in held]
    lines.append("")
    return "\n".join(lines)


def _cell(found: dict[str, float]) -> str:
    return f"{found['trait']:.1f} / {found['coherence']:.1f}"


def _kl(found: Sequence[float]) -> str:
    return " / ".join(f"{value:.1g}" for value in found)


def _other(which: str, name: str, row: dict[str, Any]) -> str:
    cells = [_cell(row["checkpoint"][kind]) for kind in ("descriptions", "procedures")]
    cells += [f"{row['fidelity'][part]:.2g}" for part in ("prompted", "on_prompts")]
    return f"| {' | '.join([which, 'default' if name == next(iter(CELLS)) else name, *cells])} |"


def main(
    model: Annotated[str | None, typer.Argument(help="`organism` or `organism-gpt2`.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="Traits; by default all.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Names of settings; by default the default ones.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")] = Path("neurons.json"),
    tables: Annotated[Path | None, typer.Option("--tables-of", help="Only print the tables of this file.")] = None,
) -> None:
    """Measure, and save after every trait; or print tables."""
    if tables is not None:
        print(tables_of(json.loads(tables.read_text(encoding="utf-8"))))
        return
    if model is None:
        raise typer.BadParameter("got none, expected a model, or --tables-of a file.", param_hint="model")
    content, save = opened(json_file, {"format": 1, "models": {}})
    held = traits_of(content, model)
    loaded = psr.load_model(model)
    for name in trait or list(psr.organism.INSTRUCTIONS):
        measured(loaded, name, cell or list(CELLS)[:1], held.setdefault(name, {}))
        save()
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    typer.run(main)
