"""The coefficients of one model on a text that another model writes, after each of the writer's tokens.

The source reads the text so far, behind its own prompt without the instruction, steered by its own replacement. What counts is its
coefficient at the last of its tokens. Since the text so far is encoded by itself, that token always ends where the writer's does, wherever
the source's tokens end in the whole text; and coefficients are a function of the text. So a token that ends inside a character, or has no
text of its own, gets the coefficients of the text before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.sequences import common_prefix, padded
from psr_lens.activations.teacher_forced_pass import PassSteering, layers_needed, read_batch
from psr_lens.errors import InputError
from psr_lens.models import Decoder, HookedModel, can_leave_out, context_length, device_of, hooked, tokenizer_of
from psr_lens.prompts import PromptPair, Triplet, response_ids
from psr_lens.replacement import Replacement, Site
from psr_lens.transfer.gate_reading import read_at_sites
from psr_lens.transfer.pairing import PairedText
from psr_lens.transfer.token_ends import whole_characters

Coefficients = dict[str, Float[Tensor, "row rank"]]
"""By hook name, the coefficients of a site of the source."""


def written(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a response so far, up to its last whole character."""
    return whole_characters(tokenizer, ids)


def coefficients_of_texts(
    source: HookedModel,
    target: HookedModel,
    paired: Sequence[PairedText],
    replacement: Replacement,
    names: Sequence[str],
    token_budget: int,
) -> dict[str, Float[Tensor, "token rank"]]:
    """The source's coefficients for every token of the target's texts on the span `R`, in one reading.

    Beginnings of the text that the source encodes as it encodes the whole are read together; the others are read as texts of their own.
    """
    to = tokenizer_of(target)
    begun = [
        [written(to, each.target.response_ids[:count]) for count in range(len(each.target.response_ids) + 1)] for each in paired
    ]
    pairs = [each.source.pair for each, texts in zip(paired, begun, strict=True) for _ in texts]
    ids = iter(response_ids(source, pairs, [text for texts in begun for text in texts]))
    sequences: list[Triplet] = []
    rows: list[int] = []
    row = 0
    for each, texts in zip(paired, begun, strict=True):
        wanted = [next(ids) for _ in texts]
        known: dict[tuple[int, ...], int] = {}
        for sequence in (each.source.response_ids, *sorted(set(wanted), key=len, reverse=True)):
            if sequence in known:
                continue
            for count in range(len(sequence) + 1):
                known.setdefault(sequence[:count], row + count)
            sequences.append(Triplet(each.source.pair, sequence, each.source.response))
            row += len(sequence) + 1
        rows += [known[one] for one in wanted]
    found = read_at_sites(source, sequences, replacement, names, Site.coefficients, token_budget)
    return {name: found[name][rows] for name in names}


