"""What a function's hints allow, what is said of anything else, and how objects that hold tensors compare."""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import psr_lens
from psr_lens._utils.arguments import check, check_fields, checks_arguments, fits, in_words
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison

FITS = [
    (int, [1, np.int64(2)], [True, 1.0, "1", None, np.array(1.0)]),
    (float, [1, 1.5, np.float32(2), float("nan")], [True, "1", None, [1.0]]),
    (bool, [True, np.bool_(False)], [0, None, "yes"]),
    (str | None, ["", None], [1, b"x", ["a"]]),
    (Literal["R", "QR"], ["R"], ["r", None, np.array(["R", "R"]), ["R"]]),
    (Literal["auto"] | bool, ["auto", True], [1, np.array([True, True])]),
    (str | os.PathLike[str], ["x", Path("x")], [b"x", 3, None]),
    (Sequence[str], [[], ("a",), ["a", "b"]], ["ab", ["a", 1], {"a"}, None]),
    (Sequence[float], [[1, 2.5], np.array([1.0, 2.0]), range(3)], [np.ones((2, 2)), torch.ones(2), ["1"]]),
    (Iterable[int], [{1, 2}, iter([1]), np.arange(2)], [[1.5], 3]),
    (tuple[int, ...], [(), (1, 2)], [(1, "2"), [1]]),
    (Mapping[str, Sequence[int]], [{}, {"a": [1]}], [{1: [1]}, {"a": 1}, [("a", [1])]]),
    (Callable[[int], str], [str, lambda number: "x"], [3, "str"]),
    (float | Float[Tensor, " batch"], [1.0, torch.ones(3), torch.ones(2, 2)], [None, np.ones(3)]),
    (Comparison, [], [None, 3, Comparison]),
    (Any, [None, object()], []),
]


@pytest.mark.parametrize(("hint", "legal", "other"), FITS, ids=lambda each: in_words(each) if not isinstance(each, list) else "")
def test_what_fits_a_hint(hint, legal, other):
    assert all(fits(value, hint) for value in legal)
    assert not any(fits(value, hint) for value in other)


@checks_arguments
def _taking(path: str | os.PathLike[str], names: Sequence[str] = (), *, by: Mapping[str, int] | None = None, n: int = 1) -> str:
    return f"{path} {list(names)} {by} {n}"


def test_arguments_are_passed_on_as_they_are():
    assert _taking("x", ["a"], by={"b": 2}, n=3) == "x ['a'] {'b': 2} 3"
    assert _taking.__name__ == "_taking"
    assert list(inspect.signature(_taking).parameters) == ["path", "names", "by", "n"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'path'"):
        _taking()
    with pytest.raises(TypeError, match="unexpected keyword argument 'm'"):
        _taking("x", m=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": None}, "path: got None, expected a text or a path."),
        ({"names": "a"}, "names: got 'a', expected a list of texts. Put it in brackets."),
        ({"names": ["a", 3]}, "names[1]: got 3, expected a text."),
        ({"names": {}}, "names: got an empty dict, expected a list of texts."),
        ({"by": [1]}, "by: got a list, expected a mapping of names to whole numbers or None."),
        ({"by": {"a": "1"}}, "by['a']: got '1', expected a whole number."),
        ({"n": np.ones(2)}, "n: got an array, expected a whole number."),
        ({"n": "x" * 1000}, f"n: got '{'x' * 80}…', expected a whole number."),
    ],
)
def test_the_message_says_which_what_and_what_else(arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        _taking(**{"path": "x", **arguments})


def test_a_block_is_refused_before_it_is_entered():
    @checks_arguments
    @contextmanager
    def block(size: int):
        yield size

    with block(3) as size:
        assert size == 3
    with pytest.raises(InputError, match="size: got 'x'"):
        block("x")


def test_fields_of_settings_and_a_hint_in_words():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        size: int = 1
        made: int = dataclasses.field(default=0, init=False)

        def __post_init__(self) -> None:
            check_fields(self)

    assert Settings(2).size == 2
    check(None, int | None, "size")
    assert in_words(Sequence[Sequence[str]] | Comparison | None) == (
        "a list of lists of texts, a Comparison from `psr.compare` or None"
    )


def test_objects_that_hold_tensors_compare_by_identity():
    """One that compares its fields would ask whether a tensor is true."""
    checked = 0
    for found in pkgutil.walk_packages(psr_lens.__path__, "psr_lens."):
        if found.name.startswith(("psr_lens.apps", "psr_lens.__main__")):
            continue
        for each in vars(importlib.import_module(found.name)).values():
            if not (inspect.isclass(each) and each.__module__ == found.name and dataclasses.is_dataclass(each)):
                continue
            if any(re.search(r"Tensor|ndarray", str(field.type)) for field in dataclasses.fields(each)):
                checked += 1
                assert each.__eq__ is object.__eq__, each
    assert checked > 20


def test_a_base_install_can_show_figures():
    """Plotly needs nbformat to show anything in a notebook, and does not require it."""
    required = tomllib.loads((Path(psr_lens.__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {"plotly", "nbformat"} <= {re.split(r"[<>=]", each)[0] for each in required}


def test_tuples_of_a_fixed_length_are_named_in_the_plural():
    assert in_words(Sequence[tuple[int, int] | str]) == "a list of tuples of 2 whole numbers or texts"
    assert in_words(Sequence[tuple[str, float]]) == "a list of tuples of 2 texts and numbers"
