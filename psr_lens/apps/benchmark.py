"""`psr-lens benchmark organism`: the paper's main table (Heyman & Vandeputte 2026, Table 1) on the shipped organisms.

Trait and coherence are known exactly there. Each method is fitted on *descriptions* ("what is a bear ?"). Its strengths for TA@C80 and
TA@Cp are found once, on other descriptions, as in the paper. At these strengths it answers three blocks of questions unseen by the model
and the fits: descriptions, *procedures* (a kind that it was not fitted on), and descriptions with a *counter-instruction* ("but forget
that and answer plainly"). Trait intervals are bootstrapped over the questions of a block.
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
from psr_lens._utils.optional import versions
from psr_lens._utils.safe_files import write_text
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.apps.output_folder import check_folder
from psr_lens.errors import ArtifactError, InputError, PsrLensError
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.evaluation.evaluate import Calibration, evaluate
from psr_lens.evaluation.evaluation_result import PROMPT_TARGET, Point
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.baselines import DiM, ReFT, Stolfo
from psr_lens.fitting.settings.gradient_descent import Polish
from psr_lens.fitting.settings.solvers import FitConfig, Joint, Sequential
from psr_lens.generation.sampled_triplets import Triplets, sample_responses
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.judges import organism as organism_judge
from psr_lens.models import EMBEDDED, HookedModel, load_model
from psr_lens.prompts import Context, PromptPair, prompt_pairs
from psr_lens.replacement import Replacement
from psr_lens.results.bootstrap import NO_INTERVAL, mean_interval
from psr_lens.results.judgement import Judgement
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

FAMILIES: Final = {"llama": "organism", "gpt2": "organism-gpt2"}
"""Model families and the names of their models."""
TRAITS: Final = ("pirate", "gloomy", "dense")
"""Three of the nine traits, of different shapes: openers, every adjective, nearly every word."""
BLOCKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "descriptions": {"kind": "description"},
    "procedures": {"kind": "procedure"},
    "counter-instruction": {"kind": "description", "counter": True},
}
"""Blocks of held-out questions: the arguments of `psr_lens.organism.questions`."""

FORMAT: Final = 2
"""Incremented when the same settings give different numbers, so that older results are not reused."""
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
"""Settings of each method's fit. Joint A-PSR is the paper's (random start, rank 1), with as few epochs as keep its quality here."""
WITH_PROMPT: Final = "A-PSR sequential, rank 4"
"""The method that is also evaluated together with the prompt."""
QUICK: Final = ("S-Const DiM", "A-PSR sequential, rank 4")
"""The methods of the quick benchmark."""


@dataclass(frozen=True)
class BenchmarkConfig(KnownSettings):
    """Settings of the benchmark; the defaults take about a quarter of an hour on two cores."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """`"llama"`, `"gpt2"` or both."""
    traits: tuple[str, ...] = TRAITS
    """Traits, from `psr_lens.organism.TRAITS`."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Names from `METHODS`."""
    fit_questions: int = 100
    """Number of descriptions to fit on."""
    calibration_questions: int = 40
    """Number of other descriptions, on which the strengths are found."""
    held_out: int = 80
    """Number of held-out questions in each block."""
    calibration: Calibration = Calibration(steps=3, tolerance=3.0)  # noqa: RUF009 (frozen)
    """The search for the strengths."""
    max_new_tokens: int = 48
    """Maximum length of an answer in tokens; the models' own answers have up to 46."""
    seed: int = 0
    """Seed of the questions, the sampling and the fits."""
    verify: bool = True
    """Whether the models are checked against plain transformers when they are loaded."""

    def __post_init__(self) -> None:
        """Check the names and the numbers."""
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

    An interrupted run is resumed from `out`: finished traits, fits and answers are reused, and the results are the same.

    Args:
        out: Folder for results, fits and answers.
        config: Settings.
        parallel: Run each trait of each family in a process of its own, as many at a time as there are cores.
        say: Called with each progress message.

    Returns:
        The results by family.

    Raises:
        InputError: an unknown family, trait or method, or `out` is a file.
    """
    config = config or BenchmarkConfig()
    out = check_folder(out)
    if parallel and len(config.families) * len(config.traits) > 1:
        _in_processes(out, config)
    tables = {family: run_family(out, family, config, say) for family in config.families}
    for family, table in tables.items():
        table.to_json(out / f"results-{family}.json")
    write_text(out / "results.md", "\n".join(markdown(FAMILIES[family], table) for family, table in tables.items()))
    return tables


def _in_processes(out: Path, config: BenchmarkConfig) -> None:
    """Run each trait of each family in a process of its own, as many at a time as there are cores; all write to `out`."""
    code = (
        "import sys, json, torch; torch.set_num_threads(1); from psr_lens.apps import benchmark; "
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
            f"a process of the benchmark exited with code {max(map(abs, codes))}; its output is above. "
            "Run the benchmark again to resume it."
        )


def config_from(content: Mapping[str, Any]) -> BenchmarkConfig:
    """Settings from `asdict` of a `BenchmarkConfig` that went through JSON."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    return BenchmarkConfig(**{**values, "calibration": Calibration.of(content["calibration"])})


