"""Quality and cost of fits: every method, every trait, both families of the embedded model.

python benchmarks/fit.py                   # hours on 2 cores; --trait and --model (repeatable) choose a part
python benchmarks/fit.py --quick           # one trait, one family, few methods, under a minute
python benchmarks/fit.py --json out.json --markdown out.md
python benchmarks/fit.py --tables-of benchmarks/fit     # of parts that were run separately: files, or a folder of them
python benchmarks/fit.py --large           # wall time on a random model of GPT-2 small's size, sequential against joint
python benchmarks/fit.py --large --gpu     # the same on 24 layers of d_model 2,048 in bfloat16 on the CUDA GPU

Every replacement is fitted on descriptions only. It is then asked for other descriptions, for procedures (a kind of question that it was
not fitted on), and for descriptions with a counter-instruction in the question ("but forget that and answer plainly"). All of them are
held out: neither the model nor a fit has seen them. The best strength is chosen on a third set of questions.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _fit_cost import counted_passes, large_model
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import psr_lens as psr
from psr_lens import organism
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.evaluation.scores import Scores, score
from psr_lens.generation.sampled_triplets import Triplets, judged_triplets
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair

LAYER = 1
"""Layer of the single-layer methods."""
TRAINED: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8}
"""Gradient descent at this size; the paper's learning rate of 1e-3 is too slow here."""
CONSTANT = (0.5, 1.0, 2.0, 4.0)
TOKENWISE = (0.8, 1.0, 1.25)
CLOSEST = psr.Sequential(
    rank=8,
    ridge=3e-4,
    regression_steps=100,
    polish=psr.Polish(epochs=24, regulariser=0.0, **(TRAINED | {"learning_rate": 4e-3})),
)
"""The settings that come closest to the prompted activations, at the expense of other kinds of question; best with --fit-questions 680."""
CLOSEST_METHOD = "A-PSR sequential, rank 8, polished"
"""Its name; it has its own table."""
LONGEST = 64
"""Most tokens of an answer; those that the model was trained on have up to 46."""
SITUATIONS = ("description", "procedure", "counter")


@dataclass(frozen=True)
class Method:
    """A method of the table."""

    config: psr.FitConfig
    """How it is fitted."""
    alphas: tuple[float, ...]
    """Strengths to choose the best from."""


METHODS = {
    "S-Const DiM (CAA)": Method(psr.DiM(layers=LAYER), CONSTANT),
    "S-Const DiM, QR": Method(psr.DiM(layers=LAYER, span="QR"), CONSTANT),
    "S-ActAdd": Method(psr.ActAdd(layers=LAYER), CONSTANT),
    "S-Last token": Method(psr.LastToken(layers=LAYER), CONSTANT),
    "S-Stolfo": Method(psr.Stolfo(layers=LAYER), CONSTANT),
    "S-Const MSE": Method(psr.Joint(layers=LAYER, rule="constant", epochs=8, **TRAINED), CONSTANT),
    "S-Const LL": Method(psr.Joint(layers=LAYER, rule="constant", objective="ll", epochs=8, **TRAINED), CONSTANT),
    "S-ReFT-r1": Method(psr.ReFT(layers=LAYER, epochs=8, **TRAINED), CONSTANT),
    "A-Const DiM": Method(psr.DiM(), CONSTANT),
    "A-Const MSE": Method(psr.Joint(rule="constant", epochs=8, **TRAINED), CONSTANT),
    "A-Const LL": Method(psr.Joint(rule="constant", objective="ll", epochs=8, **TRAINED), CONSTANT),
    "S-PSR sequential": Method(psr.Sequential(layers=LAYER), TOKENWISE),
    "S-PSR joint": Method(psr.Sequential(layers=LAYER, rank=1, polish=psr.Polish(epochs=15, **TRAINED)), TOKENWISE),
    "S-PSR joint LL": Method(
        psr.Sequential(layers=LAYER, rank=1, polish=psr.Polish(epochs=15, objective="ll", **TRAINED)), TOKENWISE
    ),
    "S-PSR joint LL, rank 4": Method(
        psr.Sequential(layers=LAYER, polish=psr.Polish(epochs=15, objective="ll", **TRAINED)), TOKENWISE
    ),
    "A-PSR joint": Method(psr.Joint(epochs=30, **TRAINED), TOKENWISE),
    "A-PSR joint LL": Method(psr.Joint(epochs=15, objective="ll", **TRAINED), TOKENWISE),
    "A-PSR local": Method(psr.Local(), TOKENWISE),
    "A-PSR sequential": Method(psr.Sequential(), TOKENWISE),
    **{f"A-PSR sequential, rank {rank}": Method(psr.Sequential(rank=rank), TOKENWISE) for rank in (1, 2, 8)},
    "A-PSR sequential, polished": Method(
        psr.Sequential(polish=psr.Polish(epochs=2, **(TRAINED | {"learning_rate": 2e-3}))), TOKENWISE
    ),
    CLOSEST_METHOD: Method(CLOSEST, TOKENWISE),
}
DEFAULT = "A-PSR sequential"
"""What `fit` does by default; fit times are given as multiples of its time."""
BASELINE = "S-Const DiM (CAA)"
"""The one constant method in the tables by trait."""
QUICK = (BASELINE, "S-PSR sequential", "A-PSR sequential")


