"""Every argument of every public function, replaced by values of other types: an error of our own that names it, before any work.

What is legal is what beartype reads from the functions' type hints. Work is any forward pass, any text that a judge sees, and any file.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, is_typeddict

import made_up_results as made
import numpy as np
import pytest
import torch
import typecheck
from beartype.door import is_bearable
from evaluated import WordJudge
from helpers import pairs_of, random_replacement, random_triplets

import psr_lens as psr
from psr_lens import datasets, judges, organism, patching, plots, transfer
from psr_lens.errors import InputError, PsrLensError
from psr_lens.models import ExtraNeurons, LowRank, fingerprint
from psr_lens.replacement import LearningCurve

pytestmark = pytest.mark.usefixtures("unchecked")  # as users have it: without run-time types

BAD = {
    "None": None,
    "a number": 3.5,
    "a text": "x",
    "no list": [],
    "a list of objects": [object()],
    "an array": np.array([0.5, 1.5]),
    "an object": object(),
}
"""What each argument is replaced by."""
ROOMS = {
    "": psr,
    "datasets.": datasets,
    "judges.": judges,
    "organism.": organism,
    "patching.": patching,
    "plots.": plots,
    "transfer.": transfer,
}
SETTINGS = {
    *("SamplingConfig", "InMemory", "Statistics", "OnDisk", "SideEffects", "Calibration", "SteeringPlan", "Replacement"),
    *(
        "Sequential",
        "Local",
        "Joint",
        "Polish",
        "DiM",
        "ActAdd",
        "LastToken",
        "Stolfo",
        "ReFT",
        "LoReFT",
        "CLAS",
        "LoRA",
        "Neurons",
    ),
    *("judges.Backoff", "judges.LLMSettings"),
}
"""The classes that users make; functions make the others."""
DEAR = ("report", "write_images", "by_response", "push_to_hub", "from_hub")
"""Functions and methods that are not called with what is legal but wrong, since they work long on it, or ask a server."""


class WorkError(BaseException):
    """The function has begun to work with what it was given."""


def working(*_: object, **__: object) -> None:
    """Stands for a forward pass and for a judge."""
    raise WorkError


def public() -> dict[str, Callable[..., Any]]:
    """All public functions and settings by name."""
    found = {f"{room}{name}": getattr(module, name) for room, module in ROOMS.items() for name in module.__all__}
    return {name: each for name, each in found.items() if name in SETTINGS or (callable(each) and not inspect.isclass(each))}


def methods_of(kind: type, bound_to: Any = None) -> dict[str, Callable[..., Any]]:
    """All public methods of a class of ours, its call among them, or of an object of that class."""
    found = {
        name: getattr(kind if bound_to is None else bound_to, name)
        for name in dir(kind)
        if name == "__call__" or name[0] != "_"
        if inspect.isroutine(static := inspect.getattr_static(kind, name)) or isinstance(static, classmethod)
    }
    return {name: each for name, each in found.items() if callable(each) and each.__module__.startswith("psr_lens")}


def takes_arguments(method: Callable[..., Any]) -> bool:
    return bool(set(inspect.signature(method).parameters) - {"self"})


def public_classes() -> dict[type, str]:
    """All public classes with methods that take arguments, and their names; no protocols, which users fulfil, nor typed dictionaries."""
    classes = {
        each: f"{room}{name}"
        for room, module in ROOMS.items()
        for name in module.__all__
        if inspect.isclass(each := getattr(module, name)) and not getattr(each, "_is_protocol", False) and not is_typeddict(each)
    }
    return {each: name for each, name in classes.items() if any(map(takes_arguments, methods_of(each).values()))}


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of a function's arguments by name."""
    taken = [
        each for each in inspect.signature(function).parameters.values() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    # a dataclass's hints are those of the module where each field is
    spaces = [
        vars(sys.modules[each.__module__])
        for each in (function.__mro__ if inspect.isclass(function) else [inspect.unwrap(function)])
    ]
    space = SimpleNamespace(__globals__={name: value for each in reversed(spaces) for name, value in each.items()})
    return {each.name: typecheck._resolved(each.annotation, space) for each in taken}


@pytest.fixture(scope="module")
def valid(tiny_llama, tmp_path_factory) -> dict[str, Any]:
    """Valid values of arguments by their names, or by the function's and their own."""
    model = tiny_llama.model
    triplets, method = random_triplets(model, 2), random_replacement(model)
    comparison, faithfulness = made.comparison(), psr.faithfulness(model, triplets, method)
    results = dict.fromkeys(plots.__all__, comparison)
    results |= dict.fromkeys(("head_map", "parts_by_layer", "source_map"), made.attribution())
    results |= dict.fromkeys(("coefficient_correlation", "explained_energy", "next_token"), faithfulness)
    results |= {
        "score_parts": made.score_attribution(),
        "frozen_attention": made.frozen_attention(),
        "agreement": made.agreement(),
        "gates_by_family": made.agreement(),
        "cosine_matrix": psr.cosines({"A": method}),
        "outlook": psr.outlook(model, random_triplets(model, 4), ranks=[1]),
        "pareto": made.TABLE,
        "reach": psr.reach(model, random_triplets(model, 4), method),
        "top_tokens": psr.top_tokens(model, triplets, method, layer=1),
    }
    here = torch.arange(len(triplets[0].response_ids))
    paired = [transfer.PairedText(triplets[0], triplets[0], here, here)]
    between = ("pair_texts", "agreement", "copilot", "fit_activation_map", "fit_direction_map", "through_text")
    width, made_for = model.cfg.d_model, fingerprint(model)
    layer = transfer.LayerMap(0, 0, torch.eye(width), torch.zeros(width), 1.0, 1.0, 0)
    curve = LearningCurve((1.0, 0.5), (), (1.0, 1.0), 1)
    return {
        **{f"plots.{name}.result": result for name, result in results.items()},
        "plots.coefficient_scatter.method": "A-PSR",
        **{f"transfer.{name}.{role}": model for name in between for role in ("source", "target")},
        "transfer.fit_activation_map.layers": [(0, 0)],
        "transfer.fit_activation_map.ridge": 1.0,
        "transfer.best_monotone_matching.scores": torch.zeros(2, 2),
        **{f"transfer.{name}.target": model for name in ("gates", "gates_through_text", "whole")},
        "transfer.gates.config": psr.Sequential(),
        **{f"transfer.{name}.config": psr.Joint(objective="ll") for name in ("gates_through_text", "through_text")},
        "mapped": transfer.ActivationMap({0: layer}, made_for, made_for, "0" * 32, 1, 4),
        "forward": transfer.DirectionMap(
            "ridge", {0: torch.eye(width)}, {0: torch.eye(width)}, ((0, 0),), made_for, made_for, "0" * 32
        ),
        "paired": paired,
        "source_ends": [1, 2],
        "target_ends": [1, 2],
        "source_layers": 2,
        "target_layers": 2,
        "plots.agreement.show": "magnitude",
        "model": model,
        "pairs": psr.PromptPairs(tuple(pairs_of(model, 2)), model.tokenizer),
        "pair": pairs_of(model, 1)[0],
        "judges.classifier.pair": False,
        "plots.rungs.table": made.TABLE,
        **{f"plots.rungs.{name}": "none" for name in ("ceiling", "floor")},
        "transfer.copilot.config": psr.Sequential(),
        "triplets": triplets,
        "plots.by_response.triplets": None,
        "replacement": method,
        "methods": method,
        "plots.magnitude_heatmap.methods": None,
        "plots.magnitude_strips.methods": None,
        "judge": WordJudge(),
        "config": psr.DiM(),
        "adapt.config": psr.LoRA(),
        "questions": ["what is a bear ?"] * 2,
        "organism.facts_right.texts": ["a bear"] * 2,
        "organism.steps_in_order.texts": ["a bear"] * 2,
        "texts": None,
        "instruction": "be brief .",
        "base": ["what is a bear ?"],
        "prompted": ["be brief . what is a bear ?"],
        "responses": ["arr", "arr"],
        "best_alpha.alphas": [0.0, 1.0],
        "best_layer.layers": [0, 1],
        "counter": "be plain .",
        "standing": "be kind .",
        "show": True,
        "sources": {"A-PSR": method},
        "source": method,
        "datasets.read_axbench.source": "none.parquet",
        "patching.knock_out.heads": [(0, 0)],
        "score_attribution.heads": [(0, 0)],
        "path": "none.json",
        "folder": "none",
        "name_or_path": "none",
        "trait": "pirate",
        "trait_prompt": "Rate {answer} to {question}.",
        "judges.classifier.label": 0,
        "judges.combine.trait": WordJudge(),
        "judges.fraction.pattern": "arr",
        "judges.language.code": "fr",
        "coherence": WordJudge(),
        "instructions": "detectable_format:json_format",
        "judges.LLMSettings.model": "gpt",
        "report.result": comparison,
        "captured": made.captured(),
        "plots.magnitude_by_kind.kinds": ["attn_out"],
        "statistics": psr.capture(model, triplets, to=psr.Statistics(rank=2)),
        "grid": made.grid(),
        "lens": made.lens(),
        "curve": curve,
        "plots.learning_curve.curve": curve,
        "Replacement.curve": None,
        "figure": plots.magnitude_heatmap,
        "figures": {"a": plots.learning_curve(curve)},
        "Replacement.sites": method.sites,
        "Replacement.method": "A-PSR",
        "Replacement.model": method.model,
        "span": "R",
        "parts": (method * 2).parts,
        "repo_id": "nobody/nothing",
        "scores": comparison.scores,
        "q": 0.5,
        "context": "base",
        "count": 1,
        "content": made.TABLE.to_content(),
        "Store.batches.hooks": ("resid_post", 0),
        "Evaluation.calibrated.method": "A-PSR",
        "Evaluation.difference.metric": "trait",
        "Evaluation.difference.first": "none",
        "Evaluation.difference.second": "prompt",
        "Calibration.of.given": {},
        **{f"FrozenAttention.{name}.method": "prompt" for name in ("kept", "reached")},
        **{f"Agreement.at.{role}_layer": 0 for role in ("source", "target")},
        **{f"GateReading.at.{role}_layer": 0 for role in ("gate", "reader")},
        **{f"ActivationMap.{name}.{role}": model for name in ("check", "load") for role in ("source", "target")},
        "ActivationMap.pull_back.weights": torch.zeros(1, width),
        "DirectionMap.seen.directions": torch.zeros(1, width),
        "target_layer": 0,
        "settings": {},
        "steering": method,
        "question": "who ?",
        "answer": "me",
    }


def faults(name: str, function: Callable[..., Any], valid: dict[str, Any]) -> list[str]:
    """What happens that should not, if any argument of a function is wrong."""
    hints = hints_of(function)
    right = {each: valid[key] for each in hints for key in (each, f"{name}.{each}") if key in valid}
    found = []
    for argument, hint in hints.items():
        for label, value in BAD.items():
            legal = is_bearable(value, hint) or is_as_good_as_legal(value, hint)
            if legal and name.rpartition(".")[2] in DEAR:
                continue
            case, before = f"{name}({argument}={label})", set(Path().iterdir())
            try:
                began = has_begun(function, right | {argument: value})
            except PsrLensError as error:
                if set(Path().iterdir()) != before:
                    found.append(f"{case} writes {set(Path().iterdir()) - before}")
                if not legal and not (isinstance(error, InputError) and re.match(rf"(\w+\.)?{argument}\b", str(error))):
                    found.append(f"{case} does not name it: {error}")
            except Exception as error:  # noqa: BLE001 (this is what must not come)
                found.append(f"{case} raises {type(error).__name__}: {error}")
            else:
                if not legal:
                    found.append(f"{case} is {began}, though it is no {hint}")
    return found


def is_as_good_as_legal(value: object, hint: Any) -> bool:
    """Whether a list stands for a tuple, or an array for a list of its numbers."""
    as_list = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(as_list, list) and (is_bearable(as_list, hint) or is_bearable(tuple(as_list), hint))


def has_begun(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """How far a call got that raises nothing."""
    try:
        found = function(**arguments)
        if isinstance(found, AbstractContextManager) and not isinstance(found, Path):
            with found:
                pass
        elif isinstance(found, Iterator):
            next(found, None)
    except WorkError:
        return "worked on"
    return "taken"


@pytest.fixture
def no_work(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.Module, "__call__", working)
    monkeypatch.setattr(WordJudge, "__call__", working)


@pytest.mark.usefixtures("no_work")
def test_a_wrong_argument_of_any_function_is_named(valid):
    found = [fault for name, function in public().items() for fault in faults(name, function, valid)]
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)


@pytest.fixture(scope="module")
def objects(valid, tiny_llama, tmp_path_factory) -> list[Any]:
    """One object of every public class with methods that take arguments."""
    model, triplets, method = valid["model"], valid["triplets"], valid["replacement"]
    few, pairs = psr.SamplingConfig(max_new_tokens=2), valid["pairs"]
    on_disk = psr.OnDisk(tmp_path_factory.mktemp("store") / "store")
    row = datasets.AxbenchRow("q", "a", "c", "positive", 1, {})
    width, here = model.cfg.d_model, fingerprint(model)
    adapter = psr.Adapter({"model.layers.0.mlp.up_proj": LowRank(torch.ones(1, width), torch.ones(2, 1))}, 2.0, here, "none")
    neurons = psr.AddedNeurons({0: ExtraNeurons(torch.ones(1, width), torch.ones(1, width), None, torch.ones(1, width))}, here)
    return [
        valid["report.result"],
        valid["plots.next_token.result"],
        valid["plots.outlook.result"],
        valid["plots.reach.result"],
        valid["captured"],
        valid["grid"],
        made.agreement(),
        made.agreement().gates,
        adapter,
        neurons,
        valid["mapped"],
        valid["forward"],
        transfer.CoPilot(model, model, method, {0: torch.zeros(1, width)}, ((0, 0),)),
        made.attribution(),
        made.score_attribution(),
        made.frozen_attention(),
        made.side_by_side(),
        made.TABLE,
        method,
        method * 2,
        pairs,
        pairs[0],
        on_disk,
        psr.capture(model, triplets, to=on_disk),
        psr.InMemory(),
        psr.Statistics(),
        psr.massive_activations(model, triplets),
        psr.evaluate(model, pairs, method, WordJudge(), calibration=psr.Calibration(targets=(), at_prompt=False), sampling=few),
        psr.Calibration(),
        psr.collateral(model, pairs, method, WordJudge(), sampling=few),
        psr.robustness(model, pairs, method, WordJudge(), counter="no .", sampling=few),
        *(psr.Sequential(), psr.Local(), psr.Joint(), psr.DiM(), psr.ActAdd(), psr.LastToken()),
        *(psr.Stolfo(), psr.ReFT(), psr.LoReFT(), psr.CLAS()),
        datasets.Axbench((), (row,)),
        datasets.PersonaTrait("evil", (), (), "{question} {answer}", {}),
        datasets.Procedure("Add 3 and 4.", "7", "compute"),
        judges.answer_only(WordJudge()),
        judges.combine(WordJudge(), WordJudge()),
        judges.fraction("a"),
        judges.ifeval("punctuation:no_comma"),
        judges.language("fr"),
        judges.llm("Rate {answer}", base_url="http://localhost:1/v1"),
        judges.organism("pirate"),
        judges.PerplexityJudge(model=model, pairs={}, given="base", fluent=1.0, garbage=2.0, natural=0.5),
        judges.ClassifierJudge("c", "a", 0, "trait", False, 8, 8, SimpleNamespace(), SimpleNamespace()),
    ]


def test_there_is_an_object_of_every_public_class_with_methods(objects):
    tried = {kind for each in objects for kind in type(each).__mro__}
    assert not {name for kind, name in public_classes().items() if kind not in tried}


@pytest.mark.usefixtures("no_work")
def test_a_wrong_argument_of_any_method_is_named(valid, objects):
    names, valid = public_classes(), valid | {"texts": ["a bear"] * 2}
    faulty = []
    for each in objects:
        owner = names[type(each)].rpartition(".")[2]
        for name, method in methods_of(type(each), each).items():
            if takes_arguments(method):
                faulty += faults(f"{owner}.{name}", method, valid)
    assert not faulty, f"{len(faulty)} faults:\n" + "\n".join(faulty)
