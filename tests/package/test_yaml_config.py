"""Settings from YAML files: unknown names and files that hold no settings."""

import pytest

from psr_lens._utils.yaml_config import check_keys, yaml_mapping
from psr_lens.errors import InputError

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
