"""Whether a replacement carries over to another model: each rung between its floor (a random map) and its ceiling (the target's own fit).

python benchmarks/transfer.py organism organism-gpt2 --json benchmarks/transfer.json
python benchmarks/transfer.py /path/to/one-model /path/to/another --questions questions.parquet --trait french --json transfer.json
python benchmarks/transfer.py --tables-of benchmarks/transfer.json

The numbers are saved after every cell, and a cell that the file holds is not measured again; `--cell` chooses some. The *plain* map is
learned on the source's answers without any instruction, so it has seen no text of the trait; the *wide* plain map on such answers to four
times as many questions; the *others'* map on its answers with other instructions.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import torch
import typer
from _divergence import Divergence
from _instructions import INSTRUCTIONS, SAMPLING
from _instructions import questions as asked_of_real_models
from _models import in_turns
from _numbers import opened, traits_of
from _transfer_tables import GROUPS, summary_of, table_of
from gap import answers, scored

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.fitting.given_probes import solve_for_directions
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.replacement import Replacement, Site
from psr_lens.transfer import ActivationMap, DirectionMap, PairedText
from psr_lens.transfer.direction_map import Push
from psr_lens.transfer.pairing import paired_rows
from psr_lens.transfer.rungs import pulled_back

FITTED, CALIBRATED, HELD_OUT = 60, 12, 40
"""Numbers of questions."""
REAL_FITTED, REAL_CALIBRATED, REAL_HELD_OUT, REAL_CALIBRATED_TOO = 40, 8, 24, 16
"""The same for real models; further ones to calibrate on are drawn last, so that the others stay as they were without them."""
ALPHAS, REAL_ALPHAS = (0.75, 1.0, 1.25, 1.5), (0.75, 1.0, 1.25, 1.5, 2.0)
"""Strengths that the calibration tries."""
SEED = 0
WIDER = 3
"""How many times as many questions as are fitted on the wide map has seen besides."""
REAL = ("french", "spanish", "german", "italian", "portuguese", "sentence")
"""Instructions between real models: those that SmolLM2 follows."""


@dataclass(frozen=True)
class Setting:
    """Two models with an instruction, and what is asked of both; `model` is the one that is steered, as in `gap.py`."""

    name: str
    source: HookedModel
    model: HookedModel
    judge: Any
    instruction: str
    questions: tuple[Sequence[str], Sequence[str], Sequence[str]]
    """To fit on, to calibrate on, and held out."""
    sampling: psr.SamplingConfig
    place: Any
    others: Sequence[str]
    """Other instructions, whose texts may teach a map."""
    further: Sequence[str]
    """Questions that only the wide map has seen."""
    alphas: Sequence[float] = ALPHAS
    """To calibrate with."""

    def pairs(self, model: HookedModel, part: int) -> Sequence[PromptPair]:
        """Prompts of one model."""
        return psr.prompt_pairs(model, list(self.questions[part]), self.instruction, place=self.place)

    @cached_property
    def triplets(self) -> list[Triplet]:
        """The source's answers with the instruction."""
        return list(psr.sample_responses(self.source, self.pairs(self.source, 0), self.judge, sampling=self.sampling))

    @cached_property
    def paired(self) -> list[PairedText]:
        """The same for both models."""
        return psr.transfer.pair_texts(self.source, self.model, self.triplets)

    @cached_property
    def plain(self) -> list[PairedText]:
        """The source's answers without the instruction."""
        return self._without_instruction(self.questions[0])

    @cached_property
    def wide_map(self) -> ActivationMap:
        """The map that has seen more texts without the trait."""
        texts = [*self.plain, *self._without_instruction(self.further)]
        return psr.transfer.fit_activation_map(self.source, self.model, texts)

    def _without_instruction(self, questions: Sequence[str]) -> list[PairedText]:
        pairs = psr.prompt_pairs(self.source, list(questions), self.instruction, place=self.place)
        found = psr.generate(self.source, pairs, sampling=self.sampling)
        kept = [
            Triplet(replace(pair, instruction="", prompted_ids=pair.base_ids), each.ids, each.text)
            for pair, each in zip(pairs, found, strict=True)
            if each.text.strip()
        ]
        return psr.transfer.pair_texts(self.source, self.model, kept)

    @cached_property
    def carried(self) -> list[Triplet]:
        """The source's answers as the target reads them."""
        return [each.target for each in self.paired]

    @cached_property
    def fitted(self) -> Replacement:
        """The source's replacement."""
        return psr.fit(self.source, self.triplets)

    @cached_property
    def map(self) -> ActivationMap:
        """The map that has not seen the trait."""
        return psr.transfer.fit_activation_map(self.source, self.model, self.plain)

    @cached_property
    def elsewhere(self) -> list[PairedText]:
        """The source's answers with other instructions, each to its share of the questions."""
        found: list[Triplet] = []
        for index, instruction in enumerate(self.others):
            asked = list(self.questions[0])[index :: len(self.others)]
            pairs = psr.prompt_pairs(self.source, asked, instruction, place=self.place)
            found += psr.sample_responses(self.source, pairs, sampling=self.sampling)
        return psr.transfer.pair_texts(self.source, self.model, found)

    @cached_property
    def others_map(self) -> ActivationMap:
        """The map that has seen other instructions' texts."""
        return psr.transfer.fit_activation_map(self.source, self.model, self.elsewhere)

    @cached_property
    def native(self) -> Replacement:
        """The ceiling: the target's own fit on its own answers."""
        own = psr.sample_responses(self.model, self.pairs(self.model, 0), self.judge, sampling=self.sampling)
        return psr.fit(self.model, own)

    def gates(self, mapped: ActivationMap) -> Replacement:
        """Rung 2."""
        return psr.transfer.gates(self.model, self.carried, self.fitted, mapped)

    def gates_through_text(self, mapped: ActivationMap) -> Replacement:
        """Rung 3."""
        return psr.transfer.gates_through_text(self.model, self.carried, self.fitted, mapped)

    @cached_property
    def forward(self) -> dict[str, DirectionMap]:
        """The maps of directions, by kind."""
        kinds: tuple[Any, ...] = get_args(Push)
        return {
            kind: psr.transfer.fit_direction_map(
                self.source, self.model, self.elsewhere if kind == "differences" else self.plain, kind
            )
            for kind in kinds
        }


