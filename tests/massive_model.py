"""A tiny Llama with two massive tokens that are made by hand: one in the prompted context only, one in both."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import oracles
import torch
from helpers import pairs_of

import psr_lens as psr

LAYER, DIMENSION, TIMES = 1, 5, 20.0
"""After which layer they begin, the number that carries them, and about how many norms of the median token it is."""
FLIPS, STAYS = (0, 2), (1, 1)
"""Triplet and position of the token that is massive in the prompted context only, and of the one that is in both."""


class Massive(NamedTuple):
    """The model, its triplets, and transformers' own reading of the same weights."""

    model: Any
    hf: Any
    triplets: list[psr.Triplet]


def massive_model(model: Any, source: Path, folder: Path, backend: str) -> Massive:
    """Save a copy of a tiny Llama in which one neuron of an MLP fires at the chosen tokens alone, and load it."""
    rng = random.Random(0)
    triplets = [psr.Triplet(pair, tuple(rng.choices(range(10, 200), k=4)), "") for pair in pairs_of(model, 2)]
    shutil.copytree(source, folder)
    hf = oracles.transformer(folder)
    seen: list[torch.Tensor] = []
    handle = hf.model.layers[LAYER].mlp.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0][0]))
    typical, wanted = [], []
    for number, triplet in enumerate(triplets):
        for context in ("base", "prompted"):
            ids = (*triplet.pair.ids(context), *triplet.response_ids)
            start = len(triplet.pair.ids(context)) - 1
            typical.append(oracles.read(hf, ids).residuals[LAYER][start:].norm(dim=1))
            seen[-1] = seen[-1][start:]
            fires = (STAYS,) if context == "base" else (STAYS, FLIPS)
            wanted += [30.0 if (number, position) in fires else -30.0 for position in range(-1, 4)]
    handle.remove()
    gate = torch.linalg.pinv(torch.cat(seen).double()) @ torch.tensor(wanted).double()
    mlp = hf.model.layers[LAYER].mlp
    mlp.gate_proj.weight[0] = mlp.up_proj.weight[0] = gate.float()  # SiLU(±30) · ±30 is 900 or almost 0
    mlp.down_proj.weight[:, 0] = 0
    mlp.down_proj.weight[DIMENSION, 0] = TIMES * float(torch.cat(typical).median()) / 900
    hf.save_pretrained(folder)
    return Massive(psr.load_model(folder, backend=backend), oracles.transformer(folder), triplets)


def activations(hf: Any, triplets: Sequence[psr.Triplet], context: str) -> torch.Tensor:
    """The residual stream after each layer on the span R, one sequence at a time, `[layer, token, d_model]`."""
    rows = []
    for triplet in triplets:
        found = oracles.read(hf, (*triplet.pair.ids(context), *triplet.response_ids))
        rows.append(torch.stack(found.residuals)[:, len(triplet.pair.ids(context)) - 1 :])
    return torch.cat(rows, dim=1)