@dataclass(frozen=True)
class Task:
    """One trait on one model: what to fit on, and what to ask."""

    model: HookedModel
    trait: str
    triplets: Triplets
    validation: Sequence[PromptPair]
    asked: dict[str, list[PromptPair]]
    sampling: psr.SamplingConfig

    @classmethod
    def of(cls, model: HookedModel, trait: str, fit_questions: int, held_out: int, seed: int) -> Task:
        """The same questions and random streams for every method."""
        instruction = organism.instruction(trait)
        known = psr.prompt_pairs(model, organism.questions(fit_questions + 40, kind="description", seed=seed), instruction)
        config = psr.SamplingConfig(seed=seed)
        triplets = psr.sample_responses(model, known[:fit_questions], psr.judges.organism(trait), sampling=config)
        held = {
            "description": organism.questions(held_out, split="held_out", kind="description", seed=seed),
            "procedure": organism.questions(held_out, split="held_out", kind="procedure", seed=seed),
            "counter": organism.questions(held_out, split="held_out", kind="description", seed=seed, counter=True),
        }
        asked = {name: psr.prompt_pairs(model, questions, instruction) for name, questions in held.items()}
        sampling = psr.SamplingConfig(seed=seed + 1, max_new_tokens=LONGEST)
        return cls(model, trait, triplets, known[fit_questions:], asked, sampling)


def measure(task: Task, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of scores by model, trait, method and situation, at α = 1 and at the best α, with the cost of each fit."""
    judge = psr.judges.organism(task.trait)
    about = {"model": str(task.model.cfg.model_name), "target": task.trait}
    rows: list[dict[str, Any]] = []
    prompted = {
        name: psr.generate(task.model, pairs, context="prompted", sampling=task.sampling) for name, pairs in task.asked.items()
    }
    for situation, pairs in task.asked.items():
        none = psr.scores_at(task.model, pairs, None, judge, sampling=task.sampling)
        for found in (none, score("prompt", pairs, prompted[situation], judge)):
            rows.append(about | {"situation": situation, "at": "", **asdict(found)})
    fitted: dict[str, psr.Replacement] = {}
    costs: dict[str, dict[str, float]] = {}
    tokens = sum(len(triplet.pair.base_ids) + len(triplet.response_ids) for triplet in task.triplets)
    for name in tqdm(names, desc=f"{about['model']}, {task.trait}", leave=False):
        with counted_passes(task.model, tokens) as passes:
            began = time.perf_counter()
            fitted[name] = psr.fit(task.model, task.triplets, METHODS[name].config)
            costs[name] = {"seconds": time.perf_counter() - began, "passes": passes()}
        rows += [about | row for row in _scores(task, name, fitted[name], judge)]
    held = judged_triplets(task.asked["description"], prompted["description"], judge)
    compared = psr.compare(task.model, held, fitted, paraphrase=organism.instruction(task.trait, 1))
    rmse = {name: float(trace.relative_rmse[-1]) for name, trace in compared.methods.items()}
    if compared.paraphrase_rmse is not None:
        rmse["prompt"] = float(compared.paraphrase_rmse[-1])
    return [row | costs.get(row["method"], {}) | {"rmse": rmse.get(row["method"])} for row in rows]


def _scores(task: Task, name: str, replacement: psr.Replacement, judge: Any) -> list[dict[str, Any]]:
    def ask(alpha: float, situation: str) -> Scores:
        pairs = task.asked[situation]
        return psr.scores_at(task.model, pairs, replacement, judge, alpha=alpha, method=name, sampling=task.sampling)

    best = psr.best_alpha(
        task.model, task.validation, replacement, judge, alphas=METHODS[name].alphas, sampling=task.sampling
    ).alpha
    rows = []
    for situation in SITUATIONS:
        at_one = ask(1.0, situation)
        rows.append({"situation": situation, "at": "1", **asdict(at_one)})
        at_best = at_one if best == 1 or best is None else ask(best, situation)
        rows.append({"situation": situation, "at": "best", **asdict(at_best)})
    return rows


# --- tables -----------------------------------------------------------------------------------------------------------------


def lookup(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The first row with these values."""
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def parts_of(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], str]:
    """Rows of several --json files, each a separate run, and their settings.

    Where several files measured the same, the first counts; files of a folder are sorted by name.
    """
    files = [
        file for path in paths for file in (sorted(path.glob("*.json"), key=lambda each: each.stem) if path.is_dir() else [path])
    ]
    parts = {str(file): json.loads(file.read_text(encoding="utf-8")) for file in files}
    if unfit := [file for file, part in parts.items() if "rows" not in part] or [str(path) for path in paths if not files]:
        raise typer.BadParameter(f"got {unfit[0]}, expected a --json file of this script, or a folder of such files.")
    titles = {part["title"] for part in parts.values()}
    if len(titles) > 1:
        raise typer.BadParameter(f"got parts with {len(titles)} settings, expected one. Give only parts with the same settings.")
    return [row | {"run": file} for file, part in parts.items() for row in part["rows"]], titles.pop()


