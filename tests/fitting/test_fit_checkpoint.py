"""Training runs that are interrupted, killed, or shared by two processes end as one that was left alone."""

import copy
import hashlib
import json
import random
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing.process import BaseProcess

import pytest
import torch
from helpers import FORK, as_torchrun_starts_two, kill_when, random_triplets, save_tiny
from safetensors import safe_open
from safetensors.torch import save_file

import psr_lens as psr
from psr_lens._utils.digests import digest_of
from psr_lens.errors import ArtifactError, FitError, InputError
from psr_lens.fitting.gradient_descent import checkpoint, training
from psr_lens.fitting.gradient_descent.checkpoint import identity
from psr_lens.fitting.gradient_descent.objective import Imitation, Objective
from psr_lens.fitting.gradient_descent.training import _Run
from psr_lens.models.identity_by_content import former_identity

SETTINGS = {"epochs": 6, "batch_size": 2, "learning_rate": 1e-2}


class Interruption(BaseException):
    """Stands for a process that ends: nothing catches it."""


def interrupt(monkeypatch, method: str, after: int, owner=_Run) -> None:
    """Let a run end in the midst of its n-th call of a method."""
    calls, original = [], getattr(owner, method)

    def counting(self, *arguments):
        calls.append(0)
        if len(calls) == after:
            raise Interruption
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, counting)


def same(first, second) -> bool:
    """Equal to the last bit, the losses too."""
    parts = ("directions", "weights", "bias")
    return (
        list(first.sites) == list(second.sites)
        and all(torch.equal(getattr(first.sites[n], p), getattr(second.sites[n], p)) for n in first.sites for p in parts)
        and (first.offset, first.curve.train, first.curve.validation, first.curve.kept)
        == (second.offset, second.curve.train, second.curve.validation, second.curve.kept)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        psr.Joint(**SETTINGS),
        psr.Joint(**SETTINGS, objective="ll", learned_offset=True, rank=2),
        psr.Joint(**SETTINGS | {"learning_rate": 0.2}, validation=0.3, patience=3),
        psr.Local(rank=1, regression_steps=5, polish=psr.Polish(**SETTINGS)),
        psr.Sequential(regression_steps=5, polish=psr.Polish(**SETTINGS)),
        psr.ReFT(**SETTINGS, hook="z"),
    ],
    ids=repr,
)
def test_an_interrupted_fit_goes_on_and_ends_the_same_to_the_bit(tiny_llama, config, tmp_path, monkeypatch):
    triplets = random_triplets(tiny_llama.model, 7)
    undisturbed = psr.fit(tiny_llama.model, triplets, config)
    folder = tmp_path / "run"
    for method, after, owner in (("_step", 3, _Run), ("_step", 9, _Run), ("_save", 2, _Run), ("where_it_broke", 1, Objective)):
        with monkeypatch.context() as patch:
            interrupt(patch, method, after, owner)
            if method == "where_it_broke":  # never called: this time it ends by itself
                assert same(psr.fit(tiny_llama.model, triplets, config, checkpoint=folder), undisturbed)
            else:
                with pytest.raises(Interruption):
                    psr.fit(tiny_llama.model, triplets, config, checkpoint=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "state.safetensors"]


def test_a_finished_fit_is_returned_at_once(tiny_llama, tmp_path, monkeypatch):
    triplets, config = random_triplets(tiny_llama.model, 7), psr.Joint(**SETTINGS)
    fitted = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "run")
    monkeypatch.setattr(Imitation, "prepare", None)
    again = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "run")
    assert same(again, fitted)
    assert again.curve.seconds == fitted.curve.seconds


SHORT = {**SETTINGS, "epochs": 2}


