"""A run as one HTML file that needs neither Python nor a network: what was shown, with the playground's own script and style."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from psr_lens.apps.playground.page import SCRIPT, STYLE

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>psr_lens · playground</title>
<style>
{style}
</style>
</head>
<body class="psr-play-page">
<main class="psr-play" data-psr-play="frozen"></main>
<script type="application/json" id="psr-play-data">{data}</script>
<script type="module">
{script}
</script>
</body>
</html>
"""


def frozen(shown: Mapping[str, Any]) -> str:
    """A page with a run that has been shown.

    Args:
        shown: The session's `hello` and the messages of the run, as `Session.shown` gives them.
    """
    data = json.dumps(shown).replace("<", "\\u003c")  # so that no text can end the element
    return _PAGE.replace("{style}", STYLE, 1).replace("{script}", SCRIPT, 1).replace("{data}", data, 1)
