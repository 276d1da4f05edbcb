"""Trained methods side by side on equal data: constants, CLAS, LoReFT, LoRA and PSR, fitted on 10, 30, 100 and 300 examples.

python benchmarks/rivals.py organism --json benchmarks/rivals.json
python benchmarks/rivals.py /path/to/SmolLM2-135M-Instruct questions.parquet --json benchmarks/rivals.json
python benchmarks/rivals.py --tables-of benchmarks/rivals.json

The numbers are saved after every cell, and a cell that the file holds is not measured again; `--method` and `--examples` choose some. A
real model is a folder or a `.gguf` file, and its questions are AxBench's `input`s shorter than 70 characters (a parquet file of its
training data).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from _instructions import INSTRUCTIONS, SAMPLING
from _instructions import questions as asked_of_real_models
from _numbers import opened, traits_of

import psr_lens as psr
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.replacement import Adapter

EXAMPLES = (10, 30, 100, 300)
"""Numbers of triplets; the smaller sets are the beginnings of the larger ones."""
ASKED, VALIDATED, HELD_OUT = 340, 12, 40
"""Numbers of questions: to sample triplets from, to choose the strength on, and of each kind to score on."""
STEPS: Final = 100
"""Least number of steps of every method that is trained by gradient descent, whatever the number of examples."""
BATCH: Final = 16
ALPHAS = (0.75, 1.0, 1.25, 1.5)
"""Strengths that are tried on the validation questions."""
MARGIN: Final = 5.0
"""How far below the prompt's coherence that of the chosen strength may be."""
ORGANISM, REAL = ("pirate", "dense"), ("french", "spanish")
"""Traits that are measured unless others are given."""
SEED = 0


