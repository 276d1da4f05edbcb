"""Settings from YAML files: unknown names and files that hold no settings."""

import importlib
import pkgutil
from copy import copy
from dataclasses import replace

import pytest

import psr_lens as psr
from psr_lens._utils.yaml_config import KnownSettings, by_text, check_keys, yaml_mapping
from psr_lens.apps.pipeline.config import read_config
from psr_lens.errors import InputError
from psr_lens.evaluation.config import load_methods

KNOWN = ("epochs", "layers", "seed")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 0, "epoch": 3}, "config: unknown setting 'epoch'. Did you mean 'epochs'?"),
        ({"zzz": 1}, "config: unknown setting 'zzz'. Known settings: epochs, layers, seed."),
        ({7: 1}, "config: unknown setting 7. Known settings: epochs, layers, seed."),
    ],
)
def test_an_unknown_setting_gets_the_closest_name_or_all_of_them(given, message):
    with pytest.raises(InputError) as caught:
        check_keys("config", given, KNOWN)
    assert str(caught.value) == message


def test_known_settings_pass():
    check_keys("config", {"epochs": 3, "seed": None}, KNOWN)
    check_keys("config", {}, KNOWN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "with list, expected a mapping with one setting per line, such as `seed: 0`"),
        ("", "with NoneType, expected a mapping"),
        ("a: [", "expected a readable YAML file"),
        (None, "expected a readable YAML file"),
    ],
)
def test_a_file_without_settings_is_refused(tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"^config: got ") as caught:
        yaml_mapping(path, "`seed: 0`")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "twice"),
    [
        ("seed: 0\nepochs: 3\nseed: 1\n", "seed"),
        ("sampling: {top_p: 0.5, top_k: 3, top_p: 0.9}\n", "top_p"),
        ("methods:\n  A: {rank: 1}\n  'A': {rank: 2}\n", "A"),
        ("judges:\n  - {name: llm, name: fraction}\n", "name"),
        ('{"seed": 0, "seed": 1}', "seed"),
    ],
)
def test_a_setting_that_is_written_twice_is_refused_with_its_line(tmp_path, content, twice):
    """PyYAML would take the last one."""
    (tmp_path / "settings.yaml").write_text(content)
    with pytest.raises(InputError, match=rf"(?s)^config: got .*{twice!r} occurs twice in one mapping.* line \d, column \d+"):
        yaml_mapping(tmp_path / "settings.yaml", "`seed: 0`")


def test_settings_that_are_taken_from_another_mapping_may_be_written_again(tmp_path):
    content = "base: &base {k: 1, m: 0}\nover: {inner: &inner {<<: *base, k: 2}}\nlast: {<<: *inner, m: 3}\n"
    (tmp_path / "settings.yaml").write_text(content)
    found = yaml_mapping(tmp_path / "settings.yaml", "`seed: 0`")
    assert (found["over"]["inner"], found["last"]) == ({"k": 2, "m": 0}, {"k": 2, "m": 3})


@pytest.mark.usefixtures("unchecked")
def test_names_that_are_the_same_as_text_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: organism\nquestions: q.txt\nout: out\nmethods:\n  1: {solver: dim}\n  '1': {rank: 2}\n")
    with pytest.raises(InputError, match=r"^methods: got the name '1' twice, expected different names\. One of them is '1'"):
        read_config(path, {}).resolved(6)
    with pytest.raises(InputError, match=r"^methods: got the name 'True' twice"):
        load_methods({"True": "nowhere", True: "nowhere"})
    assert by_text({1: "a", "b": 2}, "methods") == {"1": "a", "b": 2}


def settings_classes():
    """Every class of settings that can be made."""
    for module in pkgutil.walk_packages(psr.__path__, "psr_lens."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = [], [KnownSettings]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        found += [kind] if kind.__module__.startswith("psr_lens") and "__dataclass_fields__" in vars(kind) else []
    return found


def test_an_unknown_setting_is_refused_by_every_class_of_settings_as_in_a_file():
    kinds = settings_classes()
    assert {psr.Joint, psr.DiM, psr.ReFT, psr.SamplingConfig, psr.Calibration, psr.SideEffects, psr.Statistics} <= set(kinds)
    for kind in set(kinds) - {psr.FitConfig}:  # which is not made at all
        with pytest.raises(InputError, match=f"^{kind.__name__}: unknown setting 'no_such'"):
            kind(no_such=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: psr.Joint(epoch=3), "Joint: unknown setting 'epoch'. Did you mean 'epochs'?"),
        (lambda: psr.SamplingConfig(max_tokens=3), "SamplingConfig: unknown setting 'max_tokens'. Did you mean 'max_new_tokens'?"),
        (lambda: replace(psr.Calibration(), target=80), "Calibration: unknown setting 'target'. Did you mean 'targets'?"),
    ],
)
def test_a_misspelt_setting_gets_the_closest_name(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_known_settings_are_taken_by_name_and_by_position_and_copied():
    assert psr.SamplingConfig(0.5, seed=3) == psr.SamplingConfig(temperature=0.5, seed=3) == copy(psr.SamplingConfig(0.5, 128, 3))