@pytest.mark.parametrize(
    "config",
    [
        psr.Sequential(regression_steps=2, polish=psr.Polish(**SHORT)),
        psr.Sequential(regression_steps=2, rank="auto", polish=psr.Polish(**SHORT)),
        psr.Local(regression_steps=2, rank="auto", hook="z", polish=psr.Polish(**SHORT, objective="ll")),
        psr.CLAS(epochs=2, batch_size=4),
    ],
    ids=repr,
)
def test_what_gives_the_start_is_not_run_again(tiny_llama, config, tmp_path, monkeypatch):
    """Neither when a fit is resumed after its first step, nor when a finished one is called again."""
    triplets = random_triplets(tiny_llama.model, 7)
    undisturbed = psr.fit(tiny_llama.model, triplets, config)
    with monkeypatch.context() as patch:
        interrupt(patch, "_step", 1)
        with pytest.raises(Interruption):
            psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path)
    for solver in (psr.Sequential, psr.Local):
        monkeypatch.setitem(sys.modules["psr_lens.fitting.fit"].SOLVERS, solver, None)
    monkeypatch.setattr("psr_lens.fitting.clas.difference_in_means", None)
    assert same(psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path), undisturbed)
    monkeypatch.setattr(_Run, "_step", None)
    assert same(psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path), undisturbed)


def test_a_checkpoint_without_what_is_not_trained_is_resumed(tiny_llama, tmp_path):
    """As older versions wrote them: the start is made again."""
    triplets, config = random_triplets(tiny_llama.model, 7), psr.CLAS(epochs=2, batch_size=4)
    fitted = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path)
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    older = {name: tensor for name, tensor in tensors.items() if not name.startswith("fixed/")}
    assert len(older) < len(tensors)
    save_file(older, tmp_path / "state.safetensors", about)
    assert same(psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path), fitted)


def test_another_run_in_the_folder_is_refused_and_left_alone(tiny_llama, tmp_path):
    model, triplets, config = tiny_llama.model, random_triplets(tiny_llama.model, 4), psr.Joint(**SETTINGS)
    psr.fit(model, triplets, config, checkpoint=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other = psr.load_model(save_tiny("llama", tmp_path / "other", seed=1), backend=tiny_llama.backend)
    cases = {
        r"settings\.seed, settings\.learning_rate": (model, triplets, replace(config, learning_rate=1e-3, seed=1)),
        "hook points": (model, triplets, replace(config, layers=[0, 1])),
        "triplets": (model, triplets[::-1], config),
        "model": (other, triplets, config),
    }
    for part, (wanted, data, settings) in cases.items():
        with pytest.raises(ArtifactError, match=rf"holds another run, which differs in {part}\. Give another folder, or delete"):
            psr.fit(wanted, data, settings, checkpoint=tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_the_scores_in_a_checkpoints_identity_are_strengths_as_ever(tiny_llama):
    triplets = [replace(each, trait=85.0) for each in random_triplets(tiny_llama.model, 2)]
    data = hashlib.sha256()
    for each in triplets:
        pair = each.pair
        data.update(
            json.dumps(
                [pair.base_ids, pair.prompted_ids, pair.question_length, each.response_ids, 0.85]
            ).encode()  # as format 1 had it
        )
    assert identity(tiny_llama.model, triplets, ["x"], psr.Joint(), psr.Joint())["triplets"] == data.hexdigest()


def test_damaged_and_unwritable_checkpoints_are_told_of(tiny_llama, tmp_path):
    triplets, config = random_triplets(tiny_llama.model, 4), psr.Joint(**SETTINGS)
    run = tmp_path / "run"
    psr.fit(tiny_llama.model, triplets, config, checkpoint=run)
    whole = (run / "state.safetensors").read_bytes()
    (run / "state.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match=r"state\.safetensors: is damaged .* delete this one"):
        psr.fit(tiny_llama.model, triplets, config, checkpoint=run)
    (run / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json: cannot be read"):
        psr.fit(tiny_llama.model, triplets, config, checkpoint=run)
    (run / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ArtifactError, match=r"run\.json: has another format"):
        psr.fit(tiny_llama.model, triplets, config, checkpoint=run)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be"):
        psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "file")


def test_a_checkpoint_where_nothing_is_trained_is_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match=r"checkpoint: got .*, expected None with psr\.DiM\(\), which has no epochs"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), psr.DiM(), checkpoint=tmp_path)


def test_a_loss_that_explodes_leaves_the_checkpoint_of_the_last_good_epoch(tiny_llama, tmp_path, monkeypatch):
    triplets, config = random_triplets(tiny_llama.model, 4), psr.Joint(**SETTINGS)
    step = _Run._step

    def break_at_the_last(self, chosen, number):
        if number == 11:
            self.tensors["directions"].detach().fill_(float("nan"))
        return step(self, chosen, number)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", break_at_the_last)
        with pytest.raises(FitError, match="at step 12 of 12") as caught:
            psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "run")
    assert len(caught.value.partial.curve.train) == 5
    assert all(site.directions.isfinite().all() for site in caught.value.partial.sites.values())
    whole = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "run")
    assert same(whole, psr.fit(tiny_llama.model, triplets, config))


