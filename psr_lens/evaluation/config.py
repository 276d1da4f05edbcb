"""An evaluation from a YAML file: what to ask whom, who judges it, and which artifacts are tried."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from psr_lens import datasets, judges, organism
from psr_lens._utils.yaml_config import check_keys, yaml_mapping
from psr_lens.errors import InputError
from psr_lens.evaluation.answer_cache import Steering
from psr_lens.evaluation.evaluate import Calibration
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, prompt_pairs
from psr_lens.replacement import PLAN_FILE, Replacement, SteeringPlan
from psr_lens.results.judgement import Judge


@dataclass(frozen=True)
class EvaluationConfig:
    """What `psr-lens evaluate` reads; paths are relative to where it is run."""

    judge: str | Mapping[str, Any]
    """Who scores, by its name in `psr_lens.judges`: `organism:pirate`, `llm:trait_prompt.txt`, `classifier:FOLDER:LABEL`, `ifeval`;
    with more settings as a mapping, `{name: llm, trait_prompt: …, model: …}`; or one for each side, `{trait: …, coherence: …}`."""
    methods: Mapping[str, str]
    """Folders of replacements or plans, by the names that they get in the table."""
    out: str = "evaluation"
    """Folder of results.json, results.md, pareto.html and the answers, from which a run that was cut off goes on."""
    model: str = "organism"
    """What `psr_lens.load_model` takes."""
    pairs: str | None = None
    """File of questions and instructions, as for `psr-lens capture`; or give `dataset`."""
    group: str | None = None
    """Only the lines of `pairs` of this group."""
    dataset: Mapping[str, Any] | None = None
    """Instead of `pairs`: `{name: organism, trait: pirate, count: 150, kind: procedure, counter: true}`, or
    `{name: ifeval, path: FILE}`."""
    alphas: Sequence[float] = (1.0,)
    """Strengths that are measured in any case."""
    with_prompt: bool | Sequence[str] = False
    """Methods that are tried under the prompt too, by name; or true for all."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """The target coherences and the search for them: `targets`, `at_prompt`, `prompt_margin`, `maximum`, `steps`, `tolerance`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How answers are drawn: `temperature`, `max_new_tokens`, `seed`, `token_budget`."""
    trait: str = ""
    """Label for the table."""
    block: str = ""
    """Label for the table, the kind of questions."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant before anything costly is done."""
        if (self.pairs is None) == (self.dataset is None):
            got = "neither" if self.pairs is None else "both"
            raise InputError("pairs", f"{got} of pairs and dataset", "one of the two")
        for name, kind in (("methods", Mapping), ("calibration", Mapping), ("sampling", Mapping), ("alphas", list | tuple)):
            if not isinstance(getattr(self, name), kind):
                raise InputError(name, repr(getattr(self, name)), "a list" if name == "alphas" else "a mapping, a line each")
        for name in ("out", "model", "trait", "block"):
            if not isinstance(getattr(self, name), str):
                raise InputError(name, repr(getattr(self, name)), "a text")

    def calibrated_by(self) -> Calibration:
        """The settings of the search."""
        return Calibration.of(self.calibration)

    def sampled_by(self) -> SamplingConfig:
        """The settings of the sampling."""
        check_keys("sampling", self.sampling, [each.name for each in fields(SamplingConfig)])
        return SamplingConfig(**self.sampling)


def read_config(path: str | Path) -> EvaluationConfig:
    """Settings from a YAML (or JSON) file.

    Raises:
        InputError: the file cannot be read, is no mapping, lacks a setting or holds one that does not exist or cannot be meant.
    """
    given = yaml_mapping(path, "`judge: organism:pirate`")
    check_keys("config", given, [each.name for each in fields(EvaluationConfig)])
    for each in fields(EvaluationConfig):
        if each.default is MISSING and each.default_factory is MISSING and each.name not in given:
            raise InputError("config", f"{path} without {each.name!r}", f"a line `{each.name}: …`")
    config = EvaluationConfig(**given)
    config.calibrated_by()
    config.sampled_by()
    return config


def load_methods(folders: Mapping[str, Any]) -> dict[str, Steering]:
    """Replacements and plans by name.

    Raises:
        InputError: a folder that is no text.
        ArtifactError: a folder that holds neither.
    """
    found: dict[str, Steering] = {}
    for name, folder in folders.items():
        if not isinstance(folder, str):
            raise InputError(f"methods.{name}", repr(folder), "the folder of a replacement or a plan")
        found[str(name)] = SteeringPlan.load(folder) if (Path(folder) / PLAN_FILE).exists() else Replacement.load(folder)
    return found


