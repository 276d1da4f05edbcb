"""A map is the ridge regression of one model's activations on another's, and a probe pulled back is a regression to its readings."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from two_models import ridge_by_hand

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.transfer import activation_map
from psr_lens.transfer.normal_equations import FOLDS, RIDGES, Ridge, Sums, cross_validated


@pytest.fixture(scope="module")
def mapped(two):
    return psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=[(1, 2), (4, 3)], ridge=0.01)


@pytest.mark.parametrize("pair", [(1, 2), (4, 3)])
def test_a_map_is_the_ridge_regression(two, mapped, pair) -> None:
    matrix, offset = ridge_by_hand(two.x[pair[1]], two.y[pair[0]], 0.01)
    found = mapped.by_target_layer[pair[1]]
    assert (found.source_layer, found.target_layer, found.ridge, found.massive) == (*pair, 0.01, 0)
    torch.testing.assert_close(found.matrix.double(), matrix, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.offset.double(), offset, rtol=1e-3, atol=1e-3)
    missed = spread = 0.0
    for fold in range(FOLDS):
        out = two.text % FOLDS == fold
        matrix, offset = ridge_by_hand(two.x[pair[1]][~out], two.y[pair[0]][~out], 0.01)
        missed += float((two.x[pair[1]][out] @ matrix.T + offset - two.y[pair[0]][out]).square().sum())
        spread += float((two.y[pair[0]][out] - two.y[pair[0]][~out].mean(0)).square().sum())
    assert found.r2 == pytest.approx(1 - missed / spread, abs=1e-4)
    assert mapped.tokens == len(two.text)
    assert mapped.layers == ((1, 2), (4, 3))


def test_a_probe_pulled_back_is_the_regression_to_its_readings(two, mapped) -> None:
    site = two.fitted.sites["blocks.1.hook_resid_post"]
    weights, bias = mapped.pull_back(site.weights, site.bias, target_layer=2)
    readings = two.y[1] @ site.weights.double().T + site.bias.double()
    wanted, offset = ridge_by_hand(two.x[2], readings, 0.01)
    torch.testing.assert_close(weights.double(), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias.double(), offset, rtol=1e-3, atol=1e-3)
    without, none = mapped.pull_back(site.weights, target_layer=2)
    assert torch.equal(without, weights)
    torch.testing.assert_close(none + site.bias, bias)


def test_the_ridge_is_the_best_of_those_tried(two) -> None:
    found = psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=[(1, 2)]).by_target_layer[2]
    fixed = {
        ridge: psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=[(1, 2)], ridge=ridge)
        .by_target_layer[2]
        .r2
        for ridge in RIDGES[1:4]
    }
    assert found.r2 >= max(fixed.values()) - 1e-9
    assert found.ridge not in fixed or fixed[found.ridge] == pytest.approx(found.r2)


def test_reading_in_pieces_changes_nothing(two, mapped, monkeypatch) -> None:
    monkeypatch.setattr(activation_map, "_AT_ONCE", 200_000)
    again = psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=[(1, 2), (4, 3)], ridge=0.01)
    for layer in (2, 3):
        torch.testing.assert_close(again.by_target_layer[layer].matrix, mapped.by_target_layer[layer].matrix, rtol=1e-4, atol=1e-4)
        assert again.by_target_layer[layer].r2 == pytest.approx(mapped.by_target_layer[layer].r2, abs=1e-6)


def test_cross_validation_is_that_of_every_fold_alone() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5, dtype=torch.float64) + 3, torch.randn(40, 2, dtype=torch.float64)
    y += x @ torch.randn(5, 2, dtype=torch.float64)
    parts = [(x[fold::4], y[fold::4]) for fold in range(4)]
    folds = [Sums.of(*part) for part in parts]
    total = Sums.of(x, y)
    found = cross_validated(folds, total, (0.1, 1.0))
    for fold, (held_x, held_y) in enumerate(parts):
        rest = [part for at, part in enumerate(parts) if at != fold]
        for at, ridge in enumerate((0.1, 1.0)):
            matrix, offset = ridge_by_hand(torch.cat([part[0] for part in rest]), torch.cat([part[1] for part in rest]), ridge)
            torch.testing.assert_close(found.error[fold, at], (held_x @ matrix.T + offset - held_y).square().sum(0))
    few = Ridge.of(Sums.of(x[:3], y[:3])).weights(0.0)  # fewer tokens than dimensions
    assert all(bool(each.isfinite().all()) for each in few)


def test_a_map_comes_back_as_it_was_saved(two, mapped, tmp_path) -> None:
    again = psr.transfer.ActivationMap.load(mapped.save(tmp_path / "map"), source=two.source, target=two.target)
    assert repr(again) == repr(mapped)
    for layer, one in mapped.by_target_layer.items():
        other = again.by_target_layer[layer]
        assert torch.equal(one.matrix, other.matrix)
        assert torch.equal(one.offset, other.offset)
        assert [getattr(one, name) for name in ("ridge", "r2", "massive", "source_layer")] == [
            getattr(other, name) for name in ("ridge", "r2", "massive", "source_layer")
        ]
    assert (again.texts, again.text_count, again.tokens) == (mapped.texts, 8, mapped.tokens)
    assert dict(again.source_model) == dict(mapped.source_model)
    few = psr.transfer.fit_activation_map(two.source, two.target, two.paired[:2], layers=[(1, 2)], ridge=1)
    assert math.isnan(psr.transfer.ActivationMap.load(few.save(tmp_path / "map")).by_target_layer[2].r2)


def test_other_models_are_refused(two, mapped, tmp_path, tiny_llama) -> None:
    folder = mapped.save(tmp_path / "map")
    for given in ({"source": two.target}, {"target": two.source}, {"source": tiny_llama.model}):
        [role] = given
        with pytest.raises(ArtifactError, match=f"^{role}: this map was made with .* as the {role}"):
            psr.transfer.ActivationMap.load(folder, **given)
    folded = dataclasses.replace(mapped, source_model={**mapped.source_model, "processing": "fold_ln"})
    with pytest.raises(ArtifactError, match="processed"):
        folded.check(source=two.source)


def test_damaged_files_are_refused(mapped, tmp_path) -> None:
    whole = mapped.save(tmp_path / "map")
    settings = json.loads((whole / "activation_map.json").read_text())
    tensors = load_file(whole / "activation_map.safetensors")
    spoiled = {
        "newer": {**settings, "format": 2},
        "another ridge": {**settings, "layers": [{**settings["layers"][0], "ridge": 5.0}, settings["layers"][1]]},
        "a layer twice": {**settings, "layers": [settings["layers"][0]] * 2},
        "no texts": {name: value for name, value in settings.items() if name != "texts"},
        "a text as layers": {**settings, "layers": "all"},
        "a negative layer": {**settings, "layers": [{**settings["layers"][0], "target": -1}, settings["layers"][1]]},
    }
    for name, content in spoiled.items():
        (whole / "activation_map.json").write_text(json.dumps(content))
        with pytest.raises(ArtifactError):
            psr.transfer.ActivationMap.load(whole)
        assert name
    (whole / "activation_map.json").write_text(json.dumps(settings))
    for changed in (
        tensors | {"2/matrix": tensors["2/matrix"] + 1},
        {name: each for name, each in tensors.items() if name != "3/offset"},
        tensors | {"2/matrix": tensors["2/matrix"].T.contiguous()[:5]},
    ):
        save_file(changed, whole / "activation_map.safetensors")
        with pytest.raises(ArtifactError):
            psr.transfer.ActivationMap.load(whole)
    shutil.rmtree(whole)
    with pytest.raises(ArtifactError, match=r"ActivationMap\.save"):
        psr.transfer.ActivationMap.load(whole)


def test_wrong_arguments_are_refused(two, mapped) -> None:
    fit = psr.transfer.fit_activation_map
    for paired, options, name in (
        (two.paired[:3], {}, "paired"),
        ([], {"ridge": 1.0}, "paired"),
        (two.paired, {"ridge": -1.0}, "ridge"),
        (two.paired, {"ridge": math.nan}, "ridge"),
        (two.paired, {"layers": [(6, 0)]}, "layers"),
    ):
        with pytest.raises(InputError, match=f"^{name}"):
            fit(two.source, two.target, paired, **options)
    site = two.fitted.sites["blocks.1.hook_resid_post"]
    with pytest.raises(InputError, match=r"^target_layer: got 5"):
        mapped.pull_back(site.weights, target_layer=5)
    with pytest.raises(InputError, match=r"^weights"):
        mapped.pull_back(site.weights[:, :5], target_layer=2)
