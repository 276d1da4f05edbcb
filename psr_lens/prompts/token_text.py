"""Tokens as readable text: the vocabulary's spelling of bytes and spaces is undone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_SPECIAL: Final = re.compile(r"<[^<>\s]+>")


def token_strings(tokenizer: Any, ids: Iterable[int]) -> tuple[str, ...]:
    """Tokens as the vocabulary spells them.

    A model's vocabulary may be larger than its tokenizer's (Qwen2.5's and Phi-3's are padded); an id without a token is `<151700>`.
    """
    numbers = [int(index) for index in ids]
    strings = {index: _string(tokenizer, index) for index in set(numbers)}
    return tuple(strings[index] or f"<{index}>" for index in numbers)


def decoded(tokenizer: Any, ids: Iterable[int]) -> str:
    """The text of tokens, without special tokens; an id without a token has no text."""
    known = [int(index) for index in ids if _string(tokenizer, int(index)) is not None]
    return str(tokenizer.decode(known, skip_special_tokens=True))


def is_special(tokenizer: Any, index: int) -> bool:
    """Whether a token is left out of text: a special token, or an id without a token. A piece of a character is not."""
    if _string(tokenizer, index) is None:
        return True
    return not decoded(tokenizer, [index]) and bool(tokenizer.decode([index], skip_special_tokens=False))


def _string(tokenizer: Any, index: int) -> str | None:
    """A token as the vocabulary spells it; None if there is no such token."""
    try:
        found = tokenizer.convert_ids_to_tokens(index)
    except (LookupError, OverflowError):  # as slow tokenizers have it
        return None
    return None if found is None else str(found)


def readable(strings: Sequence[str], alphabet: Sequence[str] | None = None) -> list[str]:
    """Tokens as text: byte-level and SentencePiece spellings undone, line ends and tabs made visible, outer spaces removed.

    Args:
        strings: Tokens as the vocabulary spells them.
        alphabet: More tokens of the same vocabulary, from which its spelling is recognised.

    Returns:
        One text per token, not escaped.
    """
    byte_level = is_byte_level(alphabet or strings)
    return [(visible(token_text(token, byte_level)).strip(" ") or "␣") for token in strings]


def readable_text(strings: Sequence[str], alphabet: Sequence[str] | None = None) -> list[str]:
    """As `readable`, for tokens in reading order: a character that is split stands at its first token, and the others show `·`.

    Args:
        strings: Tokens in reading order, as the vocabulary spells them.
        alphabet: More tokens of the same vocabulary, from which its spelling is recognised.
    """
    byte_level = is_byte_level(alphabet or strings)
    pieces = [token_bytes(token, byte_level) for token in strings]
    owner = [index for index, piece in enumerate(pieces) for _ in piece]
    texts, at = [""] * len(pieces), 0
    for letter in b"".join(pieces).decode("utf-8", "surrogateescape"):
        texts[owner[at]] += letter
        at += len(letter.encode("utf-8", "surrogateescape"))
    spelled = [visible(with_bytes(text)).strip(" ") or "␣" for text in texts]
    return ["·" if piece and not text else shown for piece, text, shown in zip(pieces, texts, spelled, strict=True)]


def word_starts(strings: Sequence[str], alphabet: Sequence[str] | None = None) -> list[bool]:
    """Whether each token begins a word: one after a space or a line end, and special tokens and what follows them.

    In a vocabulary that does not spell spaces, every token is a word.

    Args:
        strings: Tokens in reading order, as the vocabulary spells them.
        alphabet: More tokens of the same vocabulary, from which its spelling is recognised.
    """
    known = alphabet or strings
    byte_level = is_byte_level(known)
    if not byte_level and not any("▁" in token for token in known):
        return [True] * len(strings)
    special = [_SPECIAL.fullmatch(token) is not None and not _BYTE.fullmatch(token) for token in strings]
    texts = [token_bytes(token, byte_level).decode("utf-8", "replace") for token in strings]
    return [
        index == 0
        or (
            text[:1] not in "\r\n"
            and (text[:1].isspace() or special[index] or special[index - 1] or texts[index - 1][-1:].isspace())
        )
        for index, text in enumerate(texts)
    ]


def joined(strings: Sequence[str], alphabet: Sequence[str] | None = None) -> str:
    """Tokens as one readable text, with spaces between words and none inside.

    Args:
        strings: Tokens in reading order, as the vocabulary spells them.
        alphabet: More tokens of the same vocabulary, from which its spelling is recognised.
    """
    words = zip(readable_text(strings, alphabet), word_starts(strings, alphabet), strict=True)
    return "".join(f" {text}" if begins else text for text, begins in words).strip()


def is_byte_level(strings: Iterable[str]) -> bool:
    """Whether tokens are spelled in GPT-2's byte alphabet."""
    return any("Ġ" in token or "Ċ" in token for token in strings)


def token_text(token: str, byte_level: bool) -> str:
    """A token as text; bytes that are only a piece of a character are shown as such: `‹C3›`."""
    return with_bytes(token_bytes(token, byte_level).decode("utf-8", "surrogateescape"))


def with_bytes(text: str) -> str:
    """A text decoded with `surrogateescape`, with its stray bytes made visible."""
    return "".join(f"‹{ord(letter) - 0xDC00:02X}›" if "\udc80" <= letter <= "\udcff" else letter for letter in text)


def token_bytes(token: str, byte_level: bool) -> bytes:
    """A token's UTF-8 bytes; those of several tokens join to the bytes of their text."""
    if byte_level:
        try:
            return bytes(_byte_alphabet()[letter] for letter in token)
        except KeyError:  # an added token, which is spelled as plain text
            return token.encode()
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte.group(1)) if byte else token.replace("▁", " ").encode()


def visible(text: str) -> str:
    """A text with visible signs for line ends and tabs."""
    return text.replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, and letters from U+0100 on stand for the others."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
