"""A thousand artifacts that nobody should load: each is a valid one after all, or our error; no code runs, nothing outside is opened."""

import json
import math
import os
import random
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from spoiled_artifacts import MUTATIONS

import psr_lens as psr
from psr_lens._utils import safe_files as artifacts
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement import LearningCurve, Replacement, Site
from psr_lens.replacement.actions import actions_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

COUNT = 1_000
SETTINGS, WEIGHTS, PLAN = "replacement.json", "replacement.safetensors", "plan.json"
MODEL = {"model_name": "tiny", "n_layers": 2, "d_model": 4, "n_heads": 2, "d_vocab": 9, "architecture": "LlamaForCausalLM"}


# --- what is watched --------------------------------------------------------------------------------------------------------

_WATCHED: list[tuple[str, Any]] | None = None
_CODE = ("exec", "compile", "import", "os.system", "os.exec", "os.fork", "subprocess.Popen", "pickle.find_class", "marshal.loads")


def _note(event: str, arguments: tuple) -> None:
    if _WATCHED is not None and (event == "open" or event in _CODE):
        _WATCHED.append((event, arguments[0]))


sys.addaudithook(_note)


@contextmanager
def watched() -> Iterator[list[tuple[str, Any]]]:
    """What Python opens and runs meanwhile."""
    global _WATCHED
    _WATCHED = seen = []
    try:
        yield seen
    finally:
        _WATCHED = None


# --- valid artifacts --------------------------------------------------------------------------------------------------------


def valid_replacement(seed: int = 0) -> Replacement:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    sites = {
        "blocks.0.attn.hook_z": Site(draw(2, 1, 2), draw(2, 1, 2), draw(2, 1), "relu"),
        "blocks.1.hook_resid_post": Site(draw(1, 4), draw(1, 4), draw(1), "sigmoid"),
    }
    row = psr.Result("A-PSR", "trait", 98.0, 150, (95.0, math.nan), "pirate", "descriptions", 1.0, None, 2)
    return Replacement(
        sites,
        "QR",
        "A-PSR",
        MODEL,
        3,
        {"epochs": 2, "instructions": ["talk like a pirate ."], "triplets": 4},
        offset=-0.5,
        curve=LearningCurve((2.0, 1.0), (), (0.1, 0.1), 1),
        data="0" * 32,
        metrics=psr.ResultTable((row,), {"seed": 0}),
    )


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    one, other = valid_replacement(), valid_replacement(1)
    return {"replacement": one.save(root / "replacement"), "plan": (one - 0.5 * other).save(root / "plan")}


def load(folder: Path) -> Replacement | psr.SteeringPlan:
    return (psr.SteeringPlan if (folder / PLAN).exists() or (folder / PLAN).is_symlink() else Replacement).load(folder)


def parts_of(loaded: Replacement | psr.SteeringPlan) -> list[Replacement]:
    return [loaded] if isinstance(loaded, Replacement) else [part.replacement for part in loaded.parts]


def check_valid(loaded: Replacement | psr.SteeringPlan, again: Path) -> None:
    """What was loaded can be shown, used and saved, and its saved form loads."""
    assert repr(loaded)
    assert loaded._repr_html_()
    for part in parts_of(loaded):
        for name, site in part.sites.items():
            assert isinstance(name, str)
            assert site.rule in ("relu", "sigmoid", "linear", "constant", "projection")
            for tensor in (site.directions, site.weights, site.bias):
                assert tensor.is_floating_point()
                assert tensor.numel() > 0
                assert tensor.isfinite().all()
        assert part.question_start is None or 0 <= part.question_start < 2**31
        assert math.isfinite(part.offset)
    with suppress(InputError):  # where it starts may be unknown
        actions_of(loaded._weighted(), 0.5, None)
    assert type(loaded).load(loaded.save(again)).model_card() == loaded.model_card()


