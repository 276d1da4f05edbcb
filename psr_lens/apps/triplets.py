"""Prompts and triplets from a file of questions, with the file's responses or sampled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.generation.sampling import SamplingConfig
    from psr_lens.models import HookedModel, WithTokenizer
    from psr_lens.models.config_without_weights import ModelOutline
    from psr_lens.prompts import PromptPairs, Triplet


@dataclass(frozen=True)
class Lines:
    """The lines of a file, and how a command makes prompts and responses of them."""

    lines: Sequence[PairLine]
    """The lines, all with a response or none."""
    chat: Mapping[str, Any]
    """Arguments of `prompt_pairs`."""
    max_new_tokens: int
    """Maximum length of a sampled response in tokens."""
    seed: int
    """Seed of the sampled responses."""

    @property
    def sampling(self) -> SamplingConfig:
        """How responses are sampled if the file has none."""
        from psr_lens.generation.sampling import SamplingConfig

        return SamplingConfig(max_new_tokens=self.max_new_tokens, seed=self.seed)

    def check(self, found: ModelOutline | None) -> None:
        """Check all that can be checked without weights.

        Args:
            found: The model's config and tokenizer; None if they cannot be read without its weights.

        Raises:
            InputError: an invalid setting, or a line of which no prompt or response can be made.
            ModelError: the model has no tokenizer.
        """
        from psr_lens.prompts.chat_templates import ChatSettings

        _ = self.sampling, ChatSettings.of_mapping(self.chat)
        if found is not None:
            asked = self.prompts(found, {})
            if self.lines[0].response is not None:
                given_triplets(found, asked, self.lines)

    def prompts(self, model: WithTokenizer, time: Mapping[str, str]) -> PromptPairs:
        """The prompts, if the chat template asks for the time with that time.

        Raises:
            InputError: as for `prompt_pairs`.
        """
        from psr_lens.prompts import prompt_pairs
        from psr_lens.prompts.chat_templates import at_time

        questions, instructions = [line.question for line in self.lines], [line.instruction for line in self.lines]
        return prompt_pairs(model, questions, instructions, **at_time(self.chat, time))

    def triplets(self, model: HookedModel, asked: PromptPairs) -> Sequence[Triplet]:
        """The file's own responses with their scores, or sampled ones if it has none."""
        if self.lines[0].response is not None:
            return given_triplets(model, asked, self.lines)
        from psr_lens.generation.sampled_triplets import sample_responses

        return sample_responses(model, asked, sampling=self.sampling)


def given_triplets(model: WithTokenizer, pairs: PromptPairs, lines: Sequence[PairLine]) -> list[Triplet]:
    """The file's own responses with their scores; every line has a response."""
    from psr_lens.prompts import with_responses

    triplets = with_responses(model, pairs, [str(line.response) for line in lines])
    return [replace(triplet, trait=line.trait, coherence=line.coherence) for triplet, line in zip(triplets, lines, strict=True)]
