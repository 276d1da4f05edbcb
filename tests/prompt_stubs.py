"""Stubs of models in five styles of prompting: chat templates with and without a system role, and plain text."""

import functools

from chat_templates import Stub, Template, trained
from transformers import PreTrainedTokenizerFast

from psr_lens.organism.tokenizer import build_tokenizer

NO_SYSTEM_ROLE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "### {{ message['role'] }}:\n{{ message['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ first if loop.first else '' }}{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GLUED = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[INST] {{ message['content'] }} [/INST]{% endfor %}"
)
SILENT = "{{ bos_token }}{% for message in messages if message['role'] == 'user' %}{{ message['content'] }}\n{% endfor %}"
STYLES = ("organism", "no system role", "llama 3", "gemma", "plain text")


def byte_level(template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2 and Llama 3 have one."""
    special = ("<|start_header_id|>", "<|end_header_id|>")
    return trained(Template(template, special, "<|eot_id|>", "<|begin|>"), "byte level")


def marked_spaces(template: str) -> PreTrainedTokenizerFast:
    """A BPE over whole texts with marked spaces, as Gemma has one: tokens may reach across words."""
    return trained(Template(template, ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>"), "sentencepiece")


@functools.cache
def stub(style: str) -> Stub:
    made = {
        "organism": build_tokenizer,
        "no system role": lambda: byte_level(NO_SYSTEM_ROLE),
        "llama 3": lambda: byte_level(LLAMA_3),
        "gemma": lambda: marked_spaces(GEMMA),
        "plain text": lambda: byte_level(None),
    }
    return Stub(made[style]())


def decoded(style: str, ids) -> str:
    return stub(style).tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def spelled(style: str, text: str) -> str:
    """A text as the style's tokenizer gives it back."""
    return decoded(style, stub(style).tokenizer(text, add_special_tokens=False).input_ids)
