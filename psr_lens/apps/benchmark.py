"""The paper's main table (Heyman & Vandeputte 2026, Table 1) on the embedded models, where trait and coherence are known exactly.

Every method is fitted on *descriptions* ("what is a bear ?"). Its strengths for TA@C80 and TA@Cp are found on other descriptions, once,
as in the paper; at these strengths it then answers three blocks of questions that neither the model nor a fit has seen: descriptions,
*procedures* (a kind that it was not fitted on), and descriptions with a *counter-instruction* ("but forget that and answer
plainly"). The interval of a trait is from resamples of a block's questions at that strength.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from psr_lens import organism
from psr_lens._utils.digests import digest_of
from psr_lens._utils.safe_files import write_text
from psr_lens.errors import ArtifactError, InputError, PsrLensError
from psr_lens.evaluation.answer_cache import Answers
from psr_lens.evaluation.evaluate import Calibration, evaluate
from psr_lens.evaluation.evaluation_result import PROMPT_TARGET, Point
from psr_lens.fitting.config import DiM, FitConfig, Joint, ReFT, Sequential, Stolfo
from psr_lens.fitting.fit import fit
from psr_lens.fitting.training_settings import Polish
from psr_lens.generation.responses import Triplets, sample_responses
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.judges import organism as organism_judge
from psr_lens.models import HookedModel, load_to_fit_and_answer
from psr_lens.prompts import Context, PromptPair, prompt_pairs
from psr_lens.replacement import Replacement
from psr_lens.results.bootstrap import NO_INTERVAL, mean_interval
from psr_lens.results.judgement import Judgement
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

FAMILIES: Final = {"llama": "organism", "gpt2": "organism-gpt2"}
"""Families and the names of their models."""
TRAITS: Final = ("pirate", "gloomy", "dense")
"""Three of the nine, one a shape: openers, every adjective, nearly every word."""
BLOCKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "descriptions": {"kind": "description"},
    "procedures": {"kind": "procedure"},
    "counter-instruction": {"kind": "description", "counter": True},
}
"""Held-out questions by kind."""

FORMAT: Final = 2
"""Changes when the same settings give other numbers, so that nothing older is taken for theirs."""
_LAYER: Final = 1
_TRAINED: Final[Mapping[str, Any]] = {"learning_rate": 1e-2, "batch_size": 8}
"""Gradient descent at this size; the paper's learning rate of 1e-3 is too slow here."""


METHODS: Final[Mapping[str, FitConfig]] = {
    "S-Const DiM": DiM(layers=_LAYER),
    "S-Const MSE": Joint(layers=_LAYER, rule="constant", epochs=5, **_TRAINED),
    "S-Const LL": Joint(layers=_LAYER, rule="constant", objective="ll", epochs=5, **_TRAINED),
    "A-Const MSE": Joint(rule="constant", epochs=5, **_TRAINED),
    "S-Stolfo": Stolfo(layers=_LAYER),
    "S-ReFT-r1": ReFT(layers=_LAYER, epochs=5, **_TRAINED),
    "S-PSR MSE": Sequential(layers=_LAYER, rank=1, polish=Polish(epochs=9, **_TRAINED)),
    "S-PSR LL": Sequential(layers=_LAYER, rank=1, polish=Polish(epochs=8, objective="ll", **_TRAINED)),
    "A-PSR MSE": Joint(epochs=12, **_TRAINED),
    "A-PSR LL": Joint(epochs=7, objective="ll", **_TRAINED),
    "A-PSR sequential, rank 1": Sequential(rank=1),
    "A-PSR sequential, rank 4": Sequential(),
}
"""How each method is fitted. Joint A-PSR is the paper's (random start, rank 1); epochs are as few as keep its quality here."""
WITH_PROMPT: Final = "A-PSR sequential, rank 4"
"""The method that is tried together with the prompt."""
QUICK: Final = ("S-Const DiM", "A-PSR sequential, rank 4")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is run; the defaults take about a quarter of an hour on two cores."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """`"llama"`, `"gpt2"` or both."""
    traits: tuple[str, ...] = TRAITS
    """Traits of the organism."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Names from `METHODS`."""
    fit_questions: int = 100
    """Descriptions to fit on."""
    calibration_questions: int = 40
    """Other descriptions, on which the strengths are found."""
    held_out: int = 80
    """Held-out questions of each block."""
    calibration: Calibration = Calibration(steps=3, tolerance=3.0)  # noqa: RUF009 (frozen)
    """The search for the strengths."""
    max_new_tokens: int = 48
    """Most tokens of an answer; the models' own have up to 46."""
    seed: int = 0
    """Seed of questions, sampling and fits."""

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        for name, known in (("families", tuple(FAMILIES)), ("traits", organism.TRAITS), ("methods", tuple(METHODS))):
            chosen = getattr(self, name)
            if not chosen or (unknown := [each for each in chosen if each not in known]):
                raise InputError(name, ", ".join(map(repr, unknown)) if chosen else "none", f"some of {', '.join(known)}")
        for name in ("fit_questions", "calibration_questions", "held_out"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "at least 1")

    @classmethod
    def quick(cls, **changes: Any) -> BenchmarkConfig:
        """Two methods on one trait of one family, with few questions: under a minute."""
        few = {"fit_questions": 60, "calibration_questions": 20, "held_out": 30}
        return cls(**{"families": ("llama",), "traits": ("pirate",), "methods": QUICK, **few, **changes})


