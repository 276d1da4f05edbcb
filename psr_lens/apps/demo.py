"""The whole line on the embedded model: prompt, triplets, fits, scores, comparison."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from psr_lens import organism
from psr_lens._utils.safe_files import write_text
from psr_lens.activations.capture import capture
from psr_lens.activations.statistics import Statistics
from psr_lens.apps.pipeline.files import check_folder, comparison_json
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison, compare
from psr_lens.evaluation.evaluate import Calibration, evaluate
from psr_lens.evaluation.faithfulness import faithfulness
from psr_lens.evaluation.scores import best_alpha, best_layer, score, scores_at
from psr_lens.fitting.config import DiM, Sequential
from psr_lens.fitting.fit import fit
from psr_lens.fitting.training_settings import Polish
from psr_lens.generation.responses import judged_triplets, sample_responses
from psr_lens.generation.sampling import SamplingConfig, generate
from psr_lens.interpretation.attribution import attribute
from psr_lens.interpretation.directions import cosines, logit_lens, top_tokens
from psr_lens.interpretation.patching import patch
from psr_lens.judges import organism as organism_judge
from psr_lens.models import EMBEDDED, HookedModel, load_to_fit_and_answer
from psr_lens.plots.images import check_browser
from psr_lens.prompts import Triplet, prompt_pairs
from psr_lens.replacement import Replacement
from psr_lens.reporting import report
from psr_lens.results.judgement import Judge

RESULTS_FORMAT: Final = 1
CONSTANT_ALPHAS: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Strengths among which the constant baseline may take its best."""
MIN_COHERENCE: Final = 95.0
"""Coherence that the constant baseline must keep."""
CURVE_ALPHAS: Final = (0.5, 1.0, 2.0)
"""Strengths of the curves of trait against coherence."""
CURVE_QUESTIONS: Final = 20
"""Held-out questions for them."""
_KINDS: Final = ("attn_out", "mlp_out", "resid_post")
_EXAMPLES: Final = 3
"""Responses that are patched, and whose blocks are shown part by part."""


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demonstration."""

    model: str = "organism"
    """`"organism"` or `"organism-gpt2"`."""
    fit_questions: int = 240
    """Questions to fit on, from the training side."""
    held_out_questions: int = 120
    """Questions to score and compare on, which neither the model nor a fit has seen; at least 100."""
    single_layers: tuple[int, ...] = (1, 3)
    """Layers among which S-PSR takes the one that scores best on validation questions; the constant baseline acts there too."""
    validation_questions: int = 40
    """Questions for that choice, from the training side, not fitted on."""
    looked_into: int = 40
    """Held-out questions for the report's next-token distances, parts of blocks, and heads."""
    seed: int = 0
    """Seed of questions, sampling and fits."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if self.model not in EMBEDDED:
            raise InputError(
                "model", repr(self.model), f"one of {', '.join(EMBEDDED)}", "The demonstration needs its exact judges."
            )
        if self.held_out_questions < 100:
            raise InputError("held_out_questions", self.held_out_questions, "100 or more, so that the scores mean something")

    def single_layer_fit(self) -> Sequential:
        """How S-PSR is fitted; its layer is chosen by validation."""
        return Sequential(
            layers=self.single_layers[0],
            rank=1,
            polish=Polish(epochs=4, batch_size=8, learning_rate=1e-2, seed=self.seed),
        )


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found for one trait."""

    comparison: Comparison
    """Prompt and replacements on held-out responses, with the scores."""
    replacements: Mapping[str, Replacement]
    """The fitted methods."""
    further: Sequence[object]
    """What else was found out about them, for the report."""
    seconds: float
    """Wall time."""


