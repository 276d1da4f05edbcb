"""What a notebook shows for the main objects: well-formed tables with the objects' numbers, everything escaped."""

import xml.etree.ElementTree as ET
from pathlib import Path

from helpers import random_replacement, random_triplets
from made_up_results import comparison

import psr_lens as psr
from psr_lens._utils.html_table import MAX_ROWS, table


def read(html: str) -> tuple[str, list[list[str]]]:
    """Caption and cells."""
    root = ET.fromstring(html)
    assert root.tag == "table"
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert len({len(row) for row in rows}) == 1
    return root.findtext("caption") or "", rows


def test_numbers_are_short_and_markup_is_text():
    caption, rows = read(table(("a <i>", "b"), [("<b>x</b>", 1234567), (True, 0.123456)], "1 < 2 & 3"))
    assert caption == "1 < 2 & 3"
    assert rows == [["a <i>", "b"], ["<b>x</b>", "1,234,567"], ["True", "0.1235"]]


def test_long_tables_show_both_ends():
    _, rows = read(table(("row", "x"), [(f"r{place}", place) for place in range(100)]))
    assert len(rows) == MAX_ROWS + 2
    assert rows[33] == ["… 36 more", ""]
    assert rows[-1] == ["r99", "99"]


def test_replacements_and_plans_list_their_sites(tiny_llama):
    replacement = random_replacement(tiny_llama.model, rank=2)
    caption, rows = read(replacement._repr_html_())
    assert caption == repr(replacement)
    assert [row[0] for row in rows[1:]] == list(replacement.sites)
    assert float(rows[1][3]) == float(f"{replacement.sites['blocks.0.hook_resid_post'].directions.norm():.4g}")
    _, parts = read((replacement + 0.5 * replacement)._repr_html_())
    assert [row[0] for row in parts[1:]] == ["1", "0.5"]


def test_captured_differences_show_their_magnitude_wherever_they_are_kept(tiny_llama, tmp_path: Path):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 5)
    held = psr.capture(model, triplets)
    caption, rows = read(held._repr_html_())
    assert f"{len(held):,} tokens of 5 responses" in caption
    name, _, median, *_ = rows[1]
    assert float(median) == float(f"{held.magnitude(name).median():.4g}")
    _, counted = read(psr.capture(model, triplets, to=psr.Statistics(rank=2))._repr_html_())
    assert int(counted[1][1]) == len(held)
    about, hooks = read(psr.capture(model, triplets, to=psr.OnDisk(tmp_path / "store"))._repr_html_())
    assert f"{len(held):,} tokens" in about
    assert [row[0] for row in hooks[1:]] == list(held.deltas)


def test_triplets_show_questions_and_answers(organism, pirate_triplets):
    caption, rows = read(pirate_triplets._repr_html_())
    assert caption.startswith("60 triplets kept")
    assert rows[1][:2] == [pirate_triplets[0].pair.question, pirate_triplets[0].response]


def test_a_comparison_shows_scores_and_the_last_layers_rmse():
    result = comparison()
    caption, rows = read(result._repr_html_())
    assert "'talk like a <pirate>'" in caption
    shown = {row[0]: row[1:] for row in rows[1:]}
    assert set(shown) == {"none", "prompt", "A-PSR", "S-PSR", "S-Const DiM", "paraphrase"}
    assert shown["A-PSR"] == ["100", "99.75", "40", "0.1"]
    assert shown["paraphrase"] == ["", "", "", "0.2"]


def test_lenses_and_top_tokens_are_tables_too(tiny_llama):
    replacement = random_replacement(tiny_llama.model)
    lens = psr.logit_lens(tiny_llama.model, replacement, 3)
    _, rows = read(lens._repr_html_())
    assert rows[1][2] == ", ".join(lens.rows[0].promoted)
    found = psr.top_tokens(tiny_llama.model, random_triplets(tiny_llama.model, 4), replacement, 3)
    _, rows = read(found._repr_html_())
    assert [row[2] for row in rows[1:]] == [each.token for each in found.tokens]
