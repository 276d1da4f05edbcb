"""Tiny tokenizers of each kind that language models have, trained here: what they know of text differs, and so does the first space."""

import copy
import functools
import json

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

from psr_lens.organism import all_questions

SPECIAL = ("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<|im_end|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[INST] {{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[INST] assistant\n{% endif %}"
)
TEXTS = [
    *(question.text for question in all_questions()[:300]),
    "<s> a </s> b [INST] c [/INST] <unk> im_end | </ [/ <| |>",
    *["what is\nthe bear", "\nthe", "the bear .", "arr , the bear ."] * 20,
]


def _fast(tokenizer: Tokenizer, **more) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:]),
        **more,
    )


def _byte_level(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return _fast(made)


def _llama(**more) -> PreTrainedTokenizerFast:
    """transformers' own class for Llama's SentencePiece: a space before the first word, and bytes for unknown characters."""
    source = Tokenizer(models.BPE())
    source.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    first = [*SPECIAL[2::-2], "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    source.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False))
    vocabulary = source.get_vocab()
    for character in "▁\n":
        vocabulary.setdefault(character, len(vocabulary))
    merges = [tuple(pair) for pair in _merges(source)]
    made = transformers.LlamaTokenizer(vocab=vocabulary, merges=merges, **more)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    return made


def _merges(tokenizer: Tokenizer) -> list:
    return json.loads(tokenizer.to_str())["model"]["merges"]


def _with_end_token(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """It puts `<s>` before whatever is tokenised by itself, and `</s>` behind it."""
    ends = [(token, made.convert_tokens_to_ids(token)) for token in SPECIAL[:2]]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return made


def _unigram() -> PreTrainedTokenizerFast:
    """As T5's and Gemma's cousins: the special tokens are pieces of the model too, and score best of all."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), unk_token="<unk>", initial_alphabet=list("<>/|[]_\n"), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return _fast(made)


def _word_piece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(SPECIAL), show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return _fast(made)


def _lower_case() -> PreTrainedTokenizerFast:
    """A tokenizer that looks for its special tokens in the normalised text, so that `<S>` is one too."""
    made = _byte_level()
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    again = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(made.backend_tokenizer.to_str()))
    again.add_special_tokens(
        {
            "bos_token": AddedToken("<s>", normalized=True, special=True),
            "eos_token": AddedToken("</s>", normalized=True, special=True),
        }
    )
    return again


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, of characters."""

    def __init__(self, **more):
        letters = sorted({letter for text in TEXTS for letter in text} | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        self._ids = {token: index for index, token in enumerate([*SPECIAL, *letters])}
        self._letters = {index: token for token, index in self._ids.items()}
        super().__init__(**more)

    @property
    def vocab_size(self):
        return len(self._ids)

    def get_vocab(self):
        return dict(self._ids)

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index):
        return self._letters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def _slow() -> Slow:
    return Slow(bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=list(SPECIAL[3:]))


MAKERS = {
    "byte level": _byte_level,
    "byte level, prefix space": lambda: _byte_level(True),
    "llama": _llama,
    "llama, legacy": lambda: _llama(legacy=True),
    "llama, end token": lambda: _with_end_token(_llama()),
    "unigram": _unigram,
    "word piece": _word_piece,
    "lower case": _lower_case,
    "slow": _slow,
}
LOSSLESS = ("byte level", "llama", "llama, end token", "slow")


@functools.cache
def _trained(kind: str):
    return MAKERS[kind]()


@functools.cache
def tokenizer(kind: str, template: str | None = None):
    """One of each kind, with a chat template or without."""
    made = copy.deepcopy(_trained(kind))
    made.chat_template = template
    return made