def flushed(text: str) -> None:
    """Print without buffering, for a process whose output goes through a pipe."""
    print(text, flush=True)


def run_family(out: str | Path, family: str, config: BenchmarkConfig, say: Callable[[str], None] = print) -> ResultTable:
    """All traits of one family; see `run_benchmark`."""
    folder, model = Path(out) / family, None
    tables = []
    for trait in config.traits:
        fits = {name: METHODS[name].to_json() for name in config.methods}
        about = {**asdict(config), "families": [family], "traits": [trait], "fits": fits}
        depends_on = {name: value for name, value in about.items() if name != "verify"}
        path = folder / f"{trait}-{digest_of({**depends_on, **_made_with(FAMILIES[family])})[:12]}.json"
        try:
            tables.append(ResultTable.from_json(path))
            continue
        except ArtifactError:
            pass  # missing or incomplete
        model = model or load_model(FAMILIES[family], verify=config.verify)
        told = _Clock(f"{family}, {trait}", say)
        table = _Trait.of(model, trait, config, folder).measure(told)
        told("done")
        tables.append(ResultTable(table.rows, {**about, **table.settings}))
        tables[-1].to_json(path)
    return cast(ResultTable, sum(tables))


def _made_with(model: str) -> dict[str, Any]:
    """What results depend on besides settings: versions and the model's files; it need not be loaded to find old results."""
    files = (Path(organism.__file__).parent / "weights" / EMBEDDED[model]).iterdir()
    return {"format": FORMAT, "versions": versions(), "files": {each.name: digest_of(each.read_bytes().hex()) for each in files}}


class _Clock:
    """Adds the wall time and the CPU time so far to each progress message."""

    def __init__(self, about: str, say: Callable[[str], None]) -> None:
        self._about, self._say, self._began = about, say, (time.perf_counter(), time.process_time())

    def __call__(self, text: str) -> None:
        wall, own = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._say(f"{self._about}, {wall:.0f} s ({own:.0f} s CPU): {text}")


