"""Colours of figures: one for each role, scales, and what stands for each on a dark page."""

from __future__ import annotations

from typing import Final, Literal

Role = Literal["prompt", "A-PSR", "S-PSR", "constant", "paraphrase", "none"]
"""What a line or bar shows; it determines the colour in every figure."""

PALETTE: Final[dict[Role, str]] = {
    "prompt": "#D55E00",
    "A-PSR": "#0072B2",
    "S-PSR": "#56B4E9",
    "constant": "#CC79A7",
    "paraphrase": "#009E73",
    "none": "#767676",
}
"""Okabe and Ito's colours, distinguishable with any colour vision, and a grey for the unsteered model."""

SPARE: Final = ("#E69F00", "#000000", "#8C6D00")
"""For the third and further methods of a role: the rest of Okabe and Ito's colours, with ochre in place of their pale yellow."""

INK: Final = "#1c1c1c"
"""Text and axis lines."""
MUTED: Final = "#5f5f5f"
"""Secondary text; its contrast with the background is 6:1."""
GRID: Final = "#e4e4e0"
"""Grid lines."""
PAPER: Final = "#ffffff"
"""Background. It is always set, or a dark notebook would show dark text on a dark background."""

SEQUENTIAL: Final = ["#fbfaf3", "#e3ecc5", "#aad8b5", "#5fbcbb", "#2a93b8", "#2b62a5", "#2a3784", "#1a1547"]
"""Light to dark in even steps, close to ColorBrewer's YlGnBu: readable in greyscale, and almost white at the light end."""
DIVERGING: Final = ["#a6450c", "#e08a4f", "#f6d3b5", "#fbfaf3", "#b9d7ea", "#5a9fce", "#0a5d9c"]
"""Orange below zero, almost white at zero, blue above; avoids red and green."""
LETTERED: Final = (["#fbfaf4", "#e3ecc6", "#aad8b6", "#5fbcbc", "#2a93b9"], ["#e08a50", "#f6d3b6", "#fbfaf4", "#b9d7eb", "#5a9fcf"])
"""The two scales without their darkest shades, for cells with letters in `INK`, whose contrast is then 4.5:1 or more on both pages."""

DARK: Final[dict[str, str]] = {
    INK: "#e9e7e2",
    MUTED: "#a9a69f",
    GRID: "#3b3c3f",
    PAPER: "#17181a",
    "#000000": "#f2f0ea",
    **dict(zip(SEQUENTIAL, ["#1d1e22", "#1f2a4a", "#2a3f7c", "#2b62a5", "#2a93b8", "#5fbcbb", "#aad8b5", "#f3f6d8"], strict=True)),
    **dict(zip(DIVERGING, ["#f5a468", "#c8703a", "#6b4027", "#1d1e22", "#284a63", "#3f86b8", "#86c3ee"], strict=True)),
    **dict(zip(LETTERED[0], ["#1d1e22", "#1f2a4a", "#27376a", "#2a4a8c", "#2b62a5"], strict=True)),
    **dict(zip(LETTERED[1], ["#8f4d22", "#5a3520", "#1d1e22", "#28455c", "#2c648f"], strict=True)),
}
"""Colours on a dark page for those on a white one; scales go from the background to their lightest shade, so that strong cells stand out.
Colours that are not here stay as they are, or are lightened until they are legible on the dark background."""
