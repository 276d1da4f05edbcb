"""Made-up results of every type, which tests of figures and reports share."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from helpers import pairs_of, random_replacement, random_triplets, replacement_at

import psr_lens as psr
from psr_lens.activations.capture import Captured
from psr_lens.evaluation.answers_by_method import AnswersByMethod
from psr_lens.evaluation.comparison import Comparison, MethodTrace
from psr_lens.evaluation.scores import Scores
from psr_lens.interpretation.attribution import PARTS, Attribution, ScoreAttribution, Source, Sources, Split
from psr_lens.interpretation.directions import LensRow, LogitLens, TopToken, TopTokens
from psr_lens.interpretation.patching import FrozenAttention, PatchGrid
from psr_lens.prompts import TokenTable
from psr_lens.replacement import LearningCurve
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable
from psr_lens.transfer.gate_reading import Errors
from psr_lens.transfer.pairing import PairedRows

WORDS = ("<assistant>", "aye", ",", "the", "barn", ",", "<script>alert(1)</script>", "<end>")
"""One response: the last prompt token first, a comma twice, and a token that is markup."""

METHODS = ("A-PSR", "S-PSR", "S-Const DiM")


FIT = {"solver": "sequential", "rank": 4, "polish": None}
"""Settings of the fit of A-PSR."""


def _after(layers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"blocks.{layer}.hook_resid_post" for layer in layers)


def comparison(words: tuple[str, ...] = WORDS, responses: int = 3, layers: int = 4) -> Comparison:
    """A result with made-up numbers: A-PSR everywhere, S-PSR and a constant from layer 2 on."""
    generator = torch.Generator().manual_seed(0)
    count = len(words) * responses
    table = TokenTable(
        torch.arange(count),
        words * responses,
        torch.arange(responses).repeat_interleave(len(words)),
        torch.arange(-1, len(words) - 1).repeat(responses),
    )
    strength = 10 ** torch.empty(count, layers).uniform_(-1.2, 2.4, generator=generator)
    late = torch.arange(layers) >= 2
    wanted = torch.randn(count, 1, generator=generator) * 20
    spread = strength * torch.empty(count, layers).uniform_(0.8, 1.2, generator=generator)
    methods = {
        "A-PSR": MethodTrace(
            spread, torch.linspace(0.4, 0.1, layers), _after(range(layers)), strength.clone(), strength * 0.9, fits=(FIT,)
        ),
        "S-PSR": MethodTrace(spread * late, torch.linspace(1, 0.3, layers), _after([2]), wanted.clamp(min=0), wanted),
        "S-Const DiM": MethodTrace(
            torch.full((count, layers), 5.0) * late, torch.full((layers,), 1.2), _after([2]), torch.full((count, 1), 5.0), wanted
        ),
    }
    more = torch.Generator().manual_seed(1)
    cosine = torch.empty(count, layers).uniform_(-0.2, 1, generator=more)
    methods = {name: replace(trace, component=trace.magnitude * cosine) for name, trace in methods.items()}
    scores = tuple(
        Scores(name, alpha, 40, 0, trait, coherence, (trait - 2, trait), (coherence - 1, coherence + 0.2))
        for name, alpha, trait, coherence in (
            ("none", None, 2.0, 99.0),
            ("prompt", None, 100.0, 99.5),
            ("A-PSR", 1.0, 100.0, 99.75),
            ("S-PSR", 1.0, 70.0, 91.8),
            ("S-Const DiM", 2.0, 3.0, 95.0),
        )
    )
    return Comparison(
        "talk like a <pirate>",
        {"model_name": "toy", "n_layers": layers},
        "R",
        table,
        tuple(range(layers)),
        strength,
        torch.full((layers,), 0.8),
        methods,
        torch.full((layers,), 0.2),
        dict.fromkeys(methods, 1.0),
        scores,
        {"seed": 0, "fit": {"solver": "sequential"}},
        base_norm=torch.empty(count, layers).uniform_(5, 50, generator=more),
        component=strength * cosine,
    )


SHORT_WORDS = ("<assistant>", "aye", ",", "<b>no</b>", "<end>")
SOURCES = (("<system>", "talk", "<i>", "pirate", "<end>"), ("be", "brief"))


def token_rows(responses: int = 2, words: tuple[str, ...] = SHORT_WORDS) -> TokenTable:
    return TokenTable(
        torch.arange(len(words) * responses),
        words * responses,
        torch.arange(responses).repeat_interleave(len(words)),
        torch.arange(-1, len(words) - 1).repeat(responses),
    )


def attribution(layers: int = 3, heads: int = 4, target: int | None = None) -> Attribution:
    """A result with made-up numbers, some parts of which are 0 throughout."""
    generator = torch.Generator().manual_seed(0)
    table = token_rows()

    def split(low: float) -> Split:
        def draw(*shape: int) -> torch.Tensor:
            return torch.empty(len(table), layers, *shape).uniform_(low, 1, generator=generator)

        parts = draw(heads, len(PARTS))
        parts[..., PARTS.index("removed")] = parts[..., PARTS.index("norm")] = 0
        return Split(parts, draw(), draw())

    share = torch.full((2, layers, heads, 5), torch.nan)
    share[0] = torch.randn(layers, heads, 5, generator=generator)
    share[1, ..., :2] = torch.randn(layers, heads, 2, generator=generator)
    return Attribution(
        "talk like a <pirate>",
        {"model_name": "toy"},
        "R",
        "accumulated",
        target,
        table,
        tuple(range(layers)),
        torch.empty(len(table), layers).uniform_(1, 9, generator=generator),
        split(0),
        split(-1),
        torch.zeros(layers),
        sources=Sources(share, share.abs(), SOURCES),
    )


def score_attribution(layers: int = 3) -> ScoreAttribution:
    """Two heads, the first of which has nothing below it; the last token of each response sees nothing of the instruction."""
    generator = torch.Generator().manual_seed(0)
    table = token_rows()
    kinds = ("attention", "mlp", "replacement")
    sources = (Source("embedding"), *(Source(kind, layer) for layer in range(layers) for kind in kinds), Source("bias"))
    parts = torch.randn(3, 2, len(table), len(sources), generator=generator)
    parts[:, 0, :, 1:-1] = 0
    parts[:2, ..., [place for place, source in enumerate(sources) if source.kind == "replacement"]] = 0
    parts[:, :, table.position == 3] = torch.nan
    attention = torch.rand(parts.shape[:3], generator=generator)
    names = ("prompt", "none", "A-<b>PSR")
    return ScoreAttribution(
        "be brief", {}, ((0, 1), (layers, 2)), names, {names[2]: 1.0}, table, sources, parts, parts.sum(-1), attention
    )


def frozen_attention(far: float = 1.0) -> FrozenAttention:
    """A method that needs attention to move, and one that is farther from the prompt than nothing."""
    table = token_rows()
    last = np.append(table.position.numpy()[1:] < 0, True)  # the token before the next response begins
    none = np.where(last, np.nan, 1.0)
    names = {"none": (1.0, 1.0), "prompt": (0.0, 0.1), "A-<b>PSR": (0.1, 0.4), "constant": (1.0 + far, 1.0 + 2 * far)}
    free, frozen = ({name: none * each[at] for name, each in names.items()} for at in (0, 1))
    return FrozenAttention("be brief", {}, {"A-<b>PSR": 1.0, "constant": 2.0}, table, free, frozen)


def grid(cells: str = "token", heads: int = 1, layers: int = 3) -> PatchGrid:
    generator = torch.Generator().manual_seed(0)
    table = token_rows()
    values = torch.randn(len(table) if cells == "token" else 2, layers, heads, generator=generator)
    if cells == "token":
        values[[4, 9]] = torch.nan
    return PatchGrid(
        "be brief", {}, "z" if heads > 1 else "resid_post", "recovered", "prompt", cells, table, tuple(range(layers)), values,
        torch.ones(2),
    )  # fmt: skip


def agreement(layers: int = 3) -> psr.transfer.Agreement:
    """A source and a target on one text each token of which both have; the source acts at its first two layers."""
    generator = torch.Generator().manual_seed(0)
    table = token_rows()
    count, rows = len(table), torch.arange(len(table))
    errors = [
        Errors(torch.rand(2, 2, layers, generator=generator).double().numpy() * size, np.ones((2, 2, layers))) for size in (0.5, 1)
    ]
    gate = torch.rand(count, 2, generator=generator)
    reading = psr.transfer.GateReading((0, 1), tuple(range(layers)), *errors, gate, gate + 0.1)
    models = ({"model_name": "<b>one</b>"}, {"model_name": "other"})
    sizes = [torch.rand(count, layers, generator=generator) + 0.1 for _ in models]
    pairs = PairedRows(rows, rows, table.triplet)
    return psr.transfer.Agreement("be brief", *models, table, table, pairs, 2, 0, *sizes, reading, None)


def lens(rows: int = 3, k: int = 5) -> LogitLens:
    up, down = torch.linspace(9, 5, k), torch.linspace(-8, -4, k)
    words = tuple(f"w{place}" for place in range(k))
    found = [
        LensRow(f"blocks.{row}.hook_resid_post", row, 0, ("<b>arr</b>", *words[1:]), up - row, tuple(reversed(words)), down + row)
        for row in range(rows)
    ]
    return LogitLens("directions", tuple(found))


def captured(tokens: int = 6, layers: int = 3) -> Captured:
    generator = torch.Generator().manual_seed(0)
    table = TokenTable(
        torch.arange(tokens),
        tuple("abcdef"[place % 6] for place in range(tokens)),
        torch.zeros(tokens).long(),
        torch.arange(-1, tokens - 1),
    )
    deltas = {
        f"blocks.{layer}.hook_{kind}": torch.randn(tokens, 5, generator=generator)
        for layer in range(layers)
        for kind in ("attn_out", "resid_post")
    }
    norms = {name: delta.norm(dim=1) * 2 for name, delta in deltas.items()}
    return Captured(deltas, table, "R", base_norms=norms)


def result_rows(method, curve, **others):
    return [
        Result(method, metric, value, 50, (value - 1, value + 1), alpha=alpha, missing=3, **others)
        for alpha, *both in curve
        for metric, value in zip(("trait", "coherence"), both, strict=True)
    ]


CURVES = {
    "none": [(None, 0.0, 99.0)],
    "prompt": [(None, 95.0, 98.0)],
    "A-PSR": [(2.0, 97.0, 70.0), (0.0, 0.0, 99.0), (1.0, 96.0, 97.0)],
    "S-Const <b>": [(1.0, 5.0, 90.0), (2.0, math.nan, math.nan)],
}
TABLE = ResultTable(tuple(row for name, curve in CURVES.items() for row in result_rows(name, curve)), {"targets": {"TA@C80": 80.0}})


def side_by_side(questions: int = 10) -> AnswersByMethod:
    """Answers of three methods, one of which is markup, one of several lines, and one without a score."""
    texts = {
        "none": tuple(f"answer {index}" for index in range(questions)),
        "prompt": ("arr,\nmatey", *["aye"] * (questions - 1)),
        "A-PSR": ("<script>alert(1)</script>", "", *["ahoy"] * (questions - 2)),
    }
    traits = {"none": (0.0,) * questions, "prompt": (math.nan, *[100.0] * (questions - 1))}
    asked = tuple(f"what is number {index} ?" for index in range(questions))
    return AnswersByMethod("talk like a <pirate>", asked, texts, {"A-PSR": 1.25}, traits)


def further_results(model: Any) -> list[object]:
    """All that can be had without training, two of patching, in no order."""
    triplets = random_triplets(model, 6)
    methods = {
        "A-PSR": random_replacement(model, size=0.1),
        "S-PSR": random_replacement(model, layers=[1], size=0.1),
        "CAA": replacement_at(model, "hook_resid_post", [1], rule="constant", rank=1),
    }
    return [
        LearningCurve((1.0, 0.5, 0.3), (1.1, 0.7, 0.6), (1.0, 1.0, 1.0), 2),
        side_by_side(),
        psr.cosines(methods),
        TopTokens("blocks.1.hook_resid_post", 1, None, (TopToken(9.0, "<b>arr</b>", ("a",), ("c",), 0, 2),), 50, 7),
        lens(),
        grid("token"),
        grid("all", heads=4),
        attribution(),
        score_attribution(),
        frozen_attention(),
        captured(),
        psr.capture(model, triplets, ["resid_post", "mlp_out", "attn_out"], to=psr.Statistics(rank=4)),
        psr.collateral(model, pairs_of(model, 2), methods, sampling=psr.SamplingConfig(max_new_tokens=4)),
        psr.faithfulness(model, triplets, methods, paraphrases="be a pirate ."),
        psr.reach(model, triplets, methods),
        TABLE,
    ]
