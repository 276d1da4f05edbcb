"""Where in a text each of its tokens ends, in bytes, whichever tokenizer made them.

Characters are too coarse a measure: a byte-level token may end inside one. And what decoding shows is not what tokens spell, since it drops
a first space, special tokens, or spaces before punctuation. So the bytes that tokens spell are followed along the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any, Final

from psr_lens.errors import InputError
from psr_lens.prompts.token_text import decoded, token_bytes, token_strings

_SIGN: Final = "\ufffd"
"""What decoding writes for bytes that are no character."""
_LOST: Final = _SIGN.encode()
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE: Final = 0x20
_WHITE: Final = frozenset(b" \t\n\r\x0b\x0c")
_BEFORE: Final = ("", "\n", "x", ".", " ")
"""Texts after which a text may have been encoded."""


def token_ends(tokenizer: Any, ids: Sequence[int], text: str, argument: str = "text") -> list[int]:
    """How many bytes of a text have been read with each of its tokens.

    A token without bytes of its own, such as a special token or a space that decoding drops, ends where the one before it does.

    Args:
        tokenizer: The tokenizer.
        ids: The tokens of the text.
        text: What they were made of, or what they are decoded to.
        argument: What errors name.

    Returns:
        One number per token, never descending, in bytes of UTF-8.

    Raises:
        InputError: these tokens are not of this text.
    """
    ends = _followed(_Spelling(tokenizer).pieces(ids), text.encode())
    for other in (_from_offsets, _from_prefixes):
        ends = other(tokenizer, ids, text) if ends is None else ends
    if ends is None:
        raise InputError(argument, repr(text[:80]), "the text that its tokens spell", "Make the triplet of this text again.")
    return ends


def whole_characters(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens without the first bytes of a character whose other bytes are still to come.

    Bytes that no further ones would make a character stay, as the sign that decoding shows for them.
    """
    text = decoded(tokenizer, ids)
    if not text.endswith(_SIGN):
        return text
    pieces = [piece.spelt for piece in _Spelling(tokenizer).pieces(ids)]
    reading = codecs.getincrementaldecoder("utf-8")("replace")
    reading.decode(b"".join(pieces))
    pending, kept = len(reading.getstate()[0]), len(ids)
    while pending and len(pieces[kept - 1]) <= pending:
        kept -= 1
        pending -= len(pieces[kept])
    text = decoded(tokenizer, ids[:kept])
    return text.removesuffix(_SIGN) if pending else text


@dataclass(frozen=True)
class _Piece:
    """What one token spells."""

    spelt: bytes
    """Its bytes."""
    is_byte: bool = False
    """Whether it stands for a single byte of a character that the vocabulary lacks (SentencePiece's `<0xE2>`)."""


class _Spelling:
    """How a tokenizer's vocabulary spells bytes and spaces."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def pieces(self, ids: Sequence[int]) -> list[_Piece]:
        """What each token spells; special tokens and ids without a token spell nothing."""
        pieces: list[_Piece] = []
        begun = False
        for index, token in zip(ids, token_strings(self._tokenizer, ids), strict=True):
            silent = index in self._silent or token == f"<{index}>"  # the second: an id without a token
            pieces.append(_Piece(b"") if silent else self._piece(index, token, begun))
            begun = begun or not silent
        return pieces

    def _piece(self, index: int, token: str, begun: bool) -> _Piece:
        if index in self._added:  # spelt as plain text in every vocabulary
            return _Piece(self._added[index].encode())
        if self._prefix and begun:  # decoding leaves that of the first token
            token = token.removeprefix(self._prefix)
        if self._suffix and token.endswith(self._suffix):
            token = token.removesuffix(self._suffix) + " "
        if self._is_byte_level:
            return _Piece(token_bytes(token, byte_level=True))
        if self._has_bytes and (byte := _BYTE.fullmatch(token)):
            return _Piece(bytes.fromhex(byte.group(1)), is_byte=True)
        return _Piece((token.replace("▁", " ") if self._has_spaces else token).encode())

    @cached_property
    def _added(self) -> dict[int, str]:
        return {int(index): str(token.content) for index, token in getattr(self._tokenizer, "added_tokens_decoder", {}).items()}

    @cached_property
    def _silent(self) -> frozenset[int]:
        """The special tokens, which decoded text leaves out."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).items()
        return frozenset({*map(int, self._tokenizer.all_special_ids), *(int(index) for index, token in added if token.special)})

    @cached_property
    def _decoders(self) -> dict[str, dict[str, Any]] | None:
        """The steps of decoding by type; None for a tokenizer in Python, which does not tell them."""
        if not self._tokenizer.is_fast:
            return None
        decoder = self._tokenizer.backend_tokenizer.decoder
        first = {} if decoder is None else json.loads(decoder.__getstate__())
        return {each["type"]: each for each in first.get("decoders", [first]) if each}

    def _has(self, kind: str, sign: str) -> bool:
        """Whether decoding has such a step; of a tokenizer in Python, whether its vocabulary has such a sign."""
        if self._decoders is None:
            return any(sign in token for token in self._tokenizer.get_vocab())
        return kind in self._decoders

    @cached_property
    def _is_byte_level(self) -> bool:
        return self._has("ByteLevel", "Ġ")

    @cached_property
    def _has_bytes(self) -> bool:
        return self._has("ByteFallback", "<0x0A>")

    @cached_property
    def _has_spaces(self) -> bool:
        """Whether ▁ is a space."""
        return self._has("Metaspace", "▁") or "▁" in str((self._decoders or {}).get("Replace", {}).get("pattern"))

    @cached_property
    def _prefix(self) -> str:
        """What begins a token that continues a word."""
        return str((self._decoders or {}).get("WordPiece", {}).get("prefix", ""))

    @cached_property
    def _suffix(self) -> str:
        """What ends a token that ends a word."""
        return str((self._decoders or {}).get("BPEDecoder", {}).get("suffix", ""))


