"""Prompt pairs and triplets, chat templates, the text of tokens, and a view of which tokens are steered."""

from psr_lens.prompts.pair_builder import Question, prompt_pairs, prompt_pairs_from_texts, remade, response_ids, with_thought
from psr_lens.prompts.pairs import PromptPairs, check_pairs
from psr_lens.prompts.prompt_pair import Context, PromptPair, Span, instruction_label
from psr_lens.prompts.triplets import TokenTable, Triplet, check_triplets, rephrase, token_table, with_responses

__all__ = [
    "Context",
    "PromptPair",
    "PromptPairs",
    "Question",
    "Span",
    "TokenTable",
    "Triplet",
    "check_pairs",
    "check_triplets",
    "instruction_label",
    "prompt_pairs",
    "prompt_pairs_from_texts",
    "remade",
    "rephrase",
    "response_ids",
    "token_table",
    "with_responses",
    "with_thought",
]
