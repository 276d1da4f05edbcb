"""Measures where two models push the same tokens: one reading of both contexts in each, and regressions on texts held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.massive_activations import massive_activations
from psr_lens.activations.paired_passes import TOKEN_BUDGET, PairedReading, Rows, Take
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, fingerprint, frozen
from psr_lens.prompts import TokenTable, Triplet, token_table
from psr_lens.replacement import Replacement
from psr_lens.transfer.agreement_result import Agreement
from psr_lens.transfer.gate_reading import GateReading, gates_of, read_gates
from psr_lens.transfer.normal_equations import FOLDS
from psr_lens.transfer.pairing import PairedRows, pair_texts, paired_rows


@checks_arguments
def agreement(
    source: HookedModel,
    target: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement | None = None,
    *,
    target_replacement: Replacement | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Agreement:
    """Measure whether an instruction pushes the same tokens in two models, and whether the gates of one are read from the other.

    Both models read the same texts (`pair_texts`), and tokens that end at the same byte are compared with each other, the last prompt token
    included. Tokens with massive activations are left out.

    Args:
        source: The model whose triplets these are.
        target: Another model, of any family and tokenizer.
        triplets: Responses to the source's prompts, best none that the replacements were fitted on.
        replacement: A replacement of the source's: how well are its gates read from the target's activations, after every layer? Ridge
            regressions, cross-validated over texts, against the same gates shuffled over tokens. None to leave this out.
        target_replacement: One of the target's, whose gates are read from the source.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        A typed result; `psr.plots.agreement` and `psr.plots.gates_by_family` draw it.

    Raises:
        InputError: as for `pair_texts`; fewer than four triplets with a replacement, or fewer than two pairs of tokens.
        ArtifactError: a replacement was made for another model.
        ModelError: activations are not finite; names the hook point.

    Example:
        >>> other = psr.load_model("organism-gpt2")
        >>> found = psr.transfer.agreement(model, other, triplets, pirate)
        >>> found.gates
        GateReading(6 gates from 6 layers: R² 0..., shuffled ...)
    """
    given = replacement is not None or target_replacement is not None
    if given and len(triplets) < FOLDS:
        raise InputError("triplets", f"{len(triplets)} of them", f"at least {FOLDS}, to hold texts out")
    paired = pair_texts(source, target, triplets)
    here = _Side(source, [each.source for each in paired], token_budget)
    there = _Side(target, [each.target for each in paired], token_budget)
    every = paired_rows(paired)
    massive = here.massive()[every.source] | there.massive()[every.target]
    rows = PairedRows(every.source[~massive], every.target[~massive], every.text[~massive])
    if len(rows.text) < 2:
        raise InputError("triplets", f"{len(rows.text)} tokens that both models end at the same byte", "at least two")
    return Agreement(
        triplets[0].pair.instruction,
        fingerprint(source),
        fingerprint(target),
        here.tokens,
        there.tokens,
        rows,
        len(paired),
        int(massive.sum()),
        here.magnitudes()[rows.source],
        there.magnitudes()[rows.target],
        None if replacement is None else _read(here, replacement, rows.source, there, rows.target, rows.text),
        None if target_replacement is None else _read(there, target_replacement, rows.target, here, rows.source, rows.text),
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """One model with its triplets."""

    model: HookedModel
    triplets: Sequence[Triplet]
    token_budget: int

    @cached_property
    def tokens(self) -> TokenTable:
        return token_table(self.model, self.triplets, "R")

    def massive(self) -> Bool[Tensor, " token"]:
        """Which tokens have a massive activation after any layer, in either context."""
        found = massive_activations(self.model, self.triplets, span="R", token_budget=self.token_budget)
        return found.mask(self.tokens).any(dim=1)

    def magnitudes(self) -> Float[Tensor, "token layer"]:
        """‖Δ‖ of every token after every layer."""
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(int(self.model.cfg.n_layers))]
        shapes = {name: (int(self.model.cfg.d_model),) for name in names}
        dtype = next(iter(self.model.parameters())).dtype
        reading = PairedReading(self.model, self.triplets, shapes, dtype, "R", token_budget=self.token_budget)
        rows = Rows(self.triplets, "R")
        with reading.bar() as bar, torch.no_grad(), frozen(self.model):
            for batch in reading.batches(range(len(self.triplets))):
                taken = rows.of(batch)

                def norms(name: str, difference: Tensor, take: Take = taken) -> None:
                    take(name, torch.linalg.vector_norm(difference.float(), dim=1))

                reading.read(batch, norms)
                bar.update(sum(rows.counts[index] for index in batch))
        return torch.stack([rows.tensors[name] for name in names], dim=1)


def _read(
    gated: _Side,
    replacement: Replacement,
    gate_rows: Int[Tensor, " pair"],
    reader: _Side,
    reader_rows: Int[Tensor, " pair"],
    text: Int[Tensor, " pair"],
) -> GateReading:
    gates = gates_of(gated.model, gated.triplets, replacement, gated.token_budget)
    return read_gates(gates, gate_rows, reader.model, reader.triplets, reader_rows, text, reader.token_budget)
