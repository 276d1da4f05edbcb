"""Refusing responses without the trait where they would teach nothing, or teach it as if they had it."""

from __future__ import annotations

from collections.abc import Sequence

from psr_lens.errors import InputError
from psr_lens.generation.sampled_triplets import MIN_SCORE
from psr_lens.prompts import Triplet


def check_no_negatives(triplets: Sequence[Triplet], config: str) -> None:
    """Refuse responses without the trait.

    What they say is what the model does at a strength near 0, where (without an offset) nothing is added whatever is learned. A mean
    ignores strengths, and so does an adapter.

    Raises:
        InputError: there is one; the error shows the settings `config`.
    """
    negatives = [index for index, triplet in enumerate(triplets) if triplet.trait < MIN_SCORE]
    if negatives:
        first, among = negatives[0], f", the first of {len(negatives)} below {MIN_SCORE:g}" if len(negatives) > 1 else ""
        raise InputError(
            f"triplets[{first}].trait",
            f"{triplets[first].trait:g}{among}",
            f"at least {MIN_SCORE:g} with {config}, which cannot learn from negative examples",
            "Leave them out (`keep_negatives=False`), or fit with `psr.Joint(learned_offset=True)`.",
        )
