"""The demo on the shipped organism: prompts, triplets, fits, scores and comparison, judged by its exact judges."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from psr_lens import organism
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.activations.capture import capture
from psr_lens.activations.statistics import Statistics
from psr_lens.apps.demo.held_out import DemoResult, HeldOut, Say
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import ALSO_AT, check_also_at
from psr_lens.evaluation.calibration import best_alpha, best_layer
from psr_lens.evaluation.evaluate import Calibration, evaluate
from psr_lens.evaluation.faithfulness import faithfulness
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.baselines import DiM
from psr_lens.fitting.settings.gradient_descent import Polish
from psr_lens.fitting.settings.solvers import Sequential
from psr_lens.generation.sampled_triplets import sample_responses
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.interpretation.attribution import attribute
from psr_lens.interpretation.directions import cosines, logit_lens, top_tokens
from psr_lens.interpretation.patching import patch
from psr_lens.judges import organism as organism_judge
from psr_lens.models import EMBEDDED, HookedModel
from psr_lens.prompts import Triplet, prompt_pairs
from psr_lens.replacement import Replacement

CONSTANT_ALPHAS: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Strengths from which the constant baseline takes its best, by its scores on the validation questions."""
MIN_COHERENCE: Final = 95.0
"""Least coherence of the constant baseline at its best strength."""
CURVE_ALPHAS: Final = (0.5, 1.0, 2.0)
"""Strengths on the curves of trait against coherence."""
CURVE_QUESTIONS: Final = 20
"""Number of held-out questions for these curves."""
_KINDS: Final = ("attn_out", "mlp_out", "resid_post")
_EXAMPLES: Final = 3
"""Number of responses that are patched, and whose blocks are shown part by part."""


@dataclass(frozen=True)
class DemoConfig(KnownSettings):
    """Settings of the demo on the organism."""

    model: str = "organism"
    """`"organism"` or `"organism-gpt2"`."""
    fit_questions: int = 240
    """Number of questions to fit on, from the training split."""
    held_out_questions: int = 120
    """Number of questions to score and compare on, unseen by the model and the fits; 100 or more."""
    single_layers: tuple[int, ...] = (1, 3)
    """Candidate layers of S-PSR; the best one on the validation questions is chosen, and the constant baseline acts there too."""
    validation_questions: int = 40
    """Number of questions for that choice and for that of the constant's strength: from the training split, neither fitted on nor
    scored."""
    looked_into: int = 40
    """Number of held-out responses for the report's next-token distances, parts of blocks, and heads."""
    also_at: tuple[float, ...] = ALSO_AT
    """Strengths at which each method answers the first 8 held-out questions, too; the report's reader can choose among them."""
    seed: int = 0
    """Seed of the questions, the sampling and the fits."""
    verify: bool = True
    """Whether the model is checked against plain transformers when it is loaded."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.model not in EMBEDDED:
            raise InputError(
                "model", repr(self.model), f"one of {', '.join(EMBEDDED)}", "The demo needs the organism's exact judges."
            )
        if self.held_out_questions < 100:
            raise InputError("held_out_questions", self.held_out_questions, "100 or more, for meaningful scores")
        check_also_at(self.also_at)

    def single_layer_fit(self) -> Sequential:
        """Settings of S-PSR's fit; its layer is chosen on the validation questions."""
        return Sequential(
            layers=self.single_layers[0],
            rank=1,
            polish=Polish(epochs=4, batch_size=8, learning_rate=1e-2, seed=self.seed),
        )


def run_trait(model: HookedModel, trait: str, config: DemoConfig, say: Say) -> DemoResult:
    """Fit the methods on one trait and measure them on held-out questions.

    Args:
        model: The model of `config`.
        trait: One of `psr_lens.organism.TRAITS`.
        config: Settings.
        say: Called with each progress message.
    """
    began = time.perf_counter()
    judge = organism_judge(trait)
    instruction = organism.instruction(trait)
    say("sampling responses to the prompt")
    known = organism.questions(config.fit_questions + config.validation_questions, seed=config.seed)
    pairs = prompt_pairs(model, known, instruction)
    pairs, validation = pairs[: config.fit_questions], pairs[config.fit_questions :]
    triplets = sample_responses(model, pairs, judge, sampling=SamplingConfig(seed=config.seed))
    say(f"fitting A-PSR on {len(triplets)} triplets")
    all_layers = fit(model, triplets, Sequential())
    say("fitting S-PSR and choosing its layer")
    single = best_layer(model, triplets, config.single_layer_fit(), judge, pairs=validation, layers=config.single_layers)
    constant = fit(model, triplets, DiM(layers=single.settings["layers"]))
    replacements = {"A-PSR": all_layers, "S-PSR": single, "S-Const DiM": constant}
    say("choosing the constant's strength")
    strongest = best_alpha(model, validation, constant, judge, alphas=CONSTANT_ALPHAS, min_coherence=MIN_COHERENCE)
    alphas = dict.fromkeys(replacements, 1.0) | {"S-Const DiM": float(strongest.alpha or 0.0)}
    asked = organism.questions(config.held_out_questions, split="held_out", seed=config.seed)
    sampling = SamplingConfig(seed=config.seed + 1)
    held_out_pairs = prompt_pairs(model, asked, instruction)
    held_out = HeldOut(model, held_out_pairs, judge, sampling, organism.instruction(trait, 1), config.also_at, judge)
    settings = {
        "command": f"psr-lens demo --trait {trait} --model {config.model} --seed {config.seed}",
        **asdict(config),
        "fitted_on": triplets.summary(),
        "single_layer": single.settings["layers"],
        "constant_alpha": f"{alphas['S-Const DiM']:g}, the one of {', '.join(f'{alpha:g}' for alpha in CONSTANT_ALPHAS)} with the "
        f"highest trait at a coherence of {MIN_COHERENCE:g} or more on {len(validation)} validation questions, none of which is scored",
        "sampling": asdict(sampling),
    }
    comparison, answers, responses = held_out.measure(replacements, alphas, settings, say)
    say("looking into heads, blocks and directions")
    further = look_into(model, responses[: config.looked_into], replacements, trait, sampling, alphas)
    return DemoResult(comparison, replacements, [answers, *further], time.perf_counter() - began)


def look_into(
    model: HookedModel,
    responses: Sequence[Triplet],
    replacements: Mapping[str, Replacement],
    trait: str,
    sampling: SamplingConfig,
    alphas: Mapping[str, float],
) -> list[object]:
    """Results that the report shows next to the comparison: curves, next tokens, parts of blocks, heads, patching, directions, fits."""
    pairs = [each.pair for each in responses]
    curves = Calibration(alphas=CURVE_ALPHAS, targets=(), at_prompt=False)
    lead = replacements["A-PSR"]
    return [
        evaluate(model, pairs[:CURVE_QUESTIONS], replacements, organism_judge(trait), calibration=curves, sampling=sampling),
        faithfulness(model, responses, replacements, paraphrases=organism.instruction(trait, 1), alpha=alphas),
        capture(model, responses, _KINDS, to=Statistics(rank=8)),
        capture(model, responses[:_EXAMPLES], _KINDS, difference="local"),
        attribute(model, responses, by_source=True),
        patch(model, responses[:_EXAMPLES]),
        logit_lens(model, lead),
        top_tokens(model, responses, lead, 200, per_response=None),
        cosines(replacements),
        *(each for each in replacements.values() if each.curve is not None),
    ]