def run_benchmark(
    out: str | Path, config: BenchmarkConfig | None = None, *, parallel: bool = True, say: Callable[[str], None] = print
) -> dict[str, ResultTable]:
    """Run the benchmark and write `results.md` and a `results-FAMILY.json` for each family.

    What was done already is taken from `out`: finished traits whole, else fits and answers, so that a run that was cut off goes on
    and ends the same.

    Args:
        out: Folder of results, fits and answers.
        config: What is run.
        parallel: Run traits and families at once, a process each, as many as there are cores.
        say: Told what is being done.

    Returns:
        The results by family.

    Raises:
        InputError: an unknown family, trait or method, or `out` is a file.
    """
    config = config or BenchmarkConfig()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError("out", str(out), "a folder, or a path where one can be made", "A file is in the way.")
    if parallel and len(config.families) * len(config.traits) > 1:
        _in_processes(out, config)
    tables = {family: run_family(out, family, config, say) for family in config.families}
    for family, table in tables.items():
        table.to_json(out / f"results-{family}.json")
    write_text(out / "results.md", "\n".join(markdown(FAMILIES[family], table) for family, table in tables.items()))
    return tables


def _in_processes(out: Path, config: BenchmarkConfig) -> None:
    """Let a process do each trait of each family, as many at once as there are cores; what they leave in `out` is then put together."""
    code = (
        "import sys, json, torch; torch.set_num_threads(1); from psr_lens import benchmark; "
        "benchmark.run_family(sys.argv[1], sys.argv[2], benchmark.config_from(json.loads(sys.argv[3])), benchmark.flushed)"
    )
    waiting = [(family, trait) for trait in config.traits for family in config.families]
    running: list[subprocess.Popen[bytes]] = []
    codes: list[int] = []
    try:
        while (waiting or running) and not any(codes):
            while waiting and len(running) < (os.cpu_count() or 1):
                family, trait = waiting.pop(0)
                given = json.dumps(asdict(replace(config, traits=(trait,))))
                command = [sys.executable, "-c", code, str(out), family, given]
                running.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))
            time.sleep(0.1)
            codes += [process.returncode for process in running if process.poll() is not None]
            running = [process for process in running if process.returncode is None]
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if any(codes):
        raise PsrLensError(
            f"a process of the benchmark ended with code {max(map(abs, codes))}; what it said is above. Run it again to go on."
        )


