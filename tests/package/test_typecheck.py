"""The run-time checks of the tests notice what they are there for."""

import importlib
import sys

import jaxtyping
import pytest
import torch
import typecheck
from beartype.roar import BeartypeCallHintViolation

SOURCE = """
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float

if TYPE_CHECKING:
    from nowhere import Later

Rows = dict[str, Float[torch.Tensor, "row width"]]


@dataclass(frozen=True)
class Size:
    width: int

    def wider(self, by: int = 1, *, times: float = 1) -> Size:
        def inner(x: str) -> str:
            return x

        return Size(int(inner(self.width + by) * times))

    @staticmethod
    def half(of: int) -> int:
        return of / 2


def later(of: Later, text: str) -> str:
    return text


def laters(number: int) -> Iterator[Later]:
    yield from range(number)


def same_rows(a: Float[torch.Tensor, "row"], rows: Rows) -> int:
    return len(a)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "checked_example.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    typecheck.install("checked_example")
    yield importlib.import_module("checked_example")
    sys.modules.pop("checked_example")


def test_wrong_types_are_refused_in_functions_methods_and_dataclasses(module):
    size = module.Size(2)
    assert size.wider(2).width == 4  # what is inside a function is not checked
    assert size.wider(times=2).width == 6
    assert module.later(3, "a") == "a"
    for wrong in (lambda: size.wider("2"), lambda: size.wider(times="2"), lambda: module.later(3, 4), lambda: size.half(3)):
        with pytest.raises(BeartypeCallHintViolation):
            wrong()
    with pytest.raises(jaxtyping.TypeCheckError):
        module.Size("2")


def test_shapes_are_compared_over_arguments_and_inside_containers(module):
    assert module.same_rows(torch.zeros(3), {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}) == 3
    with pytest.raises(jaxtyping.TypeCheckError, match="rows"):
        module.same_rows(torch.zeros(3), {"a": torch.zeros(4, 2)})
    with pytest.raises(jaxtyping.TypeCheckError, match="a"):
        module.same_rows(torch.zeros(3, 1), {})


def test_a_generator_of_what_does_not_exist_yet_is_checked_for_its_arguments(module):
    assert list(module.laters(2)) == [0, 1]
    with pytest.raises(BeartypeCallHintViolation):
        list(module.laters("2"))


@pytest.mark.usefixtures("unchecked")
def test_nothing_is_checked_where_a_test_asks_for_that(module):
    assert module.later(3, 4) == 4
    assert module.Size.half(3) == 1.5


def test_a_function_keeps_its_name_and_what_is_written_about_it(module):
    assert module.later.__name__ == "later"
    assert module.later.__annotations__ == {"of": "Later", "text": "str", "return": "str"}