def trained(kind: type, examples: int, **given: Any) -> Any:
    """Settings of a method that is trained, with as many epochs as `STEPS` need."""
    steps = -(-examples // BATCH)
    return kind(epochs=-(-STEPS // steps), batch_size=BATCH, **given)


METHODS: dict[str, Callable[[int, int], Any]] = {
    "S-Const DiM (CAA)": lambda layer, n: psr.DiM(layers=layer),
    "S-Const MSE": lambda layer, n: trained(psr.Joint, n, layers=layer, rule="constant", learning_rate=5e-3),
    "A-Const MSE": lambda layer, n: trained(psr.Joint, n, rule="constant", learning_rate=5e-3),
    "CLAS": lambda layer, n: trained(psr.CLAS, n, learning_rate=5e-3),
    "LoReFT": lambda layer, n: trained(psr.LoReFT, n, learning_rate=5e-3),
    "LoRA": lambda layer, n: trained(psr.LoRA, n, learning_rate=1e-3),
    "S-PSR joint": lambda layer, n: trained(psr.Joint, n, layers=layer, rank=4, learning_rate=5e-3),
    "A-PSR joint": lambda layer, n: trained(psr.Joint, n, rank=4, learning_rate=5e-3),
    "A-PSR sequential": lambda layer, n: psr.Sequential(),
}
"""Settings of each method, given the single layer of those that act at one, and the number of examples.

Of the learning rates 0.001 and 0.005, CLAS, LoReFT, LoRA and joint PSR at all layers have the one that did better on validation questions
of `dense` with 20 examples; the constants and S-PSR have that of joint PSR.
"""


@dataclass(frozen=True)
class Setting:
    """A model with an instruction, and what is asked."""

    name: str
    model: HookedModel
    judge: Any
    asked: Sequence[PromptPair]
    validated: Sequence[PromptPair]
    held_out: dict[str, Sequence[PromptPair]]
    """Held-out questions by kind; the first kind is that of the fit."""
    sampling: psr.SamplingConfig
    layer: int
    """The layer of methods that act at one."""


def organism_settings(name: str, traits: Sequence[str]) -> Iterator[Setting]:
    """An embedded model, fitted on descriptions; asked for others, and for procedures."""
    model = psr.load_model(name)
    for trait in traits:
        instruction = psr.organism.INSTRUCTIONS[trait]
        questions = psr.organism.questions(ASKED + VALIDATED, split="train", kind="description", seed=1)
        pairs = psr.prompt_pairs(model, questions, instruction)
        held_out = {
            f"{kind}s": psr.prompt_pairs(model, psr.organism.questions(HELD_OUT, split="held_out", kind=kind), instruction)
            for kind in ("description", "procedure")
        }
        sampling = psr.SamplingConfig(max_new_tokens=48)
        yield Setting(trait, model, psr.judges.organism(trait), pairs[:ASKED], pairs[ASKED:], held_out, sampling, 1)


def real_settings(path: str, questions: Path, traits: Sequence[str]) -> Iterator[Setting]:
    """A real model, asked AxBench's short inputs."""
    drawn = asked_of_real_models(questions, HELD_OUT + VALIDATED + ASKED)
    model = psr.load_model(path, backend="bridge")
    for trait in traits:
        given = INSTRUCTIONS[trait]
        pairs = psr.prompt_pairs(model, drawn, given.text, place="after")
        held_out = {"questions": pairs[:HELD_OUT]}
        validated, rest = pairs[HELD_OUT : HELD_OUT + VALIDATED], pairs[HELD_OUT + VALIDATED :]
        yield Setting(trait, model, given.judge, rest, validated, held_out, SAMPLING, int(model.cfg.n_layers) // 3)


def parameters(method: psr.Replacement | Adapter) -> int:
    """How many numbers are learned: of a constant its directions, of CLAS all but those."""
    if isinstance(method, Adapter):
        return method.trained_parameters
    count = 0
    for site in method.sites.values():
        directions, probes = site.directions.numel(), site.weights.numel() + site.bias.numel()
        count += directions if site.rule == "constant" else probes if method.method.endswith("CLAS") else directions + probes
    return count


def measured(
    setting: Setting, methods: Sequence[str], examples: Sequence[int], held: dict[str, Any], save: Callable[[], None]
) -> Iterator[str]:
    """Measure the cells of one trait that `held` lacks, one at each step."""
    model, judge, sampling = setting.model, setting.judge, setting.sampling
    triplets = list(psr.sample_responses(model, setting.asked, judge, sampling=sampling))
    if "prompt" not in held:
        held["triplets"] = len(triplets)
        held["unsteered"] = {kind: answers_to(setting, pairs) for kind, pairs in setting.held_out.items()}
        held["prompt"] = {kind: answers_to(setting, pairs, context="prompted") for kind, pairs in setting.held_out.items()}
        held["validation"] = answers_to(setting, setting.validated, context="prompted")
        held["cells"] = {}
        save()
        yield "prompt"
    least = held["validation"].get("coherence", 0.0) - MARGIN
    for count in examples:
        if count > len(triplets):
            raise typer.BadParameter(f"got {len(triplets)} triplets of {setting.name}, expected at least {count}.")
        for name in methods:
            row = held["cells"].setdefault(name, {})
            if str(count) in row:
                continue
            row[str(count)] = cell(setting, METHODS[name](setting.layer, count), triplets[:count], max(0.0, least))
            save()
            yield f"{name}, {count} examples"


def cell(setting: Setting, config: Any, triplets: Sequence[Triplet], least: float) -> dict[str, Any]:
    """One method fitted on some examples: what it took, the strength chosen, and the scores of the held-out questions."""
    model, judge, sampling = setting.model, setting.judge, setting.sampling
    began = time.process_time()
    method = (psr.adapt if isinstance(config, psr.LoRA) else psr.fit)(model, triplets, config)
    seconds = time.process_time() - began  # of computing: others on the machine do not count
    best = psr.best_alpha(model, setting.validated, method, judge, alphas=ALPHAS, min_coherence=least, sampling=sampling)
    scores = {kind: answers_to(setting, pairs, method, alpha=best.alpha) for kind, pairs in setting.held_out.items()}
    return {"seconds": seconds, "parameters": parameters(method), "alpha": best.alpha, "settings": config.to_json()} | scores


def answers_to(setting: Setting, pairs: Sequence[PromptPair], method: Any = None, **given: Any) -> dict[str, Any]:
    """Mean scores of sampled answers, with the interval of the trait."""
    found = psr.scores_at(setting.model, pairs, method, setting.judge, sampling=setting.sampling, **given)
    row: dict[str, Any] = {"n": found.n, "trait": found.trait, "trait_interval": list(found.trait_interval)}
    if np.isfinite(found.coherence):
        row |= {"coherence": found.coherence, "coherence_interval": list(found.coherence_interval)}
    return row


def tables_of(content: dict[str, Any]) -> str:
    """The numbers as Markdown, a table for each model, trait and kind of questions."""
    return "\n".join(
        line
        for model, found in content["models"].items()
        for trait, held in found["traits"].items()
        for kind in held["prompt"]
        for line in table_of(model, trait, kind, held)
    )


def table_of(model: str, trait: str, kind: str, held: dict[str, Any]) -> list[str]:
    """The lines of one table."""
    counts = sorted({int(count) for row in held["cells"].values() for count in row})
    heads = ["", "parameters", *(f"{count} examples" for count in counts), "fit"]
    n = held["prompt"][kind]["n"]
    lines = [f"{trait} on `{model}`, {n} {kind} a cell", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in ("unsteered", "prompt"):
        lines.append(f"| {name} | – | {' | '.join([_scores(held[name][kind])] * len(counts))} | – |")
    for name, row in held["cells"].items():
        cells = [_scores(row[str(count)][kind], row[str(count)]["alpha"]) if str(count) in row else "–" for count in counts]
        seconds = [row[str(count)]["seconds"] for count in counts if str(count) in row]
        took = "–".join(dict.fromkeys(f"{each:.1f}" if each < 10 else f"{each:.0f}" for each in (min(seconds), max(seconds))))
        lines.append(f"| {name} | {next(iter(row.values()))['parameters']:,} | {' | '.join(cells)} | {took} s |")
    return [*lines, ""]


def _scores(found: dict[str, Any], alpha: float | None = None) -> str:
    low, high = found["trait_interval"]
    coherence = f" / {found['coherence']:.0f}" if "coherence" in found else ""
    return f"{found['trait']:.0f} [{low:.0f}, {high:.0f}]{coherence}" + ("" if alpha is None else f", α {alpha:g}")


def main(
    model: Annotated[
        str | None, typer.Argument(help="`organism`, `organism-gpt2`, or a folder or `.gguf` of a real model.")
    ] = None,
    questions: Annotated[Path | None, typer.Argument(help="Parquet file of AxBench's training data, for a real model.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="Traits; by default two.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Names of methods; by default all.")] = None,
    examples: Annotated[list[int] | None, typer.Option(help="Numbers of examples; by default 10, 30, 100 and 300.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")] = Path("rivals.json"),
    tables: Annotated[Path | None, typer.Option("--tables-of", help="Only print the tables of this file.")] = None,
) -> None:
    """Measure, and save after every cell; or print tables."""
    if tables is not None:
        print(tables_of(json.loads(tables.read_text())))
        return
    if model is None:
        raise typer.BadParameter("got none, expected a model, or --tables-of a file.", param_hint="model")
    content, save = opened(json_file, {"format": 1, "seed": SEED, "models": {}})
    if model.startswith("organism"):
        settings, name = organism_settings(model, trait or ORGANISM), model
    elif questions is None:
        raise typer.BadParameter("got none, expected a parquet file of questions for a real model.", param_hint="questions")
    else:
        settings, name = real_settings(model, questions, trait or REAL), Path(model).name.removesuffix(".gguf")
    held = traits_of(content, name)
    for setting in settings:
        kept = held.setdefault(setting.name, {})
        for done in measured(setting, method or list(METHODS), examples or EXAMPLES, kept, save):
            print(f"{setting.name}: {done}", flush=True)


if __name__ == "__main__":
    typer.run(main)
