"""Steering of plain transformers models, whatever they are given, against hooks written by hand at known positions.

Five hundred draws of architecture, hook point, span, padding, cache and way of reading; five thousand with `PSR_LENS_FUZZ=full`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro_models import ARCHITECTURES, HEADS, LAYERS, PAD, VOCABULARY, micro_model
from transformers import DynamicCache, StaticCache

from psr_lens.replacement import Replacement, Site

pytestmark = pytest.mark.slow

EXAMPLES = 5_000 if os.environ.get("PSR_LENS_FUZZ") == "full" else 500
TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}
STEPS = 3
KINDS = {"resid_post": "hook_resid_post", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "z": "attn.hook_z"}

model_of = cache(micro_model)


class Steered(NamedTuple):
    """What steers, at one hook point."""

    model: Any
    architecture: str
    kind: str
    layer: int
    site: Site
    alpha: float

    def replacement(self, **settings: Any) -> Replacement:
        return Replacement({f"blocks.{self.layer}.{KINDS[self.kind]}": self.site}, method="drawn", model={}, **settings)


@cache
def steered(architecture: str, kind: str, layer: int) -> Steered:
    model = model_of(architecture)
    config = model.config
    width = config.hidden_size if kind != "z" else getattr(config, "head_dim", None) or config.hidden_size // HEADS
    generator = torch.Generator().manual_seed(layer)
    shape = (HEADS, 1, width) if kind == "z" else (1, width)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.7

    return Steered(model, architecture, kind, layer, Site(draw(*shape), draw(*shape), draw(*shape[:-1]), "relu"), 1.5)


def token_by_hand(case: Steered, token: torch.Tensor) -> torch.Tensor:
    """A + α · ReLU(A·w + b) · z for one token, head by head where there are heads."""
    w, b, z = case.site.weights, case.site.bias, case.site.directions
    if case.kind != "z":
        return token + case.alpha * torch.relu(w[0] @ token + b[0]) * z[0]
    heads = token.reshape(HEADS, -1)
    added = [torch.relu(w[head, 0] @ heads[head] + b[head, 0]) * z[head, 0] for head in range(HEADS)]
    return (heads + case.alpha * torch.stack(added)).flatten()


@contextmanager
def hand_hook(case: Steered, edited: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A hook on the module where it steers, `[row, token, width]` in and out."""

    # Granite multiplies what its attention and MLP give before it adds it, and TransformerLens's hook points are what is added.
    scaled = case.architecture == "Granite" and case.kind in ("attn_out", "mlp_out")
    factor = case.model.config.residual_multiplier if scaled else 1.0

    def after(module: Any, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edited(output[0] * factor) / factor, *output[1:])
        return edited(output * factor) / factor

    module = case.model.get_submodule(getattr(ARCHITECTURES[case.architecture][1], case.kind).format(case.layer))
    if case.kind == "z":
        handle = module.register_forward_pre_hook(lambda module, arguments: (edited(arguments[0]),))
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def by_hand(case: Steered, ids: list[int], start: int, stop: int | None = None) -> torch.Tensor:
    """Logits of one unpadded sequence, read at once and steered from `start` to `stop`, `[token, vocabulary]`."""

    def edited(rows: torch.Tensor) -> torch.Tensor:
        changed = rows.clone()
        for position in range(start, len(ids) if stop is None else stop):
            changed[0, position] = token_by_hand(case, rows[0, position])
        return changed

    with hand_hook(case, edited):
        return case.model(torch.tensor([ids])).logits[0]


def padded(prompts: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    rows = [[PAD] * (longest - len(each)) if side == "left" else [] for each in prompts]
    ids = [pads + each + [PAD] * (longest - len(each) - len(pads)) for pads, each in zip(rows, prompts, strict=True)]
    mask = [[int(bool(token)) for token in row] for row in ids]
    return torch.tensor(ids), torch.tensor(mask)


def assert_greedy(case: Steered, prompt: list[int], answer: list[int], start: int, stop: int | None) -> None:
    """Every token of an answer is the likeliest one by hand, after the prompt and those before it; near ties are let pass."""
    logits = by_hand(case, prompt + answer, start, stop)[len(prompt) - 1 : -1]
    for row, token in zip(logits, answer, strict=True):
        assert row[token] >= row.max() - 1e-3 * row.std()


@st.composite
def draws(draw: st.DrawFn) -> dict[str, Any]:
    token = st.integers(3, VOCABULARY - 1)
    return {
        "architecture": draw(st.sampled_from(sorted(ARCHITECTURES))),
        "kind": draw(st.sampled_from(sorted(KINDS))),
        "layer": draw(st.integers(0, LAYERS - 1)),
        "span": draw(st.sampled_from(["R", "QR", "last", "start"])),
        "prompts": draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=3)),
        "side": draw(st.sampled_from(["left", "right"])),
        "reading": draw(
            st.sampled_from(
                [
                    "pass",
                    "loop",
                    "whole",
                    "generate",
                    "static",
                    "no cache",
                    "chunks",
                    "prefix",
                    "lookup",
                    "assisted",
                    "beams",
                    "answers",
                ]
            )
        ),
        "number": draw(st.integers(1, 8)),
    }


