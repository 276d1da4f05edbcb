"""Instructions that are tried on real chat models, each with an exact judge; and which of them a model follows.

python benchmarks/real/instructions.py MODEL questions.parquet --json benchmarks/real/MODEL.json

An instruction is used if the mean trait on 24 questions is at least 50 with the prompt and at most 10 without. Those that are not used
are in the file too, with their scores. The model is a folder, a `.gguf` file or a name on the Hugging Face Hub; the questions are
AxBench's `input`s shorter than 70 characters (a parquet file of its training data).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import psr_lens as psr
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampling import Response
from psr_lens.models import HookedModel
from psr_lens.results.judgement import Judge

SAMPLING = psr.SamplingConfig(temperature=0.7, max_new_tokens=32)
SEED = 0
SCREENED = 24
"""Number of questions of the screening; the table's held-out questions are others."""
FOLLOWED, UNPROMPTED = 50.0, 10.0
"""Least mean trait with the prompt, and most without."""


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


def read(file: Path) -> dict[str, Any]:
    """The numbers that a file holds so far."""
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    return {"format": 1, "seed": SEED, "screened": {}, "instructions": {}}


def write(file: Path, content: dict[str, Any]) -> None:
    """Save the numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def screened(model: HookedModel, name: str, asked: Sequence[str], unprompted: Sequence[Response]) -> dict[str, Any]:
    """Trait with and without the prompt."""
    given = INSTRUCTIONS[name]
    pairs = psr.prompt_pairs(model, asked, given.text, place="after")
    row: dict[str, Any] = {"instruction": given.text, "n": len(pairs)}
    prompted = psr.generate(model, pairs, context="prompted", sampling=SAMPLING)
    for key, responses in (("none", unprompted), ("prompt", prompted)):
        row[key] = score(key, pairs, responses, given.judge).trait
        row[f"{key}, examples"] = [each.text for each in responses[:2]]
    return row | {"used": bool(row["prompt"] >= FOLLOWED and row["none"] <= UNPROMPTED)}


def main(
    model: Annotated[str, typer.Argument(help="A chat model: a folder, a `.gguf` file or a name.")],
    file: Annotated[Path, typer.Argument(help="Parquet file of AxBench's training data.")],
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")],
) -> None:
    """Try every instruction that the file lacks."""
    content = read(json_file)
    loaded = psr.load_model(model, backend="bridge")
    asked = questions(file, SCREENED)
    unprompted = psr.generate(
        loaded, psr.prompt_pairs(loaded, asked, INSTRUCTIONS["french"].text, place="after"), sampling=SAMPLING
    )
    for name in INSTRUCTIONS:
        if name not in content["screened"]:
            content["screened"][name] = found = screened(loaded, name, asked, unprompted)
            write(json_file, content)
            print(f"{name}: {found['none']:.0f} → {found['prompt']:.0f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
