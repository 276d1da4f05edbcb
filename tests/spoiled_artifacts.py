"""What can be wrong with an artifact's files, drawn at random: fields, bytes, headers, tensors, names, links, and files made up."""

import json
import math
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

Mutation = Callable[[Path, random.Random], None]

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 3, 2**31, 2**63, 10**400, -(10**400), 1e308, 0.5, math.nan, math.inf, -math.inf, "", "R", "QR", "relu",
    "last", "1", "nan", "\ud800", "..", "../secret", "/etc/passwd", "__import__('os')", "{{ 7 * 7 }}", "x" * 50_000, "a\x00b", [], [[]],
    [1, 2], {}, {"format": 3}, {"": {}}, ["blocks.0.hook_resid_post"], [{"hook": "blocks.0.hook_resid_post", "rule": "relu"}],
    [{"hook": "..", "rule": "relu"}] * 3, {"settings": {}, "rows": [{}]}, {"settings": {}, "rows": [{"interval": [0, 1], "value": 1}]},
]  # fmt: skip


DTYPES: list[Any] = ["I8", "U8", "I64", "BOOL", "F4", "F8_E4M3", "F8_E5M2", "C64", "F64", "F16", "BF16", 7, None, []]
OFFSETS: list[Any] = [[0, 2**62], [8, 0], [-8, 8], [0, 0], [0], None, ["a", "b"], [0, 16], [2**64, 2**64 + 16]]


class Payload:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.trace),))


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
                    {"format": rng.choice([1, 2, 3, 4, 5]), "factors": rng.choice(HOSTILE), "sites": rng.choice(HOSTILE)}
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
