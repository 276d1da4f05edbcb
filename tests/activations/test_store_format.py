"""The spec, the plan of the shards, and what every file of a store must be."""

import copy
import json
import math
import shutil
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
import xxhash
from helpers import random_triplets
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from stores import HOOKS, SPEC_PARTS, bytes_of, spec_of, triplet_of, write_store

from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.activations.paired_passes import PairedReading
from psr_lens.activations.store import Store, StoreSpec, StoreWriter, plan_shards, tokenizer_fingerprint, triplet_id
from psr_lens.activations.store.files import Layout, read_checksums, verify_file
from psr_lens.activations.store.format import FORMAT, manifest_bytes, read_manifest, read_spec, shard_layout
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import model_identity, tokenizer_of
from psr_lens.prompts import token_table


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 40), st.integers(1, 2000))
def test_shards_hold_each_triplet_once_in_order_and_are_full(counts, row, most):
    shards = plan_shards(counts, row, most)
    assert [index for shard in shards for index in shard.triplets] == list(range(len(counts)))
    assert [index for shard in shards for index in shard.rows] == list(range(sum(counts)))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for shard, following in zip_longest(shards, shards[1:]):
        held = sum(counts[index] for index in shard.triplets)
        assert held == len(shard.rows)
        assert held * row <= most or len(shard.triplets) == 1
        if following is not None:
            assert (held + counts[following.triplets.start]) * row > most


@given(SPEC_PARTS)
def test_a_spec_is_read_as_it_was_written(tmp_path_factory, parts):
    spec = spec_of(**parts)
    folder = tmp_path_factory.mktemp("store") / "it"
    write_store(folder, spec)
    read = read_spec(folder)
    assert read == spec
    assert hash(read) == hash(spec)
    assert read.triplets == spec.triplets
    assert read.tokens.strings == spec.tokens.strings
    assert all(torch.equal(getattr(read.tokens, part), getattr(spec.tokens, part)) for part in ("token_ids", "triplet", "position"))
    assert (read.hooks, read.dtype, read.groups, read.settings) == (spec.hooks, spec.dtype, spec.groups, spec.settings)
    assert list(read.hooks) == list(spec.hooks)


def test_a_spec_follows_from_a_model_and_triplets(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 5)
    reading = PairedReading(tiny_llama.model, triplets, {"blocks.0.hook_resid_post": (32,)}, torch.float32, "QR")
    spec = StoreSpec.of(reading, dtype="bfloat16")
    table = token_table(tiny_llama.model, triplets, "QR")
    assert spec.model == model_identity(tiny_llama.model)
    assert spec.tokenizer == tokenizer_fingerprint(tokenizer_of(tiny_llama.model))
    assert torch.equal(spec.tokens.token_ids, table.token_ids)
    assert sum(spec.counts) == len(table) == spec.offsets[-1]
    assert spec.hooks == {"blocks.0.hook_resid_post": (32,)}
    assert spec.bytes_per_token == 64
    assert spec.groups == ("",) * 5


def test_the_same_capture_has_the_same_digest_and_any_other_another():
    spec = spec_of([3, 2])
    others = [
        spec_of([3, 3]),
        spec_of([3, 2], seed=9),
        spec_of([3, 2], dtype="float16"),
        spec_of([3, 2], groups=("a", "c")),
        spec_of([3, 2], settings={}),
        spec_of([3, 2], tokenizer="4567"),
        spec_of([3, 2], shard_bytes=401),
        replace(spec, triplets=(replace(spec.triplets[0], trait=25.0), spec.triplets[1])),
        replace(spec, triplets=(replace(spec.triplets[0], response="ahoy"), spec.triplets[1])),
    ]
    assert spec_of([3, 2]).digest == spec.digest
    assert len({spec, *others}) == 1 + len(others)
    assert spec != "a spec"
    assert copy.deepcopy(spec) == spec


def test_a_triplets_identity_is_in_its_ids_alone():
    triplet = triplet_of(4, 0)
    assert triplet_id(replace(triplet, trait=10.0, response="other words")) == triplet_id(triplet)
    assert triplet_id(replace(triplet, response_ids=(*triplet.response_ids, 3))) != triplet_id(triplet)
    assert len(triplet_id(triplet)) == 32


