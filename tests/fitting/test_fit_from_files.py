"""Layerwise fits whose activations wait in files: the same sites to the last bit, nothing left behind, and what is refused."""

import pytest
import torch
from helpers import assert_unchanged, random_triplets, state_of

import psr_lens as psr
from psr_lens.errors import FitError, InputError
from psr_lens.fitting.local import fit_local
from psr_lens.fitting.sequential import fit_sequential
from psr_lens.fitting.settings.solvers import Layerwise

PARTS = ("directions", "weights", "bias")
LAYERWISE = (psr.Sequential, psr.Local)


def config_of(solver: type[Layerwise], **settings) -> Layerwise:
    return solver(**{"regression_steps": 5, "ridge": 0.3, "token_budget": 100, **settings})


def assert_same(one, other):
    assert list(one.sites) == list(other.sites)
    for name, site in one.sites.items():
        assert all(torch.equal(getattr(site, part), getattr(other.sites[name], part)) for part in PARTS)


def assert_files_give_the_same(model, scratch, solver, **settings):
    triplets = random_triplets(model, 5)
    # Several parts a regression; in memory these too are read from the CPU's memory part by part.
    config = config_of(solver, regression_batch=17, **settings)
    assert_same(psr.fit(model, triplets, config, scratch=scratch), psr.fit(model, triplets, config))


@pytest.mark.parametrize("solver", LAYERWISE)
def test_files_give_the_same_as_memory_to_the_last_bit(tiny, tmp_path, solver):
    assert_files_give_the_same(tiny.model, tmp_path, solver)


@pytest.mark.parametrize("solver", LAYERWISE)
@pytest.mark.parametrize(
    "settings", [{"span": "QR", "layers": [0, 2], "rank": 2}, {"hook": "z", "rank": 1}, {"hook": "mlp_out"}, {"layers": 1}], ids=str
)
def test_at_any_points_files_give_the_same_as_memory(tiny_llama, tmp_path, solver, settings):
    assert_files_give_the_same(tiny_llama.model, tmp_path, solver, **settings)


def test_bfloat16_waits_as_it_is(tmp_path, folders):
    model = psr.load_model(folders["llama"], dtype=torch.bfloat16, backend="bridge")
    triplets = random_triplets(model, 4)
    assert_same(
        psr.fit(model, triplets, config_of(psr.Sequential), scratch=tmp_path), psr.fit(model, triplets, config_of(psr.Sequential))
    )


@pytest.mark.parametrize("solver", LAYERWISE)
def test_training_starts_from_the_same(tiny_llama, tmp_path, solver):
    triplets = random_triplets(tiny_llama.model, 4)
    config = solver(regression_steps=5, rank=2, polish=psr.Polish(epochs=1))
    assert_same(psr.fit(tiny_llama.model, triplets, config, scratch=tmp_path), psr.fit(tiny_llama.model, triplets, config))


@pytest.mark.parametrize("solver", LAYERWISE)
def test_nothing_is_left_behind_and_other_files_stay(fresh, tmp_path, solver):
    (tmp_path / "mine.txt").write_text("mine")
    before = state_of(fresh.model)
    psr.fit(fresh.model, random_triplets(fresh.model, 3), config_of(solver), scratch=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert_unchanged(fresh.model, before)


def test_a_fit_that_fails_leaves_nothing_behind_either(tiny_llama, tmp_path):
    def spoil(activation, hook):
        return activation * float("inf")

    with (
        tiny_llama.model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", spoil)]),
        pytest.raises(FitError, match=r"at blocks\.1\.hook_resid_post .*not all finite"),
    ):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), config_of(psr.Sequential), scratch=tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_passes_are_as_many_as_are_said(tiny_llama, tmp_path):
    triplets, calls = random_triplets(tiny_llama.model, 6), []
    layers = tiny_llama.model.cfg.n_layers
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(layers)]
    for solve, solver, wanted in ((fit_sequential, psr.Sequential, layers + 1), (fit_local, psr.Local, 2)):
        calls.clear()
        count = [("blocks.0.hook_resid_pre", lambda activation, hook: calls.append(len(activation)))]
        with tiny_llama.model.hooks(fwd_hooks=count):
            solve(tiny_llama.model, triplets, names, config_of(solver), scratch=tmp_path)
        assert sum(calls) == wanted * len(triplets)


@pytest.mark.parametrize("solver", [psr.Joint, psr.DiM, psr.Stolfo, psr.ReFT])
def test_a_folder_that_nobody_would_use_is_refused(tiny_llama, tmp_path, solver):
    with pytest.raises(
        InputError, match=rf"scratch: got .*expected None with psr.{solver.__name__}\(\), which never holds a layer"
    ):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 2), solver(), scratch=tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(tiny_llama, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"scratch: got .*file.*expected a folder on a disk with room for the activations"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 2), config_of(psr.Local), scratch=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_said(tiny_llama):
    with pytest.raises(InputError, match="scratch: got /dev/full"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 2), config_of(psr.Local), scratch="/dev/full")
