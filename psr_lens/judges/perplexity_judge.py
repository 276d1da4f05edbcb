"""Judge of coherence that needs no second model: how likely the answer is under the unsteered model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from jaxtyping import Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import digest_of, json_text
from psr_lens._utils.ngrams import repeated_share
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError, ModelError
from psr_lens.judges.clean_text import sendable
from psr_lens.results.judgement import Judgement, check_texts

if TYPE_CHECKING:
    from psr_lens.generation.sampling import SamplingConfig
    from psr_lens.models import HookedModel
    from psr_lens.prompts import PromptPair, Triplet
else:  # importing these would load torch, which `import psr_lens.judges` must not
    HookedModel = PromptPair = Triplet = SamplingConfig = Any

Given = Literal["base", "prompted", "either"]
"""The prompt that the answer is read after: without the instruction, with it, or whichever of the two makes the answer likelier."""

_N: Final = 3
"""Length of the runs of tokens that are looked for again."""

_TWICE: Final = 2
"""How often a run may have occurred before: refrains and lists say a thing twice, a model that is stuck says it again and again."""

_NATURAL: Final = 0.95
"""Quantile of the references' shares of repeated trigrams, up to which nothing is deducted."""
_MOST_NATURAL: Final = 0.5
"""Most repetition that references may have without a deduction: of a few references, one that loops would excuse all loops."""

_STUCK: Final = 0.5
"""How much more than that is repeated in a text that scores 0."""

_LEAST_GAP: Final = 0.1
"""Least gap between references and shuffled text, in nats per token, for a scale between the two."""


