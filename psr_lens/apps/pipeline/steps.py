"""The steps of a run, each of which goes on from what is there already."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from psr_lens._utils.safe_files import write_text
from psr_lens.apps.pipeline import files
from psr_lens.apps.pipeline.config import DTYPES, RunConfig
from psr_lens.apps.pipeline.questions import Split, kept_prompts, read_split
from psr_lens.errors import ArtifactError
from psr_lens.evaluation.answer_cache import Answers
from psr_lens.evaluation.comparison import Comparison, compare
from psr_lens.evaluation.config import load_judge
from psr_lens.evaluation.evaluate import evaluate
from psr_lens.evaluation.evaluation_result import Evaluation, Point
from psr_lens.evaluation.methods import NONE, PROMPT
from psr_lens.evaluation.scores import Scores, summed
from psr_lens.fitting.config import FitConfig
from psr_lens.fitting.fit import fit
from psr_lens.generation.responses import Triplets, judged_triplets
from psr_lens.generation.sampling import Response
from psr_lens.models import HookedModel, fingerprint, load_model
from psr_lens.models.fingerprints import weights_digest
from psr_lens.prompts import PromptPairs, Triplet, with_responses
from psr_lens.replacement import Replacement
from psr_lens.reporting import report
from psr_lens.results.judgement import Judge, Judgement

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What a run found."""

    comparison: Comparison
    """Prompt and methods on held-out responses, with their scores if there is a judge."""
    evaluation: Evaluation | None
    """Curves over the strength and what methods reach at a target coherence; None without a judge."""
    methods: Mapping[str, Replacement]
    """The fitted methods."""
    triplets: Triplets
    """What they were fitted on, and what was dropped."""
    answers: Mapping[str, tuple[str, ...]]
    """Answers to the held-out questions: `none`, `prompt`, and each method's."""
    out: Path
    """The folder."""


def run(
    config: RunConfig, *, device: str | None = None, say: Say = print, show: Callable[[object], None] | None = None
) -> RunResult:
    """Sample responses under the prompt, fit the methods, answer held-out questions with each, compare, and write a folder of it all.

    The folder gets `report.html`, `results.json`, `answers.jsonl` (the answers side by side), `artifacts/` (a replacement a method) and
    `run.yaml` (all settings; run again, they give the same). A run that was cut off goes on from `kept/` and ends the same.

    Args:
        config: What to do.
        device: Where the model goes; the CPU if None.
        say: Told what is being done.
        show: Given the first pair's prompts as coloured text, before anything costly runs.

    Returns:
        What was found.

    Raises:
        InputError: a setting or a question cannot be used, or the folder holds something else.
        ModelError: the model cannot be loaded.
        JudgeError: the judge cannot score.
        FitError: a fit cannot go on.
    """
    out = files.check_folder(config.out)
    split = read_split(config)
    say(f"loading {config.model}")
    model = load_model(config.model, device=device or "cpu", dtype=DTYPES[config.dtype], backend=cast(Any, config.backend))
    config = config.resolved(int(model.cfg.n_layers))
    about = {"questions": split.digest(), "model_found": {**fingerprint(model), "weights": weights_digest(model)}}
    if files.claim(out, config, about):
        say(f"going on with the run in {out}")
    write_text(out / files.SETTINGS_FILE, config.to_yaml())
    to_fit, held_out = kept_prompts(model, config, split, out / files.KEPT / "prompts.jsonl")
    if show is not None:
        show(to_fit.show(span=config.span))
    return _Run(model, config, split, to_fit, held_out, out, say).finish()