def run_trait(
    model: HookedModel, answering: HookedModel, trait: str, config: DemoConfig, say: Callable[[str], None] = lambda text: None
) -> DemoResult:
    """Fit the methods on one trait and measure them on held-out questions.

    Args:
        model: The loaded model of `config`.
        answering: The same in the class that generates fastest.
        trait: One of `organism.TRAITS`.
        config: Settings.
        say: Told what is being done.
    """
    began = time.perf_counter()
    judge = organism_judge(trait)
    instruction = organism.instruction(trait)
    say("sampling under the prompt")
    known = organism.questions(config.fit_questions + config.validation_questions, seed=config.seed)
    pairs = prompt_pairs(model, known, instruction)
    pairs, validation = pairs[: config.fit_questions], pairs[config.fit_questions :]
    triplets = sample_responses(answering, pairs, judge, sampling=SamplingConfig(seed=config.seed))
    say(f"fitting A-PSR on {len(triplets)} triplets")
    all_layers = fit(model, triplets, Sequential())
    say("fitting S-PSR and choosing its layer")
    single = best_layer(model, triplets, config.single_layer_fit(), judge, pairs=validation, layers=config.single_layers)
    constant = fit(model, triplets, DiM(layers=single.settings["layers"]))
    replacements = {"A-PSR": all_layers, "S-PSR": single, "S-Const DiM": constant}

    held_out = prompt_pairs(model, organism.questions(config.held_out_questions, split="held_out", seed=config.seed), instruction)
    sampling = SamplingConfig(seed=config.seed + 1)
    say(f"answering {len(held_out)} held-out questions")
    prompted = generate(answering, held_out, context="prompted", sampling=sampling)
    scores = [scores_at(answering, held_out, None, judge, sampling=sampling), score("prompt", held_out, prompted, judge)]
    for name, replacement in replacements.items():
        say(f"answering with {name}")
        if "Const" in name:
            found = best_alpha(
                answering,
                held_out,
                replacement,
                judge,
                alphas=CONSTANT_ALPHAS,
                min_coherence=MIN_COHERENCE,
                method=name,
                sampling=sampling,
            )
        else:
            found = scores_at(answering, held_out, replacement, judge, method=name, sampling=sampling)
        scores.append(found)
    say("comparing token by token")
    responses = judged_triplets(held_out, prompted, judge)
    comparison = compare(
        model,
        responses,
        replacements,
        paraphrase=organism.instruction(trait, 1),
    ).with_scores(
        scores,
        {
            "command": f"psr-lens demo --trait {trait} --model {config.model} --seed {config.seed}",
            **asdict(config),
            "fitted_on": triplets.summary(),
            "single_layer": single.settings["layers"],
            "paraphrase": organism.instruction(trait, 1),
            "constant_alphas": list(CONSTANT_ALPHAS),
            "sampling": asdict(sampling),
        },
    )
    say("looking into heads, blocks and directions")
    looked_at, paraphrase = responses[: config.looked_into], organism.instruction(trait, 1)
    further = look_into(model, answering, looked_at, replacements, judge, sampling, paraphrase)
    return DemoResult(comparison, replacements, further, time.perf_counter() - began)


def look_into(
    model: HookedModel,
    answering: HookedModel,
    responses: Sequence[Triplet],
    replacements: Mapping[str, Replacement],
    judge: Judge,
    sampling: SamplingConfig,
    paraphrase: str,
) -> list[object]:
    """What the report shows beside the comparison: curves, next tokens, parts of blocks, heads, patched cells, words and fits."""
    pairs = [each.pair for each in responses]
    curves = Calibration(alphas=CURVE_ALPHAS, targets=(), at_prompt=False)
    lead = replacements["A-PSR"]
    return [
        evaluate(answering, pairs[:CURVE_QUESTIONS], replacements, judge, calibration=curves, sampling=sampling),
        faithfulness(model, responses, replacements, paraphrases=paraphrase),
        capture(model, responses, _KINDS, to=Statistics(rank=8)),
        capture(model, responses[:_EXAMPLES], _KINDS, difference="local"),
        attribute(model, responses, by_source=True),
        patch(model, responses[:_EXAMPLES]),
        logit_lens(model, lead),
        top_tokens(model, responses, lead),
        cosines(replacements),
        *(each for each in replacements.values() if each.curve is not None),
    ]


def run_demo(
    out: str | Path,
    traits: Sequence[str],
    config: DemoConfig | None = None,
    say: Callable[[str], None] = lambda text: None,
    *,
    static: bool = False,
) -> dict[str, DemoResult]:
    """Run the demonstration and write `report.html`, `results.json` and the artifacts into a folder, with `static` every figure too.

    Raises:
        InputError: an unknown trait, `out` is a file, or for `static` there is no browser.
        MissingPackageError: `static` without kaleido.
    """
    config = config or DemoConfig()
    out = check_folder(out)
    traits = list(dict.fromkeys(traits))
    for trait in traits:
        organism.instruction(trait)  # refuses an unknown one before anything costly runs
    if static:
        check_browser()
    say(f"loading {config.model}")
    model, answering = load_to_fit_and_answer(config.model)
    results = {}
    for trait in traits:
        results[trait] = run_trait(model, answering, trait, config, _with_prefix(say, trait))
        for name, replacement in results[trait].replacements.items():
            replacement.save(out / "artifacts" / trait / name.replace(" ", "-"))
    say("writing the report")
    write_results(results, out / "results.json")
    report(
        {trait: result.comparison for trait, result in results.items()},
        out / "report.html",
        also={trait: result.further for trait, result in results.items()},
        static=out / "figures" if static else None,
    )
    return results


def _with_prefix(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: say(f"{prefix}: {text}")


def write_results(results: Mapping[str, DemoResult], path: Path) -> None:
    """Write the numbers as JSON, at once or not at all."""
    content = {"format": RESULTS_FORMAT, "traits": {trait: comparison_json(result.comparison) for trait, result in results.items()}}
    write_text(path, json.dumps(content, indent=2) + "\n")
