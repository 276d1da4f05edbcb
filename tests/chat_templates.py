"""Chat templates as real models have them, shortened, and tokenizers of two kinds that are trained here."""

import functools
from dataclasses import dataclass
from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from psr_lens.organism import all_questions


@dataclass(frozen=True)
class Template:
    """One chat template, and what is known of it."""

    text: str | None
    special: tuple[str, ...] = ()
    eos: str = "</s>"
    bos: str | None = "<s>"
    turn_end: str | None = None
    """The token that ends an assistant's message."""
    system_role: bool = False
    glued: bool = False
    """Whether the question stands right behind something that may be one token with its first word."""
    variables: tuple[tuple[str, object], ...] = ()


LOOP = "{% for message in messages %}"
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATES = (
    LOOP + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)

QWEN = (
    LOOP
    + "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string | default('26 Jul 2024') }}\n\n{{ system }}<|eot_id|>"
    + LOOP
    + "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}" + REFUSES_SYSTEM + ALTERNATES + LOOP + "<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + ALTERNATES + LOOP + "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (
    LOOP + "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    LOOP + "<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMS = (
    "{{ bos_token }}" + REFUSES_SYSTEM + LOOP + "### {{ message['role'] }}:\n{{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
ADDS = (
    "{{ bos_token }}" + LOOP + "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

TEMPLATES = {
    "qwen": Template(QWEN, IM, "<|im_end|>", None, "<|im_end|>", True),
    "qwen, not thinking": Template(QWEN, IM, "<|im_end|>", None, "<|im_end|>", True, variables=(("enable_thinking", False),)),
    "llama 3": Template(
        LLAMA_3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        True,
        variables=(("date_string", "1 Jan 2026"),),
    ),
    "gemma 2": Template(GEMMA_2, ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", "<end_of_turn>"),
    "mistral": Template(MISTRAL, ("[INST]", "[/INST]"), turn_end="</s>", glued=True),
    "phi 3": Template(PHI_3, (*ROLES, "<|end|>"), "<|endoftext|>", turn_end="<|end|>", system_role=True),
    "zephyr": Template(ZEPHYR, ROLES, turn_end="</s>", system_role=True),
    "trims": Template(TRIMS),
    "adds tokens": Template(ADDS, (*ROLES, "<|end|>", "<think>"), turn_end="<|end|>", system_role=True),
    "no template": Template(None),
}
KINDS = ("byte level", "sentencepiece")


def tokenizer_for(name: str, kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one of the templates."""
    return trained(TEMPLATES[name], kind)


@functools.cache
def trained(template: Template, kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer, byte-level as GPT-2 and Llama 3 have one, or with marked spaces as Gemma has one: tokens may reach across words."""
    special = list(dict.fromkeys([*filter(None, [template.bos]), template.eos, *template.special]))
    texts = [question.text for question in all_questions()]
    if kind == "byte level":
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    else:
        tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokens = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), "\n"]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=template.bos, eos_token=template.eos, chat_template=template.text
    )


class Stub:
    """As much of a model as prompts and responses need."""

    hooks = None  # by which a model is told from other things

    def __init__(self, tokenizer, context: int = 10_000, prepend_bos: bool = True) -> None:
        self.tokenizer = tokenizer
        self.cfg = SimpleNamespace(n_ctx=context, default_prepend_bos=prepend_bos, d_vocab=100_000)


@functools.cache
def stub(name: str, kind: str) -> Stub:
    """As much of a model as prompts need, with one template and one kind of tokenizer."""
    return Stub(tokenizer_for(name, kind))
