"""What closes the gap between a sequential A-PSR and the prompt: rank, token weights, strength, refinement, and the objective of polishing.

python benchmarks/gap.py organism --json benchmarks/gap.json
python benchmarks/gap.py --tables-of benchmarks/gap.json

The numbers are saved after every cell, and a cell that the file holds is not measured again; `--cell` chooses some.
`benchmarks/real/table.py` does the like on real models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from _divergence import Divergence, repeated
from _numbers import kl_cell, opened, scores_cell, traits_of

import psr_lens as psr
from psr_lens.fitting.layerwise import token_weights
from psr_lens.generation.sampling import Response
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.replacement import Replacement

FITTED, CALIBRATED, HELD_OUT = 60, 12, 40
"""Numbers of questions."""
ALPHAS = (1.0, 1.25, 1.5)
"""Strengths that the calibration tries."""
SEED = 0


@dataclass(frozen=True)
class Candidate:
    """What is fitted."""

    config: psr.FitConfig
    """Settings of the fit."""
    rounds: int = 0
    """Rounds of refinement."""
    refined_at: float = 1.0
    """Strength of the refinement's responses."""
    robust: bool = True
    """Whether massive activations count less."""


CANDIDATES = {
    "rank 4, massive as others": Candidate(psr.Sequential(), robust=False),
    "rank 4": Candidate(psr.Sequential()),
    "rank 4, KL": Candidate(psr.Sequential(token_weights="kl")),
    "rank 16": Candidate(psr.Sequential(rank=16)),
    "rank 16, KL": Candidate(psr.Sequential(rank=16, token_weights="kl")),
    "rank 32": Candidate(psr.Sequential(rank=32)),
    "rank 32, KL": Candidate(psr.Sequential(rank=32, token_weights="kl")),
    "rank auto": Candidate(psr.Sequential(rank="auto")),
    "rank auto, KL": Candidate(psr.Sequential(rank="auto", token_weights="kl")),
    "rank auto, KL, refined": Candidate(psr.Sequential(rank="auto", token_weights="kl"), rounds=1),
    "rank 16, KL, refined": Candidate(psr.Sequential(rank=16, token_weights="kl"), rounds=1),
    "rank 4, polished on MSE": Candidate(psr.Sequential(polish=psr.Polish(epochs=2, regulariser=0.0))),
    "rank 4, polished on KL": Candidate(psr.Sequential(polish=psr.Polish(epochs=2, regulariser=0.0, objective="kl"))),
}


@dataclass(frozen=True)
class Setting:
    """A model with an instruction, and what is asked."""

    name: str
    model: HookedModel
    judge: Any
    fitted: Sequence[PromptPair]
    calibrated: Sequence[PromptPair]
    held_out: dict[str, Sequence[PromptPair]]
    """Held-out questions by kind; the first kind is that of the fit."""
    sampling: psr.SamplingConfig


ORGANISM = ("pirate", "dense", "brief")


def organism_settings(name: str, traits: Sequence[str]) -> list[Setting]:
    """An embedded model, fitted on descriptions; asked for others, for procedures, and with a counter-instruction in the question."""
    model, found = psr.load_model(name), []
    for trait in traits:
        instruction = psr.organism.INSTRUCTIONS[trait]
        to_fit = psr.prompt_pairs(
            model, psr.organism.questions(FITTED + CALIBRATED, split="train", kind="description", seed=1), instruction
        )
        others: dict[str, Any] = {"procedures": {"kind": "procedure"}, "counter": {"kind": "description", "counter": True}}
        held_out = {
            name: psr.prompt_pairs(model, psr.organism.questions(HELD_OUT, split="held_out", **given), instruction)
            for name, given in ({"descriptions": {"kind": "description"}} | others).items()
        }
        sampling = psr.SamplingConfig(max_new_tokens=48)
        judge = psr.judges.organism(trait)
        found.append(Setting(trait, model, judge, to_fit[:FITTED], to_fit[FITTED:], held_out, sampling))
    return found


def answers(setting: Setting, pairs: Sequence[PromptPair], steering: Any = None, **given: Any) -> dict[str, Any]:
    """Mean scores of sampled answers, with intervals, and repetition."""
    responses = psr.generate(setting.model, pairs, steering, sampling=setting.sampling, **given)
    return scored(setting, pairs, responses, given.get("alpha"))


def scored(setting: Setting, pairs: Sequence[PromptPair], responses: Sequence[Response], alpha: float | None) -> dict[str, Any]:
    """Mean scores of answers, with intervals, and repetition."""
    from psr_lens.evaluation.scores import score

    found = score("answers", pairs, responses, setting.judge, alpha=alpha)
    row = {"n": found.n, "trait": found.trait, "interval": list(found.trait_interval)}
    row |= {"coherence": found.coherence} if np.isfinite(found.coherence) else {}
    return row | {"repeated": repeated([each.text for each in responses]), "examples": [each.text for each in responses[:3]]}


