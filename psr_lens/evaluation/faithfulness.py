"""How faithfully replacements do what the prompt does: to the residual stream, to the next token, and token by token.

All methods are read on the same response tokens, teacher-forced (Heyman & Vandeputte 2026, section 5 and figure 3), batch by batch. Sums
are kept of each response, two numbers per layer of each token, and logits of only one batch at a time. The paraphrase baseline is the same
instruction in other words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.massive_activations import listed
from psr_lens.activations.massive_finder import MassiveFinder
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Rows
from psr_lens.errors import InputError
from psr_lens.evaluation.faithfulness_result import BlockFaithfulness, Faithfulness
from psr_lens.evaluation.faithfulness_sums import ClosenessSums, SiteSums
from psr_lens.evaluation.methods import NONE, PARAPHRASE, PROMPT, Methods, plans_for, strengths
from psr_lens.evaluation.side_by_side import SideBySide, squared_distances
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import Layers, check_layers
from psr_lens.prompts import Span, Triplet, check_triplets, instruction_label


@checks_arguments
def faithfulness(
    model: HookedModel,
    triplets: Sequence[Triplet] | Mapping[str, Sequence[Triplet]],
    methods: Methods,
    *,
    paraphrases: str | Sequence[str] = (),
    layers: Layers = "all",
    span: Span = "R",
    alpha: float | Mapping[str, float] = 1.0,
    token_budget: int = TOKEN_BUDGET,
) -> Faithfulness:
    """Read the same responses under the prompt and under each replacement, and measure how far apart they are.

    Args:
        model: The model; it is not changed.
        triplets: Responses to compare on, preferably ones that nothing was fitted on; or several kinds of questions, each with its
            triplets: `{"descriptions": …, "procedures": …}`.
        methods: One replacement, plan or adapter, or several by name.
        paraphrases: The instruction in other words, once or several times: the paraphrase baseline, and a prompt that nothing was fitted
            on. Measurements against several paraphrases are pooled.
        layers: Layers after which the residual stream is compared.
        span: Which tokens of the residual stream are compared. Next tokens are compared on all response tokens and only on those.
        alpha: Strength: one for all replacements, or one for each by name.
        token_budget: Most tokens in a batch, padding included; fewer for a large vocabulary, so that logits take at most 2 GiB.

    Returns:
        A typed result, with `.table()`.

    Raises:
        InputError: no triplets, no methods, a reserved name, a paraphrase that is the instruction itself, a layer out of range.
        ArtifactError: a replacement was made for another model.

    Example:
        >>> kinds = {"seen": triplets[:3], "unseen": triplets[3:6]}
        >>> psr.faithfulness(model, kinds, pirate, paraphrases="speak as a pirate would .")
        Faithfulness('talk like a pirate', 6 responses (seen, unseen), span R; methods: A-PSR)
    """
    plans = plans_for(model, methods, (NONE, PROMPT, PARAPHRASE))
    alphas = strengths(alpha, list(plans))
    texts = (paraphrases,) if isinstance(paraphrases, str) else tuple(paraphrases)
    reading = SideBySide(model, plans, alphas, check_layers(model, layers), span, texts, logits=True)
    kinds = triplets if isinstance(triplets, Mapping) else {"": triplets}
    if not kinds:
        raise InputError("triplets", "an empty mapping", "at least one kind of questions with its triplets")
    for chosen in kinds.values():
        check_triplets(model, chosen)
        if same := {each.pair.instruction for each in chosen} & set(texts):
            raise InputError("paraphrases", repr(same.pop()), "other words than the instruction's own")
    blocks = {str(kind): _measured(reading, list(chosen), token_budget) for kind, chosen in kinds.items()}
    instruction = instruction_label(each.pair for chosen in kinds.values() for each in chosen)
    return Faithfulness(instruction, texts, fingerprint(model), span, tuple(reading.layers), alphas, blocks)


def _measured(reading: SideBySide, triplets: Sequence[Triplet], token_budget: int) -> BlockFaithfulness:
    """Measure one kind of questions."""
    count, plans = len(triplets), reading.plans

    def sums(*labels: str) -> dict[str, ClosenessSums]:
        return {label: ClosenessSums(reading.residuals, reading.span, count) for label in labels}

    close = sums(NONE, *plans, *([PARAPHRASE] if reading.paraphrases else []))
    away = sums(NONE, *plans, PROMPT) if reading.paraphrases else {}
    at_sites = {label: [SiteSums(site, reading.span, count) for site in sites] for label, sites in reading.sites.items()}
    finder, all_rows = MassiveFinder(len(reading.layers), len(reading.contexts)), Rows(triplets, reading.span)
    for batch in reading.batches(triplets, token_budget):
        rows = all_rows.at(batch.indices)
        for column, name in enumerate(reading.residuals):
            for context, unsteered in enumerate(batch.unsteered):
                finder.look(column, context, unsteered.rows[name])
        finder.add(rows)
        prompted, *rephrased = (
            (unsteered, squared_distances(unsteered, batch.base, reading.residuals)) for unsteered in batch.unsteered[1:]
        )
        close[NONE].add(batch, rows, batch.base, *prompted)
        for other in rephrased:
            close[PARAPHRASE].add(batch, rows, other[0], *prompted)
            away[NONE].add(batch, rows, batch.base, *other)
            away[PROMPT].add(batch, rows, batch.prompted, *other)
        for steered in reading.steered(batch):
            close[steered.label].add(batch, rows, steered.reading, *prompted)
            for other in rephrased:
                away[steered.label].add(batch, rows, steered.reading, *other)
            for site, found in zip(at_sites[steered.label], steered.sites, strict=True):
                site.add(batch, rows, found)
    massive = finder.finish()
    mask = massive.mask(all_rows.offsets[-1])
    return BlockFaithfulness(
        count,
        {label: each.finish(mask) for label, each in close.items()},
        {label: each.finish(mask) for label, each in away.items()},
        {label: tuple(each.finish(mask) for each in sites) for label, sites in at_sites.items()},
        listed(massive, reading.model, triplets, reading.span, reading.layers, reading.contexts),
    )