def config_from(content: Mapping[str, Any]) -> BenchmarkConfig:
    """A configuration from what `asdict` made of one, after JSON."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    return BenchmarkConfig(**{**values, "calibration": Calibration.of(content["calibration"])})


def flushed(text: str) -> None:
    """Print at once, for a process whose output goes through a pipe."""
    print(text, flush=True)


def run_family(out: str | Path, family: str, config: BenchmarkConfig, say: Callable[[str], None] = print) -> ResultTable:
    """All traits of one family; see `run_benchmark`."""
    folder, models = Path(out) / family, None
    tables = []
    for trait in config.traits:
        about = {
            **asdict(config),
            "families": [family],
            "traits": [trait],
            "fits": {name: METHODS[name].to_json() for name in config.methods},
        }
        path = folder / f"{trait}-{digest_of({**about, 'format': FORMAT})[:12]}.json"
        try:
            tables.append(ResultTable.from_json(path))
            continue
        except ArtifactError:
            pass  # none there yet, or not whole
        models = models or load_to_fit_and_answer(FAMILIES[family])
        told = _Clock(f"{family}, {trait}", say)
        table = _Trait.of(*models, trait, config, folder).measure(told)
        told("done")
        tables.append(ResultTable(table.rows, {**about, **table.settings}))
        tables[-1].to_json(path)
    return cast(ResultTable, sum(tables))


class _Clock:
    """Says what is being done, and after how many seconds, of wall time and of this process's own."""

    def __init__(self, about: str, say: Callable[[str], None]) -> None:
        self._about, self._say, self._began = about, say, (time.perf_counter(), time.process_time())

    def __call__(self, text: str) -> None:
        wall, own = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._say(f"{self._about}, {wall:.0f} s ({own:.0f} s of the processor): {text}")


@dataclass(frozen=True)
class _Trait:
    """One trait on one model, loaded once to be fitted and once to answer: what to fit on, and what to ask."""

    model: HookedModel
    answering: HookedModel
    trait: str
    config: BenchmarkConfig
    folder: Path
    triplets: Triplets
    calibration: Sequence[PromptPair]
    sampling: SamplingConfig

    @classmethod
    def of(cls, model: HookedModel, answering: HookedModel, trait: str, config: BenchmarkConfig, folder: Path) -> _Trait:
        count = config.fit_questions + config.calibration_questions
        known = organism.questions(count, kind="description", seed=config.seed)
        pairs = prompt_pairs(model, known, organism.instruction(trait))
        to_fit, other = pairs[: config.fit_questions], pairs[config.fit_questions :]
        triplets = sample_responses(answering, to_fit, organism_judge(trait), sampling=SamplingConfig(seed=config.seed))
        sampling = SamplingConfig(seed=config.seed + 1, max_new_tokens=config.max_new_tokens)
        return cls(model, answering, trait, config, folder, triplets, other, sampling)

    def measure(self, say: Callable[[str], None]) -> ResultTable:
        methods = {}
        for name in self.config.methods:
            methods[name] = self._fitted(name)
            say(f"fitted {name}")
        say("searching strengths")
        found = evaluate(
            self.answering,
            self.calibration,
            methods,
            organism_judge(self.trait),
            calibration=self.config.calibration,
            with_prompt=[WITH_PROMPT] if WITH_PROMPT in methods else False,
            sampling=self.sampling,
            cache=self._cache,
        )
        alphas = {}
        for name in list(found.curves)[2:]:  # the first two are the model as it is and the prompt
            for metric in found.targets:
                alphas[name, metric] = float(f"{found.calibrated(name, metric).alpha:.3g}")
        say("answering held-out questions")
        rows = list(self._answered(methods, alphas))
        rows += [
            Result(name, metric.replace("TA@", "α at "), alpha, len(self.calibration), NO_INTERVAL, self.trait)
            for (name, metric), alpha in alphas.items()
        ]
        return ResultTable(tuple(rows), {"notes": [f"{self.trait}: {note}" for note in found.notes]})

    @property
    def _cache(self) -> Path:
        return self.folder / "answers"

    def _fitted(self, name: str) -> Replacement:
        """The method's replacement, from the folder if it was fitted before."""
        settings = METHODS[name]
        about = [settings.to_json(), self.config.fit_questions, self.config.seed, self.trait]
        path = self.folder / "fits" / digest_of(about)[:16]
        try:
            return Replacement.load(path)
        except ArtifactError:
            learned = fit(self.model, self.triplets, settings)
            learned.save(path)
            return learned

    def _answered(self, methods: Mapping[str, Replacement], alphas: Mapping[tuple[str, str], float]) -> Iterator[Result]:
        """Rows of trait and coherence at each strength that was found, block by block; all blocks are asked at once."""
        count = self.config.held_out
        asked = [organism.questions(count, split="held_out", seed=self.config.seed, **about) for about in BLOCKS.values()]
        pairs = prompt_pairs(self.model, [each for block in asked for each in block], organism.instruction(self.trait))
        answers = Answers(self.answering, pairs, organism_judge(self.trait), self.sampling, self._cache)
        found: dict[tuple[str, str], tuple[float | None, Judgement]] = {
            ("none", PROMPT_TARGET): (None, answers.of().judgement),
            ("prompt", PROMPT_TARGET): (None, answers.of(context="prompted").judgement),
        }
        for name in dict.fromkeys(name for name, _ in alphas):
            at = {key: alpha for key, alpha in alphas.items() if key[0] == name}
            steering = methods[name.removesuffix(" + prompt")]
            context: Context = "base" if name in methods else "prompted"
            for key, judged in zip(at, answers.at(steering, list(at.values()), context), strict=True):
                found[key] = at[key], judged.judgement
        for place, block in enumerate(BLOCKS):
            part = slice(place * count, (place + 1) * count)
            for (name, metric), (alpha, judgement) in found.items():
                point = Point(alpha, judgement.trait[part], judgement.coherence[part], ())
                n = int(point.present.sum())
                for label, score in ((metric, "trait"), (metric.replace("TA@", "coherence at "), "coherence")):
                    interval = mean_interval(getattr(point, score)[point.present])
                    yield Result(name, label, point.mean(score), n, interval, self.trait, block, alpha, missing=count - n)


