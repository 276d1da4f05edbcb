"""The demo on a chat model that people use: instructions that small models follow, everyday questions, judges without a second model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

from psr_lens import judges
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.activations.capture import capture
from psr_lens.activations.statistics import Statistics
from psr_lens.apps.demo.held_out import DemoResult, HeldOut, Say
from psr_lens.datasets import everyday_questions
from psr_lens.errors import InputError, ModelError
from psr_lens.evaluation.answers_by_method import ALSO_AT, check_also_at
from psr_lens.evaluation.calibration import best_alpha
from psr_lens.evaluation.faithfulness import faithfulness
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.baselines import DiM
from psr_lens.fitting.settings.solvers import Sequential
from psr_lens.generation.sampled_triplets import Triplets, judged_triplets
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.interpretation.directions import cosines, top_tokens
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPairs, prompt_pairs
from psr_lens.replacement import Replacement
from psr_lens.results.judgement import Judge

ALPHAS: Final = (1.0, 1.25)
"""Strengths from which A-PSR takes its best, by its scores on the validation questions."""
CONSTANT_ALPHAS: Final = (1.0, 3.0)
"""The same for the constant baseline."""
MIN_COHERENCE: Final = 80.0
"""Least coherence of a method at its best strength."""
_KINDS: Final = ("attn_out", "mlp_out", "resid_post")
_FEWEST: Final = 8
"""Fewest responses with the trait that anything is fitted on."""
_REFERENCES: Final = 20
"""Number of unsteered answers that the coherence judge takes its scale from."""


@dataclass(frozen=True)
class ChatInstruction:
    """An instruction that small chat models follow, and who judges it."""

    instruction: str
    """The instruction, which comes after the question: small models hardly follow one in the system message."""
    paraphrase: str
    """The same in other words."""
    make_judge: Callable[[], Judge]
    """Makes the judge of the trait, which may need an optional package."""


INSTRUCTIONS: Final[Mapping[str, ChatInstruction]] = {
    "french": ChatInstruction(
        "Answer in French.", "Please write your answer in the French language.", partial(judges.language, "fr")
    ),
    "spanish": ChatInstruction(
        "Answer in Spanish.", "Please write your answer in the Spanish language.", partial(judges.language, "es")
    ),
    "pirate": ChatInstruction(
        "Talk like a pirate.",
        "Please speak the way a pirate would.",
        partial(
            judges.fraction,
            r"(?i)\b(arr+|ahoy|avast|aye|ye|yer|matey|mateys|hearties|pirates?|captain|crew|treasure|ship|sail)\b",
            of="text",
        ),
    ),
}
"""The instructions of the demo by name."""


@dataclass(frozen=True)
class ChatDemoConfig(KnownSettings):
    """Settings of the demo on a chat model."""

    model: str
    """A name, a folder or a `.gguf` file, as `load_model` takes it."""
    fit_questions: int = 60
    """Number of questions to fit on."""
    held_out_questions: int = 32
    """Number of questions to score and compare on, unseen by the fits."""
    validation_questions: int = 8
    """Number of questions to choose strengths on: neither fitted on nor scored."""
    rank: int = 16
    """Directions of A-PSR at each layer; a chat model needs more of them than the organism."""
    max_new_tokens: int = 32
    """Maximum length of a response in tokens."""
    temperature: float = 0.7
    """Softmax temperature of all sampling; a small model at 1 babbles."""
    looked_into: int = 8
    """Number of held-out responses for the report's next-token distances and kinds of hook points."""
    also_at: tuple[float, ...] = ALSO_AT
    """Strengths at which each method answers the first 8 held-out questions, too; the report's reader can choose among them."""
    seed: int = 0
    """Seed of the questions and the sampling."""
    verify: bool = True
    """Whether the model is checked against plain transformers when it is loaded."""

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("fit_questions", "validation_questions", "held_out_questions"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more")
        left = len(everyday_questions()) - self.fit_questions - self.validation_questions
        if self.held_out_questions > left:
            expected = (
                f"at most {left}, since there are {len(everyday_questions())} questions, of which others are fitted and chosen on"
            )
            raise InputError("held_out_questions", self.held_out_questions, expected)
        check_also_at(self.also_at)

    def sampling(self, stream: int) -> SamplingConfig:
        """How responses are sampled; each stream has a seed of its own."""
        return SamplingConfig(temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=self.seed + stream)


def instruction_named(name: str) -> ChatInstruction:
    """One of `INSTRUCTIONS`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in INSTRUCTIONS:
        raise InputError("trait", repr(name), f"one of {', '.join(INSTRUCTIONS)}", "`psr-lens run` takes any instruction.")
    return INSTRUCTIONS[name]


def unsteered_answers(model: HookedModel, config: ChatDemoConfig, say: Say) -> tuple[list[Response], list[Response]]:
    """Answers without any instruction to the questions to choose on, and to the held-out ones: the same for every instruction."""
    say("answering without an instruction")
    known, held_out = _prompts(model, next(iter(INSTRUCTIONS.values())), config)
    validation = known[config.fit_questions :]
    return generate(model, validation, sampling=config.sampling(0)), generate(model, held_out, sampling=config.sampling(1))


def run_instruction(
    model: HookedModel, name: str, config: ChatDemoConfig, unsteered: tuple[list[Response], list[Response]], say: Say
) -> DemoResult:
    """Fit the methods on one instruction and measure them on held-out questions.

    Args:
        model: The model of `config`.
        name: One of `INSTRUCTIONS`.
        config: Settings.
        unsteered: What `unsteered_answers` returned.
        say: Called with each progress message.

    Raises:
        ModelError: the model hardly ever follows the instruction.
    """
    began = time.perf_counter()
    given = instruction_named(name)
    trait_judge = given.make_judge()
    known, asked = _prompts(model, given, config)
    to_fit, validation = known[: config.fit_questions], known[config.fit_questions :]
    say("sampling responses to the prompt")
    triplets = judged_triplets(to_fit, generate(model, to_fit, context="prompted", sampling=config.sampling(0)), trait_judge)
    if len(triplets) < _FEWEST:
        raise ModelError(
            f"model: follows {given.instruction!r} in {len(triplets)} of {len(to_fit)} responses ({triplets.summary()}); "
            f"at least {_FEWEST} are needed. Try another instruction with --trait, or your own with `psr-lens run`."
        )
    say("preparing the judge")
    # Of twenty answers the scale is known well enough; reading all of them under both prompts would take longer than scoring a method.
    references = [each.text if index < _REFERENCES else "" for index, each in enumerate([*unsteered[0], *unsteered[1]])]
    coherence = judges.perplexity(model, validation + asked, references, given="either")
    judge = judges.combine(trait=trait_judge, coherence=coherence)
    say(f"fitting on {len(triplets)} triplets")
    middle = int(model.cfg.n_layers) // 2
    methods = {"A-PSR": fit(model, triplets, Sequential(rank=config.rank)), "S-Const DiM": fit(model, triplets, DiM(layers=middle))}
    alphas = {}
    for method, strengths in (("A-PSR", ALPHAS), ("S-Const DiM", CONSTANT_ALPHAS)):
        say(f"choosing the strength of {method}")
        best = best_alpha(
            model,
            validation,
            methods[method],
            judge,
            alphas=strengths,
            min_coherence=MIN_COHERENCE,
            sampling=config.sampling(0),
        )
        alphas[method] = float(best.alpha or 0.0)
    held_out = HeldOut(model, asked, judge, config.sampling(1), given.paraphrase, config.also_at, trait_judge)
    settings = {
        "command": f"psr-lens demo --trait {name} --model {config.model} --seed {config.seed}",
        **asdict(config),
        "fitted_on": triplets.summary(),
        "trait_judge": repr(trait_judge),
        "coherence_judge": repr(coherence),
        "strengths": f"of {ALPHAS} and {CONSTANT_ALPHAS}, those with the highest trait at a coherence of {MIN_COHERENCE:g} or more on "
        f"{len(validation)} validation questions, none of which is scored",
        "sampling": asdict(held_out.sampling),
    }
    comparison, answers, responses = held_out.measure(methods, alphas, settings, say, unsteered[1])
    say("looking into layers and tokens")
    further = _look_into(model, responses[: config.looked_into], methods, alphas, given.paraphrase)
    return DemoResult(comparison, methods, [answers, *further], time.perf_counter() - began)


def _prompts(model: HookedModel, given: ChatInstruction, config: ChatDemoConfig) -> tuple[PromptPairs, PromptPairs]:
    """Prompts to fit and choose strengths on, and held-out ones."""
    known = config.fit_questions + config.validation_questions
    questions = everyday_questions(known + config.held_out_questions, seed=config.seed)
    pairs = prompt_pairs(model, questions, given.instruction, place="after")
    return pairs[:known], pairs[known:]


def _look_into(
    model: HookedModel, responses: Triplets, methods: Mapping[str, Replacement], alphas: Mapping[str, float], paraphrase: str
) -> list[object]:
    return [
        faithfulness(model, responses, methods, paraphrases=paraphrase, alpha=alphas),
        capture(model, responses, _KINDS, to=Statistics(rank=16)),
        top_tokens(model, responses, methods["A-PSR"], 200, per_response=None),
        cosines(methods),
    ]
