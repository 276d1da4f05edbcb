"""Artifacts on the Hub: huggingface_hub's own code against a server of ours."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import logits_of, random_replacement
from hub_server import TOKEN, HubServer

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError

NAME = "me/pirate-psr"
FILES = {"replacement.json", "replacement.safetensors", "README.md"}


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A Hub on this machine, with a login and an empty cache."""
    for name in (f"{kind}_proxy" for kind in ("http", "https", "all")):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer().running() as server:
        constants = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield server
        assert server.unknown == []


@pytest.fixture
def made(tiny_llama) -> psr.Replacement:
    row = psr.Result("random", "trait", 50.0, 10, (40.0, 60.0))
    return random_replacement(tiny_llama.model).with_metrics(psr.ResultTable((row,)))


def files_of(hub: HubServer, revision: str = "main", name: str = NAME) -> dict[str, bytes]:
    return hub.repositories[name].at(revision)[1]


def test_what_is_pushed_comes_back_and_steers_to_the_last_bit_alike(hub, made, tiny_llama):
    address = made.push_to_hub(NAME)
    assert address.endswith(hub.repositories[NAME].revisions["main"])
    assert set(files_of(hub)) == FILES
    card = files_of(hub)["README.md"].decode()
    assert f'psr.Replacement.from_hub("{NAME}")' in card
    assert "| random | trait | 50 | 40 to 60 | 10 |" in card
    back = psr.Replacement.from_hub(NAME)
    assert back.metrics == made.metrics
    found = []
    for each in (made, back):
        with each.steer(tiny_llama.model):
            found.append(logits_of(tiny_llama.model, range(10, 20)))
    assert torch.equal(*found)


def test_a_plan_travels_with_its_parts_and_parts_that_it_lost_are_taken_away(hub, made):
    (made - 0.5 * made + made).push_to_hub(NAME)
    assert {path.partition("/")[0] for path in files_of(hub)} == {"plan.json", "README.md", "part-0", "part-1", "part-2"}
    (made - 0.5 * made).push_to_hub(NAME)
    back = psr.SteeringPlan.from_hub(NAME)
    assert [part.factor for part in back.parts] == [1.0, -0.5]
    assert "part-2/replacement.json" not in files_of(hub)


def test_other_peoples_files_stay_where_they_are_and_are_not_fetched(hub, made, tmp_path):
    made.push_to_hub(NAME)
    repository = hub.repositories[NAME]
    repository.commit("main", {**files_of(hub), "evil.py": b"boom", "pytorch_model.bin": b"\x80\x04", "README.md": b"my own words"})
    with pytest.warns(UserWarning, match=f"README.md of {NAME} was edited, or was not written by psr_lens"):
        made.push_to_hub(NAME)
    assert files_of(hub)["README.md"] == b"my own words"
    assert files_of(hub)["evil.py"] == b"boom"
    psr.Replacement.from_hub(NAME)
    assert not any(asked.startswith("GET") and asked.endswith((".py", ".bin")) for asked in hub.asked)
    assert not list((tmp_path / "cache").rglob("evil.py"))


def test_a_revision_is_read_and_written_by_its_name(hub, made, tiny_llama):
    made.push_to_hub(NAME)
    repository = hub.repositories[NAME]
    repository.revisions["rank-4"] = first = repository.revisions["main"]
    random_replacement(tiny_llama.model, layers=[1]).push_to_hub(NAME, revision="rank-4")
    assert len(psr.Replacement.from_hub(NAME, revision="rank-4").sites) == 1
    assert len(psr.Replacement.from_hub(NAME).sites) == len(psr.Replacement.from_hub(NAME, revision=first).sites) == 3


def test_privacy_is_asked_for_when_a_repository_is_made(hub, made, monkeypatch):
    made.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ArtifactError, match=rf"{NAME} does not exist or is private.*hf auth login"):
        psr.Replacement.from_hub(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert psr.Replacement.from_hub(NAME).method == "random"


def test_what_was_fetched_is_there_without_a_network(hub, made, monkeypatch):
    made.push_to_hub(NAME)
    psr.Replacement.from_hub(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert psr.Replacement.from_hub(NAME).method == "random"
    with pytest.raises(ArtifactError, match=r"me/another could not be reached.*HF_HUB_OFFLINE"):
        psr.Replacement.from_hub("me/another")


def test_a_cache_that_is_loaded_as_a_folder_names_from_hub(hub, made):
    made.push_to_hub(NAME)
    folder = huggingface_hub.snapshot_download(NAME)
    assert os.path.islink(os.path.join(folder, "replacement.json"))
    with pytest.raises(ArtifactError, match="from_hub"):
        psr.Replacement.load(folder)


def test_what_is_missing_or_forbidden_is_our_error_with_a_remedy(hub, made):
    made.push_to_hub(NAME)
    hub.repositories["them/gated"] = hub.repositories[NAME].__class__(gated=True)
    hub.repositories["me/empty"] = hub.repositories[NAME].__class__()
    for read, said in (
        (lambda: psr.Replacement.from_hub("me/nothing"), "me/nothing does not exist"),
        (lambda: psr.Replacement.from_hub(NAME, revision="no-such"), f"revision: {NAME} has no branch, tag or commit 'no-such'"),
        (lambda: made.push_to_hub(NAME, revision="no-such"), f"revision: {NAME} has no branch"),
        (lambda: psr.Replacement.from_hub("them/gated"), "access to them/gated must be requested"),
        (lambda: psr.Replacement.from_hub("me/empty"), "me/empty holds no replacement.json.*SteeringPlan.from_hub"),
        (lambda: psr.SteeringPlan.from_hub(NAME), f"{NAME} holds no plan.json"),
    ):
        with pytest.raises(ArtifactError, match=said):
            read()
    for name in ("a/b/c", "../x", "", "x y"):
        with pytest.raises(InputError, match=r"repo_id: got .*'owner/name'"):
            psr.Replacement.from_hub(name)


def test_pushing_without_a_login_or_a_network_is_our_error(hub, made, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ArtifactError, match=r"refused .* status 401.*Log in"):
        made.push_to_hub(NAME)
    assert hub.repositories == {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ArtifactError, match=r"could not be reached.*Check the network"):
            made.push_to_hub(NAME)


@pytest.mark.usefixtures("unchecked")
def test_a_damaged_artifact_from_the_hub_is_refused_as_one_on_disk(hub, made):
    made.push_to_hub(NAME)
    settings = json.loads(files_of(hub)["replacement.json"])
    hub.repositories[NAME].commit("main", {**files_of(hub), "replacement.json": json.dumps(settings | {"span": "all"}).encode()})
    with pytest.raises(ArtifactError, match=r"do not belong together.*span"):
        psr.Replacement.from_hub(NAME)


def test_settings_that_cannot_be_saved_make_no_repository(hub, made):
    with pytest.raises(TypeError):
        psr.Replacement(made.sites, "R", "x", made.model, settings={"x": object()}).push_to_hub(NAME)
    assert hub.repositories == {}


def test_the_token_is_written_nowhere(hub, made, tmp_path):
    made.push_to_hub(NAME)
    psr.Replacement.from_hub(NAME)
    held = [path.read_bytes() for path in Path(tmp_path).rglob("*") if path.is_file()] + list(files_of(hub).values())
    assert not any(TOKEN.encode() in content for content in held)
