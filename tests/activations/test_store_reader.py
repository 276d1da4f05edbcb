"""Reading a store: what was written comes back, only what is asked for is read, and nothing damaged is let through."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from helpers import FORK, random_triplets
from hypothesis import given
from hypothesis import strategies as st
from stores import HOOKS, SPEC_PARTS, fill, numbers_of, spec_of, write_store
from torch.utils.data import DataLoader

import psr_lens as psr
from psr_lens.activations.paired_passes import PairedReading
from psr_lens.activations.store import RowError, Store, StoreSpec, StoreWriter, rows
from psr_lens.errors import ArtifactError, InputError

COUNTS = [3, 5, 1, 9, 2, 7, 4, 4]
POST, Z = HOOKS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store that no test may change, and the numbers in it."""
    folder = tmp_path_factory.mktemp("stores") / "made"
    numbers = write_store(folder, spec_of(COUNTS))
    return Store.open(folder), numbers


@pytest.fixture
def opened(monkeypatch):
    """Names of the shard files that were mapped, in order."""
    names, safe_open = [], rows.safe_open
    monkeypatch.setattr(rows, "safe_open", lambda path, **kwargs: names.append(path.name) or safe_open(path, **kwargs))
    return names


@given(SPEC_PARTS, st.data())
def test_what_is_read_is_what_was_written(tmp_path_factory, parts, data):
    folder = tmp_path_factory.mktemp("store") / "it"
    spec = spec_of(**parts)
    numbers = write_store(folder, spec)
    store = Store.open(folder)
    store.verify()
    count = len(store)
    assert (count, store.triplets, store.groups) == (sum(spec.counts), list(spec.triplets), spec.groups)
    assert store.tokens.strings == spec.tokens.strings
    a_slice = data.draw(st.slices(count))
    some = data.draw(st.lists(st.integers(-count, count - 1), max_size=12))
    mask = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    for name, whole in numbers.items():
        stored = store[name]
        assert (len(stored), stored.shape, stored.dtype) == (count, tuple(whole.shape), whole.dtype)
        same = [
            (stored.tensor(), whole),
            (stored[a_slice], whole[range(count)[a_slice]] if len(range(count)[a_slice]) else whole[:0]),
            (stored[some], whole[some] if some else whole[:0]),
            (stored[torch.tensor(some, dtype=torch.int32)], whole[some] if some else whole[:0]),
            (stored[mask], whole[torch.tensor(mask)]),
            (stored[np.array(mask)], whole[torch.tensor(mask)]),
            (stored[-count], whole[0]),
            (torch.stack(list(stored)), whole),
        ]
        assert all(found.dtype == wanted.dtype and torch.equal(found, wanted) for found, wanted in same)
        for triplet in range(len(spec.counts)):
            assert torch.equal(stored[store.rows(triplet)], whole[spec.tokens.rows(triplet)])
        array = np.asarray(stored)
        assert array.dtype == (np.float16 if spec.dtype == "float16" else np.float32)
        assert np.array_equal(array, whole.float().numpy())


def test_a_row_may_be_asked_for_in_any_whole_number(made):
    store, numbers = made
    for index in (4, np.int32(4), np.array(4), torch.tensor(4), np.uint8(4), 4 - len(store)):
        assert torch.equal(store[Z][index], numbers[Z][4])
    assert torch.equal(store[Z][range(3, 9)], numbers[Z][3:9])
    assert np.asarray(store[Z], dtype=np.float64).dtype == np.float64
    assert repr(store[Z]) == f"StoredRows({Z}, shape=(35, 2, 3), dtype=torch.float32)"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (35, "index: got row 35, expected a row from -35 to 34 \\(the store has 35 tokens\\)"),
        (-36, "index: got row -36"),
        ([0, 99], "index: got row 99"),
        ([True, False], "index: got a mask of 2, expected one True or False for each of 35 rows"),
        (True, "index: got True, expected a row number, a slice, a list of row numbers, or a mask"),
        ((1, 2), r"index: got \(1, 2\), expected a row number"),
        ("blocks", "index: got 'blocks', expected a row number"),
        (1.0, "index: got 1.0, expected a row number"),
        ([0.5], r"index: got \[0.5\], expected a row number"),
        ([[1], [2]], r"index: got \[\[1\], \[2\]\], expected a row number"),
        (None, "index: got None, expected a row number"),
    ],
)
def test_rows_that_are_not_there_are_refused(made, index, message):
    with pytest.raises(RowError, match=message) as caught:
        made[0][POST][index]
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, IndexError)