def random_map(setting: Setting) -> ActivationMap:
    """The floor: matrices of random numbers, as large as the map's; the offsets keep the map's mean reading."""
    generator = torch.Generator().manual_seed(SEED)
    rows = collect(
        setting.model,
        [each.target for each in setting.plain],
        [f"blocks.{layer}.hook_resid_post" for layer in setting.map.by_target_layer],
        "base",
        "R",
    )
    found = {}
    for layer, each in setting.map.by_target_layer.items():
        drawn = torch.randn(each.matrix.shape, generator=generator)
        drawn *= each.matrix.norm() / drawn.norm()
        mean = rows[f"blocks.{layer}.hook_resid_post"].float().mean(0)
        found[layer] = replace(each, matrix=drawn, offset=each.offset + (each.matrix - drawn) @ mean)
    return replace(setting.map, by_target_layer=found)


def shuffled_map(setting: Setting) -> ActivationMap:
    """A map learned on the same texts with the target's tokens, the last prompt token too, in random order within each text."""
    generator = torch.Generator().manual_seed(SEED)
    mixed = [
        replace(each, target_positions=each.target_positions[torch.randperm(len(each.target_positions), generator=generator)])
        for each in setting.plain
    ]
    return psr.transfer.fit_activation_map(setting.source, setting.model, mixed)


