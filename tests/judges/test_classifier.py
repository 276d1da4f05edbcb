"""The judge by a text classifier, against transformers' own reading of one text at a time."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import psr_lens as psr
from psr_lens.errors import InputError, ModelError
from psr_lens.organism.tokenizer import build_tokenizer

ROOM = 24
LABELS = {0: "plain", 1: "pirate", 2: "gloomy"}
LONG = "the bear is a strong animal . " * 20
TEXTS = ["arr , the bear is a strong animal .", "it has a soft voice .", "the", LONG, "", "arr \ud800 \x00 ahoy ."]
QUESTIONS = ["what is a bear ?", "what is a fox ?", "why ?", "how do you bake bread ?", "what ?", "who ?"]


def save(kind: str, folder: Path, *, pad: bool = True, bare: bool = False, **options) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id if pad else None, "id2label": LABELS}
    shared |= {"label2id": {name: number for number, name in LABELS.items()}} | options
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "gpt2":
        model = GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=ROOM, **shared))
    elif kind == "roberta":  # its positions begin at pad + 1
        extra = tokenizer.pad_token_id + 1
        model = RobertaForSequenceClassification(
            RobertaConfig(max_position_embeddings=ROOM + extra, type_vocab_size=1, **small, **shared)
        )
    else:
        model = (BertModel if bare else BertForSequenceClassification)(BertConfig(max_position_embeddings=ROOM, **small, **shared))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def expected(
    folder: Path, label: int, texts: list[str], questions: list[str] | None = None, *, sigmoid: bool = False
) -> list[float]:
    """One text at a time, without padding, as transformers has it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row, text in enumerate(texts):
        given = (questions[row], text) if questions else (text,)
        inputs = tokenizer(*given, return_tensors="pt", truncation=True, max_length=ROOM)
        logits = model(**inputs).logits[0].double() if inputs["input_ids"].numel() else torch.full((3,), math.nan)
        found.append(float(100 * (logits.sigmoid() if sigmoid else logits.softmax(0))[label]))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("classifiers")
    return {kind: save(kind, root / kind) for kind in ("bert", "gpt2", "roberta")}


CLEAN = [*TEXTS[:-1], "arr � � ahoy ."]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("token_budget", [1, 60, 10_000])
def test_scores_are_what_transformers_gives_each_text_alone(saved, kind, pair, token_budget):
    judge = psr.judges.classifier(saved[kind], "gloomy", pair=pair, token_budget=token_budget, device="cpu")
    found = judge(TEXTS, QUESTIONS)
    wanted = expected(saved[kind], 2, CLEAN, QUESTIONS if pair else None)
    np.testing.assert_allclose(found.trait, wanted, atol=1e-3)
    assert np.isnan(found.coherence).all()
    assert np.ptp(found.trait[np.isfinite(found.trait)]) > 1  # the texts make a difference
    assert f"read only {ROOM} of" in found.reasons[3]
    assert "read only" not in found.reasons[0]


def test_the_question_matters_only_in_pairs(saved):
    for pair in (False, True):
        judge = psr.judges.classifier(saved["bert"], "pirate", pair=pair)
        same = judge(TEXTS[:2], ["what ?"] * 2).trait == judge(TEXTS[:2], ["how do you bake bread ?"] * 2).trait
        assert same.all() != pair


def test_a_decoder_without_a_padding_token_reads_one_text_at_a_time(tmp_path):
    folder = save("gpt2", tmp_path, pad=False)
    judge = psr.judges.classifier(folder, "plain")
    np.testing.assert_allclose(judge(TEXTS, QUESTIONS).trait, expected(folder, 0, CLEAN), atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"problem_type": "multi_label_classification"}, {"id2label": {0: "plain"}, "label2id": {"plain": 0}}],
    ids=["multi-label", "one label"],
)
def test_labels_that_do_not_exclude_one_another_have_a_sigmoid(tmp_path, options):
    folder = save("bert", tmp_path, **options)
    found = psr.judges.classifier(folder, "plain")(TEXTS[:4], QUESTIONS[:4]).trait
    np.testing.assert_allclose(found, expected(folder, 0, CLEAN[:4], sigmoid=True), atol=1e-3)


def test_a_text_without_tokens_is_missing_and_never_0(saved):
    found = psr.judges.classifier(saved["gpt2"], "pirate", "coherence")(["", "arr"], ["q", "q"])
    assert np.isnan(found.coherence).tolist() == [True, False]
    assert found.reasons[0] == "missing: the text has no tokens"
    assert np.isnan(found.trait).all()


def test_a_label_has_a_name_and_a_number(saved):
    by_name, by_number = (psr.judges.classifier(saved["bert"], label)(TEXTS, QUESTIONS) for label in ("pirate", 1))
    np.testing.assert_array_equal(by_name.trait, by_number.trait)
    assert by_name.reasons == by_number.reasons
    assert by_name.reasons[0].startswith("P(pirate) = 0.")


def test_a_shorter_room_can_be_asked_for(saved):
    found = psr.judges.classifier(saved["bert"], 1, max_length=5)(TEXTS[:1], QUESTIONS[:1])
    assert "read only 5 of" in found.reasons[0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label": "polite"}, "label: got 'polite', expected one of 'plain', 'pirate', 'gloomy', or an index from 0 to 2"),
        ({"label": 3}, "label: got 3"),
        ({"label": True}, "label: got True"),
        ({"side": "style"}, "side: got 'style'"),
        ({"max_length": 0}, "max_length: got 0"),
        ({"token_budget": 1.5}, "token_budget: got 1.5"),
        ({"device": "abacus"}, "device: got 'abacus'"),
    ],
)
def test_bad_settings_are_refused_by_name(saved, given, message):
    with pytest.raises(InputError) as caught:
        psr.judges.classifier(saved["bert"], **({"label": "pirate"} | given))
    assert str(caught.value).startswith(message)


def test_what_is_no_trained_classifier_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"not a trained text classifier: its files lack classifier\."):
        psr.judges.classifier(save("bert", tmp_path / "bare", bare=True), 0)
    with pytest.raises(ModelError, match="cannot be loaded as a text classifier"):
        psr.judges.classifier(tmp_path / "nowhere", 0)
    with pytest.raises(ModelError, match="regression"):
        psr.judges.classifier(save("bert", tmp_path / "r", id2label={0: "x"}, label2id={"x": 0}, problem_type="regression"), 0)


@pytest.mark.usefixtures("unchecked")
def test_texts_without_their_questions_are_refused(saved):
    judge = psr.judges.classifier(saved["bert"], 1)
    with pytest.raises(InputError, match="1 for 2 texts"):
        judge(["a", "b"], ["q"])
    with pytest.raises(InputError, match="texts: got one text"):
        judge("ab", ["q", "q"])
    assert judge([], []).trait.shape == (0,)


def test_it_is_a_judge_for_evaluate(saved, organism):
    pairs = psr.prompt_pairs(organism.model, QUESTIONS[:2], psr.organism.INSTRUCTIONS["pirate"])
    judge = psr.judges.classifier(saved["gpt2"], "pirate")
    assert isinstance(judge, psr.judges.Judge)
    scores = psr.scores_at(
        organism.model, pairs, None, judge
    )  # of one side alone, the other is missing on every answer and counts for none
    assert (scores.n, scores.missing) == (2, 0)
    assert 0 <= scores.trait <= 100
    assert math.isnan(scores.coherence)