class ReadAgain:
    """Coefficients for the texts of a batch, which are read from the first token on at every call."""

    def __init__(self, source: HookedModel, replacement: Replacement, pairs: Sequence[PromptPair], names: Sequence[str]) -> None:
        """Keep the source's prompts, and the hook points of its sites that are read."""
        self._source, self._replacement, self._names = source, replacement, list(names)
        self._pairs = list(pairs)

    def read(self, texts: Sequence[str]) -> Coefficients:
        """The coefficients at the end of each text."""
        ids = _encoded(self._source, self._pairs, texts)
        triplets = [Triplet(*each) for each in zip(self._pairs, ids, texts, strict=True)]
        steered = PassSteering(self._replacement, arriving=self._names)
        arriving = read_batch(self._source, triplets, [], "base", "R", steered=steered).arriving
        last = torch.tensor([len(each) + 1 for each in ids]).cumsum(0) - 1
        return {name: _of(self._replacement.sites[name], arriving[name][last.to(arriving[name].device)]) for name in self._names}

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these texts."""
        self._pairs = [self._pairs[row] for row in rows.tolist()]

    def close(self) -> None:
        """Nothing is held."""


class ReadOn:
    """The same from a KV cache: only what is new is read, and tokens that a longer text is not encoded with any more are left out."""

    def __init__(self, source: HookedModel, replacement: Replacement, pairs: Sequence[PromptPair], names: Sequence[str]) -> None:
        """Read the source's prompts."""
        self._source, self._names, self._pairs = source, list(names), list(pairs)
        device = device_of(source)
        self._sites = {name: replacement.sites[name] for name in names}
        self._prompts, self._real = padded([pair.base_ids for pair in pairs], "left", device)
        self._steering = replacement.hooks(source, start=self._prompts.shape[1] - 1)
        self._depth = layers_needed(list(names))
        self._mask: Tensor = self._real
        self._ids: list[tuple[int, ...]] = []
        self._columns: list[list[int]] = []  # of each token of the texts, in the cache
        self._read: list[list[dict[str, Tensor]]] = []  # coefficients at the last prompt token, and at each of those
        self._begin()

    def read(self, texts: Sequence[str]) -> Coefficients:
        """The coefficients at the end of each text."""
        ids = _encoded(self._source, self._pairs, texts)
        kept = [common_prefix(before, now) for before, now in zip(self._ids, ids, strict=True)]
        columns = self._mask.shape[1] + max(len(now) - count for now, count in zip(ids, kept, strict=True))
        fresh, limit = self._prompts.shape[1] + max(map(len, ids)), context_length(self._source)
        # A long prompt pads short ones, so a batch may need more columns than the context has though each row fits. Reading it again
        # gives no fewer then, but for those of tokens that were left out.
        if columns > (limit if fresh <= limit else 2 * fresh):
            self._begin()
            kept = [0] * len(ids)
        for row, count in enumerate(kept):
            self._mask[row, self._columns[row][count:]] = 0
            del self._columns[row][count:], self._read[row][count + 1 :]
        new = [now[count:] for now, count in zip(ids, kept, strict=True)]
        if any(new):
            self._append(new)
        self._ids = ids
        return {name: torch.stack([each[-1][name] for each in self._read]) for name in self._names}

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these texts."""
        rows = rows.cpu()  # the target may be on another device, and a CPU index works on any
        self._decoder.select(rows)
        self._steering.select(rows)
        self._prompts, self._real, self._mask = (each[rows] for each in (self._prompts, self._real, self._mask))
        chosen = rows.tolist()
        self._pairs, self._ids = ([each[row] for row in chosen] for each in (self._pairs, self._ids))
        self._columns, self._read = ([each[row] for row in chosen] for each in (self._columns, self._read))

    def close(self) -> None:
        """Stop steering the source."""
        self._steering.close()

    def _begin(self) -> None:
        rows = len(self._pairs)
        self._decoder = Decoder(self._source, rows)
        self._mask = self._real.clone()
        self._ids = [()] * rows
        self._columns = [[] for _ in range(rows)]
        found = self._step(self._prompts)
        self._read = [[{name: found[name][row, -1] for name in self._names}] for row in range(rows)]

    def _append(self, new: Sequence[Sequence[int]]) -> None:
        """Read new tokens of each text, some of which may have none."""
        tokens, real = padded(new, "left", self._prompts.device)
        first = self._mask.shape[1]
        self._mask = torch.cat([self._mask, real], dim=1)
        found = self._step(tokens)
        for row, ids in enumerate(new):
            for column in range(tokens.shape[1] - len(ids), tokens.shape[1]):
                self._columns[row].append(first + column)
                self._read[row].append({name: found[name][row, column] for name in self._names})

    def _step(self, new: Int[Tensor, "row new"]) -> dict[str, Float[Tensor, "row new rank"]]:
        found: dict[str, Tensor] = {}

        def reading(name: str) -> Any:
            def hook(activation: Tensor, hook: Any) -> None:
                found[name] = _of(self._sites[name], activation)

            return hook

        # Hooks at one point run in the order in which they were added: what arrives is read before it is steered.
        with hooked(self._source, [(name, reading(name)) for name in self._names]), hooked(self._source, self._steering):
            self._decoder.step(new, self._mask, self._depth)
        return found


def reader(source: HookedModel, replacement: Replacement, pairs: Sequence[PromptPair], names: Sequence[str]) -> ReadOn | ReadAgain:
    """The fastest way to read the texts of a batch that gives what reading them again gives.

    Args:
        source: The model.
        replacement: What steers it.
        pairs: Its prompts.
        names: Hook points of the sites that are read.
    """
    return (ReadOn if can_leave_out(source) else ReadAgain)(source, replacement, pairs, names)


def sites_between(replacement: Replacement, layers: Sequence[tuple[int, int]]) -> Mapping[int, str]:
    """By target layer, the hook point of the source's site that drives it; layers whose source layer has no site are left out."""
    names = ((target, f"blocks.{source}.hook_resid_post") for source, target in layers)
    return {target: name for target, name in names if name in replacement.sites}


def _of(site: Site, arriving: Tensor) -> Tensor:
    return site.to(arriving.device, torch.float32).coefficients(arriving.float())


def _encoded(source: HookedModel, pairs: Sequence[PromptPair], texts: Sequence[str]) -> list[tuple[int, ...]]:
    ids = response_ids(source, pairs, texts)
    for pair, one in zip(pairs, ids, strict=True):
        if len(pair.base_ids) + len(one) > context_length(source):
            raise InputError(
                "pairs",
                f"a prompt and a response of {len(pair.base_ids) + len(one)} tokens of the source's",
                f"at most {context_length(source)}, the source's context",
                "Give `max_new_tokens` a smaller number, or shorten the question.",
            )
    return ids
