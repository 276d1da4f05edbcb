"""Helpers that know no model: sequences, and packages that are missing or broken."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import package
from psr_lens._utils.sequences import common_prefix, common_suffix, padded, ranges
from psr_lens.errors import BrokenPackageError, MissingPackageError

ids = st.lists(st.integers(0, 2), max_size=6).map(tuple)


@given(sequences=st.lists(ids, min_size=1, max_size=5), side=st.sampled_from(["left", "right"]), filler=st.integers(-100, 3))
def test_padding_keeps_every_sequence_at_its_side(sequences, side, filler):
    tokens, mask = padded(sequences, side, filler=filler)
    assert tokens.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for row, real, sequence in zip(tokens, mask, sequences, strict=True):
        assert tuple(row[real.bool()].tolist()) == sequence
        assert torch.equal(real, real.sort(descending=side == "right").values)
        assert (row[~real.bool()] == filler).all()


@given(one=ids, other=ids)
def test_common_ends_are_as_long_as_they_can_be(one, other):
    start, end = common_prefix(one, other), common_suffix(one, other)
    assert one[:start] == other[:start]
    assert start == min(len(one), len(other)) or one[start] != other[start]
    assert one[len(one) - end :] == other[len(other) - end :]
    assert end == min(len(one), len(other)) or one[-end - 1] != other[-end - 1]


@pytest.mark.parametrize(
    ("numbers", "words"), [([], ""), ([4], "4"), ([0, 1], "0–1"), ([5, 0, 1, 2, 3], "0–3, 5"), ((0, 2, 4, 4), "0, 2, 4")], ids=str
)
def test_ranges_in_words(numbers, words):
    assert ranges(numbers) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens"), (1234, "1,234 tokens")])
def test_a_noun_is_in_the_plural_unless_there_is_one(number, words):
    assert counted(number, "token") == words


def test_a_missing_package_is_told_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {"broken_a": "import of_nothing_there", "broken_b": "raise OSError('libfoo.so: cannot open')"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(MissingPackageError, match=r"^of_nothing_there is not installed. `pip install psr-lens\[llm\]` brings it"):
        package("of_nothing_there.part", "llm")
    with pytest.raises(
        BrokenPackageError, match=r"broken_a is installed but cannot be imported \(ModuleNotFoundError: .*of_nothing"
    ):
        package("broken_a", "llm")
    with pytest.raises(
        BrokenPackageError, match=r"broken_b .*\(OSError: libfoo.*\)\. Reinstall it: `pip install --force-reinstall"
    ):
        package("broken_b", "llm")
    assert package("json.decoder", "llm") is sys.modules["json.decoder"]