# --- processes --------------------------------------------------------------------------------------------------------------


def train(model, settings: dict, checkpoint, out) -> None:
    psr.fit(model, random_triplets(model, 7), psr.Joint(**settings), checkpoint=checkpoint).save(out)


def start(model, settings: dict, checkpoint, out) -> BaseProcess:
    process = FORK.Process(target=train, args=(model, settings, checkpoint, out), daemon=True)
    process.start()
    return process


def epochs_in(state) -> int:
    if not state.exists():
        return 0
    with safe_open(state, "pt") as file:
        return len(json.loads(file.metadata()["state"])["curve"]["train"])


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_ends_the_same_to_the_bit(tiny_llama, tmp_path):
    settings, draw = SETTINGS | {"epochs": 40}, random.Random(0)
    run, state = tmp_path / "run", tmp_path / "run" / "state.safetensors"
    epochs = [0]
    for _ in range(2):
        process = start(tiny_llama.model, settings, run, tmp_path / "out")
        kill_when(lambda before=epochs[-1]: epochs_in(state) > before, process, draw.uniform(0, 0.05))
        assert process.exitcode == -signal.SIGKILL
        epochs.append(epochs_in(state))
    assert 0 < epochs[1] < epochs[2] < 40
    triplets, config = random_triplets(tiny_llama.model, 7), psr.Joint(**settings)
    resumed = psr.fit(tiny_llama.model, triplets, config, checkpoint=run)
    assert same(resumed, psr.fit(tiny_llama.model, triplets, config))


def test_two_processes_end_with_the_sites_of_one(tiny_llama, tmp_path):
    settings = SETTINGS | {"batch_size": 5, "validation": 0.15, "rank": 2}  # of 6 and 1: the second process has none at times
    codes = as_torchrun_starts_two(lambda rank: train(tiny_llama.model, settings, tmp_path / "run", tmp_path / str(rank)))
    assert codes == [0, 0]
    first, second = (psr.Replacement.load(tmp_path / str(rank)).sites for rank in range(2))
    alone = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 7), psr.Joint(**settings)).sites
    for name, site in alone.items():
        for part in ("directions", "weights", "bias"):
            assert torch.equal(getattr(first[name], part), getattr(second[name], part))
            torch.testing.assert_close(getattr(first[name], part), getattr(site, part), atol=1e-4, rtol=0)


def test_processes_that_were_given_different_things_are_told_so(tiny_llama, monkeypatch):
    def from_another(tensors):
        for tensor in tensors:
            tensor.detach().mul_(2).add_(1)

    monkeypatch.setattr(training, "rank_and_world_size", lambda: (0, 2))
    monkeypatch.setattr(training, "sum_over_processes", from_another)
    with pytest.raises(InputError, match="triplets: got other arguments than another process, expected the same model, triplets"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), psr.Joint(**SETTINGS))


# --- what tells runs apart --------------------------------------------------------------------------------------------------


def test_one_runs_state_beside_anothers_description_is_refused(tiny_llama, tmp_path):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 4)
    short = {**SETTINGS, "epochs": 1}
    for name, seed in (("one", 0), ("other", 1)):
        psr.fit(model, triplets, psr.Joint(**short, seed=seed), checkpoint=tmp_path / name)
    (tmp_path / "one" / "state.safetensors").replace(tmp_path / "other" / "state.safetensors")
    with pytest.raises(ArtifactError, match=r"state\.safetensors: is the state of another run than run\.json beside it describes"):
        psr.fit(model, triplets, psr.Joint(**short, seed=1), checkpoint=tmp_path / "other")


