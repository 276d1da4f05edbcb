"""Tokens as a reader wants to see them: spellings of vocabularies undone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


def readable(strings: Sequence[str], alphabet: Sequence[str] | None = None) -> list[str]:
    """Tokens as text: byte-level and SentencePiece spellings undone, white space made visible, a leading space left out.

    Args:
        strings: Tokens as the vocabulary spells them.
        alphabet: More tokens of the same vocabulary, to recognise the spelling by.

    Returns:
        One text a token; not escaped.
    """
    byte_level = is_byte_level(alphabet or strings)
    return [(visible(token_text(token, byte_level)).strip(" ") or "␣") for token in strings]


def is_byte_level(strings: Iterable[str]) -> bool:
    """Whether tokens are spelled in GPT-2's letters for bytes."""
    return any("Ġ" in token or "Ċ" in token for token in strings)


def token_text(token: str, byte_level: bool) -> str:
    """A token as text; a piece of a character, which is no text by itself, stays as it is spelled where bytes have letters."""
    try:
        return token_bytes(token, byte_level).decode("utf-8", "strict" if byte_level else "replace")
    except UnicodeDecodeError:
        return token


def token_bytes(token: str, byte_level: bool) -> bytes:
    """A token's own UTF-8 bytes; of several tokens they add up to their text's."""
    if byte_level:
        try:
            return bytes(_byte_alphabet()[letter] for letter in token)
        except KeyError:  # an added token, which is spelled as it is
            return token.encode()
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte.group(1)) if byte else token.replace("▁", " ").encode()


def visible(text: str) -> str:
    """Line ends and tabs as signs."""
    return text.replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes stand for themselves, the others for the letters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
