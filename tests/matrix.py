"""What must hold of every architecture, and the table of it in `docs/architectures.md`: `make matrix` runs the checks in both environments.

A check is a function of a `Case`; it raises where the model fails, and may return a number worth a place in the table.
"""

import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import oracles
import pytest
import torch
from architectures import FAMILIES, save_tiny
from helpers import Case, generated, logits_of, pairs_of, random_replacement, random_triplets, relative_error

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.models import forward

TOLERANCE: Final = 1e-4
FITTED: Final = 0.98
"""A fit counts if it leaves less than this share of the error, 1 being no steering."""
SEQUENCE: Final = range(10, 60)
"""Longer than the sliding windows."""

ONLY_CACHED: Final = ("mamba",)
"""Families of which TransformerLens 4.3's own generation without a cache is wrong, steered or not."""
MATRIX: Final = tuple(FAMILIES)
CLASSES: Final = {"hooked_transformer": "HookedTransformer", "bridge": "TransformerBridge"}
CHECKS: dict[str, Callable[[Case], float | None]] = {}
"""Column of the table to check, in the table's order."""


def check(column: str) -> Callable[[Callable[[Case], float | None]], Callable[[Case], float | None]]:
    """Make a function a check, with a column of its own."""

    def added(function: Callable[[Case], float | None]) -> Callable[[Case], float | None]:
        CHECKS[column] = function
        return function

    return added


@check("logits")
def logits_are_those_of_transformers(case: Case) -> float:
    sequences = [SEQUENCE, *(pair.prompted_ids for pair in pairs_of(case.model, 2))]
    worst = 0.0
    for ids in sequences:
        with torch.no_grad():
            wanted = case.hf(torch.tensor([list(ids)])).logits[0]
        worst = max(worst, float((logits_of(case.model, ids) - wanted).abs().max()))
    assert worst <= TOLERANCE
    return worst


@check("α = 0")
def alpha_0_is_bit_identical(case: Case) -> None:
    plain = logits_of(case.model, SEQUENCE)
    with random_replacement(case.model).steer(case.model, 0.0):
        assert torch.equal(logits_of(case.model, SEQUENCE), plain)


@check("padding")
def left_padded_batch_is_as_alone(case: Case) -> None:
    sequences = [SEQUENCE[:length] for length in (50, 31, 7)]
    tokens, mask = (torch.zeros(3, 50, dtype=torch.long) for _ in range(2))
    for row, ids in enumerate(sequences):
        tokens[row, -len(ids) :], mask[row, -len(ids) :] = torch.tensor(ids), 1
    with torch.no_grad():
        logits = forward(case.model, tokens, mask)
    for row, ids in enumerate(sequences):
        torch.testing.assert_close(logits[row, -len(ids) :], logits_of(case.model, ids), atol=TOLERANCE, rtol=0)


@check("capture")
def differences_are_those_of_transformers(case: Case) -> None:
    triplets = random_triplets(case.model, 4)
    captured = psr.capture(case.model, triplets, "resid_post")
    with torch.no_grad():
        read = [
            [
                oracles.read(case.hf, (*triplet.pair.ids(context), *triplet.response_ids)).residuals
                for context in ("base", "prompted")
            ]
            for triplet in triplets
        ]
    for layer in range(case.model.cfg.n_layers):
        wanted = [
            prompted[layer][-len(triplet.response_ids) - 1 :] - base[layer][-len(triplet.response_ids) - 1 :]
            for triplet, (base, prompted) in zip(triplets, read, strict=True)
        ]
        torch.testing.assert_close(captured[f"blocks.{layer}.hook_resid_post"], torch.cat(wanted), atol=TOLERANCE, rtol=TOLERANCE)


@check("fit")
def twenty_steps_bring_the_prompt_nearer(case: Case) -> None:
    triplets = random_triplets(case.model, 4)
    for config in (
        psr.Sequential(regression_steps=20, rank=2),  # with one direction, a ReLU may be dead from the start
        psr.Joint(epochs=20, batch_size=4, learning_rate=1e-2, regulariser=0.0, rank=2),
    ):
        assert relative_error(case.model, triplets, psr.fit(case.model, triplets, config)) < FITTED


