"""A thousand artifacts that nobody should load: each is a valid one after all, or our error; no code runs, nothing outside is opened."""

import json
import math
import os
import pickle
import random
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file

import psr_lens as psr
from psr_lens import artifacts
from psr_lens.curve import LearningCurve
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement import Replacement, Site

pytestmark = pytest.mark.usefixtures("unchecked")

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


class Payload:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.trace),))


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
            assert site.rule in ("relu", "sigmoid", "constant", "projection")
            for tensor in (site.directions, site.weights, site.bias):
                assert tensor.is_floating_point()
                assert tensor.numel() > 0
                assert tensor.isfinite().all()
        assert part.question_start is None or 0 <= part.question_start < 2**31
        assert math.isfinite(part.offset)
    with suppress(InputError):  # where it starts may be unknown
        loaded.actions(0.5)
    assert type(loaded).load(loaded.save(again)).model_card() == loaded.model_card()


# --- what is done to them ---------------------------------------------------------------------------------------------------

Mutation = Callable[[Path, random.Random], None]

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 3, 2**31, 2**63, 10**400, -(10**400), 1e308, 0.5, math.nan, math.inf, -math.inf, "", "R", "QR", "relu",
    "last", "1", "nan", "\ud800", "..", "../secret", "/etc/passwd", "__import__('os')", "{{ 7 * 7 }}", "x" * 50_000, "a\x00b", [], [[]],
    [1, 2], {}, {"format": 3}, {"": {}}, ["blocks.0.hook_resid_post"], [{"hook": "blocks.0.hook_resid_post", "rule": "relu"}],
    [{"hook": "..", "rule": "relu"}] * 3, {"settings": {}, "rows": [{}]}, {"settings": {}, "rows": [{"interval": [0, 1], "value": 1}]},
]  # fmt: skip


DTYPES: list[Any] = ["I8", "U8", "I64", "BOOL", "F4", "F8_E4M3", "F8_E5M2", "C64", "F64", "F16", "BF16", 7, None, []]
OFFSETS: list[Any] = [[0, 2**62], [8, 0], [-8, 8], [0, 0], [0], None, ["a", "b"], [0, 16], [2**64, 2**64 + 16]]


def any_file(folder: Path, rng: random.Random, suffix: str = "") -> Path:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name.endswith(suffix))
    return rng.choice([path for path in found if path.suffix != ".md"])


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def change_json(value: Any, rng: random.Random) -> Any:
    """One field replaced, taken away, doubled or added."""
    place = rng.choice([each for each in places(value) if each] or [()])
    if not place:
        return rng.choice(HOSTILE)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.65:
        parent[place[-1]] = rng.choice(HOSTILE)
    elif kind < 0.85:
        del parent[place[-1]]
    elif isinstance(parent, list):
        parent.insert(0, parent[place[-1]])
    else:
        parent[rng.choice(["extra", "", "__class__", "format"])] = rng.choice(HOSTILE)
    return value


def fields(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng, ".json")
    content = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        content = change_json(content, rng)
    path.write_text(json.dumps(content))


def raw_bytes(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 20])):
        at, kind = rng.randrange(len(content) + 1), rng.randrange(5)
        if kind == 0 and at < len(content):
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.choice([1, 8, 300]))
        elif kind == 3:
            del content[at : at + rng.choice([1, 7, 64])]
        else:
            content += content[at:]
    path.write_bytes(content)


