"""A text classifier as a judge: the score is the probability of one of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens._utils.numbers import is_whole
from psr_lens._utils.progress import progress_bar
from psr_lens.errors import InputError, ModelError
from psr_lens.judges.clean_text import sendable
from psr_lens.results.judgement import Judgement, check_texts

Side = Literal["trait", "coherence"]

TOKEN_BUDGET: Final = 16_384
"""Default for the largest number of tokens in a batch, padding included."""

_Encoded = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ClassifierJudge:
    """Scores texts by a classifier's probability of a label; `psr.judges.classifier` makes one.

    Example:
        >>> from transformers import GPT2Config, GPT2ForSequenceClassification
        >>> GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=1, num_labels=3)).save_pretrained("mine")
        >>> saved = model.tokenizer.save_pretrained("mine")
        >>> psr.judges.classifier("mine", "LABEL_2", device="cpu")
        ClassifierJudge('mine', label='LABEL_2', side='trait')
    """

    name: str
    """Folder of the classifier, or its name on the Hugging Face Hub."""
    label: str
    """The label whose probability is the score."""
    index: int
    """The label's index in the classifier's configuration."""
    side: Side
    """Which score it gives, `"trait"` or `"coherence"`; the other one is NaN."""
    pair: bool
    """Whether the classifier also reads the question, as the first text of a pair."""
    max_length: int
    """Largest number of tokens that it reads; longer texts are cut at the end."""
    token_budget: int
    """Largest number of tokens in a batch, padding included."""
    _model: Any = field(repr=False, compare=False)
    _tokenizer: Any = field(repr=False, compare=False)

    @property
    def identity(self) -> str | None:
        """What its scores depend on: all weights, settings, config and tokenizer of the classifier, the label, and what it reads.

        None while hooks are on the classifier, if the content of a setting or function in its modules cannot be told, or if its tokenizer,
        written in Python, cannot be told from others.

        Example:
            >>> from transformers import GPT2Config, GPT2ForSequenceClassification
            >>> GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=1, num_labels=3)).save_pretrained("mine")
            >>> saved = model.tokenizer.save_pretrained("mine")
            >>> first, other = (psr.judges.classifier("mine", label, device="cpu") for label in (0, 1))
            >>> first.identity == other.identity
            False
        """
        from psr_lens.models.identity_by_content import classifier_content

        found = classifier_content(self._model, self._tokenizer)
        if found is None:
            return None
        settings = {"index": self.index, "side": self.side, "pair": self.pair, "max_length": self.max_length}
        return json_text({"judge": "classifier", "classifier": found, **settings})

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text, alone or (with `pair`) together with the question at the same index.

        Returns:
            100 times the label's probability for the judge's side and NaN for the other; the reasons say which texts were cut.

        Raises:
            InputError: `texts` and `questions` differ in length.
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
        trait, coherence = (scores, other) if self.side == "trait" else (other, scores)
        return Judgement(trait=trait, coherence=coherence, reasons=reasons, gives=(self.side,))

    def __repr__(self) -> str:
        """One line: the classifier, its label and the side that it scores."""
        return f"ClassifierJudge({self.name!r}, label={self.label!r}, side={self.side!r})"

    def _encode(self, text: str, question: str) -> tuple[_Encoded, int]:
        """The encoded text as the classifier reads it, and the number of tokens before it was cut."""
        given = (question, text) if self.pair else (text,)
        whole = self._tokenizer(*given, verbose=False)
        length = len(whole["input_ids"])
        if length <= self.max_length:
            return whole, length
        return self._tokenizer(*given, truncation=True, max_length=self.max_length, verbose=False), length

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of similar lengths; one at a time if the classifier has no padding token. Empty texts are left out."""
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
        # From the configuration, not the tokenizer: decoders find a text's last token by it, and RoBERTa its positions.
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
            return "missing: the classifier returned NaN"
        cut = f"; read only {self.max_length} of {length} tokens" if length > self.max_length else ""
        return f"P({self.label}) = {score / 100:.3g}{cut}"