def test_one_changed_number_of_a_layer_norm_or_another_version_is_another_run(fresh, tmp_path, monkeypatch):
    model, triplets = fresh.model, random_triplets(fresh.model, 4)
    config = psr.Joint(**{**SETTINGS, "epochs": 1})
    psr.fit(model, triplets, config, checkpoint=tmp_path)
    norm = next(each for name, each in model.named_parameters() if each.ndim == 1)
    kept = norm.detach().clone()
    norm.data[-1] += 1e-3
    with pytest.raises(ArtifactError, match="another run, which differs in model"):
        psr.fit(model, triplets, config, checkpoint=tmp_path)
    norm.data.copy_(kept)
    monkeypatch.setattr(checkpoint, "versions", lambda: (("torch", "1.0"),))
    with pytest.raises(ArtifactError, match=r"another run, which differs in .*versions"):
        psr.fit(model, triplets, config, checkpoint=tmp_path)


def test_hooks_and_a_checkpoint_do_not_go_together(tiny_llama, tmp_path):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 4)
    hooks = [("blocks.0.hook_resid_post", lambda value, hook: value)]
    with model.hooks(fwd_hooks=hooks), pytest.raises(InputError, match=r"checkpoint: got .* with hooks on the model"):
        psr.fit(model, triplets, psr.Joint(**SETTINGS), checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_format_1_is_resumed(tiny_llama, tmp_path, monkeypatch):
    model, triplets, config = tiny_llama.model, random_triplets(tiny_llama.model, 4), psr.Joint(**{**SETTINGS, "epochs": 2})
    undisturbed = psr.fit(model, triplets, config)
    with monkeypatch.context() as patch:
        interrupt(patch, "_step", 4)
        with pytest.raises(Interruption):
            psr.fit(model, triplets, config, checkpoint=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    older = {name: value for name, value in run.items() if name != "versions"} | {"format": 1, "model": former_identity(model)}
    (tmp_path / "run.json").write_text(json.dumps(older))
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        tensors, state = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    save_file(
        tensors, tmp_path / "state.safetensors", {"state": json.dumps({name: state[name] for name in state if name != "run"})}
    )
    assert same(psr.fit(model, triplets, config, checkpoint=tmp_path), undisturbed)
    (tmp_path / "run.json").write_text(json.dumps(older | {"model": older["model"] | {"weights": "of another"}}))
    with pytest.raises(ArtifactError, match="another run, which differs in model"):
        psr.fit(model, triplets, config, checkpoint=tmp_path)


def test_a_checkpoint_from_before_settings_were_recorded_is_resumed_and_other_settings_are_another_run(load, tmp_path, monkeypatch):
    model = copy.deepcopy(load("llama", "bridge").model)
    triplets, config = random_triplets(model, 4), psr.Joint(**{**SETTINGS, "epochs": 2})
    undisturbed = psr.fit(model, triplets, config)
    with monkeypatch.context() as patch:
        interrupt(patch, "_step", 4)
        with pytest.raises(Interruption):
            psr.fit(model, triplets, config, checkpoint=tmp_path)
    norm = model.blocks[0].ln1.original_component
    kept, norm.variance_epsilon = norm.variance_epsilon, 1.0
    with pytest.raises(ArtifactError, match="another run, which differs in model"):
        psr.fit(model, triplets, config, checkpoint=tmp_path)
    norm.variance_epsilon = kept
    norm.extra = threading.Lock()
    reason = r"checkpoint: got .*with functions or settings in the model that cannot be told .*input_layernorm.*\.extra: it holds"
    with pytest.raises(InputError, match=reason):
        psr.fit(model, triplets, config, checkpoint=tmp_path)
    del norm.extra
    run = json.loads((tmp_path / "run.json").read_text())
    del run["model"]["settings"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        tensors, state = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    save_file(tensors, tmp_path / "state.safetensors", {"state": json.dumps(state | {"run": digest_of(run)})})
    assert same(psr.fit(model, triplets, config, checkpoint=tmp_path), undisturbed)
    run["model"]["weights"] = "of another"
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ArtifactError, match="another run, which differs in model"):
        psr.fit(model, triplets, config, checkpoint=tmp_path)
