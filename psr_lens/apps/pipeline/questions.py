"""The questions of a run, split into those to fit on and those held out, and their prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psr_lens._utils.digests import digest_of
from psr_lens._utils.safe_files import write_text
from psr_lens.activations.store.triplets import pair_from, pair_json
from psr_lens.apps.pipeline.config import RunConfig
from psr_lens.datasets import PairLine, read_questions
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, tokenizer_of
from psr_lens.prompts import PromptPairs, prompt_pairs


@dataclass(frozen=True)
class QuestionSplit:
    """The questions of a run."""

    fit: tuple[PairLine, ...]
    """Questions to fit on."""
    held_out: tuple[PairLine, ...]
    """Questions to answer, compare and score."""
    repeated: int
    """Number of duplicates in the file, left out so that no question is on both sides."""

    @property
    def given(self) -> bool:
        """Whether the file has responses, so that none are sampled."""
        return self.fit[0].response is not None

    def digest(self) -> str:
        """Digest of the questions, their order and their split."""
        return digest_of(
            [
                [[each.question, each.instruction, each.response, each.trait / 100, each.coherence / 100] for each in lines]
                for lines in (self.fit, self.held_out)
            ]
        )


def read_split(config: RunConfig) -> QuestionSplit:
    """Read the questions and split them by the seed; each side keeps the order of the file.

    Raises:
        InputError: the file cannot be read, or has too few questions.
    """
    lines = read_questions(config.questions, config.instruction)
    once: dict[tuple[str, str], PairLine] = {}
    for line in lines:
        once.setdefault((line.question, line.instruction), line)
    chosen = list(once.values())[: config.limit]
    count = config.held_out if isinstance(config.held_out, int) else max(1, round(config.held_out * len(chosen)))
    if count >= len(chosen):
        raise InputError(
            "held_out", f"{config.held_out} of {len(chosen)} questions", "fewer than all, so that some are left to fit on"
        )
    order = np.random.default_rng(config.seed).permutation(len(chosen))
    held = set(order[:count].tolist())
    sides: tuple[list[PairLine], list[PairLine]] = ([], [])
    for index, line in enumerate(chosen):
        sides[index in held].append(line)
    return QuestionSplit(tuple(sides[0]), tuple(sides[1]), len(lines) - len(once))


def make_prompts(model: HookedModel, config: RunConfig, lines: Sequence[PairLine]) -> PromptPairs:
    """Prompts of some questions.

    Raises:
        InputError: as for `prompt_pairs`.
    """
    return prompt_pairs(model, [line.question for line in lines], [line.instruction for line in lines], **config.chat)


def kept_prompts(model: HookedModel, config: RunConfig, split: QuestionSplit, path: Path) -> tuple[PromptPairs, PromptPairs]:
    """Prompts of both sides, read from the file if it exists: a chat template may contain the date, and a run may be resumed later.

    Raises:
        InputError: as for `prompt_pairs`.
        ArtifactError: the file is damaged.
    """
    if path.exists():
        try:
            read: Any = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            pairs = PromptPairs(tuple(map(pair_from, read)), tokenizer_of(model))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged ({error}). Delete the run's folder and start over.") from error
        expected = len(split.fit) + len(split.held_out)
        if len(pairs) != expected:
            raise ArtifactError(f"{path}: has {len(pairs)} lines, expected {expected}. Delete the run's folder and start over.")
    else:
        pairs = make_prompts(model, config, (*split.fit, *split.held_out))
        write_text(path, "".join(json.dumps(pair_json(pair), ensure_ascii=False) + "\n" for pair in pairs))
    return pairs[: len(split.fit)], pairs[len(split.fit) :]
