"""Replacements on disk: saved, loaded, damaged, and given to a model that they were not made for."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import (
    BACKENDS,
    LAYERS,
    WIDTH,
    assert_unchanged,
    logits_of,
    random_replacement,
    random_triplets,
    replacement_at,
    save_tiny,
    state_of,
)
from safetensors.torch import load_file, save_file

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement import LearningCurve, Replacement

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture
def saved(tmp_path, tiny_llama) -> tuple:
    """A replacement and the folder that it was saved in."""
    settings = {"epochs": 3, "layers": [0, 1], "note": "größer"}
    made = replace(random_replacement(tiny_llama.model, rank=2, span="QR"), question_start=4, settings=settings)
    return made, made.save(tmp_path / "artifact")


def edit_settings(folder, **changes) -> None:
    path = folder / "replacement.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "absent"}))


def test_an_artifact_comes_back_exactly(saved):
    made, folder = saved
    back = Replacement.load(folder)
    assert list(back.sites) == list(made.sites)
    for name, site in made.sites.items():
        for part in ("directions", "weights", "bias"):
            assert torch.equal(getattr(back.sites[name], part), getattr(site, part))
        assert back.sites[name].rule == site.rule
    assert (back.span, back.method, back.question_start) == ("QR", "random", 4)
    assert (back.model, back.settings) == (made.model, made.settings)


def test_a_loaded_artifact_steers_to_the_last_bit_alike(saved, tiny_llama):
    made, folder = saved
    found = []
    for each in (made, Replacement.load(str(folder))):
        with each.steer(tiny_llama.model, 0.7):
            found.append(logits_of(tiny_llama.model, range(10, 22)))
    assert torch.equal(*found)


def test_an_artifact_is_safetensors_and_json_and_a_card(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "replacement.json", "replacement.safetensors"]
    assert json.loads((folder / "replacement.json").read_text())["format"] == 5
    assert len(load_file(folder / "replacement.safetensors")) == 3 * LAYERS


def test_saving_again_replaces_the_older_artifact(saved, tiny_llama):
    _, folder = saved
    random_replacement(tiny_llama.model, layers=[1]).save(folder)
    assert list(Replacement.load(folder).sites) == ["blocks.1.hook_resid_post"]


def test_settings_that_json_cannot_hold_leave_the_older_artifact_whole(saved):
    made, folder = saved
    with pytest.raises(TypeError):
        replace(made, settings={"x": object()}).save(folder)
    assert list(Replacement.load(folder).sites) == list(made.sites)


@pytest.mark.parametrize("layers", [range(1, 3), (0, 2), [1], -1, "all"], ids=str)
def test_whatever_names_the_layers_of_a_fit_can_be_saved(tmp_path, tiny_llama, layers):
    config = psr.Sequential(layers=layers, regression_steps=0)
    fitted = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), config)
    assert list(Replacement.load(fitted.save(tmp_path)).sites) == list(fitted.sites)


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def lie_about_the_header(path) -> None:
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("replacement.safetensors", truncate),
        ("replacement.safetensors", lie_about_the_header),
        ("replacement.safetensors", lambda path: path.write_bytes(b"")),
        ("replacement.safetensors", lambda path: path.write_bytes(b"\x80\x04K\x01.")),
        ("replacement.safetensors", lambda path: path.unlink()),
        ("replacement.json", truncate),
        ("replacement.json", lambda path: path.write_text("no JSON")),
        ("replacement.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("replacement.json", lambda path: path.write_text("[1, 2]")),
        ("replacement.json", lambda path: path.write_text("null")),
        ("replacement.json", lambda path: path.unlink()),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_or_missing_file_is_an_artifact_error_that_names_it_and_a_remedy(saved, file, damage):
    _, folder = saved
    damage(folder / file)
    with pytest.raises(ArtifactError) as caught:
        Replacement.load(folder)
    assert str(folder / file) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("Save", "save", "Give the folder"))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 6},
        {"format": True},
        {"format": "1"},
        {"format": None},
        {"format": "absent"},
        {"sites": "absent"},
        {"sites": []},
        {"sites": {}},
        {"sites": 3},
        {"sites": [{"hook": "blocks.9.hook_resid_post", "rule": "relu"}]},
        {"sites": [{"hook": "blocks.0.hook_resid_post", "rule": "exec"}]},
        {"sites": ["blocks.0.hook_resid_post"]},
        {"span": "everywhere"},
        {"span": "absent"},
        {"span": ["R"]},
        {"model": 5},
        {"model": "absent"},
        {"question_start": "four"},
        {"question_start": -1},
        {"settings": 7},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_cannot_be_right_are_an_artifact_error_that_names_the_place_and_a_remedy(saved, changes):
    _, folder = saved
    edit_settings(folder, **changes)
    with pytest.raises(ArtifactError) as caught:
        Replacement.load(folder)
    assert str(folder) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("Save", "save", "Update"))


def wrong_tensor(**changes):
    def damage(tensors: dict) -> dict:
        return tensors | {f"blocks.1.hook_resid_post/{part}": tensor for part, tensor in changes.items()}

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        wrong_tensor(weights=torch.zeros(2, WIDTH + 1)),
        wrong_tensor(directions=torch.zeros(1, WIDTH)),
        wrong_tensor(directions=torch.zeros(WIDTH)),
        wrong_tensor(bias=torch.zeros(3)),
        wrong_tensor(bias=torch.zeros(())),
        wrong_tensor(weights=torch.full((2, WIDTH), float("nan"))),
        wrong_tensor(directions=torch.full((2, WIDTH), float("inf"))),
        wrong_tensor(bias=torch.zeros(2, dtype=torch.long)),
        lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.1")},
        lambda tensors: {},
    ],
    ids=["width", "rank", "no matrix", "bias", "scalar", "NaN", "infinite", "integers", "missing", "empty"],
)
@pytest.mark.usefixtures("unchecked")
def test_tensors_that_cannot_be_right_are_an_artifact_error_that_names_the_hook_and_a_remedy(saved, damage):
    _, folder = saved
    path = folder / "replacement.safetensors"
    save_file(damage(load_file(path)), path)
    with pytest.raises(ArtifactError, match=r"blocks\.\d\.hook_resid_post") as caught:
        Replacement.load(folder)
    assert str(folder) in str(caught.value)
    assert "Save" in str(caught.value)


def test_sites_of_another_width_than_the_artifacts_own_model_are_refused(saved, tmp_path, tiny_llama):
    _, folder = saved
    path = folder / "replacement.safetensors"
    save_file({name: tensor[..., :-1].clone() if tensor.ndim == 2 else tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ArtifactError), Replacement.load(folder).steer(tiny_llama.model):
        logits_of(tiny_llama.model, range(10, 20))


@pytest.mark.parametrize(("sizes", "named"), [({"width": 48}, "d_model"), ({"layers": 2}, "n_layers")])
def test_a_model_of_other_sizes_is_refused_when_steering_begins(tmp_path, tiny_llama, sizes, named):
    other = psr.load_model(save_tiny("llama", tmp_path / "other", **sizes), backend=tiny_llama.backend)
    before = state_of(other)
    with pytest.raises(ArtifactError, match=f"{named}=.*Load the model"), random_replacement(tiny_llama.model).steer(other):
        pytest.fail("the block must not be entered")
    assert_unchanged(other, before)


def test_a_model_that_lacks_a_hook_point_is_refused_by_its_name(tiny):
    replacement = random_replacement(tiny.model)
    strange = replace(replacement, sites={"blocks.0.hook_elsewhere": next(iter(replacement.sites.values()))})
    with pytest.raises(ArtifactError, match=r"blocks\.0\.hook_elsewhere.*hook_points"):
        strange.hooks(tiny.model)


def test_an_artifact_carries_over_between_the_two_classes(load, tmp_path):
    cases = [load("gpt2", backend) for backend in BACKENDS]
    folder = random_replacement(cases[0].model, size=0.3).save(tmp_path)
    for case in cases:
        with Replacement.load(folder).steer(case.model):
            wanted = oracles.steered_logits(case.hf, range(10, 20), Replacement.load(folder).sites, 1.0, 9)
            torch.testing.assert_close(logits_of(case.model, range(10, 20)), wanted, **TOLERANCE)


def test_a_copied_folder_loads(saved, tmp_path):
    made, folder = saved
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert Replacement.load(tmp_path / "elsewhere").model == made.model


def test_an_artifact_of_the_first_format_still_loads(tmp_path, tiny_llama):
    back = Replacement.load(Path(__file__).parents[1] / "data" / "replacement-v1")
    wanted = random_replacement(tiny_llama.model, rank=2, span="QR")  # what it was made from
    assert (back.span, back.method, back.question_start, back.settings) == ("QR", "random", 4, {"epochs": 3, "note": "größer"})
    assert (back.offset, back.tokens, back.curve) == (0.0, "span", None)
    assert back.model == {name: value for name, value in wanted.model.items() if name != "verified"}
    for name, site in wanted.sites.items():
        assert all(torch.equal(getattr(back.sites[name], part), getattr(site, part)) for part in ("directions", "weights", "bias"))
    again = Replacement.load(back.save(tmp_path))
    with back.steer(tiny_llama.model), again.steer(tiny_llama.model, -1.0):
        assert logits_of(tiny_llama.model, range(10, 20)).isfinite().all()
    assert json.loads((tmp_path / "replacement.json").read_text())["format"] == 5


def test_an_artifact_of_the_second_format_still_loads(saved):
    made, folder = saved
    edit_settings(folder, format=2, data="absent", metrics="absent")
    back = Replacement.load(folder)
    assert (back.settings, back.data, back.metrics) == (made.settings, None, None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("strength", [1.25, -0.5, 0, np.float32(1.5), None])
def test_the_recommended_strength_comes_back_and_is_on_the_card(saved, strength, tmp_path):
    made, _ = saved
    recommended = replace(made, recommended_alpha=strength).with_metrics(psr.ResultTable(()))
    folder = recommended.save(tmp_path / "recommended")
    back = Replacement.load(folder)
    assert back.recommended_alpha == strength
    assert type(back.recommended_alpha) is (type(None) if strength is None else float)
    card = (folder / "README.md").read_text()
    assert ("| recommended alpha |" in card) is (strength is not None)
    assert f"steering.steer(model, alpha={1.0 if strength is None else float(strength)})" in card
    plan = psr.SteeringPlan.load((recommended + made).save(tmp_path / "plan"))
    assert [part.replacement.recommended_alpha for part in plan.parts] == [strength, None]
    assert "alpha=1.0)" in plan.model_card()


def test_an_artifact_of_the_fourth_format_has_no_recommended_strength(saved):
    _, folder = saved
    edit_settings(folder, format=4, recommended_alpha="absent")
    assert Replacement.load(folder).recommended_alpha is None


@pytest.mark.parametrize("strength", ["absent", "1", True, float("inf"), [1.0]], ids=str)
@pytest.mark.usefixtures("unchecked")
def test_a_recommended_strength_that_is_no_number_is_refused(saved, strength):
    made, folder = saved
    edit_settings(folder, recommended_alpha=strength)
    with pytest.raises(ArtifactError, match="Save the replacement again"):
        Replacement.load(folder)
    if strength != "absent":
        with pytest.raises(InputError, match=r"recommended_alpha: .*number"):
            replace(made, recommended_alpha=strength)


def test_offset_tokens_curve_and_per_head_sites_come_back(tmp_path, tiny):
    curve = LearningCurve((3.0, 2.0, 1.5), (3.5, 2.5), (0.1, 0.2, 0.3), 1)
    made = replace(replacement_at(tiny.model, "attn.hook_z", [0, 2]), offset=-0.5, tokens="last", curve=curve)
    back = Replacement.load(made.save(tmp_path))
    assert (back.offset, back.tokens, back.curve) == (-0.5, "last", curve)
    found = []
    for each in (made, back):
        with each.steer(tiny.model):
            found.append(logits_of(tiny.model, range(10, 20)))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": "absent"},
        {"offset": "half"},
        {"offset": None},
        {"tokens": "first"},
        {"tokens": "last"},  # with the span QR
        {"curve": 3},
        {"curve": {"train": [1.0]}},
        {"curve": {"train": ["x"], "validation": [], "seconds": [1.0], "kept": 0}},
        {"curve": {"train": [1.0], "validation": [], "seconds": [1.0], "kept": "first"}},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_what_the_second_format_added_is_checked_too(saved, changes):
    _, folder = saved
    edit_settings(folder, **changes)
    with pytest.raises(ArtifactError, match="Save the replacement again") as caught:
        Replacement.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_per_head_tensors_that_do_not_belong_together_are_refused(tmp_path, tiny_llama):
    folder = replacement_at(tiny_llama.model, "attn.hook_z", [1]).save(tmp_path)
    path = folder / "replacement.safetensors"
    tensors = load_file(path)
    for part, tensor in (("bias", torch.zeros(2)), ("weights", torch.zeros(2, 8)), ("directions", torch.zeros(4, 2, 7))):
        save_file(tensors | {f"blocks.1.attn.hook_z/{part}": tensor}, path)
        with pytest.raises(ArtifactError, match=r"blocks\.1\.attn\.hook_z.*Save the replacement again"):
            Replacement.load(folder)
