"""Text to token ids, as transformers does it, in which a special token that stands in a user's text stays text.

A prompt is made of a template, whose special tokens are meant as such, and of texts that may happen to contain the same characters.
`TextEncoder.masked` marks these in a text before the template gets it, and `TextEncoder.encode` reads the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer

from psr_lens.errors import InputError

_MARK: Final = "\U0010f000"
"""A private character that announces a masked special token; the next character says which."""
_FIRST: Final = 0x10F100
"""Code point that stands for the first masked special token."""
_STAND_IN: Final = 0x10E000
"""Code point that names the template's first special token in the tokenizer's copy."""
_BEFORE: Final = ("\n", "x", ".", " ")
"""What a response is read after if its prompt cannot be: texts that hardly ever share a token with what follows."""
_PLAIN_WORD: Final = "a"


class Encoded(NamedTuple):
    """A text as tokens."""

    ids: tuple[int, ...]
    """Token ids."""
    ends: list[int] | None
    """Where each token ends in the masked text; None if the tokenizer does not say."""


class _Piece(NamedTuple):
    """A part of a masked text."""

    text: str
    """Its characters in the masked text."""
    user: str | None
    """The special token that a user wrote here as text."""
    special: str | None
    """The special token that the template wrote here."""


class TextEncoder:
    """Encodes texts with one tokenizer, without adding special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        """Keep the tokenizer, which is not changed."""
        self.tokenizer = tokenizer

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        """Special tokens and their ids. Other added tokens, such as Qwen3's `<think>`, are words of the vocabulary."""
        added = {token.content: int(index) for index, token in self._added_tokens.items() if token.special}
        named = [str(name) for name in getattr(self.tokenizer, "all_special_tokens", ())]
        found = added | {name: int(self.tokenizer.convert_tokens_to_ids(name)) for name in named if name not in added}
        return {token: index for token, index in found.items() if token.strip()}  # white space is always text

    @property
    def _added_tokens(self) -> Mapping[int, Any]:
        found: Mapping[int, Any] = getattr(self.tokenizer, "added_tokens_decoder", {})
        return found

    @cached_property
    def _masks(self) -> dict[str, str]:
        """The mask of each special token, and of the mark itself."""
        return {each: _MARK + chr(_FIRST + index) for index, each in enumerate([*self._special_ids, _MARK])}

    @cached_property
    def _added(self) -> list[str]:
        """Everything that the tokenizer takes out of a text first, the longest first."""
        others = (token.content for token in self._added_tokens.values())
        return sorted({*self._special_ids, *filter(None, others)}, key=len, reverse=True)

    def masked(self, text: str) -> str:
        """A user's text with its special tokens masked, for a template and for `encode`."""
        return _sub([*self._added, _MARK], lambda found: self._masks.get(found, found), text)

    def unmasked(self, masked: str) -> str:
        """The text that was masked."""
        return _sub(self._masks.values(), {mask: each for each, mask in self._masks.items()}.__getitem__, masked)

    def encode(self, masked: str, argument: str = "text") -> Encoded:
        """Token ids of a masked text.

        Raises:
            InputError: the text is not Unicode, or contains a special token as text and this tokenizer cannot encode that as text; the
                error names `argument`.
        """
        try:
            masked.encode()
        except UnicodeEncodeError as error:
            raise InputError(argument, f"a text that is not Unicode ({error.reason})", "a text of whole characters") from error
        if _MARK not in masked and not self._normalises_special:
            return self._plainly(masked)
        return self._with_text(masked, argument)

    def continued(self, before: str | None, before_ids: Sequence[int], masked: str, argument: str = "text") -> tuple[int, ...]:
        """Token ids of a text that continues another, as they are where both are encoded as one text.

        If a token reaches across the border, or the text before is unknown, it is what the text is after a word or a line end.

        Args:
            before: The masked text before, as far as it is known.
            before_ids: Its token ids; the text is ignored if it does not give these.
            masked: The masked text that continues it.
            argument: What errors name.
        """
        known = before is not None and self.encode(before, argument).ids == tuple(before_ids)
        for context in ((before or "",) if known else ()) + _BEFORE:
            head, whole = (self.encode(each, argument).ids for each in (context, context + masked))
            if len(whole) > len(head) and whole[: len(head)] == head:
                return whole[len(head) :]
        return self.encode(masked, argument).ids

    def _plainly(self, text: str) -> Encoded:
        fast = self.tokenizer.is_fast
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
        ids = tuple(int(token) for token in encoding["input_ids"])
        return Encoded(ids, [end for _, end in encoding["offset_mapping"]] if fast else None)

    @cached_property
    def _normalises_special(self) -> bool:
        """Whether another spelling of a special token is taken for it, which a mask does not find."""
        if not self.tokenizer.is_fast or not any(each.special and each.normalized for each in self._added_tokens.values()):
            return False
        return self.tokenizer.backend_tokenizer.normalizer is not None

    def _with_text(self, masked: str, argument: str) -> Encoded:
        """Encode a text with special tokens of a user's, and check it against the tokenizer itself, with words in their place."""
        pieces = self._pieces(masked)
        encode = self._by_copy if self.tokenizer.is_fast else self._by_pieces
        found = encode(pieces)
        # The same prompt with words where the user has special tokens: on that, transformers and this must agree.
        words = [_Piece(_PLAIN_WORD, None, None) if piece.user is not None else piece for piece in pieces]
        expected = self._plainly("".join(piece.text for piece in words)).ids
        unknown = self.tokenizer.unk_token_id
        if unknown in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            unknown = None  # as in GPT-2, where no text is unknown
        special = {*self._special_ids.values()} - {unknown}
        if self._normalises_special:  # the tokenizer itself would take words of the user's for special tokens
            expected = tuple(self._special_ids[piece.special] for piece in pieces if piece.special is not None)
        meant, made = ([index for index in ids if index in special] for ids in (expected, found.ids))
        if made != meant or not (self._normalises_special or encode(words).ids == expected):
            names = ", ".join(dict.fromkeys(repr(piece.user) for piece in pieces if piece.user is not None))
            raise InputError(
                argument,
                f"a text that contains special tokens ({names})",
                f"a text that {type(self.tokenizer).__name__} can encode as text",
                "Take them out of the text, or spell them differently.",
            )
        return found

    def _pieces(self, masked: str) -> list[_Piece]:
        by_mask = {mask: each for each, mask in self._masks.items()}
        pieces, at = [], 0
        for match in re.finditer(_any_of([*by_mask, *self._added]), masked):
            pieces.append(_Piece(masked[at : match.start()], None, None))
            text, at = match.group(), match.end()
            pieces.append(_Piece(text, by_mask.get(text), text if text in self._special_ids else None))
        return [piece for piece in (*pieces, _Piece(masked[at:], None, None)) if piece.text]

    # --- fast tokenizers -----------------------------------------------------------------------------------------------------

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        return {each: chr(_STAND_IN + index) for index, each in enumerate(self._special_ids)}

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with other names for its special tokens, and what its ids are in the original where they differ."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        content["truncation"] = content["padding"] = None
        for token in content["added_tokens"]:
            if token["content"] in self._stand_ins:
                token |= {"content": self._stand_ins[token["content"]], "normalized": False}
        _rename(content["model"], self._stand_ins)
        made = Tokenizer.from_str(json.dumps(content))
        named = {self._stand_ins.get(token, token): index for token, index in self.tokenizer.get_added_vocab().items()}
        ids = ((made.token_to_id(name), index) for name, index in named.items())
        return made, {new: index for new, index in ids if new is not None and new != index}

    def _by_copy(self, pieces: Sequence[_Piece]) -> Encoded:
        tokenizer, ids = self._copy
        text, ends, at = "", [0], 0
        for piece in pieces:
            written = piece.user if piece.user is not None else self._stand_ins.get(piece.special or "", piece.text)
            same = len(written) == len(piece.text)
            ends += [at + (index if same else min(index, len(piece.text))) for index in range(1, len(written))]
            text, at = text + written, at + len(piece.text)
            ends.append(at)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return Encoded(tuple(ids.get(index, index) for index in encoding.ids), [ends[end] for _, end in encoding.offsets])

    # --- others --------------------------------------------------------------------------------------------------------------

    def _by_pieces(self, pieces: Sequence[_Piece]) -> Encoded:
        """What lies between the template's special tokens, each by itself."""
        ids: list[int] = []
        for special, run in groupby(pieces, key=lambda piece: piece.special):
            if special is not None:
                ids += [self._special_ids[special]] * len(list(run))
                continue
            inner = list(run)
            text = "".join(piece.text if piece.user is None else piece.user for piece in inner)
            as_text = {"split_special_tokens": True} if any(piece.user is not None for piece in inner) else {}
            ids += map(int, self.tokenizer(text, add_special_tokens=False, **as_text)["input_ids"])
        return Encoded(tuple(ids), None)


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens in the JSON of a tokenizer's model, so that no text is taken for them."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
    else:  # Unigram: pairs of a token and its score
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]


def _any_of(texts: Sequence[str]) -> str:
    """A pattern of any of these texts, the first that matches; of nothing if there are none."""
    return "|".join(map(re.escape, texts)) or "(?!)"


def _sub(texts: Any, change: Callable[[str], str], text: str) -> str:
    return re.sub(_any_of(list(texts)), lambda match: change(match.group()), text)
