"""Prompts as coloured text that marks the tokens of the instruction, of the question, and those that are steered."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import accumulate, groupby, pairwise
from typing import Any, Final, Literal

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from psr_lens._utils.numbers import counted
from psr_lens._utils.sequences import common_prefix, common_suffix
from psr_lens.prompts.prompt_pair import PromptPair, Span
from psr_lens.prompts.replaced_system import replaced_system
from psr_lens.prompts.token_text import is_byte_level, token_bytes, token_strings, visible, with_bytes

Part = Literal["", "instruction", "question", "prefix", "response"]
"""What a token belongs to; empty for a token of the template or of an earlier message."""

_FILL: Final[Mapping[Part, str]] = {
    "instruction": "#ffd8a8",
    "question": "#bcdcf2",
    "prefix": "#cfe8c4",
    "response": "#e6d9f3",
}
"""Background colour of each part; dark text on any of them has a contrast above 12:1."""
_STEERED: Final = "#f4b6c2"
"""Background colour of steered tokens."""
_INK: Final = "#1c1c1c"
_MEANINGS: Final[Mapping[Part, str]] = {
    "instruction": "what the instruction adds to the prompt",
    "question": "the user's question",
    "prefix": "how the response begins",
    "response": "the same tokens after both prompts",
}


@dataclass(frozen=True)
class ShownToken:
    """One token of a prompt."""

    text: str
    """Its text, with visible signs for line ends and tabs."""
    part: Part
    """The part it belongs to."""
    steered: bool
    """Whether it is in the span."""


@dataclass(frozen=True, repr=False)
class PromptView:
    """Prompts, one above the other: HTML in a notebook; `print` shows coloured text in a terminal and marked text elsewhere."""

    rows: Mapping[str, tuple[ShownToken, ...]]
    """The tokens of each prompt, by its name: `base` and `prompted`."""
    span: str
    """`R` or `QR`."""
    caption: str
    """The line above the prompts."""
    note: str = ""
    """What to know about these prompts, such as a system message that only one of them has; empty if nothing."""

    def __str__(self) -> str:
        """The prompts as text, in colour if standard output is a terminal."""
        console = Console(file=StringIO(), force_terminal=sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __repr__(self) -> str:
        """What is shown, on one line."""
        return f"PromptView({self.caption}, span {self.span}; `print` shows it)"

    def __rich__(self) -> Group:
        """The prompts for a console of rich."""
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, tokens in self.rows.items():
            table.add_row(Text(f"{name}\n{counted(len(tokens), 'token')}\n", style="bold"), self._text(tokens))
        return Group(*map(Text, filter(None, (self.caption, self.note))), Text(), table, self._legend_text())

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="vertical-align:top;text-align:left;padding:4px 12px 4px 0;white-space:nowrap"><b>{html.escape(name)}</b><br>'
            f'<span style="color:#5f5f5f">{len(tokens)} tokens</span></td>'
            f'<td style="text-align:left;padding:4px 0;line-height:2.3">{self._html(tokens)}</td></tr>'
            for name, tokens in self.rows.items()
        )
        return (
            f'<div style="background:#fff;color:{_INK};border:1px solid #d0d0cc;border-radius:4px;padding:10px 14px;font-size:13px">'
            f'<div style="margin-bottom:4px">{"<br>".join(map(html.escape, filter(None, (self.caption, self.note))))}</div>'
            f'<table style="border-collapse:collapse;background:#fff;color:{_INK};margin:0"><tbody>{rows}</tbody></table>'
            f'<div style="margin-top:6px;color:#4a4a4a;line-height:2">{self._legend_html()}</div></div>'
        )

    @property
    def _parts(self) -> list[Part]:
        """The parts that occur, in the order of the legend."""
        present = {token.part for tokens in self.rows.values() for token in tokens}
        return [part for part in _FILL if part in present]

    @property
    def _meaning(self) -> str:
        what = "the last prompt token, which predicts the first response token"
        return f"{'from the question on' if self.span == 'QR' else what}, and every token of the response"

    def _text(self, tokens: Sequence[ShownToken]) -> Text:
        text = Text()
        for steered, run in _runs(tokens):
            if steered:
                text.append(f" {self.span}⟪", f"bold {_INK} on {_STEERED}")
            for number, (part, inner) in enumerate(run):
                fill = _FILL.get(part) or (_STEERED if steered else None)
                style = f"{_INK} on {fill}" if fill else ""
                text.append(f" {part}⟦" if part else "│" if number else "", f"bold {style}")
                for index, token in enumerate(inner):
                    text.append("│" if index else "", f"dim {style}")
                    text.append(token.text, f"{style} underline" if steered else style)
                text.append("⟧" if part else "", f"bold {style}")
            text.append("⟫" if steered else "│", f"bold {_INK} on {_STEERED}" if steered else "dim")
        return text

    def _legend_text(self) -> Text:
        legend = Text()
        legend.append(f"{self.span}⟪…⟫", f"bold {_INK} on {_STEERED}").append(f" steered: {self._meaning}\n")
        for part in self._parts:
            legend.append(f"{part}⟦…⟧", f"{_INK} on {_FILL[part]}").append(f" {_MEANINGS[part]}   ")
        return legend.append("│ between tokens   ↵ line end")

    def _html(self, tokens: Sequence[ShownToken]) -> str:
        shown = []
        for steered, run in _runs(tokens):
            inner = "".join(self._part_html(part, list(of), steered) for part, of in run)
            if steered:
                inner = _wrapped(self.span, inner, _STEERED, "2px solid #a61e4d")
            shown.append(inner)
        return "".join(shown)

    def _part_html(self, part: Part, tokens: Sequence[ShownToken], steered: bool) -> str:
        fill = _FILL.get(part) or (_STEERED if steered else "#fff")
        line = "border-bottom:3px double #a61e4d;" if steered else ""
        boxes = "".join(
            f'<span style="display:inline-block;white-space:pre;line-height:1.3;border:1px solid #8a8a86;{line}border-radius:2px;'
            f"margin:0 1px;padding:0 2px;min-width:4px;background:{fill};"
            f"font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\">{html.escape(token.text)}</span>"
            "<wbr>"
            for token in tokens
        )
        return _wrapped(part, boxes, _FILL[part], "1px dashed #6a6a66") if part else boxes

    def _legend_html(self) -> str:
        entries = [_wrapped(self.span, f" steered: {self._meaning} ", _STEERED, "2px solid #a61e4d")]
        entries += [_wrapped(part, f" {_MEANINGS[part]} ", _FILL[part], "1px dashed #6a6a66") for part in self._parts]
        return " ".join(entries) + " a box is a token, ↵ a line end"


def _runs(tokens: Sequence[ShownToken]) -> Iterator[tuple[bool, list[tuple[Part, list[ShownToken]]]]]:
    """Runs of tokens that are steered or not, and within each the runs of one part."""
    for steered, run in groupby(tokens, key=lambda token: token.steered):
        yield steered, [(part, list(inner)) for part, inner in groupby(run, key=lambda token: token.part)]


def _wrapped(label: str, inner: str, fill: str, border: str) -> str:
    return (
        f'<span style="background:{fill};color:{_INK};border:{border};border-radius:3px;padding:2px 1px;margin:0 1px;'
        f'-webkit-box-decoration-break:clone;box-decoration-break:clone">'
        f'<small style="font-weight:600;padding:0 3px">{html.escape(label)}</small>{inner}</span>'
    )


def prompt_view(tokenizer: Any, pair: PromptPair, span: Span, response_ids: Sequence[int] = (), caption: str = "") -> PromptView:
    """Make the view of a pair's two prompts.

    Parts are found by their text, ignoring white space and case, since a tokenizer may change both. An instruction that it has changed in
    another way is taken to be all that the prompt with the instruction adds.

    Args:
        tokenizer: Gives the tokens' texts.
        pair: The two prompts.
        span: `"R"` or `"QR"`.
        response_ids: Token ids of a response, shown after both prompts.
        caption: The line above the prompts.

    Raises:
        InputError: a tokenizer with several chat templates of which none is the default.
    """
    byte_level = is_byte_level(tokenizer.get_vocab())
    rows = {}
    for name, ids in (("base", pair.base_ids), ("prompted", pair.prompted_ids)):
        spelled = [token_bytes(string, byte_level) for string in token_strings(tokenizer, [*ids, *response_ids])]
        letters = _Letters(spelled[: len(ids)])
        parts: list[Part] = ["" for _ in ids]
        _mark(parts, "question", letters.last(pair.question, len(ids) - pair.question_length))
        thought = len(ids) - len(pair.thought_ids)
        if pair.chat.prefix:
            _mark(parts, "prefix", range(letters.ending(pair.chat.prefix, thought), thought))
        _mark(parts, "prefix", range(thought, len(ids)))
        if name == "prompted":
            head, tail = common_prefix(pair.base_ids, ids), common_suffix(pair.base_ids, ids)
            _mark(parts, "instruction", letters.nearest(pair.instruction, head) or range(head, len(ids) - tail))
        parts += ["response" for _ in response_ids]
        begin = len(ids) - pair.span_length(span)
        rows[name] = tuple(
            ShownToken(_shown_text(token), part, position >= begin)
            for position, (token, part) in enumerate(zip(spelled, parts, strict=True))
        )
    return PromptView(rows, span, caption, replaced_system(tokenizer, pair))


def _shown_text(spelled: bytes) -> str:
    """A token's text; its bytes if it is only a piece of a character."""
    return visible(with_bytes(spelled.decode("utf-8", "surrogateescape")))


