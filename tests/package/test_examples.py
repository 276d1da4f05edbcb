"""Every public docstring has a short example, and every example runs, on the organism."""

import doctest
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import psr_lens as psr
import psr_lens.replacement

ROOMS = ("datasets", "judges", "organism", "patching", "plots", "transfer")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented() -> Iterator[tuple[str, Any]]:
    """Public functions and classes, and the public methods of those classes, inherited ones too, each under the name that a user writes."""
    public = {f"psr.{name}": getattr(psr, name) for name in psr.__all__ if name not in ROOMS}
    for room in ROOMS:
        module = getattr(psr, room)
        public |= {f"psr.{room}.{name}": getattr(module, name) for name in module.__all__}
    public |= {f"psr.replacement.{name}": getattr(psr_lens.replacement, name) for name in ("LearningCurve", "Site")}
    for name, value in public.items():
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            ours = [each for each in value.__mro__ if each.__module__.startswith("psr_lens.")]
            for method, of in {name: of for each in reversed(ours) for name, of in vars(each).items()}.items():
                function = of.__func__ if isinstance(of, classmethod | staticmethod) else of
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{method}", function


DOCUMENTED = dict(documented())


@pytest.fixture(scope="session")
def world(organism: Any) -> dict[str, Any]:
    """What the examples begin with; docs/api/index.md shows the same lines."""
    model = organism.model
    questions = psr.organism.questions(16, split="train", seed=0)
    pairs = psr.prompt_pairs(model, questions, instruction="talk like a pirate")
    judge = psr.judges.organism("pirate")
    triplets = psr.sample_responses(model, pairs, judge)
    captured = psr.capture(model, triplets, "resid_post")
    pirate = psr.fit(model, triplets)
    caa = psr.fit(model, triplets, psr.DiM(layers=2))
    comparison = psr.compare(model, triplets[:4], {"A-PSR": pirate, "CAA": caa})
    names = ("model", "questions", "pairs", "judge", "triplets", "captured", "pirate", "caa", "comparison")
    here = locals()
    return {"psr": psr, "torch": torch} | {name: here[name] for name in names}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_docstring_has_an_example(name: str) -> None:
    assert ">>>" in (inspect.getdoc(DOCUMENTED[name]) or ""), f"{name} has no example"


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_example_runs(name: str, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(DOCUMENTED[name]) or ""
    example = doctest.DocTestParser().get_doctest(text, dict(world), name, None, None)
    said: list[str] = []
    write: Callable[[str], Any] = said.append
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=write)
    assert not said, "".join(said)
