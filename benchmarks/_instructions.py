"""Instructions that are tried on real chat models, each with a judge that needs no language model, and their questions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import psr_lens as psr
from psr_lens.results.judgement import Judge

SAMPLING = psr.SamplingConfig(temperature=0.7, max_new_tokens=32)
"""How all answers of real models are drawn; a small model at temperature 1 babbles."""
SEED = 0
"""Seed of the questions."""


@dataclass(frozen=True)
class Instruction:
    """An instruction, the same in other words, and who judges the trait."""

    text: str
    """The instruction, placed after the question."""
    paraphrase: str
    """The same in other words."""
    judge: Judge
    """Judge of the trait."""


def _in_text(pattern: str) -> Judge:
    return psr.judges.fraction(rf"(?i){pattern}", of="text")


def _language(name: str, code: str) -> Instruction:
    return Instruction(f"Answer in {name}.", f"Please write your answer in the {name} language.", psr.judges.language(code))


INSTRUCTIONS = {
    "french": _language("French", "fr"),
    "spanish": _language("Spanish", "es"),
    "german": _language("German", "de"),
    "italian": _language("Italian", "it"),
    "portuguese": _language("Portuguese", "pt"),
    "pirate": Instruction(
        "Talk like a pirate.",
        "Please speak the way a pirate would.",
        _in_text(r"\b(arr+|ahoy|avast|aye|ye|yer|matey|mateys|hearties|pirates?|captain|crew|treasure|ship|sail)\b"),
    ),
    "cats": Instruction(
        "Mention cats in your answer.", "Your answer has to say something about cats.", _in_text(r"\b(cats?|kittens?|feline)\b")
    ),
    "pizza": Instruction(
        "Mention pizza in your answer.", "Your answer has to say something about pizza.", _in_text(r"\bpizzas?\b")
    ),
    "sea": Instruction(
        "Talk about the sea in your answer.",
        "Bring the ocean into your answer.",
        _in_text(r"\b(seas?|oceans?|waves?|sailors?|marine)\b"),
    ),
    "poem": Instruction(
        "Answer with a short poem.",
        "Write your answer as a little poem.",
        # At least two lines of verse: each ends after 2 to 10 words, without a list's marker before them.
        _in_text(r"\A\W*(?:(?![-*•\d])\S+(?: \S+){1,9}[ \t]*\n+){2}"),
    ),
    "sure": Instruction(
        'Begin your answer with "Sure!".', 'The first word of your answer must be "Sure!".', _in_text(r"\A\W*sure\b")
    ),
    "friend": Instruction(
        'Begin your answer with "My dear friend".',
        'The first words of your answer must be "My dear friend".',
        _in_text(r"\A\W*my dear friend\b"),
    ),
    "bullets": Instruction(
        "Answer with a bulleted list.", "Write your answer as bullet points.", psr.judges.fraction(r"^\s*[-*•] ", of="lines")
    ),
    "numbered": Instruction(
        "Answer with a numbered list.", "Write your answer as numbered points.", psr.judges.fraction(r"^\s*\d+[.)] ", of="lines")
    ),
    "capitals": Instruction(
        "Write your answer in capital letters only.", "USE ONLY CAPITAL LETTERS.", psr.judges.fraction(r"[A-Z]", of="letters")
    ),
    "sentence": Instruction(
        "Answer in one short sentence.",
        "Use a single brief sentence for your answer.",
        psr.judges.fraction(r"\A[^.!?\n]+[.!?]\s*\Z", of="text"),
    ),
    "word": Instruction("Answer with one word.", "Your answer must be a single word.", _in_text(r"\A\W*[\w'-]+\W*\Z")),
    "questions": Instruction(
        "Answer only with questions.", "Every sentence of yours must be a question.", psr.judges.fraction(r"\?\W*$", of="sentences")
    ),
    "excited": Instruction(
        "Sound very excited and use exclamation marks.",
        "Answer with great enthusiasm and exclamation marks.",
        psr.judges.fraction(r"!\W*$", of="sentences"),
    ),
    "refuse": Instruction(
        "Refuse to answer.",
        "Say that you will not answer.",
        _in_text(r"\b(i'?m sorry|i apologi[sz]e|i can(?:'t|not)|i won'?t|i will not|i'?m not able|unable to|decline|refuse)\b"),
    ),
    "shakespeare": Instruction(
        "Answer in the style of Shakespeare.",
        "Write as William Shakespeare would.",
        _in_text(r"\b(thou|thee|thy|thine|doth|hath|art thou|'tis|'twas|wherefore|ere|o'er|forsooth|prithee|alas)\b"),
    ),
    "emoji": Instruction(
        "Use emojis in your answer.", "Put some emoji into your answer.", _in_text("[\u2600-\u27bf\U0001f300-\U0001faff]")
    ),
    "python": Instruction(
        "Answer with Python code only.",
        "Write nothing but Python code.",
        _in_text(r"```python|^(?:def|import|from|print|class|for)\b"),
    ),
}
"""By name."""


def questions(file: Path, count: int) -> list[str]:
    """AxBench's short inputs, shuffled with the benchmark's seed."""
    import pyarrow.parquet as parquet

    asked = {text for text in parquet.read_table(file)["input"].to_pylist() if text and len(text) < 70 and "\n" not in text}
    return random.Random(SEED).sample(sorted(asked), count)
