"""Judge of coherence without a judging model: how well the unsteered model itself would have predicted the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Float

from psr_lens.errors import InputError, ModelError
from psr_lens.judges.texts import sendable
from psr_lens.results.judgement import Judgement

if TYPE_CHECKING:
    from psr_lens.generation.sampling import SamplingConfig
    from psr_lens.models import HookedModel
    from psr_lens.prompts import PromptPair, Triplet
else:  # these cost torch, which `import psr_lens.judges` must not
    HookedModel = PromptPair = Triplet = SamplingConfig = Any

Given = Literal["base", "prompted", "either"]
"""The prompt before the answer: without the instruction, with it, or whichever of the two makes the answer likelier."""

_LEAST_GAP: Final = 0.1
"""Nats a token by which references must be likelier than garbage for a scale to lie between them."""


@dataclass(frozen=True)
class PerplexityJudge:
    """Scores coherence by perplexity; the trait is missing, which `psr.judges.combine` can fill in."""

    model: HookedModel
    """The model, which is never steered here."""
    pairs: Mapping[str, PromptPair]
    """Each question's prompts."""
    given: Given
    """The prompt before the answer."""
    fluent: float
    """Mean surprise in nats a token up to which an answer scores 100."""
    garbage: float
    """Mean surprise in nats a token from which on an answer scores 0."""

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text; NaN where there is nothing to score, an empty text or a prompt that fills the model's context.

        Raises:
            InputError: not one question a text, or a question that the judge has no prompts for.
        """
        surprise = self.surprise(texts, questions)
        scores = 100 * np.clip((self.garbage - surprise) / (self.garbage - self.fluent), 0, 1)
        return Judgement(np.full(len(texts), np.nan), scores, tuple(map(self._reason, surprise)))

    def surprise(self, texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Mean −log p of each text's tokens, in nats; the logarithm of its perplexity. Of a text too long for the model, what fits is read.

        Raises:
            InputError: as when the judge is called.
        """
        if isinstance(texts, str) or len(texts) != len(questions):
            got = "one string" if isinstance(texts, str) else f"{len(questions)} for {len(texts)} texts"
            raise InputError("questions", got, "as many questions as texts")
        for place, question in enumerate(questions):
            if question not in self.pairs:
                raise InputError(
                    f"questions[{place}]",
                    repr(question),
                    "one of the questions of the judge's pairs",
                    "Make it with these pairs too.",
                )
        return _surprise(self.model, [self.pairs[question] for question in questions], texts, self.given)

    def _reason(self, surprise: float) -> str:
        if math.isnan(surprise):
            return "nothing to score"
        return f"{surprise:.2f} nats a token (100 up to {self.fluent:.2f}, 0 from {self.garbage:.2f})"


def _surprise(model: HookedModel, pairs: Sequence[PromptPair], texts: Sequence[str], given: Given) -> Float[np.ndarray, " text"]:
    read = {place: triplet for place, triplet in enumerate(map(_triplet, [model] * len(texts), pairs, texts)) if triplet}
    found = np.full(len(texts), np.nan)
    if read:
        found[list(read)] = _mean_surprise(model, list(read.values()), given)
    return found


def _mean_surprise(model: HookedModel, triplets: Sequence[Triplet], given: Given) -> Float[np.ndarray, " triplet"]:
    from psr_lens.generation.likelihood import log_likelihoods

    contexts: tuple[Any, ...] = ("base", "prompted") if given == "either" else (given,)
    found = np.array([[-float(each.mean()) for each in log_likelihoods(model, triplets, context=context)] for context in contexts])
    least: Float[np.ndarray, " triplet"] = found.min(axis=0)
    return least


def _triplet(model: HookedModel, pair: PromptPair, text: str) -> Triplet | None:
    """The text as a response, as far as the model's context reaches; None where nothing of it is left."""
    from psr_lens.models import context_length
    from psr_lens.prompts import Triplet, response_ids

    ids = response_ids(model, sendable(text))
    ids = ids[: max(0, context_length(model) - max(len(pair.base_ids), len(pair.prompted_ids)))]
    return Triplet(pair, ids, text) if ids else None


