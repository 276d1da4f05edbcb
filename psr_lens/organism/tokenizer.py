"""The organism's word-level tokenizer and its chat template."""

from __future__ import annotations

from typing import Final

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from psr_lens.organism.grammar import vocabulary

SPECIAL_TOKENS: Final = ("<pad>", "<bos>", "<unk>", "<end>", "<system>", "<user>", "<assistant>")
CONTEXT_LENGTH: Final = 160

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message['role'] }}> {{ message['content'] }} "
    "{% if not (loop.last and message['role'] == 'assistant' and continue_final_message) %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A message is its role, its content and the end token, which also ends a response."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over every word of the grammar; it converts text to lower case."""
    words = [*SPECIAL_TOKENS, *vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[.,!?]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        model_max_length=CONTEXT_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
