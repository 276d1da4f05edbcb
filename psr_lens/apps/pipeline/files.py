"""What a run leaves in its folder, and that only one run is ever in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.safe_files import write_text
from psr_lens.apps.pipeline.config import RunConfig
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.scores import Scores

FORMAT: Final = 1
SETTINGS_FILE: Final = "run.yaml"
RESULTS_FILE: Final = "results.json"
ANSWERS_FILE: Final = "answers.jsonl"
REPORT_FILE: Final = "report.html"
ARTIFACTS: Final = "artifacts"
KEPT: Final = "kept"
"""What a run that was cut off goes on from: who it is, its prompts, answers, scores and the state of its fits."""
_IDENTITY: Final = "identity.json"
_PLACES: Final = ("out", "questions")
"""Settings that say where things are, and do not change what is made of them."""


def check_folder(out: str | Path) -> Path:
    """Refuse a file where a folder is wanted.

    Raises:
        InputError: there is a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError("out", str(out), "a folder, or a path where one can be made", "A file is in the way.")
    return out


def claim(out: Path, config: RunConfig, about: Mapping[str, Any], *, write: bool = True) -> bool:
    """Make the folder this run's own, or see that it is.

    Args:
        out: The folder.
        config: The settings, resolved.
        about: What else must be the same for a run to go on, by name; what is None is not known yet.
        write: Write down whose the folder is, if it is nobody's.

    Returns:
        Whether a run had been begun there.

    Raises:
        InputError: the folder holds another run, or something else.
        ArtifactError: what says whose it is cannot be read.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _PLACES}
    wanted = json.loads(json.dumps({"format": FORMAT, **settings, **about}))
    path = check_folder(out) / KEPT / _IDENTITY
    begin_anew = "Give another folder with --out, or delete this one to begin anew."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if out.exists() and any(each.name != KEPT for each in out.iterdir()):
            raise InputError("out", f"{out}, which holds something else", "a new or empty folder, or that of this run") from None
        if write:
            write_text(path, json.dumps(wanted, indent=2) + "\n")
        return False
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {begin_anew}") from error
    unknown = {name for name, value in about.items() if value is None}
    differ = [name for name in {**wanted, **found} if name not in unknown and found.get(name) != wanted.get(name)]
    if differ:
        raise InputError(
            "out", f"{out}, which holds another run (other: {', '.join(differ)})", "the folder of this run", begin_anew
        )
    return True


def folder_name(method: str) -> str:
    """A method's name as that of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in method).strip(".") or "method"


def write_answers(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Answers side by side: a line of JSON a question, at once or not at all."""
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def comparison_json(result: Comparison) -> dict[str, Any]:
    """The numbers of a comparison: scores of every method, magnitude of the prompt by layer, relative RMSE of every method by layer."""

    def numbers(values: Any) -> list[float]:
        return [round(float(value), 4) for value in values]

    rmse = {name: numbers(trace.relative_rmse) for name, trace in result.methods.items()}
    if result.paraphrase_rmse is not None:
        rmse["paraphrase"] = numbers(result.paraphrase_rmse)
    return {
        "methods": {each.method: _score_json(each) for each in result.scores},
        "magnitude": {
            "median": numbers(result.quantile(0.5)),
            "p99": numbers(result.quantile(0.99)),
            "rank1_share": numbers(result.rank1_share),
        },
        "relative_rmse": rmse,
    }


def _score_json(scores: Scores) -> dict[str, Any]:
    return {
        "trait": round(scores.trait, 2),
        "coherence": round(scores.coherence, 2),
        "alpha": scores.alpha,
        "n": scores.n,
        "trait_interval": [round(bound, 2) for bound in scores.trait_interval],
        "coherence_interval": [round(bound, 2) for bound in scores.coherence_interval],
    }
