"""See and replace what a prompt does inside a language model.

The public names are loaded when they are first used, so that `import psr_lens` costs neither torch nor TransformerLens.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psr_lens import datasets as datasets
    from psr_lens import engines as engines
    from psr_lens import judges as judges
    from psr_lens import organism as organism
    from psr_lens import plots as plots
    from psr_lens import transfer as transfer
    from psr_lens._utils.progress import progress_bars as progress_bars
    from psr_lens.activations.capture import Captured as Captured
    from psr_lens.activations.capture import InMemory as InMemory
    from psr_lens.activations.capture import capture as capture
    from psr_lens.activations.massive_activations import MassiveActivations as MassiveActivations
    from psr_lens.activations.massive_activations import massive_activations as massive_activations
    from psr_lens.activations.statistics import CapturedStatistics as CapturedStatistics
    from psr_lens.activations.statistics import Statistics as Statistics
    from psr_lens.activations.store import OnDisk as OnDisk
    from psr_lens.activations.store import Store as Store
    from psr_lens.apps.playground.play import play as play
    from psr_lens.evaluation.answers_by_method import AnswersAtStrength as AnswersAtStrength
    from psr_lens.evaluation.answers_by_method import AnswersByMethod as AnswersByMethod
    from psr_lens.evaluation.answers_by_method import answers_by_method as answers_by_method
    from psr_lens.evaluation.calibration import best_alpha as best_alpha
    from psr_lens.evaluation.calibration import best_layer as best_layer
    from psr_lens.evaluation.calibration import calibrate as calibrate
    from psr_lens.evaluation.collateral import Collateral as Collateral
    from psr_lens.evaluation.collateral import SideEffects as SideEffects
    from psr_lens.evaluation.collateral import collateral as collateral
    from psr_lens.evaluation.collateral import standing_pairs as standing_pairs
    from psr_lens.evaluation.compare import compare as compare
    from psr_lens.evaluation.comparison import Comparison as Comparison
    from psr_lens.evaluation.evaluate import Calibration as Calibration
    from psr_lens.evaluation.evaluate import evaluate as evaluate
    from psr_lens.evaluation.evaluation_result import Evaluation as Evaluation
    from psr_lens.evaluation.faithfulness import faithfulness as faithfulness
    from psr_lens.evaluation.faithfulness_result import Faithfulness as Faithfulness
    from psr_lens.evaluation.on_policy_refinement import refine as refine
    from psr_lens.evaluation.outlook import Outlook as Outlook
    from psr_lens.evaluation.outlook import outlook as outlook
    from psr_lens.evaluation.pushed_answers import PushedAnswer as PushedAnswer
    from psr_lens.evaluation.reach import reach as reach
    from psr_lens.evaluation.reach_result import Reach as Reach
    from psr_lens.evaluation.robustness import Robustness as Robustness
    from psr_lens.evaluation.robustness import robustness as robustness
    from psr_lens.evaluation.scores import Scores as Scores
    from psr_lens.evaluation.scores import scores_at as scores_at
    from psr_lens.evaluation.stream import stream as stream
    from psr_lens.fitting.fit import fit as fit
    from psr_lens.fitting.settings.adapters import LoRA as LoRA
    from psr_lens.fitting.settings.adapters import Neurons as Neurons
    from psr_lens.fitting.settings.baselines import CLAS as CLAS
    from psr_lens.fitting.settings.baselines import ActAdd as ActAdd
    from psr_lens.fitting.settings.baselines import DiM as DiM
    from psr_lens.fitting.settings.baselines import LastToken as LastToken
    from psr_lens.fitting.settings.baselines import LoReFT as LoReFT
    from psr_lens.fitting.settings.baselines import ReFT as ReFT
    from psr_lens.fitting.settings.baselines import Stolfo as Stolfo
    from psr_lens.fitting.settings.gradient_descent import Polish as Polish
    from psr_lens.fitting.settings.solvers import FitConfig as FitConfig
    from psr_lens.fitting.settings.solvers import Joint as Joint
    from psr_lens.fitting.settings.solvers import Local as Local
    from psr_lens.fitting.settings.solvers import Sequential as Sequential
    from psr_lens.fitting.train_adapter import adapt as adapt
    from psr_lens.generation.sampled_triplets import sample_responses as sample_responses
    from psr_lens.generation.sampling import SamplingConfig as SamplingConfig
    from psr_lens.generation.sampling import generate as generate
    from psr_lens.generation.streaming import StreamedToken as StreamedToken
    from psr_lens.generation.thoughts import answers_after as answers_after
    from psr_lens.generation.thoughts import think as think
    from psr_lens.interpretation import patching as patching
    from psr_lens.interpretation.attribution import Attribution as Attribution
    from psr_lens.interpretation.attribution import ScoreAttribution as ScoreAttribution
    from psr_lens.interpretation.attribution import attribute as attribute
    from psr_lens.interpretation.attribution import score_attribution as score_attribution
    from psr_lens.interpretation.directions import cosines as cosines
    from psr_lens.interpretation.directions import jacobian_lens as jacobian_lens
    from psr_lens.interpretation.directions import logit_lens as logit_lens
    from psr_lens.interpretation.directions import top_tokens as top_tokens
    from psr_lens.models import load_model as load_model
    from psr_lens.models.hook_points import hook_points as hook_points
    from psr_lens.prompts import PromptPair as PromptPair
    from psr_lens.prompts import PromptPairs as PromptPairs
    from psr_lens.prompts import Triplet as Triplet
    from psr_lens.prompts import prompt_pairs as prompt_pairs
    from psr_lens.prompts import prompt_pairs_from_texts as prompt_pairs_from_texts
    from psr_lens.prompts import rephrase as rephrase
    from psr_lens.prompts import with_responses as with_responses
    from psr_lens.replacement import Adapter as Adapter
    from psr_lens.replacement import AddedNeurons as AddedNeurons
    from psr_lens.replacement import Replacement as Replacement
    from psr_lens.replacement import SteeringPlan as SteeringPlan
    from psr_lens.reporting import report as report
    from psr_lens.results.result import Result as Result
    from psr_lens.results.table import ResultTable as ResultTable

_HOME = {
    "load_model": "models",
    "hook_points": "models.hook_points",
    "PromptPair": "prompts",
    "PromptPairs": "prompts",
    "Triplet": "prompts",
    "prompt_pairs": "prompts",
    "prompt_pairs_from_texts": "prompts",
    "rephrase": "prompts",
    "with_responses": "prompts",
    "SamplingConfig": "generation.sampling",
    "generate": "generation.sampling",
    "sample_responses": "generation.sampled_triplets",
    "answers_after": "generation.thoughts",
    "think": "generation.thoughts",
    "Captured": "activations.capture",
    "InMemory": "activations.capture",
    "capture": "activations.capture",
    "MassiveActivations": "activations.massive_activations",
    "massive_activations": "activations.massive_activations",
    "CapturedStatistics": "activations.statistics",
    "Statistics": "activations.statistics",
    "OnDisk": "activations.store",
    "Store": "activations.store",
    "Faithfulness": "evaluation.faithfulness_result",
    "faithfulness": "evaluation.faithfulness",
    "Collateral": "evaluation.collateral",
    "SideEffects": "evaluation.collateral",
    "collateral": "evaluation.collateral",
    "standing_pairs": "evaluation.collateral",
    "refine": "evaluation.on_policy_refinement",
    "Outlook": "evaluation.outlook",
    "outlook": "evaluation.outlook",
    "Reach": "evaluation.reach_result",
    "reach": "evaluation.reach",
    "Robustness": "evaluation.robustness",
    "robustness": "evaluation.robustness",
    "FitConfig": "fitting.settings.solvers",
    "Sequential": "fitting.settings.solvers",
    "Local": "fitting.settings.solvers",
    "Joint": "fitting.settings.solvers",
    "Polish": "fitting.settings.gradient_descent",
    "DiM": "fitting.settings.baselines",
    "ActAdd": "fitting.settings.baselines",
    "LastToken": "fitting.settings.baselines",
    "Stolfo": "fitting.settings.baselines",
    "ReFT": "fitting.settings.baselines",
    "LoReFT": "fitting.settings.baselines",
    "CLAS": "fitting.settings.baselines",
    "fit": "fitting.fit",
    "LoRA": "fitting.settings.adapters",
    "Neurons": "fitting.settings.adapters",
    "adapt": "fitting.train_adapter",
    "Adapter": "replacement",
    "AddedNeurons": "replacement",
    "Replacement": "replacement",
    "SteeringPlan": "replacement",
    "Result": "results.result",
    "ResultTable": "results.table",
    "Scores": "evaluation.scores",
    "best_alpha": "evaluation.calibration",
    "best_layer": "evaluation.calibration",
    "calibrate": "evaluation.calibration",
    "scores_at": "evaluation.scores",
    "AnswersAtStrength": "evaluation.answers_by_method",
    "AnswersByMethod": "evaluation.answers_by_method",
    "PushedAnswer": "evaluation.pushed_answers",
    "answers_by_method": "evaluation.answers_by_method",
    "StreamedToken": "generation.streaming",
    "stream": "evaluation.stream",
    "Calibration": "evaluation.evaluate",
    "Evaluation": "evaluation.evaluation_result",
    "evaluate": "evaluation.evaluate",
    "Comparison": "evaluation.comparison",
    "compare": "evaluation.compare",
    "cosines": "interpretation.directions",
    "jacobian_lens": "interpretation.directions",
    "logit_lens": "interpretation.directions",
    "top_tokens": "interpretation.directions",
    "Attribution": "interpretation.attribution",
    "ScoreAttribution": "interpretation.attribution",
    "attribute": "interpretation.attribution",
    "score_attribution": "interpretation.attribution",
    "play": "apps.playground.play",
    "report": "reporting",
    "progress_bars": "_utils.progress",
}
"""Public names and the modules that they live in."""

_MODULES = {
    "datasets": "datasets",
    "engines": "engines",
    "judges": "judges",
    "organism": "organism",
    "patching": "interpretation.patching",
    "plots": "plots",
    "transfer": "transfer",
}
"""Public names of rooms."""

__all__ = ["__version__", *_HOME, *_MODULES]

try:
    __version__ = version("psr-lens")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"psr_lens.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"psr_lens.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'psr_lens' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
