"""Ids beyond the tokenizer's vocabulary, which models with a padded vocabulary can sample, have a label wherever tokens are shown."""

from dataclasses import replace

import pytest
from chat_templates import Stub
from tiny_tokenizers import MAKERS, tokenizer

import psr_lens as psr
from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.generation.sampled_triplets import Triplets
from psr_lens.prompts import token_table
from psr_lens.prompts.token_text import decoded, token_strings


@pytest.mark.parametrize("kind", MAKERS)
def test_an_id_without_a_token_is_a_label_and_has_no_text(kind):
    made = tokenizer(kind)
    known = made("what", add_special_tokens=False)["input_ids"]
    ids = [known[0], 151_700, *known[1:], 10**9]
    strings = token_strings(made, ids)
    assert [strings[1], strings[-1]] == ["<151700>", "<1000000000>"]
    assert [strings[0], *strings[2:-1]] == made.convert_ids_to_tokens(known)
    assert decoded(made, ids) == made.decode(known)
    pair = psr.PromptPair("what", "be brief .", tuple(known), tuple(known), 1)
    view = psr.PromptPairs((pair,), made).show()
    assert "None" not in str(view)
    triplets = Triplets((psr.Triplet(pair, (known[0], 151_700), "what"),), (), made)
    assert [token.text for token in triplets.show().rows["base"]][-1] == "<151700>"
    assert token_table(Stub(made), triplets, "R").strings[-1] == "<151700>"


def test_a_padded_vocabulary_is_read_by_every_result(tiny_llama, tmp_path, monkeypatch):
    model = tiny_llama.model
    triplets = [psr.Triplet(pair, (20, model.cfg.d_vocab - 1, 21), "x") for pair in _pairs(model)]
    known, full = 300, type(model.tokenizer).convert_ids_to_tokens

    def shorter(self, ids, *more, **options):
        def cut(each):
            return None if each >= known else full(self, each, *more, **options)

        return cut(ids) if isinstance(ids, int) else [cut(each) for each in ids]

    monkeypatch.setattr(type(model.tokenizer), "convert_ids_to_tokens", shorter)
    label = f"<{model.cfg.d_vocab - 1}>"
    captured = psr.capture(model, triplets)
    assert captured.tokens.strings.count(label) == len(triplets)
    store = psr.capture(model, triplets, to=psr.OnDisk(tmp_path / "store"))
    assert label in store.tokens.strings
    replacement = psr.fit(model, triplets, psr.DiM(layers=[1]))
    comparison = psr.compare(model, triplets, {"S": replacement})
    assert label in comparison.tokens.strings
    for figure in (plots.magnitude_heatmap(comparison), plots.magnitude_strips(comparison)):
        assert label.strip("<>") in figure.to_json()
    page = psr.report(comparison, tmp_path / "report.html").read_text(encoding="utf-8")
    assert label.strip("<>") in page
    lens = psr.logit_lens(model, replacement, k=model.cfg.d_vocab // 2)
    words = [word for row in lens.rows for word in (*row.promoted, *row.suppressed)]
    assert label in words
    assert "None" not in words
    top = psr.top_tokens(model, triplets, replacement, layer=1)
    assert all("None" not in (*each.before, each.token, *each.after) for each in top.tokens)


def _pairs(model):
    return psr.prompt_pairs(model, ["what is a bear ?", "what is tea ?"], "talk like a pirate .")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("beyond", [0, -1, 10**6], ids=["the first", "a negative one", "a far one"])
def test_ids_beyond_the_vocabulary_of_the_model_are_refused(tiny_llama, beyond):
    model = tiny_llama.model
    bad = beyond if beyond < 0 else model.cfg.d_vocab + beyond
    [pair, other] = _pairs(model)
    triplets = [psr.Triplet(other, (20, 21), "x"), psr.Triplet(pair, (20, bad), "x")]
    message = rf"triplets\[1\]: got the token id {bad}, expected ids from 0 to {model.cfg.d_vocab - 1}.* tokenizer of this model"
    for read in (
        lambda: psr.capture(model, triplets),
        lambda: psr.fit(model, triplets, psr.DiM()),
        lambda: log_likelihoods(model, triplets),
        lambda: psr.attribute(model, triplets),
    ):
        with pytest.raises(InputError, match=message):
            read()
    spoiled = replace(pair, prompted_ids=(*pair.prompted_ids[:-1], bad))
    with pytest.raises(InputError, match=rf"pairs\[1\]: got the token id {bad}"):
        psr.generate(model, [pair, spoiled], context="prompted")
    sampling = psr.SamplingConfig(max_new_tokens=1)
    assert len(psr.generate(model, [pair, spoiled], sampling=sampling)) == 2
    with pytest.raises(InputError, match=r"triplets\[0\]: got the token id"):
        psr.capture(model, [psr.Triplet(spoiled, (20,), "x")])
