"""A page in a headless Chromium, over the DevTools protocol, as a reader's browser would show it.

python tests/browser.py PAGE FOLDER    # pictures of the page and of each of its figures, at both widths
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = (390, 1440)
"""A phone and a desktop, in CSS pixels."""
HEIGHT = 900
PATIENCE = 60.0
"""Seconds that anything on a page may take."""

_FIGURES = """
[...document.querySelectorAll(".js-plotly-plot")].map((plot) => {
  const box = plot.getBoundingClientRect();
  const marks = ".plot path, .plot image, .plot text, .heatmaplayer image, .scatterlayer path, .barlayer path, .violinlayer path";
  return {
    visible: plot.offsetParent !== null,
    title: plot.layout.title?.text ?? "",
    top: box.top + scrollY, left: box.left, width: box.width, height: box.height,
    marks: plot.querySelectorAll(marks).length,
    drawn: plot.querySelectorAll("svg.main-svg").length,
    overflow: [...plot.querySelectorAll("text")].filter((text) => {
      const own = text.getBoundingClientRect();
      return own.width > 0 && (own.left < box.left - 1 || own.right > box.right + 1);
    }).map((text) => text.textContent),
  };
})
"""


def missing() -> str:
    """Why there can be no browser here; nothing if there can."""
    try:
        from choreographer.browsers import Chromium
    except ImportError:
        return "choreographer is not installed (it comes with kaleido)"
    path = Chromium.find_browser(skip_local=False)
    return "" if path and Path(path).is_file() else "no Chrome or Chromium is installed"


class Page:
    """One tab; every call returns when it is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tab: Any) -> None:
        self._loop, self._tab = loop, tab
        self.errors: list[str] = []
        """What a console would show in red since the page was opened."""
        for event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            tab.subscribe(event, self._hear)
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setScrollbarsHidden", hidden=True)  # as on a phone; a picture of a whole page has none either

    async def _hear(self, message: dict[str, Any]) -> None:
        params = message["params"]
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif params.get("type") == "error":
            self.errors.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif params.get("entry", {}).get("level") == "error":
            self.errors.append(params["entry"]["text"])

    def send(self, command: str, **params: Any) -> Any:
        """One command of the protocol."""
        answer = self._loop.run_until_complete(asyncio.wait_for(self._tab.send_command(command, params), PATIENCE + 10))
        assert "error" not in answer, (command, answer["error"])
        return answer["result"]

    def js(self, expression: str) -> Any:
        """The value of an expression, a promise's when it is kept."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until an expression is true."""
        self.js(
            f"new Promise((done, fail) => {{ const end = Date.now() + {1000 * PATIENCE}; (function look() {{"
            f"if ({condition}) done(); else if (Date.now() > end) fail('never: ' + {condition!r}); else setTimeout(look, 20); }})(); }})"
        )

    def open(self, path: Path, width: int) -> None:
        """A file of this machine, in a window of some width; nothing of the network."""
        self.show(path.resolve().as_uri(), width)

    def show(self, address: str, width: int) -> None:
        """An address, in a window of some width."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url="about:blank")
        self.errors.clear()
        self.send("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def figures(self) -> list[dict[str, Any]]:
        """Every figure: whether it is visible and drawn, its place, and texts that stick out of it."""
        return self.js(_FIGURES)

    def hover(self, x: float, y: float) -> None:
        """Put the pointer at a place of the page."""
        self.js(f"scrollTo(0, {max(0, y - HEIGHT / 2)})")
        top = self.js("scrollY")
        for step in (3, 0):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x - step, y=y - top - step)

    def click(self, x: float, y: float) -> None:
        """Press and let go at a place of the page."""
        self.hover(x, y)
        top = self.js("scrollY")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y - top, button="left", clickCount=1)

    def picture(self, path: Path, clip: dict[str, float] | None = None, scale: float = 1) -> None:
        """A PNG of the page, or of a part of it."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = clip or {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": scale})
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A headless browser with one tab, and with the rules between sites that a reader's browser keeps."""
    from choreographer import Browser
    from choreographer.browsers import Chromium

    class Strict(Chromium):
        def get_cli(self) -> Any:
            return [each for each in super().get_cli() if each != "--disable-web-security"]

    loop = asyncio.new_event_loop()
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)  # it calls the browser's own goodbye an error
    shown = Browser(headless=True, browser_cls=Strict)
    try:
        loop.run_until_complete(shown.open())
        yield Page(loop, loop.run_until_complete(shown.create_tab("about:blank")))
    finally:
        loop.run_until_complete(shown.close())
        loop.close()


def main(page: Path, folder: Path) -> None:
    """Pictures of a page and its figures, and what is wrong with them."""
    if why := missing():
        sys.exit(why)
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as tab:
        for width in WIDTHS:
            tab.open(page, width)
            tab.js("document.getElementById('unfold')?.click()")
            tab.wait_for("document.documentElement.dataset.figures === 'drawn' || !document.querySelector('.figure')")
            tab.picture(folder / f"{width}.png")
            for place, each in enumerate(tab.figures(), start=1):
                if each["visible"]:
                    clip = {"x": each["left"], "y": each["top"], "width": each["width"], "height": each["height"]}
                    tab.picture(folder / f"{width}-{place:02d}.png", clip)
                    print(width, place, each["title"], f"marks {each['marks']}", each["overflow"] or "")
            print(width, "errors:", tab.errors, "page wider than window:", tab.js("document.documentElement.scrollWidth"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