@dataclass(frozen=True)
class PerplexityJudge:
    """Scores coherence by perplexity. The trait is missing (NaN); `psr.judges.combine` adds a judge for it.

    Example:
        >>> fluency = psr.judges.perplexity(model, pairs[:4])
        >>> fluency.fluent < fluency.garbage
        True
    """

    model: HookedModel
    """The model; it is never steered here."""
    pairs: Mapping[str, PromptPair]
    """Each question and its prompts."""
    given: Given
    """The prompt that answers are read after."""
    fluent: float
    """Mean surprisal, in nats per token, up to which an answer scores 100."""
    garbage: float
    """Mean surprisal, in nats per token, from which on an answer scores 0."""
    natural: float
    """Share of an answer's trigrams of tokens that may have occurred twice before without a deduction, 0–1."""

    @property
    def identity(self) -> str | None:
        """What its scores depend on: the model with all its weights and settings, the prompts and the scale.

        None while hooks are on the model, or if the content of a setting or function in its modules cannot be told.

        Example:
            >>> psr.judges.perplexity(model, pairs[:4]).identity == psr.judges.perplexity(model, pairs[:3]).identity
            False
        """
        from psr_lens.models import model_content, untold

        if untold(self.model) is not None:
            return None
        prompts = [[asked, pair.base_ids, pair.prompted_ids] for asked, pair in self.pairs.items()]
        return json_text(
            {
                "judge": "perplexity",
                "model": model_content(self.model),
                "pairs": digest_of(prompts),
                "given": self.given,
                "fluent": self.fluent,
                "garbage": self.garbage,
                "natural": self.natural,
            }
        )

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text; NaN for an empty text, or where the prompt leaves no room for an answer in the model's context.

        Raises:
            InputError: `texts` and `questions` differ in length, or a question that is not among the judge's pairs.
        """
        triplets = self._triplets(texts, questions)
        surprisal, repeated = _surprisal(self.model, triplets, self.given), _repeated(triplets)
        fluency = np.clip((self.garbage - surprisal) / (self.garbage - self.fluent), 0, 1)
        excess = np.clip((repeated - self.natural) / _STUCK, 0, 1)
        return Judgement(
            trait=np.full(len(texts), np.nan),
            coherence=100 * fluency * (1 - excess),
            reasons=tuple(map(self._reason, surprisal, repeated)),
            gives=("coherence",),
        )

    def surprisal(self, texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Mean −log p of each text's tokens in nats: the logarithm of its perplexity.

        A text that does not fit into the model's context is cut at the end.

        Example:
            >>> psr.judges.perplexity(model, pairs[:4]).surprisal(["", "the bear is a strong animal ."], [questions[0]] * 2).shape
            (2,)

        Raises:
            InputError: as when the judge is called.
        """
        return _surprisal(self.model, self._triplets(texts, questions), self.given)

    def repeated(self, texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Share of each text's trigrams of tokens that occurred at least twice before in the text, 0–1; NaN for an empty text.

        A text that does not fit into the model's context is cut at the end. One of fewer than three tokens repeats nothing.

        Example:
            >>> psr.judges.perplexity(model, pairs[:4]).repeated(["the bear", "bear bear bear bear bear bear"], [questions[0]] * 2)
            array([0. , 0.5])

        Raises:
            InputError: as when the judge is called.
        """
        return _repeated(self._triplets(texts, questions))

    def _triplets(self, texts: Sequence[str], questions: Sequence[str]) -> list[Triplet | None]:
        check_texts(texts, questions)
        for index, question in enumerate(questions):
            if question not in self.pairs:
                raise InputError(
                    f"questions[{index}]",
                    repr(question),
                    "a question of the judge's pairs",
                    "Make the judge with the pairs of these questions.",
                )
        return _triplets(self.model, [self.pairs[question] for question in questions], texts)

    def __repr__(self) -> str:
        """One line, with the scale in nats per token and the share of trigrams that may be repeated."""
        scale = f"fluent={self.fluent:.2f}, garbage={self.garbage:.2f}, natural={self.natural:.2f}"
        return f"PerplexityJudge({counted(len(self.pairs), 'question')}, given={self.given!r}, {scale})"

    def _reason(self, surprisal: float, repeated: float) -> str:
        if math.isnan(surprisal):
            return "missing: the text has no tokens that can be read"
        fluency = f"{surprisal:.2f} nats per token (100 up to {self.fluent:.2f}, 0 from {self.garbage:.2f})"
        if repeated <= self.natural:
            return fluency
        return f"{fluency}; {repeated:.0%} of the trigrams occurred twice before ({self.natural:.0%} may)"


def _surprisal(model: HookedModel, triplets: Sequence[Triplet | None], given: Given) -> Float[np.ndarray, " text"]:
    read = {index: triplet for index, triplet in enumerate(triplets) if triplet}
    found = np.full(len(triplets), np.nan)
    if read:
        found[list(read)] = _mean_surprisal(model, list(read.values()), given)
    return found


def _repeated(triplets: Sequence[Triplet | None]) -> Float[np.ndarray, " text"]:
    """Share of each response's trigrams that occurred twice before; 0 where it has no trigrams, NaN where nothing can be read."""

    def share(ids: Sequence[int]) -> float:
        return repeated_share(ids, _N, _TWICE) if len(ids) >= _N else 0.0

    return np.array([math.nan if each is None else share(each.response_ids) for each in triplets], dtype=float)


def _mean_surprisal(model: HookedModel, triplets: Sequence[Triplet], given: Given) -> Float[np.ndarray, " triplet"]:
    from psr_lens.generation.likelihood import log_likelihoods

    contexts: tuple[Any, ...] = ("base", "prompted") if given == "either" else (given,)
    found = np.array([[-float(each.mean()) for each in log_likelihoods(model, triplets, context=context)] for context in contexts])
    least: Float[np.ndarray, " triplet"] = found.min(axis=0)
    return least


def _triplets(model: HookedModel, pairs: Sequence[PromptPair], texts: Sequence[str]) -> list[Triplet | None]:
    """The texts as responses, cut to the model's context; None where nothing is left."""
    from psr_lens.models import context_length
    from psr_lens.prompts import Triplet, response_ids

    made: list[Triplet | None] = []
    encoded = response_ids(model, pairs, [sendable(text) for text in texts])
    for pair, text, ids in zip(pairs, texts, encoded, strict=True):
        left = ids[: max(0, context_length(model) - max(len(pair.base_ids), len(pair.prompted_ids)))]
        made.append(Triplet(pair, left, text) if left else None)
    return made


@checks_arguments
def perplexity(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    references: Sequence[str] | None = None,
    *,
    given: Given = "base",
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> PerplexityJudge:
    """Judge of coherence: the perplexity of the answer after its question, under the unsteered model, with a deduction for repetition.

    The model sets its own scale. An answer scores 100 if its mean surprisal per token is at most that of the median reference. From there
    the score falls linearly in log-perplexity to 0, which is reached at the median surprisal of the references with their tokens
    *shuffled*, or at that of a uniform guess over the vocabulary, whichever is lower (a small, overconfident model finds shuffled text
    less likely than a uniform guess).

    Endless repetition is likely under any model, so it is counted: the share of the answer's trigrams of tokens that occurred at least
    twice before in the same answer. Up to the 95th percentile of the references (0.5 at most), nothing is deducted; from there the score
    falls linearly, to 0 where half of the trigrams more are such repeats.

    Limits: it does not see whether an answer is true or to the point. Songs and long lists whose lines begin alike lose some of their
    score, unless the references have such lines too. It mistakes a trait for incoherence to the extent that the trait is unlikely without
    its instruction; with `given="either"` an answer is also read after the prompt with the instruction, and the lower surprisal counts.

    Example:
        >>> fluency = psr.judges.perplexity(model, pairs)
        >>> scores = fluency([triplets[0].response, "bear bear the a a"], [triplets[0].pair.asked] * 2)
        >>> bool(scores.coherence[0] > scores.coherence[1])
        True

    Args:
        model: The model, unsteered.
        pairs: Prompts of all questions to be judged.
        references: Answers taken to be coherent, one per pair (empty ones are ignored); if None, the model's own unsteered
            answers. With `given="prompted"` these are answers to the prompt with the instruction.
        given: The prompt that answers are read after: `"base"`, `"prompted"` or `"either"`.
        sampling: How references are sampled, if none are given.
        seed: Seed of the shuffling.

    Returns:
        A judge of coherence; its trait is NaN.

    Raises:
        InputError: no pairs, `references` and `pairs` of different lengths, only empty references, one question with different
            prompts, or a negative seed.
        ModelError: shuffled references are as likely as the references under the model.
    """
    from psr_lens.generation.sampling import generate

    check_settings(pairs, references, given=given, sampling=sampling, seed=seed)
    by_question = _by_question(pairs, given)
    if references is None:
        references = [
            each.text for each in generate(model, pairs, context="prompted" if given == "prompted" else "base", sampling=sampling)
        ]
    read = _triplets(model, pairs, references)
    surprisals = _surprisal(model, read, given)
    if np.isnan(surprisals).all():
        raise InputError("references", f"{len(references)} empty texts", "at least one non-empty text")
    fluent = float(np.nanmedian(surprisals))
    garbage = min(_shuffled_surprisal(model, read, given, seed), math.log(int(model.cfg.d_vocab)))
    if garbage - fluent < _LEAST_GAP:
        raise ModelError(
            f"model: finds the references no likelier than shuffled text ({fluent:.2f} and {garbage:.2f} nats per token). "
            "Judge with a trained model, and give references that it could have written."
        )
    natural = min(float(np.nanquantile(_repeated(read), _NATURAL)), _MOST_NATURAL)
    return PerplexityJudge(model=model, pairs=by_question, given=given, fluent=fluent, garbage=garbage, natural=natural)


@checks_arguments
def check_settings(
    pairs: Sequence[PromptPair],
    references: Sequence[str] | None = None,
    *,
    given: Given = "base",
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> None:
    """Check what `perplexity` takes besides the model.

    Raises:
        InputError: as for `perplexity`.
    """
    from psr_lens.prompts import check_pairs

    check_pairs(pairs)
    if seed < 0:
        raise InputError("seed", seed, "0 or more")
    _by_question(pairs, given)
    if references is not None and len(references) != len(pairs):
        raise InputError("references", f"{len(references)} of them", f"one for each of {len(pairs)} pairs")


def _by_question(pairs: Sequence[PromptPair], given: Given) -> dict[str, PromptPair]:
    found: dict[str, PromptPair] = {}
    for index, pair in enumerate(pairs):
        other = found.setdefault(pair.asked, pair)
        if other.base_ids != pair.base_ids or (given != "base" and other.prompted_ids != pair.prompted_ids):
            raise InputError(
                f"pairs[{index}]",
                f"the question {pair.asked!r} a second time, with another prompt",
                "one prompt per question",
                "" if given == "base" else "`given='base'` leaves the instructions out.",
            )
    return found


def _shuffled_surprisal(model: HookedModel, references: Sequence[Triplet | None], given: Given, seed: int) -> float:
    """Median surprisal of the references with their tokens in random order."""
    mixed = []
    for index, triplet in enumerate(references):
        if triplet is not None:
            order = np.random.default_rng((seed, index)).permutation(len(triplet.response_ids))
            mixed.append(replace(triplet, response_ids=tuple(triplet.response_ids[each] for each in order)))
    return float(np.median(_mean_surprisal(model, mixed, given)))