def header(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng, "ensors")
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    if rng.random() < 0.4:
        lie = rng.choice([0, 1, length - 1, length + 1, len(content), 2**31, 2**40, 2**63, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", lie) + content[8:])
        return
    entries = json.loads(content[8 : 8 + length])
    name = rng.choice(sorted(set(entries) - {"__metadata__"}))
    kind = rng.choice(["dtype", "shape", "data_offsets", "entry", "name", "any", "deep"])
    if kind == "dtype":
        entries[name]["dtype"] = rng.choice(DTYPES)
    elif kind == "shape":
        entries[name]["shape"] = rng.choice(
            [[], [0], [1, 0], [2**62, 4], [-1, 4], [4, 1], [1, 1, 4], [1, 1, 1, 4], [1e9], "1x4", None]
        )
    elif kind == "data_offsets":
        entries[name]["data_offsets"] = rng.choice(OFFSETS)
    elif kind == "entry":
        entries[name] = rng.choice(HOSTILE)
    elif kind == "name":
        entries[rng.choice(["", "..", "/etc/passwd", "x/y/z", "\ud800"])] = entries.pop(name)
    elif kind == "any":
        entries = change_json(entries, rng)
    text = b"[" * 100_000 if kind == "deep" else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def tensors(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng, "ensors")
    held = load_file(path)
    name = rng.choice(sorted(held))
    tensor = held[name].clone()
    wrong = [
        tensor.fill_(math.nan),
        tensor * math.inf,
        tensor.int(),
        tensor.bool(),
        tensor.to(torch.float8_e4m3fn),
        tensor.to(torch.complex64),
        tensor.half(),
        tensor.double(),
        tensor[..., :0],
        tensor[None],
        tensor.flatten(),
        torch.zeros(()),
        torch.zeros(3, 5),
        None,
    ]
    changed = rng.choice(wrong)
    held.pop(name)
    if changed is not None:
        held[name] = changed.nan_to_num().contiguous() if changed.dtype in (torch.half, torch.double) else changed.contiguous()
    if rng.random() < 0.2:
        held["another"] = torch.zeros(2)
    save_file(held, path)


def swapped(folder: Path, rng: random.Random) -> None:
    first, second = any_file(folder, rng), any_file(folder, rng)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def gone(folder: Path, rng: random.Random) -> None:
    any_file(folder, rng).unlink()


def paths(folder: Path, rng: random.Random) -> None:
    """Links and things that are no files, where a file or a part should be."""
    outside = folder.parent / "outside"
    path = any_file(folder, rng)
    if (folder / "part-0").is_dir() and not (folder / "part-0").is_symlink() and rng.random() < 0.4:
        path = folder / "part-0"
        shutil.rmtree(path)
        path.symlink_to(rng.choice([outside, outside.resolve(), Path("../outside"), Path("part-1"), Path("."), Path("/")]))
        return
    name = path.name
    path.unlink()
    kind = rng.randrange(8)
    if kind == 0:
        path.symlink_to(outside / name)
    elif kind == 1:
        path.symlink_to(os.path.relpath(outside / name, path.parent))
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.symlink_to("/dev/zero")
    elif kind == 4:
        os.mkfifo(path)
    elif kind == 5:
        path.mkdir()
    elif kind == 6:
        path.symlink_to("/proc/self/environ")
    else:
        path.symlink_to("nowhere")


def made_up(folder: Path, rng: random.Random) -> None:
    """Files that were never an artifact's."""
    path = any_file(folder, rng)
    header_text = json.dumps({"a": {"dtype": "F32", "shape": [rng.randrange(9)], "data_offsets": [0, rng.randrange(99)]}}).encode()
    path.write_bytes(
        rng.choice(
            [
                b"",
                rng.randbytes(rng.randrange(200)),
                b"\xff\xfe" + rng.randbytes(20),
                b"\xef\xbb\xbf{}",
                pickle.dumps(Payload(folder.parent / "trace")),
                b"[" * 200_000,
                b'{"format": 3, "settings": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
                b'{"format": ' + b"9" * 10_000 + b"}",
                json.dumps(rng.choice(HOSTILE)).encode(),
                json.dumps(
                    {"format": rng.choice([1, 2, 3, 4]), "factors": rng.choice(HOSTILE), "sites": rng.choice(HOSTILE)}
                ).encode(),
                struct.pack("<Q", len(header_text)) + header_text + rng.randbytes(rng.randrange(40)),
                save({"a": torch.zeros(2)}),
            ]
        )
    )


MUTATIONS: tuple[Mutation, ...] = (
    fields,
    fields,
    fields,
    raw_bytes,
    raw_bytes,
    header,
    header,
    tensors,
    swapped,
    gone,
    paths,
    made_up,
)


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
    with watched() as seen, pytest.raises(ArtifactError, match=rf"{name}: is a link to a place outside .*from_hub"):
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
    with pytest.raises(ArtifactError, match="no plain file"):
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
