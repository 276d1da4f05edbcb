"""The moving picture of the playground: a run, and then one column's strength turned, as the browser shows them.

python benchmarks/playground_picture.py MODEL ARTIFACT... --question TEXT --out docs/playground.gif

Needs Chromium, the extras `play` and `static`, and Pillow (`pip install pillow`).
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Page, browser

WIDTH, HEIGHT = 1000, 510
"""The part of the page that is shown, in CSS pixels."""
SHORTEST, LONGEST, LAST = 0.12, 0.6, 2.5
"""Seconds that a frame stands: at least, at most (a wait between two tokens is cut to this), and at a stop of the action."""
COLORS = 64
GOING = "document.querySelector('.psr-going') || document.querySelector('.psr-status').textContent !== 'Done.'"


class Film:
    """Pictures of a page, each with the seconds that it stands."""

    def __init__(self, page: Page, folder: Path) -> None:
        self._page, self._file = page, folder / "frame.png"
        self.frames: list[Image.Image] = []
        self.seconds: list[float] = []
        self._last = (b"", time.monotonic())

    def take(self) -> None:
        """One picture; if nothing has moved, the one before stands longer."""
        top = self._page.js("document.querySelector('.psr-buttons').getBoundingClientRect().top + scrollY - 12")
        self._page.picture(self._file, {"x": 0, "y": top, "width": WIDTH, "height": HEIGHT})
        shown, now = self._file.read_bytes(), time.monotonic()
        before, since = self._last
        if shown != before:
            if len(self.seconds) < len(self.frames):
                self.seconds.append(min(max(now - since, SHORTEST), LONGEST))
            self.frames.append(Image.open(io.BytesIO(shown)).convert("RGB"))
            self._last = (shown, now)

    def until_done(self) -> None:
        """Pictures as long as answers are being written, and one that stands."""
        while self._page.js(f"Boolean({GOING})"):
            self.take()
        self.take()
        self.seconds.append(LAST)
        self._last = (b"", time.monotonic())

    def save(self, path: Path) -> None:
        """One endless GIF with one palette."""
        palette = self.frames[-1].quantize(COLORS)
        drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        durations = [round(1000 * seconds) for seconds in self.seconds]
        drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=durations, loop=0, optimize=True)


def turned(page: Page, film: Film, column: str, alpha: float) -> None:
    """Move a column's slider step by step, let it go, and wait for the answer."""
    slider = f"document.querySelector('[data-column=\"{column}\"] input[type=range]')"
    begin = page.js(f"Number({slider}.value)")
    for step in range(1, 6):
        page.js(f"{slider}.value = {begin + (alpha - begin) * step / 5}; {slider}.dispatchEvent(new Event('input'))")
        film.take()
    page.js(f"{slider}.dispatchEvent(new Event('change'))")
    film.until_done()


def main(asked: argparse.Namespace) -> None:
    """Serve the playground, play, and write the picture."""
    command = [sys.executable, "-m", "psr_lens", "play", asked.model, *map(str, asked.artifacts), "--no-open"]
    for name in ("question", "place"):
        if value := getattr(asked, name):
            command += [f"--{name}", value]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        lines: Any = iter(server.stdout or ())
        address = next(line.strip() for line in lines if re.match(r"http://127", line))
        with tempfile.TemporaryDirectory() as folder, browser() as page:
            page.show(address, WIDTH)
            page.wait_for("document.querySelector('.psr-run')")
            page.js(f"document.querySelector('[name=max_new_tokens]').value = {asked.tokens}")
            page.js(f"document.querySelector('[name=seed]').value = {asked.seed}")
            film = Film(page, Path(folder))
            page.js("document.querySelector('.psr-run').click()")
            film.until_done()
            for alpha in asked.alphas:
                turned(page, film, asked.artifacts[0].name, alpha)
            film.save(asked.out)
    finally:
        server.terminate()
    print(f"{len(film.frames)} frames, {sum(film.seconds):.0f} s, {asked.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--question")
    parser.add_argument("--place", help="where the instruction stands, as the artifacts were fitted")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 2.0, 1.0], help="strengths of the first artifact, in turn")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