def test_unknown_names_are_refused_with_those_that_there_are(made):
    store, _ = made
    for ask in (lambda: store["x"], lambda: store.magnitude("x"), lambda: store.batches("x"), lambda: store.dataset([POST, "x"])):
        with pytest.raises(InputError, match=f"hook: got 'x', expected one of those captured: {POST}, {Z}"):
            ask()
    with pytest.raises(InputError, match="hooks: got none, expected at least one hook point"):
        store.dataset([])
    with pytest.raises(InputError, match="triplet: got 8, expected an index from 0 to 7"):
        store.rows(8)
    with pytest.raises(InputError, match="tokens: got 0, expected at least 1"):
        store.batches(POST, 0)
    with pytest.raises(InputError, match="copy: got False"):
        np.asarray(store[POST], copy=False)


def test_only_the_shards_that_are_asked_for_are_opened(made, opened):
    folder, shards = made[0].folder, made[0].spec.shards
    store = Store.open(folder)
    stored, last = store[POST], shards[-1]
    assert (len(stored), store.summary().complete, opened) == (35, True, [])
    stored[shards[1].rows.start]
    assert opened == [shards[1].file]
    stored[last.rows.start :], stored[[last.rows.start]], store[Z][-1]
    assert opened == [shards[1].file, last.file]
    stored[:]
    assert sorted(opened) == [shard.file for shard in shards]


def test_rows_can_be_read_beside_a_damaged_shard(tmp_path):
    numbers = write_store(tmp_path, spec_of(COUNTS))
    store = Store.open(tmp_path)
    first, second, third = store.spec.shards[:3]
    (tmp_path / second.file).write_bytes(b"lost")
    for shard in (first, third):
        assert torch.equal(store[POST][shard.rows.start : shard.rows.stop], numbers[POST][shard.rows.start : shard.rows.stop])
    with pytest.raises(ArtifactError, match=rf"{second.file}: is truncated or damaged.* Call `capture` again"):
        store[POST][second.rows.start]
    (tmp_path / second.file).unlink()
    with pytest.raises(ArtifactError, match=rf"{second.file}: cannot be read \(No such file"):
        store[POST].tensor()


def test_rows_are_the_readers_own(made):
    store, numbers = made
    for index in (slice(0, 3), [0, 1, 2], 1):
        mine = store[POST][index]
        assert mine.untyped_storage().nbytes() == mine.nbytes
        mine.fill_(7)
    assert torch.equal(store[POST][:], numbers[POST])


def test_many_shards_are_not_all_held_open(tmp_path, monkeypatch, opened):
    numbers = write_store(tmp_path, spec_of([1] * 9, shard_bytes=1))
    monkeypatch.setattr(rows, "_MOST_OPEN", 4)
    store = Store.open(tmp_path)
    assert torch.equal(store[POST][:], numbers[POST])
    assert torch.equal(store[POST][:], numbers[POST])
    assert len(opened) > 9
    assert len(store._files._handles) <= 4


def test_strength_is_the_norm_of_every_token(made, tmp_path):
    store, numbers = made
    assert torch.equal(store.magnitude(Z), torch.linalg.vector_norm(numbers[Z].flatten(1), dim=1))
    spec = spec_of(COUNTS, dtype="bfloat16", hooks={"wide": (4,), "number": ()})
    half = write_store(tmp_path, spec)
    assert torch.equal(Store.open(tmp_path).magnitude("wide"), half["wide"].float().norm(dim=1))
    assert torch.equal(Store.open(tmp_path).magnitude("number"), half["number"].float().abs())


def test_a_capture_comes_back_from_the_disk(tiny_llama, organism, tmp_path):
    triplets = random_triplets(tiny_llama.model, 6)
    captured = psr.capture(tiny_llama.model, triplets, "all", span="QR")
    shapes = {name: tuple(delta.shape[1:]) for name, delta in captured.deltas.items()}
    spec = StoreSpec.of(PairedReading(tiny_llama.model, triplets, shapes, torch.float32, "QR"), shard_bytes=20_000)
    fill(StoreWriter.create(tmp_path, spec), dict(captured.deltas))
    store = Store.open(tmp_path, tiny_llama.model)
    assert store.triplets == triplets
    assert store.names == tuple(captured.deltas)
    assert store.tokens.strings == captured.tokens.strings
    assert all(torch.equal(store[name].tensor(), captured[name]) for name in store.names)
    assert all(torch.equal(store.magnitude(name), captured.magnitude(name)) for name in store.names)
    with pytest.raises(
        ArtifactError, match=r"was captured from another model than this one, .*d_model \(32 in the store, \d+ of this mod"
    ):
        Store.open(tmp_path, organism.model)
    fill(StoreWriter.create(tmp_path / "other", dataclasses.replace(spec, tokenizer="0")), dict(captured.deltas))
    with pytest.raises(
        ArtifactError, match=r"other: was captured with another tokenizer .* Load the model with the original tokenizer"
    ):
        Store.open(tmp_path / "other", tiny_llama.model)


# --- for training -----------------------------------------------------------------------------------------------------------