@check("steer")
def steered_logits_are_those_of_the_equations(case: Case) -> None:
    replacement = random_replacement(case.model, size=0.2)
    wanted = oracles.steered_logits(case.hf, SEQUENCE, replacement.sites, 0.7, 40)
    with replacement.steer(case.model, 0.7, start=40):
        torch.testing.assert_close(logits_of(case.model, SEQUENCE), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@check("generate")
def generation_is_that_of_the_equations_with_and_without_a_cache(case: Case) -> None:
    replacement, pairs = random_replacement(case.model, size=0.2), pairs_of(case.model, 3)
    answers = psr.generate(case.model, pairs, replacement, sampling=psr.SamplingConfig(temperature=0, max_new_tokens=8))
    for pair, answer in zip(pairs, answers, strict=True):
        edits = oracles.layer_edits(replacement.sites, 1.0, len(pair.base_ids) - 1)
        wanted = oracles.greedy(case.hf, pair.base_ids, 8, edits)
        assert list(answer.ids) == wanted[: len(answer.ids)]
        for cached in (True,) if case.family in ONLY_CACHED else (True, False):
            with replacement.steer(case.model):
                assert generated(case.model, pair.base_ids, 8, cached=cached) == wanted


@check("save, load")
def artifacts_come_back_and_steer_alike(case: Case) -> None:
    made = random_replacement(case.model, rank=2)
    found = []
    with TemporaryDirectory() as folder:
        for each in (made, psr.Replacement.load(made.save(folder))):
            with each.steer(case.model):
                found.append(logits_of(case.model, SEQUENCE))
    assert torch.equal(*found)


@check("attach")
def transformers_itself_is_steered_alike(case: Case) -> None:
    replacement = random_replacement(case.model, size=0.2)
    if not FAMILIES[case.family].in_attach:
        with pytest.raises(InputError, match=f"got {type(case.hf).__name__}, expected one of"):
            replacement.attach(case.hf)
        return
    with replacement.steer(case.model, 0.7, start=40):
        wanted = logits_of(case.model, SEQUENCE)
    with torch.no_grad(), replacement.attach(case.hf, 0.7, start=40) as attached:
        found = attached(torch.tensor([list(SEQUENCE)])).logits[0]
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=TOLERANCE)


@check("variants")
def variants_have_the_logits_of_transformers(case: Case) -> None:
    found = FAMILIES[case.family]
    for name in set(found.variants) - set(found.refused):
        with TemporaryDirectory() as place:
            folder = save_tiny(case.family, Path(place), settings=found.variants[name])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # "auto" says where it takes a bridge
                model = psr.load_model(folder, backend="bridge" if case.backend == "bridge" else "auto")
            with torch.no_grad():
                wanted = oracles.transformer(folder)(torch.tensor([list(SEQUENCE)])).logits[0]
        assert float((logits_of(model, SEQUENCE) - wanted).abs().max()) <= TOLERANCE, name


# --- the table --------------------------------------------------------------------------------------------------------------

MARKS: Final = ("<!-- made by `make matrix` -->", "<!-- end of the matrix -->")
NOWHERE: Final = {"gpt-neox": ("no attention bias",), "falcon": ("grouped queries",)}
"""Variants that no class takes."""
GENERATIONS: Final = (("3.9.0", "hooked_transformer"), ("3.9.0", "bridge"), ("4.3.0", "bridge"))
"""TransformerLens's versions and classes, in the table's order."""

Results = dict[str, dict[str, float | None]]
"""`version/backend/family` to column to what the check returned; a check that failed is not there."""


def key(backend: str, family: str) -> str:
    """Where the results of a case are put."""
    return f"{version('transformer-lens')}/{backend}/{family}"


def table(results: Results) -> str:
    """The table: a mark where a check passed in each class that takes the model, else those in which it did."""
    names = {each: f"{CLASSES[each[1]]} {each[0]}" for each in GENERATIONS}
    head = ["architecture", *(f"logits, {name}" for name in names.values()), *list(CHECKS)[1:], "which variants"]
    rows = [head, ["---"] * len(head)]
    for family in MATRIX:
        found = {each: results.get(f"{each[0]}/{each[1]}/{family}") for each in GENERATIONS}
        taken = {each: passed for each, passed in found.items() if passed is not None}
        cells = [_number(passed) for passed in found.values()]
        for column in list(CHECKS)[1:]:
            if column == "attach" and not FAMILIES[family].in_attach:
                cells.append("–")
                continue
            good = [names[each] for each, passed in taken.items() if column in passed]
            cells.append("✓" if taken and len(good) == len(taken) else ", ".join(good) or "✗")
        variants = [name for name in FAMILIES[family].variants if name not in NOWHERE.get(family, ())]
        rows.append([FAMILIES[family].title, *cells, ", ".join(variants) or "–"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(passed: dict[str, float | None] | None) -> str:
    if passed is None:
        return "–"
    number = passed.get("logits")
    return "✗" if number is None else f"{number:.0e}".replace("e-0", "e-") if number else "0"


def table_in(page: str) -> str:
    """The table between the marks."""
    return page.split(MARKS[0])[1].split(MARKS[1])[0].strip()


def write_table(page: Path, files: Sequence[Path]) -> None:
    """Put the results of several runs into a page."""
    results: Results = {}
    for path in files:
        results |= json.loads(path.read_text())
    pattern = re.compile(f"(?<={re.escape(MARKS[0])}).*(?={re.escape(MARKS[1])})", re.DOTALL)
    page.write_text(pattern.sub(lambda _: f"\n{table(results)}\n", page.read_text()))


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