def constants(setting: Setting) -> Replacement:
    """The rival: one direction at every layer, added to every token alike, solved for as the gates' directions are."""
    width = int(setting.model.cfg.d_model)
    probes = {
        f"blocks.{layer}.hook_resid_post": Site(torch.zeros(1, width), torch.zeros(1, width), torch.ones(1), "relu")
        for layer in range(int(setting.model.cfg.n_layers))
    }
    sites = solve_for_directions(setting.model, setting.carried, probes, psr.Sequential())
    return Replacement(sites, "R", "A-Const", fingerprint(setting.model))


def whole(setting: Setting, kind: str) -> Replacement:
    """Rung 4."""
    return psr.transfer.whole(setting.model, setting.fitted, setting.map, setting.forward[kind])


CELLS: dict[str, Callable[[Setting], Replacement]] = {
    "native": lambda setting: setting.native,
    "through text": lambda setting: psr.transfer.through_text(setting.source, setting.model, setting.triplets),
    "gates, plain map": lambda setting: setting.gates(setting.map),
    "gates, wide plain map": lambda setting: setting.gates(setting.wide_map),
    "gates, others' map": lambda setting: setting.gates(setting.others_map),
    "gates through text, plain map": lambda setting: setting.gates_through_text(setting.map),
    "gates through text, others' map": lambda setting: setting.gates_through_text(setting.others_map),
    "whole, ridge": lambda setting: whole(setting, "ridge"),
    "whole, procrustes": lambda setting: whole(setting, "procrustes"),
    "whole, anchors": lambda setting: whole(setting, "anchors"),
    "whole, differences": lambda setting: whole(setting, "differences"),
    "gates, shuffled map": lambda setting: setting.gates(shuffled_map(setting)),
    "gates, random map": lambda setting: setting.gates(random_map(setting)),
    "constants": constants,
}
"""What is measured, by name; beside them the co-pilot, which is no replacement."""
CO_PILOT: Final = "co-pilot"
TIMED: Final = 16
"""Number of answers by which the co-pilot's cost is measured."""
MARGIN: Final = 2.0
"""As `psr.calibrate` has it: how far below the prompt's the scores may be."""


def co_pilot(setting: Setting, calibrated: Sequence[PromptPair], held_out: Sequence[PromptPair]) -> dict[str, Any]:
    """Rung 5, and how fast its answers are drawn, beside those of the target alone and with its own fit."""
    began = time.perf_counter()
    driven = psr.transfer.copilot(setting.source, setting.model, setting.paired, setting.fitted)
    row: dict[str, Any] = {"seconds": time.perf_counter() - began}

    def at(alpha: float, pairs: Sequence[PromptPair]) -> dict[str, Any]:
        return scored(setting, pairs, driven.generate(pairs, alpha=alpha, sampling=setting.sampling), alpha)

    row["alpha 1"] = at(1.0, held_out)
    prompt, short = answers(setting, calibrated, context="prompted"), {}
    for alpha in setting.alphas:
        found = at(alpha, calibrated)
        short[alpha] = max(prompt[side] - found[side] for side in ("trait", "coherence") if side in prompt)
        if short[alpha] <= MARGIN:
            break
    alpha = row["recommended"] = min(short, key=lambda alpha: short[alpha])
    row["calibrated on"] = len(calibrated)
    row["calibrated"] = row["alpha 1"] if alpha == 1 else at(alpha, held_out)
    few, native = list(held_out)[:TIMED], setting.native
    drawn: dict[str, Callable[[], object]] = {
        "alone": lambda: psr.generate(setting.model, few, sampling=setting.sampling),
        "native": lambda: psr.generate(setting.model, few, native, sampling=setting.sampling),
        CO_PILOT: lambda: driven.generate(few, sampling=setting.sampling),
    }
    counts = {name: sum(len(each.ids) for each in draw()) for name, draw in drawn.items()}  # type: ignore[attr-defined]
    times = in_turns(drawn, 2, CO_PILOT)
    row["tokens per CPU second"] = {name: counts[name] / statistics.median(times[name].cpu) for name in drawn}
    return row