@dataclass(frozen=True)
class _Run:
    model: HookedModel
    config: RunConfig
    split: Split
    to_fit: PromptPairs
    held_out: PromptPairs
    out: Path
    say: Say

    def finish(self) -> RunResult:
        judge = self._judge()
        triplets = self._triplets(judge)
        methods = {name: self._fitted(name, settings, triplets) for name, settings in self.config.fits().items()}
        evaluation = None if judge is None else self._evaluated(methods, judge)
        responses = self._answered(methods)
        comparison = self._compared(methods, responses, judge, evaluation, triplets)
        self.say("writing the report")
        answers = {name: tuple(each.text for each in found) for name, found in responses.items()}
        result = RunResult(comparison, evaluation, methods, triplets, answers, self.out)
        self._write(result)
        return result

    @property
    def _kept(self) -> Path:
        return self.out / files.KEPT

    def _answers(self, pairs: PromptPairs, stream: int, judge: Judge | None = None) -> Answers:
        return Answers(self.model, pairs, judge, self.config.sampled_by(stream), self._kept / "answers")

    def _judge(self) -> Judge | None:
        given = self.config.judge
        if given is None:
            self.say("no judge: every response is learned from, and nothing is scored")
            return None
        self.say("making the judge ready")

        def references() -> dict[str, Any]:
            """The model's own answers to all questions, which the judge of perplexity would sample anew at every start."""
            sides = ((self.to_fit, 0), (self.held_out, 1))
            return {"references": [each.text for pairs, stream in sides for each in self._answers(pairs, stream).responses()]}

        defaults = {"perplexity": references, "llm": lambda: {"cache": self._kept / "judge"}}
        return load_judge(given, self.model, self.to_fit + self.held_out, defaults=defaults)

    def _triplets(self, judge: Judge | None) -> Triplets:
        if self.split.given:
            return Triplets(tuple(self._given(self.split.fit, self.to_fit)), (), self.to_fit.tokenizer)
        self.say(f"sampling {len(self.to_fit)} responses under the prompt")
        answers = self._answers(self.to_fit, 0, judge)
        responses = answers.responses(context="prompted")
        verdict = None if judge is None else answers.of(context="prompted").judgement
        found = judged_triplets(self.to_fit, responses, _told(verdict))
        self.say(found.summary())
        return found

    def _given(self, lines: Sequence[Any], pairs: PromptPairs) -> list[Triplet]:
        triplets = with_responses(self.model, pairs, [str(line.response) for line in lines])
        return [
            Triplet(each.pair, each.response_ids, each.response, line.trait, line.coherence)
            for each, line in zip(triplets, lines, strict=True)
        ]

    def _fitted(self, name: str, settings: FitConfig, triplets: Triplets) -> Replacement:
        """The method's replacement, from the folder if it was fitted before."""
        folder = self.out / files.ARTIFACTS / files.folder_name(name)
        try:
            return Replacement.load(folder)
        except ArtifactError:
            pass  # none there yet, or not whole
        began = time.perf_counter()
        learned = fit(
            self.model,
            triplets,
            settings,
            checkpoint=self._kept / "checkpoints" / files.folder_name(name) if settings.is_trained else None,
        )
        learned.save(folder)
        self.say(f"fitted {name} on {len(triplets)} triplets ({time.perf_counter() - began:.1f} s)")
        return learned

    def _evaluated(self, methods: Mapping[str, Replacement], judge: Judge) -> Evaluation:
        self.say(f"scoring answers to {len(self.held_out)} held-out questions, at several strengths")
        return evaluate(
            self.model,
            self.held_out,
            methods,
            judge,
            calibration=self.config.calibrated_by(),
            sampling=self.config.sampled_by(1),
            cache=self._kept / "answers",
        )

    def _answered(self, methods: Mapping[str, Replacement]) -> dict[str, tuple[Response, ...]]:
        self.say(f"answering {len(self.held_out)} held-out questions")
        answers = self._answers(self.held_out, 1)
        found = {NONE: answers.responses(), PROMPT: answers.responses(context="prompted")}
        return found | {name: answers.responses(method, self.config.alpha) for name, method in methods.items()}

    def _compared(
        self,
        methods: Mapping[str, Replacement],
        responses: Mapping[str, Sequence[Response]],
        judge: Judge | None,
        evaluation: Evaluation | None,
        fitted_on: Triplets,
    ) -> Comparison:
        self.say("comparing token by token")
        if self.split.given:
            triplets: Sequence[Triplet] = self._given(self.split.held_out, self.held_out)
        else:
            point = None if evaluation is None else evaluation.curves[PROMPT][0]
            verdict = None if point is None else Judgement(point.trait, point.coherence, ("",) * len(self.held_out))
            triplets = judged_triplets(self.held_out, responses[PROMPT], _told(verdict))
            if not triplets:  # an instruction that the model does not follow: it can be compared all the same
                triplets = judged_triplets(self.held_out, responses[PROMPT], None)
        return compare(
            self.model,
            triplets,
            methods,
            paraphrase=self.config.paraphrase,
            span=self.config.span,
            alpha=self.config.alpha,
        ).with_scores(
            [] if evaluation is None else self._scores(evaluation),
            {
                "command": f"psr-lens run --config {files.SETTINGS_FILE}",
                "questions": f"{len(self.to_fit)} to learn from, {len(self.held_out)} held out",
                "fitted on": fitted_on.summary(),
                "judge": self.config.judge or "none: every response was learned from, and nothing is scored",
                "sampling": dict(self.config.sampling),
                "seed": self.config.seed,
            },
        )

    def _scores(self, evaluation: Evaluation) -> list[Scores]:
        """Every method's scores at the run's strength."""

        def at(points: Sequence[Point]) -> Point:
            return next(point for point in points if point.alpha in (None, float(self.config.alpha)))

        chosen = {name: at(points) for name, points in evaluation.curves.items()}
        return [summed(name, Judgement(each.trait, each.coherence, ()), each.alpha) for name, each in chosen.items()]

    def _write(self, result: RunResult) -> None:
        asked = {"question": [pair.asked for pair in self.held_out], "instruction": [pair.instruction for pair in self.held_out]}
        files.write_answers(self.out / files.ANSWERS_FILE, {**asked, **result.answers})
        results = {
            "format": files.FORMAT,
            "instruction": self.held_out[0].instruction,
            "fitted_on": {"kept": len(result.triplets), "dropped": len(result.triplets.dropped)},
            "judge": self.config.judge,
            **files.comparison_json(result.comparison),
        }
        if result.evaluation is not None:
            table = result.evaluation.table(trait=self.held_out[0].instruction)
            table.to_json(self.out / "evaluation.json")
            write_text(self.out / "evaluation.md", result.evaluation.to_markdown())
        write_text(self.out / files.RESULTS_FILE, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        report(result.comparison, self.out / files.REPORT_FILE)


def _told(verdict: Judgement | None) -> Judge | None:
    """A judge that says what is known already."""
    if verdict is None:
        return None
    known = verdict
    return lambda texts, questions: known