def test_a_thousand_random_artifacts_are_loaded_or_refused_and_nothing_else_happens(originals, tmp_path):
    shutil.copytree(originals["replacement"], tmp_path / "outside")
    for original in originals.values():  # what is imported and compiled once is so now
        check_valid(load(original), tmp_path / "again")
        shutil.rmtree(tmp_path / "again")
    outcomes: Counter = Counter()
    folder = tmp_path / "artifact"
    for seed in range(COUNT):
        rng = random.Random(seed)
        shutil.copytree(originals[rng.choice(["replacement", "replacement", "plan"])], folder)
        for _ in range(rng.choice([1, 1, 1, 2])):
            mutation = rng.choice(MUTATIONS)
            try:
                mutation(folder, rng)
            except (IndexError, ValueError, KeyError, SafetensorError):  # the one before left nothing of that kind
                continue
        loaded, refusal = None, f"in {tmp_path}"
        with watched() as seen:
            try:
                loaded = load(folder)
            except ArtifactError as error:
                refusal = str(error)
        assert str(tmp_path) in refusal, seed
        assert len(refusal) < 5_000, seed
        for event, what in seen:
            assert event == "open", (seed, event, what)
            assert Path(os.fsdecode(what)).resolve().is_relative_to(folder.resolve()), (seed, what)
        if loaded is not None:
            check_valid(loaded, tmp_path / "again")
            shutil.rmtree(tmp_path / "again")
        outcomes[loaded is not None] += 1
        shutil.rmtree(folder)
    assert not (tmp_path / "trace").exists()
    assert sum(outcomes.values()) == COUNT
    assert outcomes[True] > 30
    assert outcomes[False] > 600


# --- what must not be left to chance ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["replacement"], tmp_path / "artifact"))


@pytest.mark.parametrize("name", [SETTINGS, WEIGHTS])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_folder_is_not_followed_and_the_error_says_so(copy, originals, name, absolute):
    target = originals["replacement"] / name
    (copy / name).unlink()
    (copy / name).symlink_to(target if absolute else os.path.relpath(target, copy))
    with watched() as seen, pytest.raises(ArtifactError, match=rf"{name}: links to a path outside .*from_hub"):
        Replacement.load(copy)
    assert not any(event == "open" and str(what) == str(target) for event, what in seen)


def test_links_within_the_folder_and_a_linked_folder_are_fine(copy, tmp_path):
    (copy / SETTINGS).rename(copy / "the-settings")
    (copy / SETTINGS).symlink_to("the-settings")
    (tmp_path / "link").symlink_to(copy)
    assert Replacement.load(tmp_path / "link").method == "A-PSR"


def test_a_part_that_is_a_link_out_of_the_plan_is_not_followed(originals, tmp_path):
    folder = Path(shutil.copytree(originals["plan"], tmp_path / "plan"))
    shutil.rmtree(folder / "part-1")
    (folder / "part-1").symlink_to(originals["replacement"])
    with pytest.raises(ArtifactError, match=r"part-1.*outside"):
        psr.SteeringPlan.load(folder)


def test_a_pipe_is_not_waited_for(copy):
    (copy / SETTINGS).unlink()
    os.mkfifo(copy / SETTINGS)
    with pytest.raises(ArtifactError, match="not a regular file"):
        Replacement.load(copy)


@pytest.mark.parametrize(("name", "size"), [(SETTINGS, artifacts.LARGEST_SETTINGS), (WEIGHTS, artifacts.LARGEST_TENSORS)])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(copy, name, size):
    with (copy / name).open("r+b") as file:
        file.truncate(size + 1)  # without a byte on the disk
    with pytest.raises(ArtifactError, match=f"{size + 1:,} bytes, at most {size:,} can be read"):
        Replacement.load(copy)


def test_a_tensor_larger_than_its_file_is_refused_by_its_header(copy):
    text = json.dumps({f"blocks.{n}/x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]} for n in range(2)}).encode()
    (copy / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ArtifactError, match=r"lacks 'blocks\.0\.attn\.hook_z/bias'.* and others"):
        Replacement.load(copy)
    settings = json.loads((copy / SETTINGS).read_text())
    names = [f"{site['hook']}/{part}" for site in settings["sites"] for part in ("directions", "weights", "bias")]
    text = json.dumps({name: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]} for name in names}).encode()
    (copy / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ArtifactError, match="bytes more than the file holds"):
        Replacement.load(copy)


def test_what_could_not_be_read_again_is_not_written(tmp_path, originals):
    made = valid_replacement()
    deep: list = []
    for _ in range(artifacts.DEEPEST + 1):
        deep = [deep]
    for settings in ({"x": deep}, {"x": "\ud800"}, {"x": "y" * (artifacts.LARGEST_SETTINGS + 1)}):
        with pytest.raises(InputError, match="settings"):
            psr.Replacement(made.sites, "R", "x", MODEL, settings=settings).save(tmp_path / "new")
        assert not (tmp_path / "new").exists()