@checks_arguments
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
    """Judge by a Hugging Face text classifier: a text's score is 100 times the probability of one label.

    The probability is a softmax over the labels, or a sigmoid if labels are not exclusive (`problem_type`
    `multi_label_classification`) or there is only one. `psr.judges.combine` joins two one-sided judges.

    Example:
        >>> from transformers import GPT2Config, GPT2ForSequenceClassification
        >>> GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=1, num_labels=3)).save_pretrained("mine")
        >>> saved = model.tokenizer.save_pretrained("mine")
        >>> psr.judges.classifier("mine", "LABEL_2", device="cpu")(["arr , yes ."], ["what is a bear ?"]).trait.shape
        (1,)

    Args:
        name_or_path: A folder written by `save_pretrained`, or a name on the Hugging Face Hub.
        label: The label: its name in the classifier's configuration, or its index.
        side: Which score the probability is: `"trait"` or `"coherence"`.
        pair: Give the classifier the question as the first and the answer as the second text; otherwise it reads the answer alone.
        device: Where it runs, such as `"cuda"`; None takes a GPU if there is one.
        max_length: Largest number of tokens of a text (or pair); None for the classifier's own limit. Longer texts are cut, and their
            reasons say so.
        token_budget: Largest number of tokens in a batch, padding included.

    Raises:
        InputError: an unknown label or an invalid setting.
        ModelError: the classifier cannot be loaded, or the model is not a classifier.
    """
    _check_sizes(max_length, token_budget)
    model, tokenizer = _load(str(name_or_path), device)
    longest = min(_longest(model, tokenizer), max_length or 10**9)
    index = _index_of(label, model.config)
    return ClassifierJudge(
        name=str(name_or_path),
        label=_labels(model.config)[index],
        index=index,
        side=side,
        pair=pair,
        max_length=longest,
        token_budget=token_budget,
        _model=model,
        _tokenizer=tokenizer,
    )


@checks_arguments
def check_settings(
    name_or_path: str | Path,
    label: str | int,
    side: Side = "trait",
    *,
    pair: bool = False,
    device: Any = None,
    max_length: int | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> None:
    """Check what `classifier` takes, from the classifier's config and tokenizer, without its weights.

    Raises:
        InputError: as for `classifier`, except the device.
        ModelError: the config or the tokenizer cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    _check_sizes(max_length, token_budget)
    with _readable(str(name_or_path)):
        config = AutoConfig.from_pretrained(str(name_or_path))
        AutoTokenizer.from_pretrained(str(name_or_path))
    _index_of(label, config)


def _check_sizes(max_length: int | None, token_budget: int) -> None:
    for name, value, least in (("max_length", max_length, 4), ("token_budget", token_budget, 1)):
        if value is not None and (not is_whole(value) or value < least):
            raise InputError(name, repr(value), f"a whole number, {least} or more")


def _index_of(label: str | int, config: Any) -> int:
    """The index of a label, given by its name or its index."""
    names = _labels(config)
    index = int(label) if is_whole(label) else names.index(str(label)) if label in names else -1
    if not 0 <= index < len(names):
        choices = ", ".join(map(repr, names))
        raise InputError("label", repr(label), f"one of {choices}, or an index from 0 to {len(names) - 1}")
    return index


@contextmanager
def _readable(name: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"name_or_path: {name!r} cannot be loaded as a text classifier ({error}). "
            "Give a folder written by `save_pretrained`, tokenizer included, or check the name and the network."
        ) from error


def _load(name: str, device: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with _readable(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, info = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"name_or_path: {name!r} is not a trained text classifier: its files lack {', '.join(missing[:3])}. "
            "Give a model trained for sequence classification."
        )
    try:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError("device", repr(device), "a device that torch finds here", f"({error})") from error
    return model.eval().requires_grad_(False), tokenizer


def _longest(model: Any, tokenizer: Any) -> int:
    """Largest number of tokens that a classifier can read."""
    found = [int(tokenizer.model_max_length)]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        found.append(limit)
    for name, module in model.named_modules():
        # RoBERTa's positions start after the index of its padding token, so fewer are left for the text.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            found.append(module.num_embeddings - module.padding_idx - 1)
    return min(found)


def _labels(config: Any) -> list[str]:
    if config.num_labels == 1 and config.problem_type == "regression":
        raise ModelError("name_or_path: the model is a regression and has no label probabilities. Give a classifier with labels.")
    return [str(config.id2label[index]) for index in range(config.num_labels)]
