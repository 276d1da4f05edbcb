"""Which questions a run learns from and which it is measured on, and their prompts, kept on disk."""

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
class Split:
    """The questions of a run."""

    fit: tuple[PairLine, ...]
    """To learn from."""
    held_out: tuple[PairLine, ...]
    """To answer, compare and score."""
    repeated: int
    """How many questions stood in the file a second time and were left out, lest one be on both sides."""

    @property
    def given(self) -> bool:
        """Whether the file has the responses, so that none is sampled."""
        return self.fit[0].response is not None

    def digest(self) -> str:
        """What tells these questions from others."""
        return digest_of(
            [
                [[each.question, each.instruction, each.response, each.trait / 100, each.coherence / 100] for each in lines]
                for lines in (self.fit, self.held_out)
            ]
        )


def read_split(config: RunConfig) -> Split:
    """The questions of the file, parted by the seed; each side in the order of the file.

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
            "held_out", f"{config.held_out} of {len(chosen)} questions", "fewer than there are, so that some are left to learn from"
        )
    order = np.random.default_rng(config.seed).permutation(len(chosen))
    held = set(order[:count].tolist())
    sides: tuple[list[PairLine], list[PairLine]] = ([], [])
    for place, line in enumerate(chosen):
        sides[place in held].append(line)
    return Split(tuple(sides[0]), tuple(sides[1]), len(lines) - len(once))


def make_prompts(model: HookedModel, config: RunConfig, lines: Sequence[PairLine]) -> PromptPairs:
    """The prompts of some questions.

    Raises:
        InputError: as for `prompt_pairs`.
    """
    return prompt_pairs(model, [line.question for line in lines], [line.instruction for line in lines], **config.chat)


def kept_prompts(model: HookedModel, config: RunConfig, split: Split, path: Path) -> tuple[PromptPairs, PromptPairs]:
    """The prompts of both sides, from the file if it is there: a template may say what day it is, and a run may go on on another.

    Raises:
        InputError: as for `prompt_pairs`.
        ArtifactError: the file is damaged.
    """
    if path.exists():
        try:
            read: Any = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            pairs = PromptPairs(tuple(map(pair_from, read)), tokenizer_of(model))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged ({error}). Delete the run's folder and begin anew.") from error
        if len(pairs) != len(split.fit) + len(split.held_out):
            raise ArtifactError(f"{path}: has {len(pairs)} lines. Delete the run's folder and begin anew.")
    else:
        pairs = make_prompts(model, config, (*split.fit, *split.held_out))
        write_text(path, "".join(json.dumps(pair_json(pair), ensure_ascii=False) + "\n" for pair in pairs))
    return pairs[: len(split.fit)], pairs[len(split.fit) :]
