"""Writing a store: the same bytes whatever happens, and nothing lost when something does."""

import errno
import os
import random
import resource
import signal
import time

import pytest
import torch
from helpers import FORK, kill_when
from hypothesis import given
from hypothesis import strategies as st
from stores import SPEC_PARTS, bytes_of, fill, numbers_of, spec_of, write_store

from psr_lens.activations.store import Store, StoreWriter, writer
from psr_lens.activations.store.files import write_parts
from psr_lens.errors import ArtifactError, InputError

COUNTS = [3, 5, 1, 9, 2, 7, 4, 4, 8, 1, 6, 3, 2, 9, 5, 5]


@given(SPEC_PARTS, st.data())
def test_any_order_any_ranks_and_any_interruption_give_the_same_bytes(tmp_path_factory, parts, data):
    spec = spec_of(**parts)
    root = tmp_path_factory.mktemp("stores")
    numbers = write_store(root / "one", spec)
    ranks = data.draw(st.integers(1, 3))
    for rank in data.draw(st.permutations(range(ranks))):
        fill(StoreWriter.create(root / "two", spec, rank, ranks), numbers, most=data.draw(st.integers(0, 3)))
    for _ in range(2):
        for rank in range(ranks):
            fill(StoreWriter.create(root / "two", spec, rank, ranks), numbers)
    assert bytes_of(root / "one") == bytes_of(root / "two")


def test_a_resumed_capture_keeps_whole_shards_untouched(tmp_path):
    spec = spec_of(COUNTS)
    numbers = numbers_of(spec)
    fill(StoreWriter.create(tmp_path, spec), numbers, most=3)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    resumed = StoreWriter.create(tmp_path, spec)
    assert resumed.missing() == list(range(3, len(spec.shards)))
    fill(resumed, numbers)
    assert resumed.missing() == []
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "tokens.safetensors", "triplets.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_what_was_damaged_is_written_again(tmp_path, name, damage):
    spec = spec_of(COUNTS)
    numbers = write_store(tmp_path, spec)
    whole = bytes_of(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-3])
    if damage == "remove" or name == "manifest.json":  # a damaged manifest is the user's to delete, as the message says
        path.unlink()
    resumed = StoreWriter.create(tmp_path, spec)
    assert resumed.missing() == ([1] if "shard" in name else [])
    fill(resumed, numbers)
    assert bytes_of(tmp_path) == whole


def _write_rank(folder, spec, rank, ranks):
    fill(StoreWriter.create(folder, spec, rank, ranks), numbers_of(spec))


