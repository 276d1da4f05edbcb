"""On-policy refinement: a replacement is fitted again on what it says itself, read under the prompt.

A fit sees responses to the prompt alone. At run time the replacement reads its own, and where those stray it has learned nothing (Ross et
al. 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning", arXiv 1011.0686: DAgger). The prompted
activations on these texts are the targets there too. A text that has lost the trait would teach to lose it, since the prompted model
continues what it reads; so only those that the judge accepts are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.generation.sampled_triplets import scored_triplets
from psr_lens.generation.sampling import SamplingConfig, generate
from psr_lens.models import HookedModel, context_length
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.replacement import Replacement
from psr_lens.results.judgement import Judge, checked_judge, judged


@checks_arguments
def refine(
    model: HookedModel,
    triplets: Sequence[Triplet],
    config: FitConfig,
    judge: Judge,
    *,
    rounds: int = 1,
    pairs: Sequence[PromptPair] | None = None,
    alpha: float = 1.0,
    sampling: SamplingConfig | None = None,
) -> Replacement:
    """Fit a replacement, sample responses with it, and fit again with those that the judge accepts added; some rounds of this.

    A round costs as much as `sample_responses` and another fit, of more triplets each time.

    Args:
        model: The model.
        triplets: Responses to the prompt, from `sample_responses`.
        config: How to fit, in every round.
        judge: Scores the steered responses; those with a trait or a coherence below 50 are left out, and those too long
            for the prompt with the instruction.
        rounds: Number of rounds; 0 is `fit`.
        pairs: What is asked in the rounds; by default the pairs of `triplets`.
        alpha: Strength at which responses are sampled.
        sampling: How they are drawn; each round has a seed of its own.

    Returns:
        The replacement of the last round. Its `settings` hold the number of triplets that each round added, as `refined`.

    Raises:
        InputError: negative rounds, no pairs, a judge that gives no trait, or as for `fit`.
        ModelError, FitError: as for `fit`.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=40)
        >>> psr.refine(model, triplets[:6], psr.Sequential(layers=[1, 2]), judge, sampling=few).method
        'A-PSR'
    """
    checked_judge(judge)
    if rounds < 0:
        raise InputError("rounds", rounds, "a whole number, 0 or more")
    asked = list(dict.fromkeys(triplet.pair for triplet in triplets)) if pairs is None else pairs
    if rounds and not asked:
        raise InputError("pairs", "an empty list", "at least one prompt pair")
    sampling = SamplingConfig() if sampling is None else sampling
    known = {(triplet.pair, triplet.response_ids): triplet for triplet in triplets}
    data, added = list(triplets), []
    found = fit(model, data, config)
    for number in range(1, rounds + 1):
        responses = generate(model, asked, found, alpha=alpha, sampling=replace(sampling, seed=sampling.seed + number))
        scores = judged(judge, [each.text for each in responses], [pair.asked for pair in asked])
        if "trait" not in scores.sides:
            remedy = "`psr.judges.combine` puts two judges together."
            raise InputError(
                "judge", "one that gives no trait", "one that tells the responses with the trait from those without", remedy
            )
        new = {(each.pair, each.response_ids): each for each in scored_triplets(asked, responses, scores)}
        fresh = [triplet for key, triplet in new.items() if key not in known and _fits(model, triplet)]
        known |= new
        data += fresh
        added.append(len(fresh))
        if fresh:
            found = fit(model, data, config)
    return replace(found, settings={**found.settings, "refined": added})


def _fits(model: HookedModel, triplet: Triplet) -> bool:
    """Whether the model's context has room for the response after the prompt with the instruction, which it was not sampled after."""
    return len(triplet.pair.prompted_ids) + len(triplet.response_ids) <= context_length(model)
