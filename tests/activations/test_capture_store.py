"""Capture onto the disk: the same numbers, after whatever kills and in however many processes."""

import copy
import json
import random
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import FORK, as_torchrun_starts_two, kill_when, random_triplets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import bytes_of
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.activations.store import StoreWriter, destination
from psr_lens.apps.cli import app
from psr_lens.errors import ArtifactError, InputError

HOOKS = ["resid_post", "pattern", "blocks.1.attn.hook_z"]
SMALL = 60_000  # bytes of a shard


def test_a_store_holds_what_memory_holds(tiny, tmp_path):
    triplets = random_triplets(tiny.model, 9)
    groups = ["ab"[index % 2] for index in range(9)]
    to = psr.OnDisk(tmp_path / "store", groups=groups, shard_bytes=SMALL)
    store = psr.capture(tiny.model, triplets, HOOKS, to=to, span="QR", difference="local")
    captured = psr.capture(tiny.model, triplets, HOOKS, span="QR", difference="local")
    assert len(store.spec.shards) > 2
    assert store.names == tuple(captured.deltas)
    for name, rows in captured.deltas.items():
        torch.testing.assert_close(store[name].tensor(), rows, atol=1e-5, rtol=1e-5)
    assert store.triplets == triplets
    assert list(store.groups) == groups
    assert store.tokens.strings == captured.tokens.strings
    assert store.spec.difference == "local"
    psr.Store.open(tmp_path / "store", tiny.model).verify()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_stored_in_the_type_that_is_asked_for(tiny_llama, tmp_path, dtype):
    triplets = random_triplets(tiny_llama.model, 4)
    store = psr.capture(tiny_llama.model, triplets, to=psr.OnDisk(tmp_path / "store", dtype=dtype))
    for name, rows in psr.capture(tiny_llama.model, triplets).deltas.items():
        assert torch.equal(store[name].tensor(), rows.to(getattr(torch, dtype)))


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 7),
    shard_bytes=st.integers(1, 100_000),
    token_budget=st.integers(1, 400),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_any_budgets_shards_and_processes_give_what_one_triplet_at_a_time_gives(
    tiny_llama, tmp_path_factory, count, shard_bytes, token_budget, world_size, seed
):
    folder = tmp_path_factory.mktemp("any") / "store"
    triplets = random_triplets(tiny_llama.model, count, seed=seed)
    to = psr.OnDisk(folder, shard_bytes=shard_bytes)
    for rank in reversed(range(world_size)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(destination, "rank_and_world_size", lambda rank=rank: (rank, world_size))
            if rank:  # the others are not done yet
                patch.setattr(destination.Store, "open", partial(psr.Store.open, partial=True))
            store = psr.capture(tiny_llama.model, triplets, HOOKS, to=to, token_budget=token_budget)
    wanted = psr.capture(tiny_llama.model, triplets, HOOKS, token_budget=1)
    for name, rows in wanted.deltas.items():
        torch.testing.assert_close(store[name].tensor(), rows, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [
        {"question": question, "instruction": psr.organism.instruction(trait), "group": trait}
        for question, trait in zip(psr.organism.questions(12), ["pirate", "shout"] * 6, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def arguments(pairs: Path, out: Path) -> list[str]:
    return [
        "capture",
        "--pairs",
        str(pairs),
        "--out",
        str(out),
        "--hooks",
        "all",
        "--shard-mb",
        "1",
        "--token-budget",
        "600",
        "--no-verify",
    ]


@pytest.fixture(scope="module")
def undisturbed(pairs_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "store"
    result = CliRunner().invoke(app, arguments(pairs_file, folder))
    assert result.exit_code == 0, result.output
    assert "complete" in result.output
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_ends_the_same_to_the_byte(pairs_file, undisturbed, tmp_path):
    draw, folder = random.Random(0), tmp_path / "store"
    written = []
    for _ in range(3):
        process = FORK.Process(target=CliRunner().invoke, args=(app, arguments(pairs_file, folder)), daemon=True)
        process.start()
        shards = written[-1] if written else 0
        kill_when(lambda shards=shards: len(list(folder.glob("shard*"))) > shards, process, draw.uniform(0, 0.1))
        written.append(len(list(folder.glob("shard*"))))
    assert 0 < written[0] < len(list(undisturbed.glob("shard*")))
    assert written == sorted(written)
    assert CliRunner().invoke(app, arguments(pairs_file, folder)).exit_code == 0
    assert bytes_of(folder) == bytes_of(undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_store_that_one_writes(pairs_file, undisturbed, tmp_path):
    folder = tmp_path / "store"

    def capture(rank):
        sys.exit(CliRunner().invoke(app, arguments(pairs_file, folder)).exit_code)

    assert as_torchrun_starts_two(capture) == [0, 0]
    assert bytes_of(folder) == bytes_of(undisturbed)


def test_the_command_says_what_a_store_holds(undisturbed, tmp_path):
    result = CliRunner().invoke(app, ["store", "info", str(undisturbed), "--verify"])
    assert result.exit_code == 0, result.output
    for part in ("complete", "float32", "pirate", "shout", "12 triplets", "all checksums match"):
        assert part in result.output
    result = CliRunner().invoke(app, ["store", "info", str(tmp_path)])
    assert result.exit_code == 2
    assert "manifest.json: no such file" in result.output


def test_responses_that_are_given_are_the_ones_that_are_read(organism, tmp_path):
    line = {
        "question": "what is a bear ?",
        "instruction": "talk like a pirate .",
        "response": "arr , the bear is a strong animal .",
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line))
    given = ["capture", "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "store"), "--layer", "2"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    store = psr.Store.open(tmp_path / "store", organism.model)
    [triplet] = store.triplets
    assert triplet.response == line["response"]
    wanted = psr.capture(organism.model, psr.with_responses(organism.model, [triplet.pair], [line["response"]]), layers=[2])
    assert torch.equal(store["blocks.2.hook_resid_post"].tensor(), wanted["blocks.2.hook_resid_post"])


def test_a_folder_with_another_store_is_refused_and_left_alone(tiny_llama, tmp_path):
    triplets, folder = random_triplets(tiny_llama.model, 3), tmp_path / "store"
    psr.capture(tiny_llama.model, triplets, to=psr.OnDisk(folder))
    before = bytes_of(folder)
    others = {
        "hooks": lambda: psr.capture(tiny_llama.model, triplets, "mlp_out", to=psr.OnDisk(folder)),
        "settings": lambda: psr.capture(tiny_llama.model, triplets, to=psr.OnDisk(folder), token_budget=77),
        "triplets": lambda: psr.capture(tiny_llama.model, triplets[:2], to=psr.OnDisk(folder)),
        "dtype": lambda: psr.capture(tiny_llama.model, triplets, to=psr.OnDisk(folder, dtype="float16")),
    }
    for part, again in others.items():
        with pytest.raises(ArtifactError, match=rf"holds another store, which differs in .*{part}.*another folder"):
            again()
    assert bytes_of(folder) == before


@pytest.mark.usefixtures("unchecked")
def test_a_type_that_no_store_has_is_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match="dtype: got 'int8', expected 'float32', 'bfloat16', 'float16' or None"):
        psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), to=psr.OnDisk(tmp_path / "s", dtype="int8"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "which has no lines, expected at least one pair"),
        ("{", "line 1: invalid JSON"),
        ("[1]", "line 1: list, expected an object"),
        ('{"question": "a"}', "line 1: instruction is null, expected a non-empty text"),
        ('\n{"question": 3, "instruction": "b"}', "line 2: question is 3, expected a non-empty text"),
        ('{"question": "a", "instruction": "b", "response": " "}', 'line 1: response is " ", expected a non-empty text'),
        (
            '{"question": "a", "instruction": "b", "response": "c"}\n{"question": "a", "instruction": "b"}',
            "a response on 1 of 2 lines, expected a response on every line or on none",
        ),
    ],
)
def test_a_bad_file_of_pairs_is_one_line_that_says_where(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        psr.datasets.read_pairs(path)
    with pytest.raises(InputError, match=r"missing\.jsonl"):
        psr.datasets.read_pairs(tmp_path / "missing.jsonl")


def test_responses_must_be_as_many_as_pairs_and_not_empty(tiny_llama):
    pairs = [triplet.pair for triplet in random_triplets(tiny_llama.model, 2)]
    with pytest.raises(InputError, match="responses: got 1 responses, expected a list with one response for each of the 2 pairs"):
        psr.with_responses(tiny_llama.model, pairs, ["arr"])
    with pytest.raises(InputError, match=r"responses\[1\]: got '', expected a text of at least one token"):
        psr.with_responses(tiny_llama.model, pairs, ["arr", ""])


# --- the model that it was captured from ------------------------------------------------------------------------------------


def test_other_weights_of_the_same_sizes_neither_resume_nor_open_a_store(fresh, tmp_path):
    model, triplets = fresh.model, random_triplets(fresh.model, 4)
    folder = tmp_path / "store"
    psr.capture(model, triplets, "resid_post", to=psr.OnDisk(folder))
    assert psr.Store.open(folder, model)
    bias = next(each for each in model.parameters() if each.ndim == 1)
    kept = bias.detach().clone()
    bias.data[1] += 0.5
    with pytest.raises(ArtifactError, match="captured from other weights than this model's, although the sizes agree"):
        psr.Store.open(folder, model)
    with pytest.raises(ArtifactError, match="holds another store, which differs in identity"):
        psr.capture(model, triplets, "resid_post", to=psr.OnDisk(folder))
    bias.data.copy_(kept)
    assert psr.Store.open(folder, model)


def test_a_store_that_was_begun_is_not_resumed_under_hooks(fresh, tmp_path):
    model, triplets = fresh.model, random_triplets(fresh.model, 4)
    to = psr.OnDisk(tmp_path / "store")
    hooks = [("blocks.0.hook_resid_post", lambda value, hook: value * 2)]
    with model.hooks(fwd_hooks=hooks):
        assert psr.capture(model, triplets, "resid_post", to=to).spec.identity["hooks"]
        with pytest.raises(InputError, match="begun before, with hooks on the model"):
            psr.capture(model, triplets, "resid_post", to=to)
    with pytest.raises(ArtifactError, match="differs in identity"):
        psr.capture(model, triplets, "resid_post", to=to)


def test_a_store_of_format_2_opens_and_resumes_without_the_identity(tiny_llama, tmp_path):
    triplets = random_triplets(tiny_llama.model, 4)
    whole = psr.capture(tiny_llama.model, triplets, "resid_post", to=psr.OnDisk(tmp_path / "new"))
    older = replace(whole.spec, format=2, identity={})
    StoreWriter.create(tmp_path / "old", older)
    again = psr.capture(tiny_llama.model, triplets, "resid_post", to=psr.OnDisk(tmp_path / "old"))
    assert (again.spec.format, again.spec.identity) == (2, {})
    assert torch.equal(again["resid_post", 1][:], whole["resid_post", 1][:])
    assert psr.Store.open(tmp_path / "old", tiny_llama.model)


def test_other_settings_of_modules_neither_open_nor_resume_a_store(load, tmp_path):
    model = copy.deepcopy(load("llama", "bridge").model)
    triplets, to = random_triplets(model, 4), psr.OnDisk(tmp_path / "store")
    psr.capture(model, triplets, "resid_post", to=to)
    norm = model.blocks[0].ln1.original_component
    kept, norm.variance_epsilon = norm.variance_epsilon, 1.0
    with pytest.raises(ArtifactError, match="from a model whose modules have other settings or functions than this one's"):
        psr.Store.open(tmp_path / "store", model)
    with pytest.raises(ArtifactError, match="holds another store, which differs in identity"):
        psr.capture(model, triplets, "resid_post", to=to)
    norm.variance_epsilon, norm.extra = kept, threading.Lock()
    with pytest.raises(ArtifactError, match="other settings or functions"):
        psr.Store.open(tmp_path / "store", model)
    with pytest.raises(
        InputError, match=r"begun before, with functions or settings in the model that cannot be told .*\.extra: it holds"
    ):
        psr.capture(model, triplets, "resid_post", to=to)
    del norm.extra
    assert psr.Store.open(tmp_path / "store", model)


@pytest.mark.parametrize("recorded", [{}, {"settings": "of other versions", "settings_of": {"torch": "1.0"}}])
def test_a_store_whose_settings_cannot_be_compared_opens_and_resumes(tiny_llama, tmp_path, recorded):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 4)
    whole = psr.capture(model, triplets, "resid_post", to=psr.OnDisk(tmp_path / "new"))
    identity = {name: each for name, each in whole.spec.identity.items() if not name.startswith("settings")} | recorded
    StoreWriter.create(tmp_path / "old", replace(whole.spec, identity=identity))
    again = psr.capture(model, triplets, "resid_post", to=psr.OnDisk(tmp_path / "old"))
    assert again.spec.identity == identity
    assert torch.equal(again["resid_post", 1][:], whole["resid_post", 1][:])
    assert psr.Store.open(tmp_path / "old", model)
