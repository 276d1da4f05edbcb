"""How long a reader of the playground waits for the first token of each column, and whether columns grow together.

python benchmarks/first_token.py MODEL ARTIFACT... --question TEXT --instruction TEXT

Seconds from asking to a column's first token, over HTTP as the page asks: in the first run, and the median and range of five more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import psr_lens as psr
from psr_lens.apps.playground.play import session_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from playground_runs import Served, serving

RUNS = 5


def tokens(served: Served, request: dict[str, object]) -> list[tuple[str, float]]:
    """The column of each token in the order in which they come, and after how many seconds."""
    began, found = time.perf_counter(), []
    for line in served.ask("/run", json.dumps(request).encode()):
        message = json.loads(line)
        if message["type"] == "token":
            found.append((message["column"], time.perf_counter() - began))
    return found


def main() -> None:
    """Measure, and print a line for each column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--question", required=True)
    parser.add_argument("--instruction", required=True)
    given = parser.parse_args()
    model = psr.load_model(given.model)
    methods = {folder.name: psr.Replacement.load(folder) for folder in given.artifacts}
    session = session_of(model, given.question, methods, instruction=given.instruction)
    request = {
        "question": given.question,
        "instruction": given.instruction,
        "alphas": dict.fromkeys(methods, 1.0),
        "seed": 0,
        "temperature": 0.7,
        "max_new_tokens": 8,
    }
    with serving(session) as served:
        runs = [tokens(served, request) for _ in range(1 + RUNS)]
    first, *later = [dict(reversed(run)) for run in runs]  # the earliest of a column stays
    for column in sorted(first, key=first.__getitem__):
        times = sorted(run[column] for run in later)
        middle = statistics.median(times)
        print(f"{column}: {first[column]:.3f} s in the first run; then {middle:.3f} s ({times[0]:.3f} to {times[-1]:.3f})")
    print("columns in order of their tokens:", " ".join(column for column, _ in runs[-1][: 2 * len(first)]))


if __name__ == "__main__":
    main()