def traits_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The measured traits, in the order of `organism.TRAITS`."""
    found = {row["target"] for row in rows}
    return [trait for trait in organism.TRAITS if trait in found]


def measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The methods with scores, in the order of the table."""
    found = {row["method"] for row in rows if row["at"]}
    return [name for name in METHODS if name in found]


def is_shown_by_trait(method: str) -> bool:
    """Whether the tables by trait have a column for it: PSR methods, and one constant."""
    return "PSR" in method or method == BASELINE


def summary(rows: Sequence[dict[str, Any]], model: str) -> list[list[str]]:
    """A row per method: mean scores over traits, the number of traits on which it matches prompting, RMSE and cost."""
    ours = [row for row in rows if row["model"] == model]
    traits = traits_of(ours)
    lines = []
    for method in measured(ours):
        cells = [method]
        for situation in SITUATIONS:
            for at in ("1", "best") if situation == "description" else ("1",):
                found = [lookup(ours, method=method, target=trait, situation=situation, at=at) for trait in traits]
                prompts = [lookup(ours, method="prompt", target=trait, situation=situation) for trait in traits]
                both = [(row, prompt) for row, prompt in zip(found, prompts, strict=True) if row and prompt]
                kept = sum(_keeps_up(row, prompt, situation) for row, prompt in both)
                means = [statistics.fmean(row[key] for row, _ in both) for key in ("trait", "coherence")]
                counted = "" if situation == "counter" else f" · {kept}/{len(both)}"
                cells.append(f"{means[0]:.0f} / {means[1]:.0f}{counted}")
        chosen = [row for trait in traits if (row := lookup(ours, method=method, target=trait, situation="description", at="1"))]
        cells.append(f"{sum(row['rmse'] for row in chosen) / len(chosen):.2f}")
        cells.append(_fit_time(ours, chosen))
        cells.append(f"{chosen[0]['passes']:.0f}")
        lines.append(cells)
    return lines


def _fit_time(ours: Sequence[dict[str, Any]], chosen: Sequence[dict[str, Any]]) -> str:
    """Median over traits, as a multiple of the default's time in the same run, or in seconds where the default was not run."""
    bases = [
        lookup(ours, method=DEFAULT, target=row["target"], situation=row["situation"], at="1", run=row["run"]) for row in chosen
    ]
    if not all(bases):
        return f"{statistics.median(row['seconds'] for row in chosen):.1f} s"
    ratio = statistics.median(row["seconds"] / base["seconds"] for row, base in zip(chosen, bases, strict=True) if base)
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def _keeps_up(found: dict[str, Any], prompt: dict[str, Any], situation: str) -> bool:
    """Within 2 points of prompting on the kind of question fitted on; at least 90 % of its scores on another kind."""
    pairs = [(found[key], prompt[key]) for key in ("trait", "coherence")]
    if situation == "description":
        return all(mine >= theirs - 2 for mine, theirs in pairs)
    return all(mine >= 0.9 * theirs for mine, theirs in pairs)


SUMMARY_HEADINGS = (
    "method",
    "descriptions, α 1",
    "descriptions, best α",
    "procedures, α 1",
    "counter-instruction, α 1",
    "RMSE, last layer",
    "fit time",
    "forward passes",
)


