"""The files of an artifact belong together: one fit's tensors beside another's settings are refused, and exchanged parts of a plan."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import random_replacement
from safetensors.torch import load_file, save_file

import psr_lens as psr
from psr_lens.errors import ArtifactError
from psr_lens.replacement import Replacement

TENSORS, SETTINGS = "replacement.safetensors", "replacement.json"
REFUSED = "do not belong together"


@pytest.fixture
def fits(tiny_llama, tmp_path):
    """Two fits of the same shapes, in their folders."""
    made = [random_replacement(tiny_llama.model, seed=seed) for seed in (1, 2)]
    return [(each, each.save(tmp_path / f"fit-{index}")) for index, each in enumerate(made)]


@pytest.mark.parametrize("file", [TENSORS, SETTINGS])
def test_one_fits_tensors_beside_anothers_settings_are_refused(fits, file):
    (_, first), (_, second) = fits
    shutil.copy(first / file, second / file)
    with pytest.raises(
        ArtifactError, match=rf"fit-1: .* {REFUSED} \(the checksum is of other content\)\. Save the replacement again"
    ):
        Replacement.load(second)


def test_one_number_that_differs_is_noticed_and_rewritten_files_are_not(fits):
    _, folder = fits[0]
    path = folder / TENSORS
    tensors = load_file(path)
    save_file(dict(reversed(tensors.items())), path, metadata={"written": "by another program"})
    assert Replacement.load(folder).method == "random"
    name = next(each for each in tensors if each.endswith("/bias"))
    save_file(tensors | {name: tensors[name] + 1e-6}, path)
    with pytest.raises(ArtifactError, match=REFUSED):
        Replacement.load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"offset": 1.0}, {"tokens": "last"}, {"span": "QR", "question_start": 3}, {"checksum": "0" * 32}, {"checksum": None}],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_change_what_it_does_are_noticed_and_the_record_is_free(fits, changes):
    made, folder = fits[0]
    content = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(content | {"method": "another name", "settings": {"note": "x"}}))
    assert Replacement.load(folder).method == "another name"
    (folder / SETTINGS).write_text(json.dumps(content | changes))
    with pytest.raises(ArtifactError, match=REFUSED):
        Replacement.load(folder)
    assert replace(made, method="x").save(folder)


@pytest.mark.parametrize(
    "changes", [{"offset": 1}, {"offset": -0.25, "tokens": "last"}, {"span": "QR", "question_start": 4}], ids=str
)
def test_whatever_is_saved_is_loaded(fits, tmp_path, changes):
    made = replace(fits[0][0], **changes)
    assert Replacement.load(made.save(tmp_path / "again")).offset == made.offset
    half = replace(made, sites={name: replace(site, directions=site.directions.half()) for name, site in made.sites.items()})
    assert next(iter(Replacement.load(half.save(tmp_path / "half")).sites.values())).directions.dtype == torch.float16


def test_parts_of_a_plan_that_are_exchanged_or_taken_from_another_are_refused(fits, tmp_path):
    (one, first), (two, _) = fits
    folder = (one + 0.5 * two).save(tmp_path / "plan")
    assert [part.factor for part in psr.SteeringPlan.load(folder).parts] == [1.0, 0.5]
    (folder / "part-0").rename(folder / "aside")
    (folder / "part-1").rename(folder / "part-0")
    (folder / "aside").rename(folder / "part-1")
    with pytest.raises(
        ArtifactError, match=rf"plan: the parts {REFUSED} \(part-0 is another than was saved there\)\. Save the plan again"
    ):
        psr.SteeringPlan.load(folder)
    (one + 0.5 * two).save(folder)
    for file in (TENSORS, SETTINGS):  # whole, but of another fit
        shutil.copy(first / file, folder / "part-1" / file)
    with pytest.raises(ArtifactError, match="part-1 is another"):
        psr.SteeringPlan.load(folder)
    plan = json.loads((folder / "plan.json").read_text())
    for checksums in (plan["checksums"][:1], None, 3):
        (folder / "plan.json").write_text(json.dumps(plan | {"checksums": checksums}))
        with pytest.raises(ArtifactError, match="Save the plan again"):
            psr.SteeringPlan.load(folder)


def test_artifacts_without_checksums_still_load(fits, tmp_path):
    (one, first), (two, _) = fits
    content = json.loads((first / SETTINGS).read_text())
    (first / SETTINGS).write_text(
        json.dumps({name: value for name, value in content.items() if name != "checksum"} | {"format": 3})
    )
    assert list(Replacement.load(first).sites) == list(one.sites)
    folder = (one + 0.5 * two).save(tmp_path / "plan")
    (folder / "plan.json").write_text(json.dumps({"format": 1, "factors": [1.0, 0.5]}))
    assert psr.SteeringPlan.load(folder).parts[1].factor == 0.5
