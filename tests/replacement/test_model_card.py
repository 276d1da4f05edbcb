"""Model cards: what they say, that their code runs, and that text of others is never lost."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import yaml
from helpers import random_replacement, random_triplets

import psr_lens as psr
from psr_lens.activations.store import triplets_digest
from psr_lens.errors import InputError
from psr_lens.replacement.model_card import is_ours

NAN = float("nan")


@pytest.fixture
def measured(organism) -> psr.Replacement:
    rows = (
        psr.Result("A-PSR", "trait", 98.25, 150, (95.0, 100.0), "pirate", "descriptions", 1.0),
        psr.Result("A-PSR", "TA@C80", NAN, 150, (NAN, NAN), "pirate", "descriptions", missing=3),
    )
    settings = {"instructions": ["talk | like a <b>pirate</b>"], "triplets": 240, "epochs": 15}
    made = replace(random_replacement(organism.model, layers=[1, 2], size=0.01), settings=settings, data="ab" * 16, method="A-PSR")
    return made.with_metrics(psr.ResultTable(rows, {"seed": 0}))


@pytest.mark.parametrize(("layers", "words"), [([3], "layer 3"), ([0, 1, 2, 5], "layers 0–2, 5"), ([0, 2, 4], "layers 0, 2, 4")])
def test_layers_of_a_card_are_ranges(organism, layers, words):
    made = random_replacement(organism.model, layers=layers)
    assert f"| hook points | hook\\_resid\\_post in {words} |" in made.model_card()


def header_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_says_what_the_artifact_records(measured):
    card = measured.model_card()
    for said in (
        r"# talk \| like a \<b\>pirate\</b\>",
        "| base model | organism (LlamaForCausalLM), n\\_layers 6, d\\_model 128",
        "| method | A-PSR |",
        "| hook points | hook\\_resid\\_post in layers 1–2 |",
        "| rank | 1 |",
        "| span | R: the last prompt token and every response token |",
        f"240 triplets, xxh3\\_128 of their tokens {'ab' * 16}",
        '"epochs": 15',
        "psr-lens ",
        "torch ",
        "No licence is stated",
    ):
        assert said in card, said
    lines = card.splitlines()
    assert "| method | metric | value | 95 % interval | n | missing | trait | questions | alpha |" in lines
    assert "| A-PSR | trait | 98.25 | 95 to 100 | 150 |  | pirate | descriptions | 1 |" in lines
    assert "| A-PSR | TA@C80 | missing |  | 150 | 3 | pirate | descriptions |  |" in lines
    header = header_of(card)
    assert header["library_name"] == "psr-lens"
    assert "license" not in header
    assert "base_model" not in header  # no name of the Hub


def test_a_model_of_the_hub_is_named_in_the_header(measured):
    named = replace(measured, model=measured.model | {"model_name": "google/gemma-2-2b-it"})
    assert header_of(named.model_card())["base_model"] == "google/gemma-2-2b-it"


def test_the_code_on_a_card_runs(measured, tmp_path, monkeypatch, capsys):
    plan = measured - 0.5 * measured
    for name, artifact in (("pirate-psr", measured), ('odd "name', plan)):
        folder = artifact.save(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
        exec(compile(code, name, "exec"), {})
        assert capsys.readouterr().out.strip()


def test_what_was_not_recorded_is_said_to_be_missing(organism):
    card = random_replacement(organism.model).model_card()
    assert "| instruction | not recorded |" in card
    assert "| training data | not recorded |" in card
    assert "No results were saved with it." in card


def test_a_plans_card_has_its_parts(measured):
    card = (measured - 0.5 * measured).model_card()
    assert "## Part 0, × 1" in card
    assert "## Part 1, × -0.5" in card
    assert "psr.SteeringPlan.load(" in card


def test_fit_records_the_digest_of_its_triplets(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 4)
    config = psr.Sequential(layers=1, regression_steps=0)
    fitted = psr.fit(tiny_llama.model, triplets, config)
    assert re.fullmatch(r"[0-9a-f]{32}", fitted.data)
    assert fitted.data == triplets_digest(triplets) == psr.fit(tiny_llama.model, list(triplets), config).data
    assert fitted.data not in (triplets_digest(triplets[:3]), triplets_digest(triplets[::-1]))


def test_metrics_come_back_and_replace_earlier_ones(measured, tmp_path):
    back = psr.Replacement.load(measured.save(tmp_path))
    assert repr(back.metrics.rows) == repr(measured.metrics.rows)
    assert back.metrics.settings == {"seed": 0}
    assert back.data == measured.data
    other = psr.ResultTable((psr.Result("x", "KL", 1.0, 3, (0.5, 2.0), alpha=2, layer=4),))
    assert psr.Replacement.load(back.with_metrics(other).save(tmp_path)).metrics == other
    assert json.loads((tmp_path / "replacement.json").read_text())["metrics"]["rows"][0]["n"] == 3


@pytest.mark.usefixtures("unchecked")
def test_metrics_are_a_table_of_results(measured):
    with pytest.raises(InputError, match=r"metrics: got a dict, expected a ResultTable from the `table` method"):
        measured.with_metrics({"trait": 98})


def test_a_long_table_is_cut_and_says_so(measured):
    rows = tuple(psr.Result("A-PSR", "relative RMSE", 0.5, 9, (NAN, NAN), layer=layer) for layer in range(250))
    card = measured.with_metrics(psr.ResultTable(rows)).model_card()
    assert card.count("| A-PSR | relative RMSE |") == 200
    assert "50 more results are in the artifact's settings file." in card


# --- whose card it is -------------------------------------------------------------------------------------------------------


def test_our_own_card_is_replaced(measured, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured.save(tmp_path)
        replace(measured, method="other").save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| method | other |" in card
    assert is_ours(card)


@pytest.mark.parametrize(
    "edit", [lambda card: "# My project\n", lambda card: card.replace("tags:", "license: mit\ntags:"), lambda card: ""]
)
def test_a_card_that_somebody_wrote_or_edited_is_kept_with_a_warning(measured, tmp_path, edit):
    measured.save(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(edit(path.read_text()))
    before = path.read_bytes()
    with pytest.warns(UserWarning, match=r"README\.md was edited, or was not written by psr_lens.*model_card\(\)"):
        replace(measured, method="other").save(tmp_path)
    assert path.read_bytes() == before
    assert psr.Replacement.load(tmp_path).method == "other"


def test_a_card_that_is_a_link_or_no_text_is_not_written_through(measured, tmp_path):
    elsewhere = tmp_path / "theirs"
    elsewhere.write_bytes(b"\xff\xfe")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "README.md").symlink_to(elsewhere)
    with pytest.warns(UserWarning, match="kept"):
        measured.save(tmp_path / "artifact")
    assert elsewhere.read_bytes() == b"\xff\xfe"