def test_two_processes_at_once_write_what_one_does(tmp_path):
    spec = spec_of(COUNTS)
    write_store(tmp_path / "one", spec)
    for attempt in range(5):
        folder = tmp_path / f"two-{attempt}"
        processes = [FORK.Process(target=_write_rank, args=(folder, spec, rank, 2)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        assert bytes_of(folder) == bytes_of(tmp_path / "one")


def _write_slowly(folder, spec):
    def in_pieces(path, parts):
        content = b"".join(parts)
        with path.open("wb", buffering=0) as file:
            step = len(content) // 8 + 1
            for start in range(0, len(content), step):
                file.write(content[start : start + step])
                time.sleep(0.0015)

    writer.write_parts = in_pieces
    _write_rank(folder, spec, 0, 1)


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(tmp_path):
    spec = spec_of(COUNTS * 4)
    write_store(tmp_path / "one", spec)
    rng, left_behind = random.Random(0), 0
    folder = tmp_path / "killed"
    for _ in range(5):
        process = FORK.Process(target=_write_slowly, args=(folder, spec))
        process.start()
        writes = f"*-pid{process.pid}.tmp"
        kill_when(lambda writes=writes: any(folder.glob(writes)), process, rng.uniform(0, 0.03))
        assert process.exitcode == -signal.SIGKILL
        names = set(bytes_of(folder)) if folder.exists() else set()
        left_behind += any(name.endswith(".tmp") for name in names)
        whole = {name: content for name, content in bytes_of(tmp_path / "one").items() if name in names}
        assert {name: content for name, content in bytes_of(folder).items() if name in whole} == whole
    assert left_behind > 0, "no kill came while a file was written"
    _write_rank(folder, spec, 0, 1)
    assert bytes_of(folder) == bytes_of(tmp_path / "one")


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path, monkeypatch):
    written = {}

    def watched(path, parts):
        name = path.name[1:].split(".rank")[0]
        assert name not in bytes_of(tmp_path)
        write_parts(path, parts)
        written[name] = path.stat().st_ino

    monkeypatch.setattr(writer, "write_parts", watched)
    write_store(tmp_path, spec_of(COUNTS))
    assert written == {path.name: path.stat().st_ino for path in tmp_path.iterdir()}  # renamed, not copied


def test_a_rank_leaves_the_others_temporary_files_alone(tmp_path):
    spec = spec_of(COUNTS)
    write_store(tmp_path, spec)
    names = [
        ".shard-00000.safetensors.rank0-pid7.tmp",
        ".shard-00001.safetensors.rank1-pid7.tmp",
        ".tokens.safetensors.rank1-pid7.tmp",
    ]
    for name in [*names, "notes.txt"]:
        (tmp_path / name).touch()
    StoreWriter.create(tmp_path, spec, 0, 2)
    assert not (tmp_path / names[0]).exists()
    assert all((tmp_path / name).exists() for name in names[1:])
    StoreWriter.create(tmp_path, spec, 1, 2)
    assert not any((tmp_path / name).exists() for name in names)
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("full_after", range(6))
def test_a_full_disk_loses_nothing_and_says_what_to_do(tmp_path, monkeypatch, code, full_after):
    spec = spec_of(COUNTS)
    numbers = write_store(tmp_path / "one", spec)
    room = full_after

    def write_until_full(path, parts):
        nonlocal room
        if room == 0:
            path.write_bytes(b"half")
            raise OSError(code, os.strerror(code))
        room -= 1
        write_parts(path, parts)

    monkeypatch.setattr(writer, "write_parts", write_until_full)
    folder = tmp_path / "full"
    message = (
        r"full/[a-z0-9.-]+: could not be written, the disk is full. Free some space and call `capture` again; finished shards are k"
    )
    with pytest.raises(ArtifactError, match=message):
        fill(StoreWriter.create(folder, spec), numbers)
    there = bytes_of(folder)
    assert len(there) == full_after
    assert there.items() <= bytes_of(tmp_path / "one").items()
    monkeypatch.undo()
    fill(StoreWriter.create(folder, spec), numbers)
    assert bytes_of(folder) == bytes_of(tmp_path / "one")


def _write_within(folder, spec, size, messages):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        _write_rank(folder, spec, 0, 1)
    except ArtifactError as error:
        messages.put(str(error))


def test_a_write_that_the_system_refuses_loses_nothing(tmp_path):
    spec = spec_of([1, 1, 1, 4000], shard_bytes=200)
    write_store(tmp_path / "one", spec)
    messages = FORK.Queue()
    process = FORK.Process(target=_write_within, args=(tmp_path / "two", spec, 200_000, messages))
    process.start()
    message = messages.get(timeout=60)
    process.join(60)
    assert (
        f"{spec.shards[-1].file}: could not be written, File too large. Fix this and call `capture` again; finished shards are k"
        in message
    )
    there = bytes_of(tmp_path / "two")
    assert there.items() < bytes_of(tmp_path / "one").items()
    assert len(there) == 3 + len(spec.shards) - 1
    _write_rank(tmp_path / "two", spec, 0, 1)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_a_folder_with_another_store_is_left_as_it_is(tmp_path):
    write_store(tmp_path, spec_of(COUNTS))
    before = bytes_of(tmp_path)
    message = (
        r'manifest.json: the folder holds another store, which differs in dtype \("float32" there, "float16" asked\), .*\. Give'
    )
    with pytest.raises(ArtifactError, match=message):
        StoreWriter.create(tmp_path, spec_of(COUNTS, dtype="float16", shard_bytes=401))
    assert bytes_of(tmp_path) == before


def test_a_damaged_manifest_is_not_written_over(tmp_path):
    write_store(tmp_path, spec_of(COUNTS))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json: has format None"):
        StoreWriter.create(tmp_path, spec_of(COUNTS))
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(ArtifactError, match=r"is a file, or lies under one. Give a folder"):
            StoreWriter.create(folder, spec_of([2]))


def test_a_folder_that_cannot_be_made_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"store: could not be written, Permission denied. Fix this and call `capture` again"):
        StoreWriter.create(tmp_path / "store", spec_of([2]))


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    write_store(tmp_path / "one", spec_of(COUNTS))
    monkeypatch.setattr(os, "link", refuse)
    write_store(tmp_path / "two", spec_of(COUNTS))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shard", "change", "message"),
    [
        (1, lambda rows: rows, r"shard: got 1, expected one of this writer's shards \(rank 0 of 2\): \[0, 2\]"),
        (9, lambda rows: rows, "shard: got 9, expected one of this writer's"),
        (
            0,
            lambda rows: dict(list(rows.items())[1:]),
            r"got a mapping that lacks blocks\.0\.hook_resid_post, expected exactly the hook",
        ),
        (0, lambda rows: rows | {"x": torch.ones(3)}, "got a mapping that adds x, expected"),
        (
            0,
            lambda rows: {name: tensor[1:] for name, tensor in rows.items()},
            r"got torch.float32 \(4, 8\), expected .* \(5, 8\) in shard 0",
        ),
        (0, lambda rows: {name: tensor.half() for name, tensor in rows.items()}, "got torch.float16 .* expected torch.float32"),
    ],
)
def test_what_does_not_fit_the_spec_is_refused(tmp_path, shard, change, message):
    spec = spec_of([3, 2, 4, 5])
    half = StoreWriter.create(tmp_path, spec, 0, 2)
    before = bytes_of(tmp_path)
    rows = {name: tensor[:5] for name, tensor in numbers_of(spec).items()}
    with pytest.raises(InputError, match=message):
        half.write(shard, change(rows))
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (-1, 1), (0, 0)])
def test_a_rank_outside_of_the_world_is_refused(tmp_path, rank, ranks):
    with pytest.raises(InputError, match=f"rank: got {rank}, expected a number from 0 up, below the world_size of {ranks}"):
        StoreWriter.create(tmp_path, spec_of([2]), rank, ranks)


def test_tensors_that_are_not_contiguous_are_written_as_they_read(tmp_path):
    spec = spec_of([4], hooks={"x": (8,)})
    turned = torch.randn(8, 4).T
    path = StoreWriter.create(tmp_path, spec).write(0, {"x": turned.requires_grad_()})
    assert path == tmp_path / "shard-00000.safetensors"
    assert torch.equal(Store.open(tmp_path)["x"].tensor(), turned)