def fitted(setting: Setting, triplets: Sequence[Triplet], candidate: Candidate) -> Replacement:
    """What a candidate learns."""
    massive = token_weights.MASSIVE
    try:
        token_weights.MASSIVE = massive if candidate.robust else float("inf")  # type: ignore[misc]
        if not candidate.rounds:
            return psr.fit(setting.model, triplets, candidate.config)
        return psr.refine(
            setting.model,
            triplets,
            candidate.config,
            setting.judge,
            rounds=candidate.rounds,
            alpha=candidate.refined_at,
            sampling=setting.sampling,
        )
    finally:
        token_weights.MASSIVE = massive  # type: ignore[misc]


def measured(setting: Setting, cells: Sequence[str], held: dict[str, Any], save: Callable[[], None]) -> Iterator[str]:
    """Measure the cells of one trait that `held` lacks, one at each step."""
    triplets = psr.sample_responses(setting.model, setting.fitted, setting.judge, sampling=setting.sampling)
    pairs = next(iter(setting.held_out.values()))
    closeness = Divergence(setting.model, psr.sample_responses(setting.model, pairs, sampling=setting.sampling))
    if "prompt" not in held:
        held["triplets"] = len(triplets)
        held["unsteered"] = {"kl": closeness.of(None)} | {kind: answers(setting, each) for kind, each in setting.held_out.items()}
        held["prompt"] = {kind: answers(setting, each, context="prompted") for kind, each in setting.held_out.items()}
        save()
    yield "prompt"
    for name in cells:
        if name in held:
            continue
        candidate, began = CANDIDATES[name], time.perf_counter()
        replacement = fitted(setting, triplets, candidate)
        row: dict[str, Any] = {"seconds": time.perf_counter() - began}
        ranks = [site.rank for site in replacement.sites.values()]
        row["ranks"] = [min(ranks), float(np.mean(ranks)), max(ranks)]
        row["refined"] = replacement.settings.get("refined", [])
        row["kl"] = closeness.of(replacement)
        row["alpha 1"] = {kind: answers(setting, each, replacement, alpha=1.0) for kind, each in setting.held_out.items()}
        calibrated = psr.calibrate(
            setting.model, setting.calibrated, replacement, setting.judge, alphas=ALPHAS, sampling=setting.sampling
        )
        alpha = row["recommended"] = calibrated.recommended_alpha or 1.0
        if alpha == 1:
            row["calibrated"] = row["alpha 1"]
        else:
            row["calibrated"] = {kind: answers(setting, each, replacement, alpha=alpha) for kind, each in setting.held_out.items()}
        held[name] = row
        save()
        yield name


def table_of(content: dict[str, Any]) -> str:
    """The numbers as Markdown, a table for each model and trait."""
    lines: list[str] = []
    for model, found in content["models"].items():
        for trait, held in found["traits"].items():
            kinds = list(held["prompt"])
            lines += [f"{model}, {trait} ({held['triplets']} triplets, {held['prompt'][kinds[0]]['n']} held-out questions)", ""]
            heads = ["", "rank", *(f"{kind}, α 1" for kind in kinds), "α", *(f"{kind}, at that α" for kind in kinds), "KL", "fit"]
            lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            for name, row in held.items():
                if name == "triplets":
                    continue
                if name in ("unsteered", "prompt"):
                    cells = [
                        "–",
                        *(scores_cell(row[kind]) for kind in kinds),
                        "–",
                        *("–" for _ in kinds),
                        kl_cell(row.get("kl")),
                        "–",
                    ]
                else:
                    low, mean, high = row["ranks"]
                    cells = [
                        f"{low}" if low == high else f"{low}–{high} ({mean:.0f})",
                        *(scores_cell(row["alpha 1"][kind]) for kind in kinds),
                    ]
                    cells += [
                        f"{row['recommended']:g}",
                        *(scores_cell(row["calibrated"][kind]) for kind in kinds),
                        kl_cell(row["kl"]),
                    ]
                    cells += [f"{row['seconds']:.0f} s"]
                lines.append(f"| {' | '.join([name, *cells])} |")
            lines.append("")
    return "\n".join(lines)


def main(
    model: Annotated[str | None, typer.Argument(help="`organism` or `organism-gpt2`.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="Traits; by default all.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Names of candidates; by default all.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")] = Path("gap.json"),
    tables_of: Annotated[Path | None, typer.Option(help="Only print the tables of this file.")] = None,
) -> None:
    """Measure, and save after every cell; or print tables."""
    if tables_of is not None:
        print(table_of(json.loads(tables_of.read_text())))
        return
    if model is None:
        raise typer.BadParameter("got none, expected a model, or --tables-of a file.", param_hint="model")
    content, save = opened(json_file, {"format": 1, "seed": SEED, "models": {}})
    held = traits_of(content, model)
    for setting in organism_settings(model, trait or ORGANISM):
        for done in measured(setting, cell or list(CANDIDATES), held.setdefault(setting.name, {}), save):
            print(f"{setting.name}: {done}", flush=True)


if __name__ == "__main__":
    typer.run(main)
