"""Small stores made by hand, without a model, and what can go wrong with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from psr_lens.activations.store import StoreSpec, StoreWriter
from psr_lens.prompts import PromptPair, Span, TokenTable, Triplet

HOOKS = {"blocks.0.hook_resid_post": (8,), "blocks.1.attn.hook_z": (2, 3)}
MODEL = {"model_name": "made by hand", "n_layers": 2, "d_model": 8}


def triplet_of(tokens: int, seed: int, span: Span = "R") -> Triplet:
    """A triplet of random ids with as many tokens in its span."""
    rng = np.random.default_rng(seed)
    question = int(rng.integers(1, tokens + 1)) if span == "QR" else int(rng.integers(1, 4))
    asked, response = (tuple(rng.integers(50, size=n).tolist()) for n in (question, tokens - (question if span == "QR" else 1)))
    pair = PromptPair(f"what is {seed} ?", "talk like a “pirate” 🏴", (1, *asked), (1, 7, 8, *asked), question)
    return Triplet(pair, response, f"arr\n{seed}\u2028\x00", 100 * float(rng.random()), 100 * float(rng.random()))


def spec_of(counts: Sequence[int], *, shard_bytes: int = 400, span: Span = "R", seed: int = 0, **parts: Any) -> StoreSpec:
    """A spec of random triplets with `counts` tokens each."""
    triplets = tuple(triplet_of(count, seed + index, span) for index, count in enumerate(counts))
    ids, owners, positions = [], [], []
    for index, triplet in enumerate(triplets):
        kept = triplet.pair.span_length(span)
        ids += [*triplet.pair.base_ids[-kept:], *triplet.response_ids]
        owners += [index] * counts[index]
        positions += range(-kept, len(triplet.response_ids))
    table = TokenTable(torch.tensor(ids), tuple(f"Ġ{one}" for one in ids), torch.tensor(owners), torch.tensor(positions))
    whole: dict[str, Any] = {
        "model": MODEL,
        "tokenizer": "0123",
        "hooks": HOOKS,
        "dtype": "float32",
        "span": span,
        "difference": "accumulated",
        "triplets": triplets,
        "groups": tuple("ab"[index % 2] for index in range(len(counts))),
        "tokens": table,
        "shard_bytes": shard_bytes,
        "settings": {"token_budget": 64, "seed": None, "rate": 0.1},
    }
    return StoreSpec(**(whole | parts))


def numbers_of(spec: StoreSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random rows at every hook point."""
    generator = torch.Generator().manual_seed(seed)
    rows = spec.offsets[-1]
    return {name: torch.randn(rows, *shape, generator=generator).to(spec.torch_dtype) for name, shape in spec.hooks.items()}


def fill(writer: StoreWriter, numbers: dict[str, torch.Tensor], most: int | None = None) -> None:
    """Write what a writer misses, or some of it."""
    for shard in writer.missing()[:most]:
        rows = writer.spec.shards[shard].rows
        writer.write(shard, {name: tensor[rows.start : rows.stop] for name, tensor in numbers.items()})


def write_store(folder: Path, spec: StoreSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a whole store of random rows, and give the rows."""
    numbers = numbers_of(spec, seed)
    fill(StoreWriter.create(folder, spec), numbers)
    return numbers


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SHAPES = st.lists(st.integers(1, 3), max_size=2).map(tuple)


HOOK_SETS = st.lists(SHAPES, min_size=1, max_size=3).map(
    lambda shapes: {f"blocks.{layer}.hook_z": shape for layer, shape in enumerate(shapes)}
)
SPEC_PARTS = st.fixed_dictionaries(
    {
        "counts": st.lists(st.integers(1, 9), min_size=1, max_size=8),
        "shard_bytes": st.integers(1, 600),
        "span": st.sampled_from(["R", "QR"]),
        "seed": st.integers(0, 99),
        "hooks": HOOK_SETS,
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    }
)
"""Arguments of `spec_of` for any small spec."""