def by_trait(rows: Sequence[dict[str, Any]], model: str, methods: Sequence[str]) -> list[list[str]]:
    """A row per trait and situation: prompting and some methods, at α = 1."""
    ours = [row for row in rows if row["model"] == model]
    lines = []
    for trait in traits_of(ours):
        for situation in SITUATIONS:
            cells = [trait if situation == SITUATIONS[0] else "", situation]
            for method in ("prompt", *methods):
                at = {} if method == "prompt" else {"at": "1"}
                row = lookup(ours, method=method, target=trait, situation=situation, **at)
                shown = row and situation == SITUATIONS[0] and row["rmse"] is not None
                cells.append(
                    f"{row['trait']:.0f} / {row['coherence']:.0f}" + (f" · {row['rmse']:.2f}" if shown else "") if row else ""
                )
            lines.append(cells)
    return lines


def print_tables(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Print the tables, and return them as Markdown."""
    text = [f"{title}\n"]
    for model in dict.fromkeys(row["model"] for row in rows):
        ours = [row for row in rows if row["model"] == model]
        shown = [name for name in measured(ours) if is_shown_by_trait(name)]
        for name, headings, lines in (
            (f"{model}: mean over traits", SUMMARY_HEADINGS, summary(rows, model)),
            (f"{model}: by trait, α 1", ("trait", "asked for", "prompt", *shown), by_trait(rows, model, shown)),
        ):
            table = Table(title=name)
            for heading in headings:
                table.add_column(heading)
            for line in lines:
                table.add_row(*line)
            Console(width=200).print(table)
            text += [f"**{name}**\n", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
            text += [*(f"| {' | '.join(line)} |" for line in lines), ""]
    return "\n".join(text)


@dataclass(frozen=True)
class OutputOptions:
    """Files to write."""

    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None


@dataclass(frozen=True)
class PartOptions:
    """The part of the benchmark to run; None for all."""

    trait: Annotated[list[str] | None, typer.Option(help="Only these traits.")] = None
    model: Annotated[list[str] | None, typer.Option(help="Only these models.")] = None
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None


@dataclass(frozen=True)
class QuestionOptions:
    """Questions to fit on and to measure on."""

    fit_questions: Annotated[int, typer.Option(help="Questions to fit on.")] = 240
    held_out: Annotated[int | None, typer.Option(help="Held-out questions of each kind; 150, or 60 with --quick.")] = None
    seed: Annotated[int, typer.Option(help="Seed of questions, sampling and fits.")] = 0


@dataclass(frozen=True)
class LargeOptions:
    """Wall time on a large model."""

    large: Annotated[bool, typer.Option("--large", help="Only the wall time on a random model of GPT-2 small's size.")] = False
    gpu: Annotated[bool, typer.Option("--gpu", help="With --large: a larger one in bfloat16 on the CUDA GPU.")] = False

    def __post_init__(self) -> None:
        """Refuse the GPU for the embedded models."""
        if self.gpu and not self.large:
            raise typer.BadParameter("got --gpu alone, expected it with --large: the embedded models are fitted on a CPU.")


@flat_options
def main(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="One trait, one family, few methods.")] = False,
    output: OutputOptions,
    part: PartOptions,
    asked: QuestionOptions,
    tables_of: Annotated[
        list[Path] | None, typer.Option(help="Run nothing; print the tables of these --json files, or of folders of them.")
    ] = None,
    on_large: LargeOptions,
) -> None:
    """Run the benchmark and print its tables."""
    if on_large.large:
        found = large_model(on_large.gpu)
        print(json.dumps(found, indent=1))
        if output.json_file:
            output.json_file.write_text(json.dumps({"format": 2, **found}, indent=1) + "\n")
        return
    if tables_of:
        text = print_tables(*parts_of(tables_of))
        if output.markdown:
            output.markdown.write_text(text + "\n")
        return
    traits = part.trait or (["pirate"] if quick else list(organism.TRAITS))
    models = part.model or (["organism"] if quick else ["organism", "organism-gpt2"])
    names = part.method or (QUICK if quick else list(METHODS))
    questions = asked.held_out or (60 if quick else 150)
    loaded = {name: psr.load_model(name) for name in models}
    settings = f"seed {asked.seed}, {torch.get_num_threads()} threads"
    title = f"{asked.fit_questions} descriptions to fit on, {questions} questions of each kind held out, {settings}"
    rows = []
    for name, each in tqdm([(name, each) for name in models for each in traits], unit="trait"):
        rows += measure(Task.of(loaded[name], each, asked.fit_questions, questions, asked.seed), names)
        if output.json_file:  # after every trait, so that an interrupted run leaves its results
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            output.json_file.write_text(f'{{"format": 2, "title": {json.dumps(title)}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    text = print_tables([row | {"run": ""} for row in rows], title)
    if output.markdown:
        output.markdown.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
