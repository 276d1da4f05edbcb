"""The steps of a run; each reuses what an interrupted run has left in the folder."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from psr_lens._utils.digests import digest_of
from psr_lens._utils.safe_files import write_text
from psr_lens.activations.store import triplet_id, triplets_digest
from psr_lens.apps.output_folder import check_folder
from psr_lens.apps.pipeline import run_folder
from psr_lens.apps.pipeline.config import NO_JUDGE, RunConfig
from psr_lens.apps.pipeline.dry_run import plan_run
from psr_lens.apps.pipeline.questions import QuestionSplit, kept_prompts, read_split
from psr_lens.apps.rendered_prompts import rendered_prompts
from psr_lens.apps.results_json import RESULTS_FORMAT, comparison_json
from psr_lens.apps.triplets import given_triplets
from psr_lens.engines import VLLMServer
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.evaluation.answers_by_method import (
    SHOWN,
    AnswersAtStrength,
    AnswersByMethod,
    FurtherStrengths,
    judged_answers,
    looked_at,
)
from psr_lens.evaluation.compare import compare
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.evaluate import evaluate
from psr_lens.evaluation.evaluation_result import Evaluation, Point
from psr_lens.evaluation.judge_settings import JudgeServer, load_judge
from psr_lens.evaluation.methods import NONE, PROMPT, plans_for
from psr_lens.evaluation.scores import Scores, summed
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.generation.sampled_triplets import Triplets, judged_triplets
from psr_lens.generation.sampling import NotFiniteLogitsError, Response, check_engine_can
from psr_lens.models import HookedModel, load_model, tokenizer_of
from psr_lens.models.config_without_weights import has_outline
from psr_lens.prompts import PromptPairs, Triplet, instruction_label
from psr_lens.replacement import Replacement
from psr_lens.reporting import report
from psr_lens.results.judgement import Judge, Judgement

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """Results of a run."""

    comparison: Comparison
    """Prompt and methods on the held-out responses, with their scores if there is a judge."""
    evaluation: Evaluation | None
    """Scores over the strength and at the target coherences; None without a judge."""
    methods: Mapping[str, Replacement]
    """The fitted methods, by name."""
    triplets: Triplets
    """The triplets that they were fitted on, and the dropped ones."""
    answers: Mapping[str, tuple[str, ...]]
    """Answers to the held-out questions, one per question: without steering (`none`), with the `prompt`, and with each method."""
    out: Path
    """Folder of the run."""


def run(
    config: RunConfig,
    *,
    device: str | None = None,
    say: Say = print,
    show: Callable[[object], None] | None = None,
    server: JudgeServer | None = None,
    engine_key_env: str | None = None,
) -> RunResult:
    """Sample responses to the prompt, fit the methods, answer held-out questions with each, compare them, and write it all to a folder.

    The folder gets `report.html`, `results.json`, `answers.jsonl` (the answers side by side), `artifacts/` (one replacement per method)
    and `run.yaml` (all settings, which reproduce the run). An interrupted run is resumed from `kept/`, with the same results.

    Args:
        config: Settings.
        device: Device of the model; None takes a GPU if there is one.
        say: Called with each progress message.
        show: Called with the first pair's prompts as coloured text, before anything costly runs.
        server: The key of a judge that is a language model, and its address.
        engine_key_env: Environment variable with the key of the engine's API, if it has one.

    Returns:
        The results.

    Raises:
        InputError: an invalid setting or question, a folder that holds another run or other files, or an engine that runs another model,
            or does not serve yet what was fitted.
        ModelError: the model cannot be loaded, or the engine does not answer.
        JudgeError: the judge cannot score.
        FitError: a fit cannot continue.
    """
    out = check_folder(config.out)
    if has_outline(config.model):
        plan_run(config, server)  # so that whatever is wrong is reported before weights are read
    split = read_split(config)
    engine = None if config.engine_address is None else VLLMServer(config.engine_address, engine_key_env)
    say(f"loading {config.model}")
    model = load_model(
        config.model, device=device or "auto", dtype=config.dtype, backend=cast(Any, config.backend), verify=config.verify
    )
    config = config.resolved(int(model.cfg.n_layers)).at_one_time(tokenizer_of(model), run_folder.recorded(out))
    if engine is not None:
        check_engine_can(engine, model, None, config.sampled_by())
    if run_folder.claim(out, config, split.digest(), model, engine):
        say(f"resuming the run in {out}")
    write_text(out / run_folder.SETTINGS_FILE, config.to_yaml())
    to_fit, held_out = kept_prompts(model, config, split, out / run_folder.KEPT / "prompts.jsonl")
    if show is not None:
        show(to_fit.show(span=config.span))
    sides = {"to_fit": to_fit, "held_out": held_out}
    return _Run(model=model, config=config, split=split, **sides, out=out, say=say, server=server, engine=engine).finish()


@dataclass(frozen=True)
class _Run:
    model: HookedModel
    config: RunConfig
    split: QuestionSplit
    to_fit: PromptPairs
    held_out: PromptPairs
    out: Path
    say: Say
    server: JudgeServer | None
    engine: VLLMServer | None

    def finish(self) -> RunResult:
        judge = self._judge()
        triplets = self._triplets(judge)
        folders = run_folder.folder_names(self.config.methods)
        methods = {name: self._fitted(name, folders[name], settings, triplets) for name, settings in self.config.fits().items()}
        self._check_served(methods, folders)
        evaluation = None if judge is None else self._evaluated(methods, judge)
        responses = self._answered(methods)
        comparison = self._compared(methods, responses, judge, evaluation, triplets)
        self.say("writing the report")
        answers = {name: tuple(each.text for each in found) for name, found in responses.items()}
        result = RunResult(
            comparison=comparison, evaluation=evaluation, methods=methods, triplets=triplets, answers=answers, out=self.out
        )
        self._write(result, responses)
        return result

    @property
    def _kept(self) -> Path:
        return self.out / run_folder.KEPT

    def _answers(self, pairs: PromptPairs, stream: int, judge: Judge | None = None) -> AnswerCache:
        return AnswerCache(self.model, pairs, judge, self.config.sampled_by(stream), self._kept / "answers", self.engine)

    def _check_served(self, methods: Mapping[str, Replacement], folders: Mapping[str, str]) -> None:
        """Refuse a server that does not serve yet what was fitted, before any answer is sampled."""
        if self.engine is None:
            return
        lacking = [name for name, method in methods.items() if not self.engine.serves(method)]
        if lacking:
            folders_of_all = " ".join(shlex.quote(str(self.out / run_folder.ARTIFACTS / folders[name])) for name in methods)
            command = f"psr-lens serve {shlex.quote(self.config.model)} {folders_of_all}"
            raise InputError(
                "engine",
                f"one that does not serve {', '.join(map(repr, lacking))}, which this run has fitted",
                "one that serves all its methods",
                f"Start the server with `{command}`, with the same further options behind `--` as before, then run this again: "
                "it goes on from here.",
            )

    def _judge(self) -> Judge | None:
        given = self.config.judge
        if given is None:
            self.say("no judge: methods are fitted on all responses, and nothing is scored")
            return None
        self.say("preparing the judge")

        def references() -> dict[str, Any]:
            """The model's own answers to all questions, which the perplexity judge would sample again at every start."""
            sides = ((self.to_fit, 0), (self.held_out, 1))
            return {"references": [each.text for pairs, stream in sides for each in self._answers(pairs, stream).responses()]}

        defaults = {"perplexity": references, "llm": lambda: {"cache": self._kept / "judge"}}
        return load_judge(given, self.model, self.to_fit + self.held_out, defaults=defaults, server=self.server)

    def _triplets(self, judge: Judge | None) -> Triplets:
        if self.split.given:
            return Triplets(tuple(given_triplets(self.model, self.to_fit, self.split.fit)), (), self.to_fit.tokenizer)
        self.say(f"sampling {len(self.to_fit)} responses to the prompt with the instruction")
        answers = self._answers(self.to_fit, 0, judge)
        responses = answers.responses(context="prompted")
        verdict = None if judge is None else answers.of(context="prompted").judgement
        found = judged_triplets(self.to_fit, responses, _known(verdict))
        self.say(found.summary())
        return found

    def _fitted(self, name: str, folder: str, settings: FitConfig, triplets: Triplets) -> Replacement:
        """The method's replacement; read from the folder if it was fitted before, with the same settings on the same triplets."""
        learned_from = [[triplet_id(each), each.trait, each.coherence] for each in triplets]
        fit_digest = digest_of({"settings": settings.to_json(), "triplets": learned_from})
        artifact, record = self.out / run_folder.ARTIFACTS / folder, self._kept / "fits" / f"{folder}.txt"
        same = record.exists() and record.read_text(encoding="utf-8").strip() == fit_digest
        found = _loaded(artifact) if same else None
        same = found is not None
        if not record.exists():  # an older version recorded no digest, and named a folder by the plain name alone
            found = _loaded(self.out / run_folder.ARTIFACTS / run_folder.plain_name(name))
            found = found if found is not None and _is_of(found, settings, triplets) else None
        if found is None:
            began = time.perf_counter()
            checkpoint = self._kept / "checkpoints" / f"{folder}-{fit_digest[:8]}"
            found = fit(self.model, triplets, settings, checkpoint=checkpoint if settings.is_trained else None)
            self.say(f"fitted {name} on {len(triplets)} triplets ({time.perf_counter() - began:.1f} s)")
        if not same:
            record.unlink(missing_ok=True)  # so that no record is beside another fit's files, should this be interrupted
            found.save(artifact)
            write_text(record, fit_digest + "\n")
        return found

    def _evaluated(self, methods: Mapping[str, Replacement], judge: Judge) -> Evaluation:
        self.say(f"scoring answers to {len(self.held_out)} held-out questions at several strengths")
        return evaluate(
            self.model,
            self.held_out,
            methods,
            judge,
            calibration=self.config.calibrated_by(),
            sampling=self.config.sampled_by(1),
            cache=self._kept / "answers",
            engine=self.engine,
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
            triplets: Sequence[Triplet] = given_triplets(self.model, self.held_out, self.split.held_out)
        else:
            point = None if evaluation is None else evaluation.curves[PROMPT][0]
            verdict = None if point is None else point.judgement
            triplets = judged_triplets(self.held_out, responses[PROMPT], _known(verdict))
            if not triplets:  # the model does not follow the instruction; compare anyway
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
                "command": f"psr-lens run --config {run_folder.SETTINGS_FILE}",
                "questions": f"{len(self.to_fit)} to fit on, {len(self.held_out)} held out",
                "fitted on": fitted_on.summary(),
                "judge": self.config.judge or NO_JUDGE,
                "sampling": dict(self.config.sampling),
                "seed": self.config.seed,
                **({} if self.engine is None else {"engine": self.engine.identity}),
                **rendered_prompts(self.model, self.held_out),
            },
        )

    def _points(self, evaluation: Evaluation) -> dict[str, Point]:
        """Each method at the run's strength."""

        def at(points: Sequence[Point]) -> Point:
            return next(point for point in points if point.alpha in (None, float(self.config.alpha)))

        return {name: at(points) for name, points in evaluation.curves.items()}

    def _scores(self, evaluation: Evaluation) -> list[Scores]:
        return [summed(name, each.judgement, each.alpha) for name, each in self._points(evaluation).items()]

    def _answers_by_method(self, result: RunResult, responses: Mapping[str, Sequence[Response]]) -> AnswersByMethod:
        points = {} if result.evaluation is None else self._points(result.evaluation)
        verdicts = {name: points[name].judgement for name in result.answers if name in points}
        alphas = dict.fromkeys(result.methods, float(self.config.alpha))
        found = judged_answers(self.held_out, result.answers, alphas, verdicts)
        self.say("answering the first questions at further strengths")
        curves = {} if result.evaluation is None else result.evaluation.curves
        to_all, to_first = self._answers(self.held_out, 1), self._answers(self.held_out[:SHOWN], 1)

        def answer(name: str, alpha: float) -> Sequence[Response] | None:
            is_evaluated = any(point.alpha == alpha for point in curves.get(name, ()))
            try:
                return (to_all if is_evaluated else to_first).responses(result.methods[name], alpha)[:SHOWN]
            except NotFiniteLogitsError as error:
                self.say(f"the report leaves out the answers of {name} at α = {alpha:g}: {error}")
                return None

        further = FurtherStrengths(self.config.also_at, self.config.sampled_by(1), answer=answer)
        plans = plans_for(self.model, result.methods)
        return with_known_scores(looked_at(found, self.model, self.held_out, plans, responses, further), result.evaluation)

    def _write(self, result: RunResult, responses: Mapping[str, Sequence[Response]]) -> None:
        asked = {"question": [pair.asked for pair in self.held_out], "instruction": [pair.instruction for pair in self.held_out]}
        run_folder.write_answers(self.out / run_folder.ANSWERS_FILE, {**asked, **result.answers})
        results = {
            "format": RESULTS_FORMAT,
            "instruction": instruction_label(self.held_out),
            "fitted_on": {"kept": len(result.triplets), "dropped": len(result.triplets.dropped)},
            "judge": self.config.judge,
            "engine": None if self.engine is None else self.engine.identity,
            **comparison_json(result.comparison),
        }
        if result.evaluation is not None:
            table = result.evaluation.table(trait=instruction_label(self.held_out))
            table.to_json(self.out / "evaluation.json")
            write_text(self.out / "evaluation.md", result.evaluation.to_markdown())
        write_text(self.out / run_folder.RESULTS_FILE, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        report(result.comparison, self.out / run_folder.REPORT_FILE, also=[self._answers_by_method(result, responses)])


def with_known_scores(found: AnswersByMethod, evaluation: Evaluation | None) -> AnswersByMethod:
    """Answers at further strengths with the scores that an evaluation gave the same answers; others stay without."""
    if evaluation is None:
        return found
    scored = {}
    for name, several in found.at_strengths.items():
        points = {point.alpha: point for point in evaluation.curves.get(name, ())}
        scored[name] = tuple(_with_known_score(each, points.get(each.alpha)) for each in several)
    return replace(found, at_strengths=scored)


def _with_known_score(found: AnswersAtStrength, point: Point | None) -> AnswersAtStrength:
    if point is None or point.answers[: len(found.texts)] != found.texts:
        return found
    return replace(found, trait=tuple(map(float, point.trait[: len(found.texts)])))


def _loaded(folder: Path) -> Replacement | None:
    """The replacement in a folder; None if it is missing or incomplete."""
    try:
        return Replacement.load(folder)
    except ArtifactError:
        return None


def _is_of(found: Replacement, settings: FitConfig, triplets: Triplets) -> bool:
    """Whether a replacement says that it was fitted with these settings on these triplets."""
    wanted = json.loads(json.dumps(settings.to_json()))
    return found.data == triplets_digest(triplets) and all(found.settings.get(name) == value for name, value in wanted.items())


def _known(verdict: Judgement | None) -> Judge | None:
    """A judge that returns a known verdict."""
    if verdict is None:
        return None
    known = verdict
    return lambda texts, questions: known