def test_a_tokenizer_keeps_its_fingerprint_when_only_calls_change(tiny_llama):
    tokenizer = tokenizer_of(tiny_llama.model)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a short text", "a text that is longer"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before

    class Slow:
        def __init__(self, vocabulary):
            self.special_tokens_map = {"eos_token": "</s>"}
            self.get_vocab = lambda: vocabulary

    assert tokenizer_fingerprint(Slow({"a": 0})) != tokenizer_fingerprint(Slow({"b": 0})) != before
    assert tokenizer_fingerprint(Slow({"a": 0, "b": 1})) == tokenizer_fingerprint(Slow({"b": 1, "a": 0}))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"hooks": {}}, "hooks: got none, expected at least one"),
        ({"hooks": {"x": (0,)}}, r"hooks\['x'\]: got \(0,\)"),
        ({"dtype": "float64"}, "dtype: got 'float64', expected one of float32, bfloat16, float16"),
        ({"span": "Q"}, "span: got 'Q', expected one of R, QR"),
        ({"difference": "both"}, "difference: got 'both', expected one of accumulated, local"),
        ({"triplets": ()}, "triplets: got none, expected at least one"),
        ({"groups": ("a",)}, "groups: got a list of 1, expected 2, one group for each triplet"),
        ({"tokens": spec_of([3, 1]).tokens}, "tokens: got 4 rows, expected the 5 rows of the triplets' span R, in their order"),
        ({"shard_bytes": 0}, "shard_bytes: got 0, expected at least 1"),
        ({"settings": {"a": torch.ones(1)}}, "settings: got .*JSON"),
        ({"settings": {"a": (1, 2)}}, "settings: got .*JSON"),
        ({"triplets": (replace(triplet_of(3, 0), trait=math.nan), triplet_of(2, 1))}, r"triplets\[0\]: got scores nan .* Drop it"),
    ],
)
def test_parts_that_cannot_belong_together_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        replace(spec_of([3, 2]), **parts)


def test_an_empty_span_is_refused():
    triplet = triplet_of(2, 0)
    empty = replace(triplet, response_ids=(), pair=replace(triplet.pair, question_length=0))
    with pytest.raises(InputError, match=r"triplets\[1\]: got no token in the span, expected at least one. Drop it"):
        replace(spec_of([2, 2], span="QR"), triplets=(triplet_of(2, 0, "QR"), empty))


@given(SPEC_PARTS)
def test_a_file_is_what_safetensors_itself_would_read(tmp_path_factory, parts):
    spec = spec_of(**parts)
    folder = tmp_path_factory.mktemp("store") / "it"
    numbers = write_store(folder, spec)
    for shard in spec.shards:
        path = folder / shard.file
        layout = shard_layout(spec, shard.number)
        sums = read_checksums(path, layout)
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(spec.hooks)
            assert file.metadata()["store"] == spec.digest
            for name in spec.hooks:
                rows = numbers[name][shard.rows.start : shard.rows.stop]
                assert torch.equal(file.get_tensor(name), rows)
                assert sums[name] == xxhash.xxh3_128_hexdigest(raw_bytes(rows))
        verify_file(path, layout)


def test_tensors_are_aligned_and_the_order_of_a_dictionary_does_not_matter():
    layout = Layout({"b": (torch.float32, (2, 3)), "a": (torch.float16, (4,))}, "store", "part")
    header = layout.header({"a": "1", "b": "2"})
    turned = Layout(dict(reversed(layout.tensors.items())), "store", "part").header({"b": "2", "a": "1"})
    assert header == turned
    assert len(header) % 8 == 0
    assert layout.sizes == {"a": 8, "b": 24}


def test_the_manifest_is_json_that_says_what_the_store_is(tmp_path):
    spec = spec_of([3, 2, 4])
    write_store(tmp_path, spec)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format"] == FORMAT == 3
    assert [each["name"] for each in content["hooks"]] == list(HOOKS)
    assert [each["tokens"] for each in content["triplets"]] == [3, 2, 4]
    assert content["shards"][0] == {"file": "shard-00000.safetensors", "first_triplet": 0, "triplets": 2, "tokens": 5}
    assert content.pop("digest") == spec.digest
    assert content == spec.content == read_manifest(tmp_path / "manifest.json")


def _rewritten(folder, change, *, others=False):
    """Change a manifest, and give it the digest that belongs to the change, and on demand the other files too."""
    content = json.loads((folder / "manifest.json").read_text())
    old = content.pop("digest")
    change(content)
    digest = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    (folder / "manifest.json").write_text(json.dumps({"digest": digest, **content}, indent=1, sort_keys=True) + "\n")
    for path in folder.glob("*.safetensors") if others else ():
        path.write_bytes(path.read_bytes().replace(old.encode(), digest.encode()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.update(format=FORMAT + 1),
            r"manifest.json: format 4 is not supported; this version reads formats up to 3. Update psr_lens",
        ),
        (lambda content: content.update(format="x"), r"manifest.json: has format 'x', which is not a store's. Give the folder"),
        (
            lambda content: content.update(dtype="float16"),
            r"tokens.safetensors: does not belong to the store .* Delete the wrong one of the two",
        ),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, change, message):
    write_store(tmp_path, spec_of([3, 2]))
    _rewritten(tmp_path, change)
    with pytest.raises(ArtifactError, match=message):
        read_spec(tmp_path)


