"""Settings and texts that a rung would ignore, or learn the wrong thing from, are refused; what is carried says what was used."""

from dataclasses import replace

import pytest
import torch

import psr_lens as psr
from psr_lens.errors import InputError


@pytest.fixture(scope="module")
def mapped(two):
    return psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=[(1, 2)], ridge=0.1)


@pytest.fixture(scope="module")
def texts(two):
    return [each.target for each in two.paired]


@pytest.mark.parametrize("config", [psr.Sequential(span="QR"), psr.Sequential(polish=psr.Polish(epochs=1))])
def test_gates_take_no_other_span_and_no_polish(two, mapped, texts, config) -> None:
    with pytest.raises(InputError, match=r"config: .*on the span 'R' and without `polish`"):
        psr.transfer.gates(two.target, texts, two.fitted, mapped, config)


@pytest.mark.parametrize("given", [{"learned_offset": True}, {"rule": "sigmoid"}])
def test_gates_through_text_keep_the_rule_and_learn_no_offset(two, mapped, texts, given) -> None:
    with pytest.raises(InputError, match=r"config: .*the rule 'relu' without a learned offset"):
        psr.transfer.gates_through_text(two.target, texts, two.fitted, mapped, psr.Joint(objective="ll", **given))


def test_texts_without_the_trait_are_refused_as_in_a_fit(two, mapped, texts) -> None:
    poor = [texts[0], replace(texts[1], trait=10.0), *texts[2:]]
    with pytest.raises(InputError, match=r"triplets\[1\]\.trait: got 10"):
        psr.transfer.gates(two.target, poor, two.fitted, mapped)
    with pytest.raises(InputError, match=r"triplets\[1\]\.trait: got 10"):
        psr.transfer.gates_through_text(two.target, poor, two.fitted, mapped)


def test_settings_say_which_layers_and_what_rank_were_carried(two, mapped, texts) -> None:
    found = psr.transfer.gates(two.target, texts, two.fitted, mapped)
    assert found.settings["layers"] == [2]
    assert found.settings["rank"] == next(iter(found.sites.values())).rank


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2,)])
def test_a_bias_is_one_number_per_probe(two, mapped, shape) -> None:
    with pytest.raises(InputError, match=r"bias: got the shape .*one number per probe, 3"):
        mapped.pull_back(torch.zeros(3, int(two.source.cfg.d_model)), torch.zeros(shape), target_layer=2)


def test_an_unknown_score_is_chosen_only_if_nothing_else_can_be() -> None:
    nan = float("nan")
    assert psr.transfer.best_monotone_matching(torch.tensor([[0.0, 5.0], [100.0, nan]])) == ((0, 0), (0, 1))
    assert psr.transfer.best_monotone_matching(torch.tensor([[nan, 5.0], [1.0, nan]])) == ((0, 0), (0, 1))