def load_pairs(model: HookedModel, config: EvaluationConfig) -> tuple[Sequence[PromptPair], Sequence[Any]]:
    """The questions, and the rows of the data set that they come from, where there is one.

    Raises:
        InputError: a file or data set that is not there, or holds no such group.
    """
    if config.pairs is not None:
        lines = datasets.read_pairs(config.pairs)
        chosen = [line for line in lines if config.group in (None, line.group)]
        if not chosen:
            groups = sorted({line.group for line in lines})
            raise InputError("group", repr(config.group), f"one of those in {config.pairs}: {', '.join(map(repr, groups))}")
        return prompt_pairs(model, [line.question for line in chosen], [line.instruction for line in chosen]), ()
    given = config.dataset
    if not isinstance(given, Mapping) or given.get("name") not in ("organism", "ifeval"):
        raise InputError("dataset", repr(given), "a mapping with the name organism or ifeval")
    if given["name"] == "organism":
        check_keys("dataset", given, ("name", "trait", "paraphrase", "count", "kind", "split", "seed", "counter"))
        asked = {key: value for key, value in given.items() if key not in ("name", "trait", "paraphrase")}
        questions = organism.questions(**{"split": "held_out", **asked})
        return prompt_pairs(model, questions, organism.instruction(given.get("trait", ""), given.get("paraphrase", 0))), ()
    check_keys("dataset", given, ("name", "path"))
    reader, maker = getattr(datasets, "read_ifeval", None), None
    if reader is not None:
        from psr_lens.prompts import triplets as prompts

        maker = getattr(prompts, "prompt_pairs_from_texts", None)
    if reader is None or maker is None:
        raise InputError("dataset", "'ifeval'", "a data set that this version reads", "There is: organism.")
    rows = reader(given.get("path"))
    return maker(model, [row.base for row in rows], [row.prompted for row in rows]), rows


def check_judge(given: Any, key: str = "judge") -> None:
    """Refuse what names no judge, before anything costly is done.

    Raises:
        InputError: there is no such judge.
    """
    if isinstance(given, Mapping) and set(given) == {"trait", "coherence"}:
        for side, each in given.items():
            check_judge(each, f"{key}.{side}")
    elif isinstance(given, str | Mapping):
        _factory(given.partition(":")[0] if isinstance(given, str) else given.get("name"), key)
    else:
        raise InputError(key, repr(given), "a judge's name, or a mapping with its name and settings")


def load_judge(
    given: str | Mapping[str, Any],
    model: HookedModel,
    pairs: Sequence[PromptPair],
    rows: Sequence[Any] = (),
    key: str = "judge",
    defaults: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
) -> Judge:
    """A judge by its name and settings.

    What a judge must be given and a file cannot say, it gets: `model`, `pairs`, and as `instructions` the rows of the data set. `defaults`
    are settings for judges by name, where a file does not give them; they are made only for a judge that is asked for.

    Raises:
        InputError: there is no such judge, or it does not take these settings.
    """
    check_judge(given, key)
    if isinstance(given, Mapping) and set(given) == {"trait", "coherence"}:
        sides = {side: load_judge(each, model, pairs, rows, f"{key}.{side}", defaults) for side, each in given.items()}
        combined: Judge = _factory("combine", key)(**sides)
        return combined
    if isinstance(given, Mapping):
        name, values, place = given.get("name"), {name: value for name, value in given.items() if name != "name"}, []
    else:
        name, _, text = given.partition(":")
        values, place = {}, text.rsplit(":", 1) if name == "classifier" else [text] if text else []
    make = _factory(name, key)
    if name == "llm" and place and Path(place[0]).is_file():
        place = [Path(place[0]).read_text(encoding="utf-8")]
    values = {**((defaults or {}).get(str(name), dict)()), **values}
    there = {"model": model, "pairs": pairs, "instructions": rows}
    for parameter in list(inspect.signature(make).parameters.values())[len(place) :]:
        if parameter.default is parameter.empty and parameter.name in there and parameter.name not in values:
            values[parameter.name] = there[parameter.name]
    try:
        inspect.signature(make).bind(*place, **values)
    except TypeError as error:
        raise InputError(key, f"{given!r} ({error})", f"what `psr_lens.judges.{name}` takes") from error
    made: Judge = make(*place, **values)
    return made


def _factory(name: Any, key: str) -> Callable[..., Any]:
    known = [each for each in judges.__all__ if each.islower() and callable(getattr(judges, each))]
    if name not in known:
        raise InputError(key, repr(name), f"one of {', '.join(known)}")
    found: Callable[..., Any] = getattr(judges, name)
    return found
