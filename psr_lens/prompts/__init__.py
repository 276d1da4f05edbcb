"""Prompt pairs and triplets, chat templates, the text of tokens, and the view of what is steered."""

from psr_lens.prompts.making_pairs import Question, prompt_pairs, prompt_pairs_from_texts, remade
from psr_lens.prompts.pairs import Context, PromptPair, PromptPairs, Span, check_pairs
from psr_lens.prompts.triplets import TokenTable, Triplet, check_triplets, rephrase, response_ids, token_table, with_responses

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
    "prompt_pairs",
    "prompt_pairs_from_texts",
    "remade",
    "rephrase",
    "response_ids",
    "token_table",
    "with_responses",
]