@pytest.mark.parametrize("key", sorted(spec_of([2]).content))
def test_a_manifest_that_lacks_a_part_is_refused_whatever_its_digest_says(tmp_path, key):
    write_store(tmp_path, spec_of([3, 2]))
    _rewritten(tmp_path, lambda content: content.pop(key), others=True)
    with pytest.raises(ArtifactError, match=r"manifest\.json: (its parts do not belong together. Capture into|has format None)"):
        read_spec(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"format": null}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest.json: (cannot be read as JSON .* Delete this file|has format None, which)"):
        read_manifest(tmp_path / "manifest.json")


def test_a_folder_without_a_manifest_is_no_store(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"manifest.json: no such file, so the folder is not a store. Give the folder that `capture` wrote"
    ):
        read_spec(tmp_path)


@given(st.data())
def test_a_manifest_with_any_other_byte_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / "manifest.json"
    content = bytearray(manifest_bytes(spec_of([3, 2])))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: .*(Delete this file|Update psr_lens|Give the folder)"):
        read_manifest(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    spec = spec_of([3, 2])
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(save({"a": torch.ones(2)}))
    with pytest.raises(
        ArtifactError, match=r"shard-00000.safetensors: is damaged, its header cannot be read. Call `capture` again"
    ):
        read_checksums(path, shard_layout(spec, 0))


def test_files_of_two_equal_captures_can_be_exchanged(tmp_path):
    spec = spec_of([3, 2, 9])
    write_store(tmp_path / "one", spec)
    write_store(tmp_path / "two", spec_of([3, 2, 9]))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    shutil.copy(tmp_path / "one" / "shard-00001.safetensors", tmp_path / "two")
    verify_file(tmp_path / "two" / "shard-00001.safetensors", shard_layout(spec, 1))


# --- stores of format 1, whose scores are from 0 to 1 -------------------------------------------------------------------------

VERSION_1 = Path(__file__).parents[1] / "data" / "store-v1"
"""Written by an earlier version: four triplets in two shards."""
SCORES = [(100.0, 100.0), (85.0, 7.0), (200 / 3, 99.5), (44.949106478873816, 29.0)]
"""Trait and coherence of its triplets; no number gives the last trait of the file again when divided by 100."""


def of_now(spec, scores):
    """The spec that this version makes of the same capture."""
    pairs = zip(spec.triplets, scores, strict=True)
    triplets = tuple(replace(each, trait=trait, coherence=coherence) for each, (trait, coherence) in pairs)
    return replace(spec, triplets=triplets, format=FORMAT, triplets_file="")


def test_a_store_of_format_1_is_read_with_scores_from_0_to_100():
    store = Store.open(VERSION_1)
    store.verify()
    assert store.spec.format == 1
    assert [(each.trait, each.coherence) for each in store.triplets] == SCORES
    assert len(store["blocks.1.hook_resid_post"][:]) == sum(store.spec.counts)


@pytest.mark.parametrize("lost", ["shard-00001.safetensors", "tokens.safetensors"])
def test_a_store_of_format_1_is_resumed_in_its_own_format(tmp_path, lost):
    spec = read_spec(VERSION_1)
    shutil.copytree(VERSION_1, tmp_path / "it")
    (tmp_path / "it" / lost).unlink()
    writer = StoreWriter.create(tmp_path / "it", of_now(spec, SCORES))
    assert writer.missing() == ([1] if "shard" in lost else [])
    with safe_open(VERSION_1 / "shard-00001.safetensors", framework="pt") as file:
        writer.write(1, {name: file.get_tensor(name) for name in spec.hooks})
    assert bytes_of(tmp_path / "it") == bytes_of(VERSION_1)


def test_the_triplets_of_format_1_are_written_again_to_the_byte(tmp_path):
    spec = replace(spec_of([3, 2, 4]), format=1)
    triplets = tuple(
        replace(each, trait=score, coherence=7.0) for each, score in zip(spec.triplets, (85.0, 200 / 3, 0.0), strict=True)
    )
    spec = replace(spec, triplets=triplets)
    write_store(tmp_path, spec)
    whole = bytes_of(tmp_path)
    assert read_spec(tmp_path).triplets == triplets
    (tmp_path / "triplets.jsonl").unlink()
    StoreWriter.create(tmp_path, of_now(spec, [(each.trait, each.coherence) for each in triplets]))
    assert bytes_of(tmp_path) == whole


def test_another_capture_is_not_taken_for_the_store_of_format_1_in_the_folder(tmp_path):
    shutil.copytree(VERSION_1, tmp_path / "it")
    other = of_now(read_spec(VERSION_1), [*SCORES[:3], (45.0, 29.0)])
    with pytest.raises(ArtifactError, match="holds another store, which differs in triplets_file"):
        StoreWriter.create(tmp_path / "it", other)
