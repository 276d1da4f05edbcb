"""The playground in a notebook."""

from __future__ import annotations

from typing import Any

from psr_lens._utils.optional import package
from psr_lens.apps.playground.frozen import frozen
from psr_lens.apps.playground.page import SCRIPT, STYLE
from psr_lens.apps.playground.session import Session, explained
from psr_lens.errors import PsrLensError


def widget_of(session: Session) -> Any:
    """An anywidget that shows a session.

    Raises:
        MissingPackageError: anywidget is not installed.
    """
    anywidget, traitlets = package("anywidget", "play"), package("traitlets", "play")

    class Playground(anywidget.AnyWidget):  # type: ignore[misc, name-defined]
        """What `psr.play` returns: shown where it is the last value of a cell; `close()` ends it."""

        _esm = SCRIPT
        _css = STYLE
        hello = traitlets.Dict(session.hello).tag(sync=True)

        def __init__(self) -> None:
            super().__init__()
            self.on_msg(self._hear)

        def _hear(self, widget: Any, message: Any, buffers: Any) -> None:
            kind, asked = message.get("type"), message.get("asked") or {}
            if kind == "run":
                session.start(asked, self.send)
            elif kind == "stop":
                session.stop()
            elif kind in ("inspect", "freeze"):
                try:
                    content = session.inspect(asked) if kind == "inspect" else {"type": "frozen", "html": frozen(session.shown)}
                except Exception as error:
                    self.send({"reply": message.get("reply"), "content": {"type": "error", "message": explained(error)}})
                    if not isinstance(error, PsrLensError):
                        raise
                else:
                    self.send({"reply": message.get("reply"), "content": content})

        def close(self) -> None:
            """End the run that is going on, and remove the playground from the notebook."""
            session.stop()
            super().close()

    return Playground()