def gate_r2(setting: Setting, mapped: ActivationMap) -> list[float]:
    """Share of the variance of the source's coefficients, by target layer, that a map reads on the texts with the trait."""
    rows = paired_rows(setting.paired)
    names = [tuple(f"blocks.{layer}.hook_resid_post" for layer in pair) for pair in mapped.layers]
    sources, targets = ([*dict.fromkeys(side)] for side in zip(*names, strict=True))
    ours = collect(setting.source, [each.source for each in setting.paired], sources, "base", "R")
    theirs = collect(setting.model, setting.carried, targets, "base", "R")
    probes, found = pulled_back(setting.fitted, mapped), []
    for source, target in names:
        wanted = setting.fitted.sites[source].coefficients(ours[source][rows.source].float())
        read = probes[target].coefficients(theirs[target][rows.target].float())
        found.append(1 - float((wanted - read).square().sum() / (wanted - wanted.mean(0)).square().sum()))
    return found


def reach(setting: Setting) -> dict[str, Any]:
    """Why directions are not carried over, as means over layers: what of the native ones a map has seen, and what it makes of the source's.

    `seen` is the share of the native directions' squared length in the components of the map's texts, `by chance` that of a random
    direction; `met` is the share of the pushed directions' squared length in the span of the native ones.
    """
    found: dict[str, Any] = {}
    for kind, forward in setting.forward.items():
        pushed, shares = whole(setting, kind), []
        for layer, components in forward.components.items():
            name = f"blocks.{layer}.hook_resid_post"
            own, carried = (each.sites[name].directions.float() for each in (setting.native, pushed))
            basis = torch.linalg.svd(own, full_matrices=False).Vh
            met = (carried @ basis.T).square().sum() / carried.square().sum()
            shares.append((forward.seen(own, layer), len(components) / components.shape[1], float(met), len(basis) / own.shape[1]))
        means = torch.tensor(shares).mean(0).tolist()
        found[kind] = dict(zip(("seen", "seen by chance", "met", "met by chance"), means, strict=True))
    return found


def measured(setting: Setting, cells: Sequence[str], held: dict[str, Any], save: Callable[[], None]) -> Iterator[str]:
    """Measure the cells of one trait that `held` lacks, one at each step."""
    missing = [name for name in CELLS if name in cells and name not in held]
    if "prompt" in held and not missing and (CO_PILOT in held or CO_PILOT not in cells):
        return
    calibrated, held_out = (setting.pairs(setting.model, part) for part in (1, 2))
    closeness = Divergence(setting.model, psr.sample_responses(setting.model, held_out, sampling=setting.sampling))
    if "prompt" not in held:
        held["triplets"], held["gate R²"] = len(setting.triplets), gate_r2(setting, setting.map)
        held["unsteered"] = answers(setting, held_out) | {"kl": closeness.of(None)}
        held["prompt"] = answers(setting, held_out, context="prompted")
        save()
        yield "prompt"
    for name in missing:
        for kind in ("wide plain map", "others' map"):
            if name.endswith(kind) and f"gate R², {kind}" not in held:
                held[f"gate R², {kind}"] = gate_r2(setting, setting.wide_map if kind.startswith("wide") else setting.others_map)
        if name.startswith("whole") and "reach" not in held:
            held["reach"] = reach(setting)
        began = time.perf_counter()
        replacement = CELLS[name](setting)
        row: dict[str, Any] = {"seconds": time.perf_counter() - began, "kl": closeness.of(replacement)}
        row["alpha 1"] = answers(setting, held_out, replacement, alpha=1.0)
        found = psr.calibrate(
            setting.model, calibrated, replacement, setting.judge, alphas=setting.alphas, sampling=setting.sampling
        )
        alpha = row["recommended"] = found.recommended_alpha or 1.0
        row["calibrated"] = row["alpha 1"] if alpha == 1 else answers(setting, held_out, replacement, alpha=alpha)
        row["calibrated on"] = len(calibrated)
        held[name] = row
        save()
        yield name
    if CO_PILOT in cells and CO_PILOT not in held:
        held[CO_PILOT] = co_pilot(setting, calibrated, held_out)
        save()
        yield CO_PILOT