def _mark(parts: list[Part], part: Part, positions: range) -> None:
    for position in positions:
        parts[position] = part


class _Letters:
    """The text of a prompt's tokens, joined, in lower case and without white space, so that parts can be found in it."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        bare = [_bare(token) for token in tokens]
        self._all = b"".join(bare)
        self._starts = list(accumulate(map(len, bare), initial=0))

    def last(self, text: str, until: int) -> range:
        """Positions of the tokens of the last occurrence that begins before the end of token `until`."""
        limit = self._starts[min(until + 1, len(self._starts) - 1)]
        found = [start for start in self._occurrences(text) if start < limit]
        return self._tokens(found[-1], text) if found else range(0)

    def nearest(self, text: str, token: int) -> range:
        """Positions of the tokens of the occurrence that begins nearest to a token."""
        found = sorted(self._occurrences(text), key=lambda start: abs(start - self._starts[token]))
        return self._tokens(found[0], text) if found else range(0)

    def ending(self, text: str, until: int) -> int:
        """Position of the first token of a text that ends before token `until`."""
        return self._tokens(max(0, self._starts[until] - len(_bare(text.encode()))), text).start

    def _occurrences(self, text: str) -> list[int]:
        return [match.start() for match in re.finditer(b"(?=" + re.escape(_bare(text.encode())) + b")", self._all)]

    def _tokens(self, start: int, text: str) -> range:
        stop = start + len(_bare(text.encode()))
        edges = pairwise(self._starts)
        inside = [position for position, (begin, end) in enumerate(edges) if begin < stop and end > start]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


def _bare(text: bytes) -> bytes:
    return re.sub(rb"\s", b"", text).lower()