@dataclass(frozen=True)
class _Trait:
    """One trait on one model: the questions to fit, calibrate and evaluate on."""

    model: HookedModel
    trait: str
    config: BenchmarkConfig
    folder: Path
    triplets: Triplets
    calibration: Sequence[PromptPair]
    sampling: SamplingConfig

    @classmethod
    def of(cls, model: HookedModel, trait: str, config: BenchmarkConfig, folder: Path) -> _Trait:
        count = config.fit_questions + config.calibration_questions
        known = organism.questions(count, kind="description", seed=config.seed)
        pairs = prompt_pairs(model, known, organism.instruction(trait))
        to_fit, other = pairs[: config.fit_questions], pairs[config.fit_questions :]
        triplets = sample_responses(model, to_fit, organism_judge(trait), sampling=SamplingConfig(seed=config.seed))
        sampling = SamplingConfig(seed=config.seed + 1, max_new_tokens=config.max_new_tokens)
        return cls(
            model=model,
            trait=trait,
            config=config,
            folder=folder,
            triplets=triplets,
            calibration=other,
            sampling=sampling,
        )

    def measure(self, say: Callable[[str], None]) -> ResultTable:
        methods = {}
        for name in self.config.methods:
            methods[name] = self._fitted(name)
            say(f"fitted {name}")
        say("searching strengths")
        found = evaluate(
            self.model,
            self.calibration,
            methods,
            organism_judge(self.trait),
            calibration=replace(self.config.calibration, with_prompt=[WITH_PROMPT] if WITH_PROMPT in methods else False),
            sampling=self.sampling,
            cache=self._cache,
        )
        alphas = {}
        for name in list(found.curves)[2:]:  # the first two are the unsteered model and the prompt
            for metric in found.targets:
                alphas[name, metric] = float(f"{found.calibrated(name, metric).alpha:.3g}")
        say("answering held-out questions")
        rows = list(self._answered(methods, alphas))
        rows += [
            Result(
                method=name,
                metric=metric.replace("TA@", "α at "),
                value=alpha,
                n=len(self.calibration),
                interval=NO_INTERVAL,
                trait=self.trait,
            )
            for (name, metric), alpha in alphas.items()
        ]
        return ResultTable(tuple(rows), {"notes": [f"{self.trait}: {note}" for note in found.notes]})

    @property
    def _cache(self) -> Path:
        return self.folder / "answers"

    def _fitted(self, name: str) -> Replacement:
        """The method's replacement; read from the folder if it was fitted before."""
        settings = METHODS[name]
        config, made_with = self.config, _made_with(str(self.model.cfg.model_name))
        about = [settings.to_json(), config.fit_questions, config.seed, self.trait, made_with]
        path = self.folder / "fits" / digest_of(about)[:16]
        try:
            return Replacement.load(path)
        except ArtifactError:
            learned = fit(self.model, self.triplets, settings)
            learned.save(path)
            return learned

    def _answered(self, methods: Mapping[str, Replacement], alphas: Mapping[tuple[str, str], float]) -> Iterator[Result]:
        """Rows of trait and coherence at each strength, block by block; the questions of all blocks are answered together."""
        count = self.config.held_out
        asked = [organism.questions(count, split="held_out", seed=self.config.seed, **about) for about in BLOCKS.values()]
        pairs = prompt_pairs(self.model, [each for block in asked for each in block], organism.instruction(self.trait))
        answers = AnswerCache(self.model, pairs, organism_judge(self.trait), self.sampling, self._cache)
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
        for index, block in enumerate(BLOCKS):
            part = slice(index * count, (index + 1) * count)
            for (name, metric), (alpha, judgement) in found.items():
                point = Point(alpha, judgement.trait[part], judgement.coherence[part], ())
                n = int(point.present.sum())
                for label, score in ((metric, "trait"), (metric.replace("TA@", "coherence at "), "coherence")):
                    interval = mean_interval(getattr(point, score)[point.present])
                    yield Result(
                        method=name,
                        metric=label,
                        value=point.mean(score),
                        n=n,
                        interval=interval,
                        trait=self.trait,
                        block=block,
                        alpha=alpha,
                        missing=count - n,
                    )


# --- tables -----------------------------------------------------------------------------------------------------------------


def markdown(model: str, table: ResultTable) -> str:
    """Markdown tables of one family: means over traits with intervals, then each trait."""
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
    text += ["Coherence at the same strengths:\n", part(mean, coherences, ("block", "metric"))]
    for block in blocks:
        for metric in metrics:
            text += [f"{metric}, {block}, by trait:\n", part(table.select(block=block), [metric], ("trait",))]
    for strength in strengths:
        text += [f"{strength}, by trait:\n", part(table, [strength], ("trait",))]
    notes = _notes(table.settings.get("notes", []))
    if notes:
        text += [
            "Target coherences that the search for strengths did not reach:\n",
            "\n".join(f"- {note}" for note in notes),
            "",
        ]
    return "\n".join(text)


def _notes(notes: Any) -> list[str]:
    """The notes of all traits, of one table or of a sum of tables."""
    parts = notes["varies"] if isinstance(notes, Mapping) else [notes]
    return [note for part in parts for note in part]