def _followed(pieces: Sequence[_Piece], text: bytes) -> list[int] | None:
    """Follow the tokens' bytes along a text that may have more or fewer spaces between them; None if they are not of it."""
    at, ends = 0, []
    for spelt in _spelt(pieces):
        for byte, lost in spelt:
            if lost:
                at += len(_LOST) if lost == "shown" and text.startswith(_LOST, at) else 0
                continue
            if at < len(text) and text[at] != byte:
                if byte == _SPACE:  # decoding drops a first space, and those before punctuation
                    continue
                while at < len(text) and text[at] in _WHITE:  # a vocabulary of words spells none
                    at += 1
            if byte == _SPACE and at == len(text):
                continue
            if at == len(text) or text[at] != byte:
                return None
            at += 1
        ends.append(at)
    return ends if not text[at:].strip() else None


def _spelt(pieces: Sequence[_Piece]) -> Iterator[list[tuple[int, str]]]:
    """The bytes of each token, and of those that are no character whether decoding shows a sign for them (`shown`) or not (`hidden`).

    Of bytes of a byte-level vocabulary there is one sign for each broken character, of SentencePiece's one for each byte of a run.
    """
    for is_byte, run in groupby(pieces, key=lambda piece: piece.is_byte):
        tokens = list(run)
        joined = b"".join(piece.spelt for piece in tokens)
        lost = [""] * len(joined)
        for start, end in _broken(joined):
            lost[start:end] = ["shown", *["hidden"] * (end - start - 1)]
        if is_byte and any(lost):
            lost = ["shown"] * len(joined)
        marked = list(zip(joined, lost, strict=True))
        at = 0
        for piece in tokens:
            yield marked[at : at + len(piece.spelt)]
            at += len(piece.spelt)


def _broken(joined: bytes) -> list[tuple[int, int]]:
    """The parts of some bytes that are no character."""
    found, at = [], 0
    while True:
        try:
            joined[at:].decode()
        except UnicodeDecodeError as error:
            found.append((at + error.start, at + error.end))
            at += error.end
        else:
            return found


def _from_offsets(tokenizer: Any, ids: Sequence[int], text: str) -> list[int] | None:
    """From the characters that the tokenizer reports, for one that changes a text before it splits it; None if it does not report any."""
    if not tokenizer.is_fast:
        return None
    for before in _BEFORE:
        encoding = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
        if list(encoding["input_ids"][-len(ids) :]) != list(ids):
            continue
        ends = [len(text[: max(0, end - len(before))].encode()) for _, end in encoding["offset_mapping"][-len(ids) :]]
        # Each token inside of a character reports the end of the whole of it, where only the last of them ends.
        last = [at + 1 == len(ends) or ends[at + 1] != end for at, end in enumerate(ends)]
        reached = list(accumulate((end if is_last else 0 for end, is_last in zip(ends, last, strict=True)), max))
        if not text.encode()[reached[-1] :].strip():
            return reached
    return None


def _from_prefixes(tokenizer: Any, ids: Sequence[int], text: str) -> list[int] | None:
    """From how far the decoded beginnings agree with the text; None if they do not reach its end."""
    ends, reached = [], 0
    for count in range(1, len(ids) + 1):
        begun = decoded(tokenizer, ids[:count])
        reached = max(reached, len(begun.encode())) if text.startswith(begun) else reached
        ends.append(reached)
    return ends if ends and not text.encode()[ends[-1] :].strip() else None