def perplexity(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    references: Sequence[str] | None = None,
    *,
    given: Given = "base",
    config: SamplingConfig | None = None,
    seed: int = 0,
) -> PerplexityJudge:
    """Judge of coherence by the perplexity of the answer, given its question, under the unsteered model.

    The scale is the model's own. An answer scores 100 if its tokens surprise the model no more, in the mean, than the median reference
    does. From there the score falls in a straight line with log-perplexity to 0, where a token is as surprising as in the median reference
    with its tokens *shuffled*, or as in a uniform guess among the whole vocabulary if that is less (a small model that is sure of
    everything finds shuffled text more surprising than that).

    What it cannot see: whether an answer is true or to the point; and a text that says one thing over and over is likely to any model.
    It takes a trait for incoherence as far as the trait is unlikely without its instruction; with `given="either"`, an answer is read after
    the prompt with the instruction too, and the less surprised reading counts.

    Args:
        model: The model, as it is.
        pairs: Prompts of all the questions to be judged.
        references: Answers that are taken to be coherent, one a pair; the model's own, unsteered, if None. For `"prompted"` these are
            answers to the prompt with the instruction.
        given: The prompt before the answer: `"base"`, `"prompted"` or `"either"`.
        config: How references are sampled.
        seed: Seed of the shuffling.

    Returns:
        A judge whose trait is NaN.

    Raises:
        InputError: no pairs, not one reference a pair, references that are all empty, or one question with different prompts.
        ModelError: the model finds shuffled references as likely as the references.
    """
    from psr_lens.generation.sampling import generate

    if given not in get_args(Given):
        raise InputError("given", repr(given), " or ".join(map(repr, get_args(Given))))
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    by_question = _by_question(pairs, given)
    if references is None:
        references = [
            each.text for each in generate(model, pairs, context="prompted" if given == "prompted" else "base", sampling=config)
        ]
    if isinstance(references, str) or len(references) != len(pairs):
        got = "one string" if isinstance(references, str) else f"{len(references)} of them"
        raise InputError("references", got, f"one for each of {len(pairs)} pairs")
    surprises = _surprise(model, pairs, references, given)
    if np.isnan(surprises).all():
        raise InputError("references", f"{len(references)} empty texts", "at least one that is not empty")
    fluent = float(np.nanmedian(surprises))
    garbage = min(_shuffled_surprise(model, pairs, references, given, seed), math.log(int(model.cfg.d_vocab)))
    if garbage - fluent < _LEAST_GAP:
        raise ModelError(
            f"model: it finds the references no likelier than garbage ({fluent:.2f} and {garbage:.2f} nats a token). "
            "Judge with a trained model, and give references that it could have written."
        )
    return PerplexityJudge(model, by_question, given, fluent, garbage)


def _by_question(pairs: Sequence[PromptPair], given: Given) -> dict[str, PromptPair]:
    found: dict[str, PromptPair] = {}
    for place, pair in enumerate(pairs):
        other = found.setdefault(pair.asked, pair)
        if other.base_ids != pair.base_ids or (given != "base" and other.prompted_ids != pair.prompted_ids):
            raise InputError(
                f"pairs[{place}]",
                f"the question {pair.asked!r} a second time, with another prompt",
                "one prompt a question",
                "" if given == "base" else "`given='base'` leaves the instructions out.",
            )
    return found


def _shuffled_surprise(
    model: HookedModel, pairs: Sequence[PromptPair], references: Sequence[str], given: Given, seed: int
) -> float:
    """Median over references of which the tokens are in random order."""
    mixed = []
    for place, (pair, text) in enumerate(zip(pairs, references, strict=True)):
        if triplet := _triplet(model, pair, text):
            order = np.random.default_rng((seed, place)).permutation(len(triplet.response_ids))
            mixed.append(replace(triplet, response_ids=tuple(triplet.response_ids[each] for each in order)))
    return float(np.median(_mean_surprise(model, mixed, given)))
