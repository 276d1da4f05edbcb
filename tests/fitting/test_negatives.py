"""Responses without the trait among the training data: they teach a learned offset something, and every other solver refuses them."""

from dataclasses import replace

import pytest
from helpers import pairs_of, random_triplets

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.fitting.fit import SOLVERS

QUICK = {"epochs": 1, "layers": 0}
WITHOUT_OFFSET = (
    psr.Sequential(),
    psr.Sequential(regression_steps=0),
    psr.Sequential(polish=psr.Polish(epochs=1)),
    psr.Local(layers=1),
    psr.Joint(**QUICK),
    psr.Joint(objective="ll", **QUICK),
    psr.Joint(rule="constant", **QUICK),
    psr.DiM(),
    psr.ActAdd(),
    psr.LastToken(),
    psr.Stolfo(),
    psr.ReFT(**QUICK),
    psr.CLAS(**QUICK),
    psr.LoReFT(**QUICK),
)


@pytest.mark.parametrize("config", WITHOUT_OFFSET, ids=repr)
@pytest.mark.parametrize("trait", [0, 49.9])
def test_a_solver_without_an_offset_refuses_negative_examples_by_name(tiny_llama, config, trait):
    triplets = random_triplets(tiny_llama.model, 5)
    mixed = [*triplets[:2], replace(triplets[2], trait=trait), triplets[3], replace(triplets[4], trait=20.0)]
    with pytest.raises(
        InputError, match=rf"triplets\[2\].trait: got {trait}, the first of 2 below 50, expected at least 50 .*learned_offset=True"
    ) as caught:
        psr.fit(tiny_llama.model, mixed, config)
    assert type(config).__name__ in str(caught.value)
    just = [replace(each, trait=50.0) for each in triplets]
    assert psr.fit(tiny_llama.model, just, config).sites


def test_every_solver_is_among_these():
    assert {type(each) for each in WITHOUT_OFFSET} == set(SOLVERS)


def test_what_fits_inside_refuses_them_too(tiny_llama):
    """An adapter, and the search for a layer."""
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 2)
    mixed = [replace(each, trait=10.0) for each in random_triplets(model, 2)]
    for fit in (
        lambda: psr.adapt(model, mixed, psr.LoRA(epochs=1)),
        lambda: psr.best_layer(model, mixed, psr.DiM(), psr.judges.organism("pirate"), pairs=pairs, layers=[0]),
    ):
        with pytest.raises(InputError, match=r"triplets\[0\].trait: got 10, the first of 2 below 50"):
            fit()


@pytest.mark.parametrize("settings", [{}, {"objective": "ll"}, {"rule": "sigmoid"}, {"hook": "z"}])
def test_a_learned_offset_takes_them(tiny_llama, settings):
    triplets = random_triplets(tiny_llama.model, 4)
    mixed = [replace(triplets[0], trait=0.0), *triplets[1:]]
    fitted = psr.fit(tiny_llama.model, mixed, psr.Joint(learned_offset=True, **QUICK, **settings))
    assert fitted.offset != 0


@pytest.mark.parametrize("kind", [psr.Sequential, psr.Local, psr.DiM, psr.ReFT, psr.LoReFT, psr.CLAS])
def test_an_offset_cannot_be_asked_of_a_solver_that_has_none(kind):
    """It would be ignored."""
    with pytest.raises(InputError, match=f"config: got the setting 'learned_offset' with psr.{kind.__name__}.* setting of 'joint'"):
        kind(learned_offset=True)


def test_settings_of_another_solver_are_answered_with_its_name():
    with pytest.raises(
        InputError, match=r"got the setting 'rank' with psr.DiM, expected one of layers, .*is a setting of 'sequential'"
    ):
        psr.DiM(rank=2)
    with pytest.raises(InputError, match=r"got the setting 'ridge' with psr.Joint"):
        replace(psr.Joint(), ridge=0.1)
