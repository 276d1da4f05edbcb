"""See and replace what a prompt does inside a language model.

The public names are loaded when they are first used, so that `import psr_lens` costs neither torch nor TransformerLens.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psr_lens import datasets as datasets
    from psr_lens import judges as judges
    from psr_lens import organism as organism
    from psr_lens import plots as plots
    from psr_lens.attribution import Attribution as Attribution
    from psr_lens.attribution import attribute as attribute
    from psr_lens.capture import Captured as Captured
    from psr_lens.capture import InMemory as InMemory
    from psr_lens.capture import capture as capture
    from psr_lens.collateral import Collateral as Collateral
    from psr_lens.collateral import collateral as collateral
    from psr_lens.collateral import standing_pairs as standing_pairs
    from psr_lens.compare import Comparison as Comparison
    from psr_lens.compare import compare as compare
    from psr_lens.composition import SteeringPlan as SteeringPlan
    from psr_lens.evaluate import Calibration as Calibration
    from psr_lens.evaluate import Evaluation as Evaluation
    from psr_lens.evaluate import Scores as Scores
    from psr_lens.evaluate import best_alpha as best_alpha
    from psr_lens.evaluate import best_layer as best_layer
    from psr_lens.evaluate import evaluate as evaluate
    from psr_lens.evaluate import scores_at as scores_at
    from psr_lens.faithfulness import Faithfulness as Faithfulness
    from psr_lens.faithfulness import faithfulness as faithfulness
    from psr_lens.fit import FitConfig as FitConfig
    from psr_lens.fit import fit as fit
    from psr_lens.hook_points import hook_points as hook_points
    from psr_lens.meaning import cosines as cosines
    from psr_lens.meaning import logit_lens as logit_lens
    from psr_lens.meaning import top_tokens as top_tokens
    from psr_lens.models import load_model as load_model
    from psr_lens.pairs import PromptPair as PromptPair
    from psr_lens.pairs import PromptPairs as PromptPairs
    from psr_lens.prompts import Triplet as Triplet
    from psr_lens.prompts import prompt_pairs as prompt_pairs
    from psr_lens.prompts import prompt_pairs_from_texts as prompt_pairs_from_texts
    from psr_lens.prompts import rephrase as rephrase
    from psr_lens.prompts import with_responses as with_responses
    from psr_lens.replacement import Replacement as Replacement
    from psr_lens.report import report as report
    from psr_lens.results import Result as Result
    from psr_lens.results import ResultTable as ResultTable
    from psr_lens.robustness import Robustness as Robustness
    from psr_lens.robustness import robustness as robustness
    from psr_lens.sampling import SamplingConfig as SamplingConfig
    from psr_lens.sampling import generate as generate
    from psr_lens.sampling import sample_responses as sample_responses
    from psr_lens.statistics import CapturedStatistics as CapturedStatistics
    from psr_lens.statistics import Statistics as Statistics
    from psr_lens.store import OnDisk as OnDisk
    from psr_lens.store import Store as Store

_HOME = {
    "load_model": "models",
    "hook_points": "hook_points",
    "PromptPair": "pairs",
    "PromptPairs": "pairs",
    "Triplet": "prompts",
    "prompt_pairs": "prompts",
    "prompt_pairs_from_texts": "prompts",
    "rephrase": "prompts",
    "with_responses": "prompts",
    "SamplingConfig": "sampling",
    "generate": "sampling",
    "sample_responses": "sampling",
    "Captured": "capture",
    "InMemory": "capture",
    "capture": "capture",
    "CapturedStatistics": "statistics",
    "Statistics": "statistics",
    "OnDisk": "store",
    "Store": "store",
    "Faithfulness": "faithfulness",
    "faithfulness": "faithfulness",
    "Collateral": "collateral",
    "collateral": "collateral",
    "standing_pairs": "collateral",
    "Robustness": "robustness",
    "robustness": "robustness",
    "FitConfig": "fit",
    "fit": "fit",
    "Replacement": "replacement",
    "SteeringPlan": "composition",
    "Result": "results",
    "ResultTable": "results",
    "Scores": "evaluate",
    "best_alpha": "evaluate",
    "best_layer": "evaluate",
    "Calibration": "evaluate",
    "Evaluation": "evaluate",
    "evaluate": "evaluate",
    "scores_at": "evaluate",
    "Comparison": "compare",
    "compare": "compare",
    "cosines": "meaning",
    "logit_lens": "meaning",
    "top_tokens": "meaning",
    "Attribution": "attribution",
    "attribute": "attribution",
    "report": "report",
}
"""Public names and the modules that they live in."""

_MODULES = ("datasets", "judges", "organism", "plots")

__all__ = ["__version__", *_HOME, *_MODULES]

try:
    __version__ = version("psr-lens")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"psr_lens.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"psr_lens.{name}")
    else:
        raise AttributeError(f"module 'psr_lens' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Face(ModuleType):
    """Keeps `psr_lens.capture` the function when the module of the same name is imported, which Python would bind here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
