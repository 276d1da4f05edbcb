"""A judge that is a text classifier: the probability of one of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from psr_lens._utils.progress import progress_bar
from psr_lens.errors import InputError, ModelError
from psr_lens.judges.texts import sendable
from psr_lens.results.judgement import Judgement, check_texts

Side = Literal["trait", "coherence"]

TOKEN_BUDGET: Final = 16_384
"""Most tokens of a batch, padding included."""

_Encoded = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ClassifierJudge:
    """Scores texts by a classifier's probability of a label; made by `psr_lens.judges.classifier_judge`."""

    name: str
    """Name or folder of the classifier."""
    label: str
    """The label whose probability is the score."""
    index: int
    """Its number in the classifier's configuration."""
    side: Side
    """Which score it gives; the other one is missing."""
    pair: bool
    """Whether the classifier reads the question too, as the first of two texts."""
    room: int
    """Most tokens that it reads of a text; longer ones are cut at the end."""
    token_budget: int
    """Most tokens of a batch, padding included."""
    _model: Any = field(repr=False, compare=False)
    _tokenizer: Any = field(repr=False, compare=False)

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text, alone or as an answer to the question at the same place.

        Returns:
            100 times the label's probability on the judge's side and NaN on the other; the reasons say which texts were cut.

        Raises:
            InputError: not as many questions as texts.
        """
        check_texts(texts, questions)
        encoded = [self._encode(sendable(text), sendable(question)) for text, question in zip(texts, questions, strict=True)]
        scores = np.full(len(texts), np.nan)
        with progress_bar(total=len(texts), desc="judge", unit="text") as bar:
            for rows in self._batches([len(each["input_ids"]) for each, _ in encoded]):
                scores[rows] = 100 * self._probabilities([encoded[row][0] for row in rows])
                bar.update(len(rows))
        reasons = tuple(self._reason(score, length) for score, (_, length) in zip(scores.tolist(), encoded, strict=True))
        other = np.full(len(texts), np.nan)
        return Judgement(scores, other, reasons) if self.side == "trait" else Judgement(other, scores, reasons)

    def _encode(self, text: str, question: str) -> tuple[_Encoded, int]:
        """What the classifier reads of a text, and how many tokens the whole has."""
        given = (question, text) if self.pair else (text,)
        whole = self._tokenizer(*given, verbose=False)
        length = len(whole["input_ids"])
        if length <= self.room:
            return whole, length
        return self._tokenizer(*given, truncation=True, max_length=self.room, verbose=False), length

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of like lengths; one at a time where the classifier knows no padding. Empty texts are left out."""
        alone = self._pad_id() is None
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
            if batch and (alone or (len(batch) + 1) * lengths[row] > self.token_budget):
                yield batch
                batch = []
            if lengths[row]:
                batch.append(row)
        if batch:
            yield batch

    def _pad_id(self) -> int | None:
        # The configuration's and not the tokenizer's: it is how decoders find a text's last token, and RoBERTa its positions.
        found = self._model.config.get_text_config().pad_token_id
        return None if found is None else int(found)

    def _probabilities(self, rows: Sequence[_Encoded]) -> np.ndarray:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self._pad_id() or 0}
        inputs = {
            name: torch.tensor(
                [[*row[name], *[fill.get(name, 0)] * (width - len(row[name]))] for row in rows], device=self._model.device
            )
            for name in rows[0]
        }
        with torch.inference_mode():
            logits = self._model(**inputs).logits.double()
        config = self._model.config
        several = config.num_labels > 1 and config.problem_type != "multi_label_classification"
        probabilities = logits.softmax(-1) if several else logits.sigmoid()
        found: np.ndarray = probabilities[:, self.index].cpu().numpy()
        return found

    def _reason(self, score: float, length: int) -> str:
        if not length:
            return "missing: the text has no tokens"
        if np.isnan(score):
            return "missing: the classifier gave no number"
        cut = f"; read only {self.room} of {length} tokens" if length > self.room else ""
        return f"P({self.label}) = {score / 100:.3g}{cut}"


def classifier(
    name_or_path: str | Path,
    label: str | int,
    side: Side = "trait",
    *,
    pair: bool = False,
    device: Any = None,
    max_length: int | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> ClassifierJudge:
    """A judge that is a Hugging Face text classifier: a text's score is 100 times the probability of one label.

    The probability is a softmax over the labels, or a sigmoid where labels do not exclude one another (`problem_type`
    `multi_label_classification`) or there is only one. Put two one-sided judges together with `psr_lens.judges.combined_judge`.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a name on the Hugging Face Hub.
        label: The label, by its name in the classifier's configuration or by its number.
        side: Which score the probability is.
        pair: Give the classifier the question as first and the answer as second text; else it reads the answer alone.
        device: Where it runs, such as `"cuda"`; None takes a GPU where there is one.
        max_length: Most tokens of a text (or pair); None takes what the classifier can read. Longer ones are cut and the reasons say so.
        token_budget: Most tokens of a batch, padding included.

    Raises:
        InputError: there is no such label, or a setting cannot be meant.
        ModelError: it cannot be loaded, or it is no classifier.
    """
    if side not in get_args(Side):
        raise InputError("side", repr(side), "'trait' or 'coherence'")
    for name, value, least in (("max_length", max_length, 4), ("token_budget", token_budget, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(name, repr(value), f"a whole number, {least} or more")
    model, tokenizer = _load(str(name_or_path), device)
    room = min(_room(model, tokenizer), max_length or 10**9)
    names = _labels(model.config)
    index = label if isinstance(label, int) and not isinstance(label, bool) else names.index(label) if label in names else -1
    if not 0 <= index < len(names):
        choices = ", ".join(map(repr, names))
        raise InputError("label", repr(label), f"one of {choices}, or its number from 0 to {len(names) - 1}")
    return ClassifierJudge(str(name_or_path), names[index], index, side, pair, room, token_budget, model, tokenizer)


def _load(name: str, device: Any) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, info = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"name_or_path: {name!r} cannot be loaded as a text classifier ({error}). "
            "Give a folder saved with `save_pretrained`, tokenizer included, or check the name and the network."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"name_or_path: {name!r} is no trained text classifier, its files lack {', '.join(missing[:3])}. "
            "Give a model that was trained for sequence classification."
        )
    try:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError("device", repr(device), "a device that torch has here", f"({error})") from error
    return model.eval().requires_grad_(False), tokenizer


def _room(model: Any, tokenizer: Any) -> int:
    """Most tokens that a classifier can read."""
    found = [int(tokenizer.model_max_length)]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        found.append(limit)
    for name, module in model.named_modules():
        # RoBERTa's positions begin after its padding token's number, so that not all are there for a text.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            found.append(module.num_embeddings - module.padding_idx - 1)
    return min(found)


def _labels(config: Any) -> list[str]:
    if config.num_labels == 1 and config.problem_type == "regression":
        raise ModelError("name_or_path: the classifier is a regression, which has no probability. Give one with labels.")
    return [str(config.id2label[number]) for number in range(config.num_labels)]
