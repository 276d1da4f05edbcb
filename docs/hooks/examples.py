"""Examples of docstrings as code: a section `Example:` is read as griffe's `Examples:`, whose lines after `>>>` are highlighted."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

SECTION: Final = re.compile(r"^Example:$", re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Griffe extension, named in `mkdocs.yml`: rename the section wherever a docstring has it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a module's, class's or function's docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("Examples:", obj.docstring.value)