def test_batches_in_order_are_the_rows(made):
    store, numbers = made
    batches = list(store.batches([Z, POST], 8))
    assert [len(batch[Z]) for batch in batches] == [8, 8, 8, 8, 3]
    assert all(list(batch) == [Z, POST] for batch in batches)
    assert all(torch.equal(torch.cat([batch[name] for batch in batches]), numbers[name]) for name in (Z, POST))
    assert len(list(store.batches(POST))) == 1


@given(st.integers(1, 3000), st.integers(1, 100), st.integers(0, 5))
def test_shuffled_batches_hold_each_row_once(tmp_path_factory, count, size, seed):
    spec = spec_of([count // 2 + 1, count], shard_bytes=1, hooks={"x": ()})
    folder = tmp_path_factory.mktemp("store")
    fill(StoreWriter.create(folder, spec), {"x": torch.arange(spec.offsets[-1]).float()})
    store = Store.open(folder)
    first, again, other = (
        [batch["x"] for batch in store.batches("x", size, shuffle=True, seed=each)] for each in (seed, seed, seed + 1)
    )
    assert all(len(batch) == size for batch in first[:-1])
    assert 0 < len(first[-1]) <= size
    found = torch.cat(first)
    assert torch.equal(found.sort().values, store["x"].tensor())
    assert torch.equal(found, torch.cat(again))
    assert len(store) < 10 or not torch.equal(found, torch.cat(other))


def test_a_shuffled_buffer_takes_few_places_of_the_disk_but_mixes_them(tmp_path):
    spec = spec_of([20_000], hooks={"x": ()})
    fill(StoreWriter.create(tmp_path, spec), {"x": torch.arange(20_000).float()})
    batches = [batch["x"] for batch in Store.open(tmp_path).batches("x", 128, shuffle=True)]
    buffer = torch.cat(batches[:16])
    assert len((buffer // 256).unique()) == 16 * 128 / 256
    assert len((batches[0] // 256).unique()) == 8
    assert (batches[0].diff() == 1).sum() < 5


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (1, "spawn")])
def test_a_data_loader_reads_every_row(made, workers, start):
    store, numbers = made
    dataset = store.dataset([POST, Z])
    assert len(dataset) == 35
    assert torch.equal(dataset[3][Z], numbers[Z][3])  # so that files are open when the workers start
    loader = DataLoader(dataset, batch_size=8, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    for name in (POST, Z):
        assert torch.equal(torch.cat([batch[name] for batch in batches]), numbers[name])


def test_a_forked_process_opens_its_files_anew(made, opened):
    store = Store.open(made[0].folder)
    before = store[Z][0]
    found = FORK.Queue()
    process = FORK.Process(target=lambda: found.put((store[Z][0].tolist(), list(opened))))
    process.start()
    assert found.get(timeout=60) == (before.tolist(), ["shard-00000.safetensors"] * 2)
    process.join(60)


def test_a_batch_of_items_is_read_at_once(made, monkeypatch):
    store, numbers = made
    asked, read = [], rows.StoredRows.__getitem__
    monkeypatch.setattr(rows.StoredRows, "__getitem__", lambda self, index: asked.append(index) or read(self, index))
    items = store.dataset(Z).__getitems__([9, 2, 9])
    assert asked == [[9, 2, 9]]
    assert all(torch.equal(item[Z], numbers[Z][row]) for item, row in zip(items, [9, 2, 9], strict=True))


# --- damage -----------------------------------------------------------------------------------------------------------------

FILES = ["manifest.json", "triplets.jsonl", "tokens.safetensors", "shard-00000.safetensors", "shard-00002.safetensors"]
REMEDY = "(Call `capture` again with the same arguments and this folder|Update psr_lens|Give the folder that)"


def _refused(folder, message):
    with pytest.raises(ArtifactError, match=message):
        Store.open(folder).verify()


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_any_other_byte_in_any_file_is_refused(made, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("store") / "it"
    shutil.copytree(made[0].folder, folder)
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 40))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    _refused(folder, rf"{name}: [^\n]*{REMEDY}")


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_truncated_or_longer_file_is_refused_when_it_is_opened(made, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("store") / "it"
    shutil.copytree(made[0].folder, folder)
    content = (folder / name).read_bytes()
    left = data.draw(st.integers(0, len(content) - 1))
    (folder / name).write_bytes(data.draw(st.sampled_from([content[:left], content + b"\n"])))
    with pytest.raises(ArtifactError, match=rf"{name}: .*{REMEDY}"):
        Store.open(folder)


@pytest.mark.parametrize("name", [name for name in FILES if "shard" not in name])
def test_a_missing_file_is_named(made, tmp_path, name):
    shutil.copytree(made[0].folder, tmp_path / "it")
    (tmp_path / "it" / name).unlink()
    with pytest.raises(
        ArtifactError, match=rf"it/{name}: (cannot be read \(No such file|no such file, so the folder is not a store).*{REMEDY}"
    ):
        Store.open(tmp_path / "it")


def test_swapped_shards_are_refused(made, tmp_path):
    shutil.copytree(made[0].folder, tmp_path / "it")
    one, two = (tmp_path / "it" / f"shard-0000{number}.safetensors" for number in (0, 1))
    (one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two))
    with pytest.raises(
        ArtifactError, match=rf"shard-00000.safetensors: holds 'shard 1' instead of 'shard 0'; was it renamed\? {REMEDY}"
    ):
        Store.open(tmp_path / "it")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_store_is_refused(made, tmp_path, name):
    shutil.copytree(made[0].folder, tmp_path / "it")
    write_store(tmp_path / "other", spec_of(COUNTS, seed=50))
    shutil.copy(tmp_path / "other" / name, tmp_path / "it")
    found = (
        "triplets.jsonl: is damaged"
        if "triplets" in name
        else "safetensors: does not belong to the store described by the manifest.json beside it"
    )
    with pytest.raises(ArtifactError, match=rf"{found}.*{REMEDY}"):
        Store.open(tmp_path / "it")


def test_the_same_shard_with_other_numbers_is_still_whole(made, tmp_path):
    shutil.copytree(made[0].folder, tmp_path / "it")
    write_store(tmp_path / "other", made[0].spec, seed=1)
    shutil.copy(tmp_path / "other" / "shard-00000.safetensors", tmp_path / "it")
    Store.open(tmp_path / "it").verify()  # two runs of one capture may differ in the last bit: both are it


def test_verify_names_every_damaged_file(made, tmp_path):
    shutil.copytree(made[0].folder, tmp_path / "it")
    store = Store.open(tmp_path / "it")
    for number in (0, 2):
        path = tmp_path / "it" / f"shard-0000{number}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(
        ArtifactError, match=rf"shard-00000.safetensors: is damaged, the checksum of {Z} is .*\n.*shard-00002.saf.*{REMEDY}"
    ):
        store.verify()


def test_an_unfinished_store_is_refused_unless_it_is_asked_for(tmp_path):
    spec = spec_of(COUNTS)
    numbers = numbers_of(spec)
    unfinished = StoreWriter.create(tmp_path, spec)
    fill(unfinished, numbers, most=2)
    (tmp_path / "shard-00001.safetensors").write_bytes(b"half")
    left = len(spec.shards)
    message = rf"is incomplete, {left - 2} of {left} shards are missing, the first is shard-00002.safetensors. {REMEDY}"
    with pytest.raises(ArtifactError, match=message):
        Store.open(tmp_path)
    store = Store.open(tmp_path, partial=True)
    assert store.missing == tuple(range(1, left))
    assert not store.summary().complete
    assert f"incomplete, 1 of {left} shards" in str(store.summary())
    assert "\n" not in repr(store.summary())
    assert repr(store.summary()).endswith(f", 1 of {left} shards)")
    assert torch.equal(store[POST][:3], numbers[POST][:3])
    with pytest.raises(ArtifactError, match=rf"shard-00002.safetensors: cannot be read \(No such file or directory\). {REMEDY}"):
        store[POST][spec.shards[2].rows.start]
    (tmp_path / "shard-00001.safetensors").unlink()
    fill(StoreWriter.create(tmp_path, spec), numbers)
    assert torch.equal(store[POST][:], numbers[POST])  # what has come since is found
    assert Store.open(tmp_path).summary().complete


def test_a_summary_says_what_there_is(made):
    store, _ = made
    summary = store.summary()
    assert (summary.triplets, summary.tokens, summary.shards, summary.missing) == (8, 35, len(store.spec.shards), ())
    assert summary.groups == {"a": (4, 3 + 1 + 2 + 4), "b": (4, 5 + 9 + 7 + 4)}
    assert summary.bytes_of_tensors == 35 * 14 * 4
    assert summary.bytes_on_disk == sum(path.stat().st_size for path in store.folder.iterdir())
    text = str(summary).splitlines()
    assert text[0] == f"{store.folder}: complete, {summary.shards} of {summary.shards} shards"
    assert "  rows       35 tokens of 8 triplets" in text
    assert "  values     accumulated differences, span R, float32" in text
    assert "  b      4         25" in text
    assert f"  {Z}      2 × 3" in text
    many = dataclasses.replace(summary, hooks={f"blocks.{layer}.hook_z": (2, 3) for layer in range(30)}, bytes_on_disk=5 * 2**40)
    assert str(many).splitlines()[-1] == "  … and 6 more"
    assert "5.0 TiB" in str(many)
    assert repr(store) == f"Store({store.folder}, 35 tokens at 2 hook points, float32)"