def settings_of(names: tuple[str, str], questions: Path | None, traits: Sequence[str], device: str) -> Iterator[Setting]:
    """The traits between two models, one after the other."""
    if questions is None:
        source, target = (psr.load_model(name, device=device) for name in names)
        train = psr.organism.questions(FITTED + CALIBRATED, split="train", kind="description", seed=1)
        held_out = psr.organism.questions(HELD_OUT, split="held_out", kind="description")
        more = psr.organism.questions((WIDER + 1) * FITTED + CALIBRATED, split="train", kind="description", seed=2)
        further = [question for question in more if question not in train][: WIDER * FITTED]
        for trait in traits or psr.organism.TRAITS:
            parts = (train[:FITTED], train[FITTED:], held_out)
            judge, sampling = psr.judges.organism(trait), psr.SamplingConfig(max_new_tokens=48)
            others = [psr.organism.instruction(name) for name in psr.organism.TRAITS if name != trait]
            yield Setting(trait, source, target, judge, psr.organism.instruction(trait), parts, sampling, "before", others, further)
        return
    ends = REAL_FITTED, REAL_FITTED + REAL_CALIBRATED
    count, wide = ends[1] + REAL_HELD_OUT, WIDER * REAL_FITTED
    drawn = asked_of_real_models(questions, count)
    asked = asked_of_real_models(questions, count + wide + REAL_CALIBRATED_TOO)
    more = [question for question in asked if question not in drawn][: wide + REAL_CALIBRATED_TOO]
    source, target = (psr.load_model(name, backend="bridge", device=device) for name in names)
    for trait in traits or REAL:
        given = INSTRUCTIONS[trait]
        parts = (drawn[: ends[0]], [*drawn[ends[0] : ends[1]], *more[wide:]], drawn[ends[1] :])
        others = [INSTRUCTIONS[name].text for name in REAL if name != trait]
        yield Setting(trait, source, target, given.judge, given.text, parts, SAMPLING, "after", others, more[:wide], REAL_ALPHAS)


def main(
    source: Annotated[str | None, typer.Argument(help="`organism`, `organism-gpt2`, or a folder of a real model.")] = None,
    target: Annotated[str | None, typer.Argument(help="The model that is steered; as the source.")] = None,
    questions: Annotated[Path | None, typer.Option(help="Parquet file of AxBench's training data, for real models.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="Traits; by default all.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Names of cells; by default all.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; by default a GPU if there is one.")] = "auto",
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")] = Path("transfer.json"),
    tables_of: Annotated[Path | None, typer.Option(help="Only print the tables of this file.")] = None,
) -> None:
    """Measure, and save after every cell; or print tables."""
    if tables_of is not None:
        content = json.loads(tables_of.read_text())
        for models in content["models"]:
            for at in ("alpha 1", "calibrated"):
                for cells in GROUPS:
                    head, *rows = summary_of(models, content, at, cells)
                    print(f"{models}, {at}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
                    print(*(f"| {' | '.join(row)} |" for row in rows), "", sep="\n")
        print(table_of(content))
        return
    if source is None or target is None:
        raise typer.BadParameter("got fewer than two, expected a source and a target, or --tables-of a file.", param_hint="models")
    content, save = opened(json_file, {"format": 1, "seed": SEED, "models": {}})
    key = " → ".join(Path(name).name for name in (source, target))
    held = traits_of(content, key)
    for setting in settings_of((source, target), questions, trait or [], device):
        for done in measured(setting, cell or [*CELLS, CO_PILOT], held.setdefault(setting.name, {}), save):
            print(f"{key}, {setting.name}: {done}", flush=True)


if __name__ == "__main__":
    typer.run(main)