# --- tables -----------------------------------------------------------------------------------------------------------------


def markdown(model: str, table: ResultTable) -> str:
    """Tables of one family: means over traits with intervals, then trait by trait."""
    blocks, traits = (list(dict.fromkeys(getattr(row, name) for row in table if row.block)) for name in ("block", "trait"))
    metrics = sorted({row.metric for row in table if row.metric.startswith("TA@")})
    mean = table.mean_over("trait")

    methods = list(dict.fromkeys(row.method for row in table))

    def part(source: ResultTable, names: Sequence[str], columns: Sequence[str]) -> str:
        chosen = sorted(source.select(metric=names), key=lambda row: methods.index(row.method))
        order = [f"{block}, {name}" for block in blocks for name in names]
        return ResultTable(tuple(chosen)).to_markdown("method", columns, order=order)

    coherences = [metric.replace("TA@", "coherence at ") for metric in metrics]
    strengths = [metric.replace("TA@", "α at ") for metric in metrics]
    text = [
        f"## {model}\n",
        f"Mean over the traits {', '.join(traits)}; intervals are over traits:\n",
        part(mean, metrics, ("block", "metric")),
    ]
    text += ["Coherence there:\n", part(mean, coherences, ("block", "metric"))]
    for block in blocks:
        for metric in metrics:
            text += [f"{metric}, {block}, by trait:\n", part(table.select(block=block), [metric], ("trait",))]
    for strength in strengths:
        text += [f"{strength}, by trait:\n", part(table, [strength], ("trait",))]
    notes = _notes(table.settings.get("notes", []))
    if notes:
        text += [
            "Where a target coherence was not reached while the strengths were searched:\n",
            "\n".join(f"- {note}" for note in notes),
            "",
        ]
    return "\n".join(text)


def _notes(notes: Any) -> list[str]:
    """The notes of all traits, however many tables were added up."""
    parts = notes["varies"] if isinstance(notes, Mapping) else [notes]
    return [note for part in parts for note in part]
