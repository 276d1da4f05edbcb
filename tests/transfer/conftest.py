"""The fixture of two models on the same texts. Imports are within, as `typecheck.install` says."""

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def two(organism: Any, load: Any) -> SimpleNamespace:
    """Source, target, eight texts, a replacement of the source's, and what plain transformers says of them."""
    from two_models import two_organisms

    return two_organisms(organism, load)
