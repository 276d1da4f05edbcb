"""The closed-form baselines against their definitions, computed with plain transformers; presets and settings."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from helpers import BACKENDS, random_triplets

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.fitting.fit import SOLVERS
from psr_lens.fitting.settings.solvers import _BY_NAME

CLOSED_FORM = (psr.DiM, psr.ActAdd, psr.LastToken, psr.Stolfo)
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


def last_tokens(case, triplets, layer):
    """Residual stream after a layer at the last prompt token, without and with the instruction, `[triplet, d_model]` each."""
    with torch.no_grad():
        return [
            torch.stack([oracles.read(case.hf, triplet.pair.ids(context)).residuals[layer][-1] for triplet in triplets])
            for context in ("base", "prompted")
        ]


def fitted(case, triplets, solver, **settings):
    return psr.fit(case.model, triplets, solver(**settings))


def test_actadd_is_the_first_pairs_difference_at_the_last_prompt_token(tiny):
    triplets = random_triplets(tiny.model, 4)
    replacement = fitted(tiny, triplets, psr.ActAdd, layers=1)
    base, prompted = last_tokens(tiny, triplets, 1)
    [site] = replacement.sites.values()
    torch.testing.assert_close(site.intervention(torch.randn(3, 32)), (prompted[0] - base[0]).expand(3, -1), **TOLERANCE)
    assert (replacement.method, replacement.tokens) == ("S-ActAdd", "span")


def test_the_last_token_baseline_is_the_mean_difference_there_and_acts_only_there(tiny):
    triplets = random_triplets(tiny.model, 4)
    replacement = fitted(tiny, triplets, psr.LastToken, layers=1)
    base, prompted = last_tokens(tiny, triplets, 1)
    [site] = replacement.sites.values()
    torch.testing.assert_close(site.directions[0], (prompted - base).mean(0), **TOLERANCE)
    assert (replacement.method, replacement.tokens) == ("S-Last token", "last")


def test_stolfo_moves_every_tokens_projection_to_the_prompted_mean(tiny):
    triplets = random_triplets(tiny.model, 5)
    replacement = fitted(tiny, triplets, psr.Stolfo, layers=2)
    base, prompted = last_tokens(tiny, triplets, 2)
    unit = torch.nn.functional.normalize((prompted - base).mean(0), dim=0)
    target = (prompted @ unit).mean()
    [site] = replacement.sites.values()
    tokens = torch.randn(6, 32)
    torch.testing.assert_close((tokens + site.intervention(tokens)) @ unit, target.expand(6), **TOLERANCE)
    across = torch.eye(32) - torch.outer(unit, unit)
    torch.testing.assert_close((tokens + site.intervention(tokens)) @ across, tokens @ across, **TOLERANCE)
    assert replacement.method == "S-Stolfo"


def test_with_several_layers_the_mean_is_of_what_each_layer_adds_by_itself(tiny):
    triplets = random_triplets(tiny.model, 4)
    local = psr.capture(tiny.model, triplets, difference="local")
    for name, site in fitted(tiny, triplets, psr.DiM).sites.items():
        torch.testing.assert_close(site.directions[0], local[name].mean(0), **TOLERANCE)


@pytest.mark.parametrize("solver", CLOSED_FORM)
@pytest.mark.parametrize(("hook", "point"), [("attn_out", "hook_attn_out"), ("mlp_out", "hook_mlp_out"), ("z", "attn.hook_z")])
def test_baselines_act_at_other_hook_points_too(tiny_llama, solver, hook, point):
    triplets = random_triplets(tiny_llama.model, 3)
    replacement = fitted(tiny_llama, triplets, solver, hook=hook, layers=[0, 2])
    assert list(replacement.sites) == [f"blocks.0.{point}", f"blocks.2.{point}"]
    delta = psr.capture(tiny_llama.model, triplets, f"blocks.2.{point}")[f"blocks.2.{point}"]
    site = replacement.sites[f"blocks.2.{point}"]
    assert site.intervention(delta).shape == delta.shape
    assert site.directions.shape == ((4, 1, 8) if hook == "z" else (1, 32))


def test_the_mean_does_not_depend_on_the_batches(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 7)
    one, many = (fitted(tiny_llama, triplets, psr.DiM, token_budget=budget).sites for budget in (1, 4_096))
    for name, site in one.items():
        torch.testing.assert_close(site.directions, many[name].directions, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_baselines_leave_the_model_as_it_was(load, backend):
    case = load("gpt2", backend)
    before = case.model(torch.tensor([[5, 6, 7]])).clone()
    for solver in CLOSED_FORM:
        fitted(case, random_triplets(case.model, 2), solver)
    assert torch.equal(case.model(torch.tensor([[5, 6, 7]])), before)


# --- settings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "span", "objective", "regulariser", "normalise", "epochs"),
    [("persona", "QR", "mse", 0.1, True, 15), ("ifeval", "R", "ll", 0.0, False, 7), ("axbench", "R", "mse", 0.0, False, 15)],
)
def test_presets_carry_the_published_settings(name, span, objective, regulariser, normalise, epochs):
    config = psr.Joint.preset(name)
    assert (config.span, config.objective, config.regulariser, config.normalise) == (span, objective, regulariser, normalise)
    assert (config.epochs, config.solver, config.layers, config.rank) == (epochs, "joint", "all", 1)
    assert (config.learning_rate, config.weight_decay, config.seed) == (1e-3, 1e-6, 123)


def test_a_preset_takes_changes_and_keeps_the_epochs_of_the_objective():
    config = psr.Joint.preset("persona", objective="ll", layers=3)
    assert (config.objective, config.epochs, config.layers, config.span) == ("ll", 7, 3, "QR")
    assert psr.Joint.preset("ifeval", epochs=2).epochs == 2


def test_settings_come_from_a_mapping_as_a_file_gives_it():
    assert psr.FitConfig.of({"preset": "axbench", "rank": 4}) == psr.Joint.preset("axbench", rank=4)
    assert psr.FitConfig.of(json.loads('{"layers": [1, 2], "solver": "local"}')) == psr.Local(layers=[1, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "chat"}, "preset: got 'chat', expected one of 'persona', 'ifeval', 'axbench'"),
        ({"solver": "joint", "learning_rat": 1}, "setting 'learning_rat'"),
        ({"solver": "newton"}, "solver: got 'newton', expected one of 'sequential'"),
        (
            {"solver": "stolfo", "rank": 2},
            "'rank' with the solver 'stolfo', expected one of layers, hook, span, token_budget. ",
        ),
        ({"solver": "local", "rule": "sigmoid"}, "'rule' is a setting of 'joint'."),
        ({"rule": "constant", "rank": 3, "solver": "joint"}, "rank: got 3, expected 1 with rule='constant'"),
        ({"solver": "joint", "patience": 2}, "validation: got 0.0, expected a share above 0 with `patience`"),
        ({"solver": "reft_r1", "validation": 1.5}, "validation: got 1.5, expected a share of the triplets below 1"),
        ({"epochs": 3}, "'epochs' is a setting of 'joint', 'reft_r1', 'clas', 'loreft', `polish`."),
        ({"polish": {"epoch": 3}}, "Did you mean 'epochs'?"),
        ({"polish": {"rank": 3}}, "the setting 'rank' with `polish`"),
        ({"polish": 3}, "polish: got 3, expected a Polish or None"),
        ({"polish": psr.Joint()}, "polish: got a Joint, expected a Polish or None"),
        ({"solver": "dim", "preset": "persona"}, "preset: got 'persona', expected none with solver 'dim'"),
        ({"relative": 2.0, "hook": "z"}, "relative: got 2.0, expected 0 with hook='z'"),
        ({"solver": "last_token", "span": "QR"}, "the setting 'span' with the solver 'last_token'"),
        ({"solver": "joint", "normalise": "no"}, "normalise: got 'no', expected True or False"),
        ([("rank", 1)], "settings: got a list, expected a mapping"),
        ({"hook": "resid_mid"}, "hook: got 'resid_mid', expected one of 'resid_post', 'attn_out', 'mlp_out', 'z'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(InputError) as caught:
        psr.FitConfig.of(settings)
    assert message in str(caught.value)


CONFIGURED = [
    *(solver() for solver in SOLVERS),
    psr.Sequential(layers=[0, -1], rank=2, polish=psr.Polish(epochs=2, objective="ll")),
    psr.Joint(layers=range(2), rule="constant", patience=2, validation=0.1),
]


@pytest.mark.parametrize("config", CONFIGURED, ids=repr)
def test_settings_are_the_same_after_json(config):
    again = psr.FitConfig.of(json.loads(json.dumps(config.to_json())))
    assert type(again) is type(config)
    assert again == replace(config, layers=again.layers)
    assert list(again.layers) == list(config.layers)


@pytest.mark.usefixtures("unchecked")
def test_layers_of_numpy_are_written_as_json():
    assert psr.DiM(layers=np.int64(2)).to_json()["layers"] == 2
    assert json.dumps(psr.DiM(layers=np.arange(2)).to_json()["layers"]) == "[0, 1]"


def test_defaults_fill_only_what_the_solver_has_and_is_not_given():
    defaults = {"seed": 7, "span": "QR"}
    assert psr.FitConfig.of({"polish": {"epochs": 2}}, defaults=defaults) == psr.Sequential(
        span="QR", polish=psr.Polish(seed=7, epochs=2)
    )
    assert psr.FitConfig.of({"solver": "joint", "span": "R"}, defaults=defaults) == psr.Joint(seed=7)
    assert psr.FitConfig.of({"preset": "ifeval"}, defaults=defaults) == psr.Joint.preset("ifeval", seed=7)
    assert psr.FitConfig.of({"solver": "last_token"}, defaults=defaults) == psr.LastToken()


def test_the_repr_shows_what_is_not_the_default():
    assert repr(psr.Sequential()) == "Sequential()"
    assert repr(psr.Local(rank=2, polish=psr.Polish(epochs=1))) == "Local(rank=2, polish=Polish(epochs=1))"


def test_every_solver_has_its_config_and_its_function():
    assert set(SOLVERS) == set(_BY_NAME.values())
    assert {name: config.solver for name, config in _BY_NAME.items()} == {name: name for name in _BY_NAME}


def test_the_base_of_the_configs_is_refused_with_the_class_to_write():
    with pytest.raises(InputError, match=r"the class of a solver: psr\.Sequential, .*psr\.LoReFT\. Write `psr\.Joint\(…\)`"):
        psr.FitConfig(solver="joint", rank=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solver": "joint"}, "config: got a dict, expected the settings of a solver: psr.Sequential, "),
        ({"solver": "joint"}, "`psr.FitConfig.of` makes it from a mapping."),
        ("joint", "config: got a str, "),
        (psr.Joint, "config: got the class Joint, "),
        (psr.Joint, "Write `psr.Joint()`."),
        (psr.Polish(), "config: got a Polish, "),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_config_is_refused(tiny_llama, config, message):
    with pytest.raises(InputError) as caught:
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 2), config)
    assert message in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_arguments_in_the_wrong_order_are_refused(tiny_llama):
    with pytest.raises(InputError, match="triplets: got Joint, expected a list of triplets"):
        psr.fit(tiny_llama.model, psr.Joint(), random_triplets(tiny_llama.model, 2))
