"""The paper's table on a real chat model: trait, coherence, distance to the prompt, and what a fit costs, for each method and instruction.

python benchmarks/real/table.py MODEL questions.parquet --json benchmarks/real/MODEL.json
python benchmarks/real/table.py --tables-of benchmarks/real/MODEL.json

`benchmarks/real/screening.py` goes before: it finds the instructions that the model follows. All methods of an instruction are fitted on
the same responses, have their strength chosen on the same validation questions, and are scored on the same held-out ones, with the same
seeds. The numbers are saved after every cell, and a cell that the file holds is not measured again; where a method has got further
strengths, only those are.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

sys.path.append(str(Path(__file__).parents[1]))  # what all benchmarks share
from _divergence import Divergence, repeated
from _instructions import INSTRUCTIONS, SAMPLING, questions
from _models import machine
from _numbers import kl_cell, opened
from screening import EMPTY, SCREENED

import psr_lens as psr
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampled_triplets import judged_triplets
from psr_lens.models import HookedModel, device_of
from psr_lens.prompts import Context, Triplet
from psr_lens.replacement import Replacement
from psr_lens.results.judgement import Judge

FITTED, VALIDATION, HELD_OUT = 72, 12, 60
"""Numbers of questions."""
COMPARED = 24
"""Responses of held-out questions on which activations are compared."""
COHERENT = 80.0
"""Least coherence of the strength that stands for TA@C80."""
MARGIN = 1.0
"""TA@Cp is taken at the coherence of the prompt on the validation questions, minus this."""
TRAINED: dict[str, Any] = {"epochs": 4, "learning_rate": 5e-3, "batch_size": 4}
"""Settings of all methods that are trained by gradient descent."""
ADDED, EVERYWHERE, LEARNED = (1.0, 2.0, 4.0), (1.0, 2.0, 2.5, 3.0, 3.5, 4.0), (1.0, 1.25, 1.5)
"""Strengths from which a method takes its own: a constant at one layer, constants at all layers, and everything else."""


@dataclass(frozen=True)
class Method:
    """What is fitted, and the strengths that are tried."""

    config: Callable[[int], psr.FitConfig]
    """Settings of the fit, from the layer of methods that act at one."""
    alphas: Sequence[float] = LEARNED
    """Strengths that are tried on the validation questions."""
    rounds: int = 0
    """Rounds of refinement."""
    of: str | None = None
    """The method whose replacement is tried under the prompt; None for one of its own without the prompt."""


METHODS = {
    "S-Const DiM": Method(lambda layer: psr.DiM(layers=layer), ADDED),
    "A-Const DiM": Method(lambda _: psr.DiM(), EVERYWHERE),
    "S-CLAS": Method(lambda layer: psr.CLAS(layers=layer, **TRAINED)),
    "S-LoReFT": Method(lambda layer: psr.LoReFT(layers=layer, **TRAINED)),
    "S-PSR LL": Method(lambda layer: psr.Joint(layers=layer, objective="ll", regulariser=0.0, normalise=False, **TRAINED)),
    "A-PSR joint": Method(lambda _: psr.Joint(**TRAINED)),
    "A-PSR": Method(lambda _: psr.Sequential()),
    "A-PSR rank 16": Method(lambda _: psr.Sequential(rank=16)),
    "A-PSR auto, KL": Method(lambda _: psr.Sequential(rank="auto", token_weights="kl")),
    "A-PSR refined": Method(lambda _: psr.Sequential(rank="auto", token_weights="kl"), rounds=1),
    "A-PSR + prompt": Method(lambda _: psr.Sequential(rank=16), of="A-PSR rank 16"),
}
"""By name; constants and single-layer methods act at the middle layer."""


class Passes:
    """How often the training texts went through the model, without and with gradients: tokens embedded over tokens of the triplets."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet]) -> None:
        self.embedding = next(each for each in cast(torch.nn.Module, model).modules() if isinstance(each, torch.nn.Embedding))
        self.tokens = sum(len(each.pair.base_ids) + len(each.response_ids) for each in triplets)
        self.seen = [0, 0]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count within a `with` block."""

        def count(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.seen[torch.is_grad_enabled()] += inputs[0].numel()

        handle = self.embedding.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    @property
    def found(self) -> list[float]:
        """Passes without gradients, and with."""
        return [seen / self.tokens for seen in self.seen]


class Cell:
    """One instruction: its questions, judge and responses, and the measurements of it."""

    def __init__(self, model: HookedModel, name: str, asked: Sequence[str]) -> None:
        given = INSTRUCTIONS[name]
        pairs = psr.prompt_pairs(model, asked, given.text, place="after")
        self.model, self.given, self.layer = model, given, int(model.cfg.n_layers) // 2
        self.fitted, self.validation = pairs[:FITTED], pairs[FITTED : FITTED + VALIDATION]
        self.held_out = pairs[FITTED + VALIDATION :]
        self.triplets = psr.sample_responses(model, self.fitted, given.judge, sampling=SAMPLING)
        self.unsteered = psr.generate(model, self.held_out, sampling=SAMPLING)
        self.prompted = psr.generate(model, self.held_out, context="prompted", sampling=SAMPLING)
        references = [*[""] * VALIDATION, *[each.text for each in self.unsteered]]
        coherence = psr.judges.perplexity(model, [*self.validation, *self.held_out], references, given="either")
        self.judge: Judge = psr.judges.combine(trait=given.judge, coherence=coherence)
        self.compared = judged_triplets(self.held_out, self.prompted, given.judge)[:COMPARED]
        self.closeness = Divergence(model, self.compared)

    def scored(self, name: str, responses: Sequence[Any]) -> dict[str, Any]:
        """Scores with intervals, and repetition."""
        found = score(name, self.held_out, responses, self.judge)
        row = {
            "n": found.n,
            "trait": [found.trait, *found.trait_interval],
            "coherence": [found.coherence, *found.coherence_interval],
        }
        return row | {"repeated": repeated([each.text for each in responses]), "examples": [each.text for each in responses[:3]]}

    def references(self) -> dict[str, Any]:
        """What the methods are compared with: nothing, the prompt, and the prompt in other words."""
        other = psr.prompt_pairs(self.model, [each.question for each in self.held_out], self.given.paraphrase, place="after")
        said = psr.generate(self.model, other, context="prompted", sampling=SAMPLING)
        return {
            "none": self.scored("none", self.unsteered) | {"kl": self.closeness.of(None)},
            "prompt": self.scored("prompt", self.prompted) | {"kl": [0.0, 0.0, 0.0]},
            "paraphrase": self.scored("paraphrase", said),
        }

    def fit(self, name: str, folder: Path) -> dict[str, Any]:
        """Fit a method and save it; what the fit cost."""
        method, passes = METHODS[name], Passes(self.model, self.triplets)
        config, began, began_cpu = method.config(self.layer), time.perf_counter(), time.process_time()
        with passes.counted():
            if method.rounds:
                found = psr.refine(self.model, self.triplets, config, self.given.judge, rounds=method.rounds, sampling=SAMPLING)
            else:
                found = psr.fit(self.model, self.triplets, config)
        row: dict[str, Any] = {"seconds": time.perf_counter() - began, "passes": passes.found, "config": config.to_json()}
        if device_of(self.model).type == "cpu":  # of this process alone: with one thread, the same on a busy machine
            row["cpu_seconds"] = time.process_time() - began_cpu
        found.save(folder)
        sites = found.sites.values()
        row["parameters"] = sum(each.numel() for site in sites for each in vars(site).values() if isinstance(each, torch.Tensor))
        row["ranks"] = sorted(site.rank for site in sites)
        return row | {"refined": found.settings.get("refined", [])}

    def prompt_on_validation(self) -> list[float]:
        """Trait and coherence of the prompt on the validation questions."""
        said = psr.generate(self.model, self.validation, context="prompted", sampling=SAMPLING)
        found = score("prompt", self.validation, said, self.judge)
        return [found.trait, found.coherence]

    def scores_of(self, name: str, replacement: Replacement, prompt_coherence: float, row: dict[str, Any]) -> dict[str, Any]:
        """Choose the strengths on the validation questions and score the method on the held-out ones, where the row lacks that."""
        method = METHODS[name]
        context: Context = "prompted" if method.of else "base"

        def said(pairs: Any, alpha: float) -> list[Any]:
            return psr.generate(self.model, pairs, replacement, context=context, alpha=alpha, sampling=SAMPLING)

        tried: dict[str, list[float]] = dict(row.get("validation", {}))
        for alpha in method.alphas:
            if f"{alpha:g}" not in tried:
                found = score(name, self.validation, said(self.validation, alpha), self.judge)
                tried[f"{alpha:g}"] = [found.trait, found.coherence]
        scored = {row[key]["alpha"]: row[key] for key in CHOSEN if key in row}
        made: dict[str, Any] = {"validation": tried}
        for key, alpha in strengths(tried, prompt_coherence).items():
            if alpha not in scored:
                scored[alpha] = {"alpha": alpha, **self.scored(name, said(self.held_out, alpha))}
            made[key] = scored[alpha]
        if method.of is None:
            made["kl"] = row.get("kl") or self.closeness.of(replacement)
        return made

    def distances(self, methods: dict[str, Replacement]) -> dict[str, Any]:
        """Relative errors after the last layer, with intervals: over all tokens, without massive ones, of the median token."""
        found = psr.faithfulness(self.model, self.compared, methods, paraphrases=self.given.paraphrase)
        return {
            name: {
                kind: [float(value.value[-1]), *value.interval(len(value.value) - 1)]
                for kind in ("relative_rmse", "rmse_without_massive", "median_error")
                for value in (getattr(close, kind),)
            }
            for name, close in found.blocks[""].methods.items()
        }


CHOSEN = ("alpha 1", "TA@C80", "TA@Cp")
"""What strengths are chosen for."""


def strengths(tried: dict[str, list[float]], prompt_coherence: float) -> dict[str, float]:
    """The strength for each of `CHOSEN`, from trait and coherence on the validation questions."""
    return dict(zip(CHOSEN, (1.0, chosen_of(tried, COHERENT), chosen_of(tried, prompt_coherence - MARGIN)), strict=True))


def chosen_of(tried: dict[str, list[float]], least: float) -> float:
    """The strength with the highest trait whose coherence is at least `least`; the most coherent one if there is none."""
    coherent = {alpha: found for alpha, found in tried.items() if found[1] >= least}
    if coherent:
        return float(max(coherent, key=lambda alpha: (coherent[alpha][0], -float(alpha))))
    return float(max(tried, key=lambda alpha: tried[alpha][1]))


def complete(method: str, held: dict[str, Any]) -> bool:
    """Whether a row is there, with all strengths that are tried today."""
    row = held.get("rows", {}).get(method)
    if row is None or "on_validation" not in held or {f"{alpha:g}" for alpha in METHODS[method].alphas} - set(row["validation"]):
        return False
    return all(row[key]["alpha"] == alpha for key, alpha in strengths(row["validation"], held["on_validation"][1]).items())


ROWS = ("none", "prompt", "paraphrase", *METHODS)
"""Rows of a table in their order."""


def measure(
    model: HookedModel,
    name: str,
    asked: Sequence[str],
    held: dict[str, Any],
    save: Callable[[], None],
    methods: Sequence[str],
    artifacts: Path,
) -> None:
    """Measure what one instruction lacks."""
    if all(complete(each, held) for each in methods) and not set(held["fits"]) - set(held.get("distances", {})):
        return
    cell = Cell(model, name, asked)
    rows, fits = held.setdefault("rows", {}), held.setdefault("fits", {})
    if "none" not in rows:
        rows |= cell.references()
        held |= {"instruction": cell.given.text, "paraphrase": cell.given.paraphrase, "layer": cell.layer}
        held |= {"triplets": len(cell.triplets), "compared": len(cell.compared)}
        save()
    if "on_validation" not in held:
        held["on_validation"] = cell.prompt_on_validation()
        save()
    for method in methods:
        if complete(method, held):
            continue
        source = METHODS[method].of or method
        if source not in fits or not (artifacts / name / source).exists():
            fits[source] = cell.fit(source, artifacts / name / source)
            save()
        replacement = psr.Replacement.load(artifacts / name / source)
        rows[method] = cell.scores_of(method, replacement, held["on_validation"][1], rows.get(method, {}))
        save()
        at = rows[method]["TA@C80"]
        print(f"{name}, {method}: {_time(fits[source])}, α {at['alpha']:g}, trait {at['trait'][0]:.0f}", flush=True)
    if set(fits) - set(held.get("distances", {})):
        held["distances"] = cell.distances({each: psr.Replacement.load(artifacts / name / each) for each in fits})
        save()


def summary_of(content: dict[str, Any]) -> str:
    """Trait and coherence of every method at the strength of TA@C80 under every instruction, as Markdown."""
    instructions = content["instructions"]
    lines = [f"|  | {' | '.join(instructions)} |", "|---" * (len(instructions) + 1) + "|"]
    for method in ROWS:
        found = [held["rows"].get(method) for held in instructions.values()]
        if any(found):
            cells = ["–" if row is None else _scores(row.get("TA@C80", row)) for row in found]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def tables_of(content: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = []
    for name, held in content["instructions"].items():
        about = f"{held['triplets']} triplets, n = {held['rows']['none']['n']} held-out questions"
        lines += [f"**{name}**: {held['instruction']} ({about})", ""]
        heads = ["", "α 1", "TA@C80", "TA@Cp", "repetition", "KL", "relative RMSE", "parameters", "fit", "passes"]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [f"| {' | '.join(_row(each, held))} |" for each in ROWS if each in held["rows"]]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, held: dict[str, Any]) -> list[str]:
    row, distance = held["rows"][name], held.get("distances", {}).get(name)
    kl = kl_cell(row.get("kl"))
    rmse = "–" if distance is None else " / ".join(f"{value:.2f}" for value, _, _ in distance.values())
    if name not in METHODS:
        return [name, _scores(row), "–", "–", f"{row['repeated']:.1f} %", kl, rmse, "–", "–", "–"]
    chosen = [f"{_scores(row[key])} (α {row[key]['alpha']:g})" for key in ("TA@C80", "TA@Cp")]
    scored = [name, _scores(row["alpha 1"]), *chosen, f"{row['TA@C80']['repeated']:.1f} %", kl, rmse]
    if (fit := held["fits"].get(name)) is None:
        return [*scored, "–", "–", "–"]
    forward, backward = fit["passes"]
    passes = f"{forward:.1f} + {backward:.1f}" if backward else f"{forward:.1f}"
    return [*scored, f"{fit['parameters']:,}", _time(fit), passes]


def _time(fit: dict[str, Any]) -> str:
    """CPU time; in brackets wall time, where CPU time was not measured or says nothing, as on a GPU."""
    return f"{fit['cpu_seconds']:.0f} s" if "cpu_seconds" in fit else f"({fit['seconds']:.0f} s)"


def _scores(row: dict[str, Any]) -> str:
    trait, low, high = row["trait"]
    return f"{trait:.0f} [{low:.0f}, {high:.0f}] / {row['coherence'][0]:.0f}"


def main(
    model: Annotated[str | None, typer.Argument(help="A chat model: a folder, a `.gguf` file or a name.")] = None,
    file: Annotated[Path | None, typer.Argument(help="Parquet file of AxBench's training data.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the numbers, which is added to.")] = None,
    instruction: Annotated[list[str] | None, typer.Option(help="Instructions; by default all that the model follows.")] = None,
    artifacts: Annotated[Path, typer.Option(help="Folder of the replacements.")] = Path("artifacts"),
    method: Annotated[list[str] | None, typer.Option(help="Methods; by default all.")] = None,
    tables: Annotated[Path | None, typer.Option("--tables-of", help="Only print the tables of this file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Measure, and save after every cell; or print tables."""
    if tables is not None:
        content = json.loads(tables.read_text())
        print(f"{summary_of(content)}\n{tables_of(content)}")
        return
    if model is None or file is None or json_file is None:
        raise typer.BadParameter("got none, expected a model, a file of questions and --json, or --tables-of.", param_hint="model")
    content, save = opened(json_file, EMPTY)
    loaded = psr.load_model(model, backend="bridge", device=device)
    content.setdefault("machine", machine(device_of(loaded).type))
    asked = questions(file, SCREENED + FITTED + VALIDATION + HELD_OUT)[SCREENED:]
    for name in instruction or [each for each, found in content["screened"].items() if found["used"]]:
        held = content["instructions"].setdefault(name, {})
        measure(loaded, name, asked, held, save, method or list(METHODS), artifacts)


if __name__ == "__main__":
    typer.run(main)
