"""The architecture matrix: every check of `matrix` on a tiny random model of every architecture, in each of TransformerLens's classes.

`--matrix FILE` writes what was found; `make matrix` makes the table in `docs/architectures.md` of it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import matrix
import pytest
from architectures import FAMILIES, TAKEN
from helpers import BACKENDS, Case

import psr_lens as psr
from psr_lens.errors import ModelError
from psr_lens.models import is_bridge

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
CASES = [
    (family, backend) for family in TAKEN for backend in BACKENDS if backend == "bridge" or FAMILIES[family].in_hooked_transformer
]
REFUSED = [family for family in TAKEN if not FAMILIES[family].in_hooked_transformer]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[matrix.Results]:
    found: matrix.Results = {matrix.key(backend, family): {} for family, backend in CASES}
    yield found
    if path := request.config.getoption("--matrix"):
        Path(path).write_text(json.dumps(found))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, load: Callable[[str, str], Case]) -> Case:
    return load(*request.param)


@pytest.mark.parametrize("column", matrix.CHECKS)
def test_matrix(case, column, results):
    results[matrix.key(case.backend, case.family)][column] = matrix.CHECKS[column](case)


@pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")
@pytest.mark.parametrize("family", REFUSED)
def test_what_hooked_transformer_cannot_take_from_a_folder_is_said_and_auto_takes_the_bridge(folders, family):
    with pytest.raises(ModelError, match=f"HookedTransformer cannot take .*{FAMILIES[family].kind}.*backend='bridge'"):
        psr.load_model(folders[family], backend="hooked_transformer")
    assert is_bridge(psr.load_model(folders[family]))


def test_the_table_in_docs_has_these_rows_and_columns():
    shown = matrix.table_in(PAGE.read_text(encoding="utf-8"))
    made, found = ([line.split(" | ") for line in each.splitlines()] for each in (matrix.table({}), shown))
    assert found[0] == made[0]
    assert [row[0] for row in found] == [row[0] for row in made]
    assert "✗" not in shown