@torch.no_grad()
def check(drawn: dict[str, Any]) -> None:
    case = steered(drawn["architecture"], drawn["kind"], drawn["layer"])
    prompts, reading, span, number = (drawn[key] for key in ("prompts", "reading", "span", "number"))
    side = drawn["side"] if reading in ("pass", "whole") else "left"  # an answer goes on from the last column
    if reading in ("lookup", "assisted", "prefix"):
        prompts = prompts[:1]
    shortest = min(map(len, prompts))
    begins = {
        "R": [len(each) - 1 for each in prompts],
        "last": [len(each) - 1 for each in prompts],
        "QR": [min(number, shortest - 1)] * len(prompts),
        "start": [min(number, len(each) - 1) for each in prompts],
    }[span]
    stops = [begin + 1 if span == "last" else None for begin in begins]
    if reading == "whole":  # with a text behind the prompt, which only `start` can tell
        prompts = [[*each, 7, 9, 11] for each in prompts]
    ids, mask = padded(prompts, side)
    columns = [begin + (ids.shape[1] - len(each) if side == "left" else 0) for begin, each in zip(begins, prompts, strict=True)]
    made = case.replacement(
        span="QR" if span == "QR" else "R",
        tokens="last" if span == "last" else "span",
        question_start=begins[0] if span == "QR" else None,
    )
    held = DynamicCache(config=case.model.config)
    if reading == "prefix" and (known := min(number, shortest - 1)):  # read before anything steers
        case.model(ids[:, :known], past_key_values=held)
    start = torch.tensor(columns) if span == "start" or reading == "whole" else None
    with made.attach(case.model, case.alpha, start=start) as model:
        if reading in ("pass", "whole", "loop"):
            found = passes(model, ids, mask, number if reading == "loop" else 0)
        else:
            answers = generated(case, ids, mask, reading, number, held)
    if reading == "beams":
        assert answers == beams_by_hand(case, ids, mask, columns, span == "last")
    elif reading in ("pass", "whole", "loop"):
        for row, (prompt, begin, stop) in enumerate(zip(prompts, begins, stops, strict=True)):
            whole = [*prompt, *[5] * (number if reading == "loop" else 0)]
            torch.testing.assert_close(found[row], by_hand(case, whole, begin, stop), **TOLERANCE)
    else:
        for row, answer in enumerate(answers):
            row //= len(answers) // len(prompts)
            assert_greedy(case, prompts[row], answer, begins[row], stops[row])


def passes(model: Any, ids: torch.Tensor, mask: torch.Tensor, more: int) -> list[torch.Tensor]:
    """Logits of a pass, and of one behind its cache with some more tokens, without padding."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(ids, attention_mask=mask, position_ids=places, use_cache=True)
    found = [row[real.bool()] for row, real in zip(output.logits, mask, strict=True)]
    if more:
        added = torch.full((len(ids), more), 5)
        places = places[:, -1:] + 1 + torch.arange(more)
        mask = torch.cat([mask, torch.ones_like(added)], 1)
        output = model(added, attention_mask=mask, position_ids=places, past_key_values=output.past_key_values)
        found = [torch.cat(both) for both in zip(found, output.logits, strict=True)]
    return found


def generated(
    case: Steered, ids: torch.Tensor, mask: torch.Tensor, reading: str, number: int, held: DynamicCache
) -> list[list[int]]:
    model = case.model
    options: dict[str, Any] = {
        "generate": {},
        "static": {"past_key_values": StaticCache(config=model.config, max_cache_len=ids.shape[1] + STEPS)},
        "no cache": {"use_cache": False},
        "chunks": {"prefill_chunk_size": number, "past_key_values": held},
        "prefix": {"past_key_values": held},
        "lookup": {"prompt_lookup_num_tokens": number},
        "assisted": {"assistant_model": model_of(case.architecture, 1)},
        "beams": {"num_beams": 2},
        "answers": {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    }[reading]
    settings = {"attention_mask": mask, "max_new_tokens": STEPS, "do_sample": False, "pad_token_id": PAD}
    return model.generate(ids, **(settings | options))[:, ids.shape[1] :].tolist()


def beams_by_hand(case: Steered, ids: torch.Tensor, mask: torch.Tensor, columns: list[int], last_only: bool) -> list[list[int]]:
    """Beam search of transformers, its first call steered from known columns on, and every later one as a whole or not at all."""
    first = True

    def sites(rows: torch.Tensor) -> torch.Tensor:
        nonlocal first
        changed = rows.clone()
        for row in range(len(rows)):
            begin = columns[row // 2] if first else rows.shape[1] if last_only else 0
            for position in range(begin, begin + 1 if last_only and first else rows.shape[1]):
                changed[row, position] = token_by_hand(case, rows[row, position])
        first = False
        return changed

    with hand_hook(case, sites):
        return generated(case, ids, mask, "beams", 0, DynamicCache())


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(drawn=draws())
def test_steering_is_that_of_hooks_written_by_hand_at_known_positions(drawn: dict[str, Any]) -> None:
    check(drawn)
