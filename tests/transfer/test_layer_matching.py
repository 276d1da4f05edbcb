"""Layers are matched by depth as the formula has it, and by scores as well as any monotone matching can."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.transfer.layer_matching import checked_pairs

score = st.one_of(st.floats(-1, 1, width=16), st.just(float("nan")))


@given(st.integers(1, 40), st.integers(1, 40))
def test_equal_relative_depth(source: int, target: int) -> None:
    pairs = psr.transfer.matched_by_depth(source, target)
    assert [layer for _, layer in pairs] == list(range(target))
    assert pairs[-1][0] == source - 1
    for s, t in pairs:
        here = (t + 1) / target
        assert abs((s + 1) / source - here) <= min(abs((other + 1) / source - here) for other in range(source)) + 1e-12
    assert source != target or pairs == tuple(zip(range(source), range(source), strict=True))


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(score, min_size=width, max_size=width), min_size=1, max_size=4)))
def test_no_monotone_matching_is_better(rows: list[list[float]]) -> None:
    scores = torch.tensor(rows)
    pairs = psr.transfer.best_monotone_matching(scores)
    assert [layer for _, layer in pairs] == list(range(scores.shape[1]))
    known = scores.nan_to_num(nan=-100.0).double()

    def total(chosen: tuple[int, ...]) -> float:
        return sum(float(known[s, t]) for t, s in enumerate(chosen))

    every = [each for each in itertools.product(range(len(rows)), repeat=scores.shape[1]) if list(each) == sorted(each)]
    best = max(map(total, every))
    found = tuple(s for s, _ in pairs)
    assert found in every
    assert total(found) == pytest.approx(best, abs=1e-9)


def test_wrong_layers_are_refused() -> None:
    with pytest.raises(InputError, match="source_layers"):
        psr.transfer.matched_by_depth(0, 3)
    for scores in (torch.zeros(0, 3), torch.full((2, 2), float("inf"))):
        with pytest.raises(InputError, match="scores"):
            psr.transfer.best_monotone_matching(scores)
    for pairs in ([], [(6, 0)], [(0, 4)], [(-1, 0)], [(1, 2), (2, 2)]):
        with pytest.raises(InputError, match="layers"):
            checked_pairs(pairs, 6, 4)
    assert checked_pairs([(3, 2), (0, 1)], 6, 4) == ((0, 1), (3, 2))
