"""Evaluation settings from YAML: model, questions, judge, methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from psr_lens import datasets, judges, organism
from psr_lens._utils.yaml_config import KnownSettings, check_keys, yaml_mapping
from psr_lens.errors import InputError
from psr_lens.evaluation.evaluate import Calibration
from psr_lens.evaluation.methods import Method
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.judges.llm_judge.api_key import OPENAI, origin
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, prompt_pairs, prompt_pairs_from_texts
from psr_lens.replacement import PLAN_FILE, Replacement, SteeringPlan
from psr_lens.results.judgement import Judge


@dataclass(frozen=True)
class EvaluationConfig(KnownSettings):
    """Settings of `psr-lens evaluate`; paths are relative to the working directory."""

    judge: str | Mapping[str, Any]
    """The judge, by its name in `psr_lens.judges`: `organism:pirate`, `llm:trait_prompt.txt`, `classifier:FOLDER:LABEL`, `language:fr`,
    `ifeval`; with more settings as a mapping, `{name: llm, trait_prompt: …, model: …}`; or one judge a score,
    `{trait: …, coherence: …}`."""
    methods: Mapping[str, str]
    """Names of the methods, as in the table, and the folders of their replacements or plans."""
    out: str = "evaluation"
    """Folder for results.json, results.md, pareto.html and the answers, from which an interrupted run continues."""
    model: str = "organism"
    """Name, folder or file, as for `psr_lens.load_model`."""
    verify: bool = True
    """Whether the model is checked against plain transformers when it is loaded."""
    pairs: str | None = None
    """File of questions and instructions, as for `psr-lens capture`; the alternative to `dataset`."""
    group: str | None = None
    """Group of the lines of `pairs` to use; None for all."""
    dataset: Mapping[str, Any] | None = None
    """The alternative to `pairs`: `{name: organism, trait: pirate, count: 150, kind: procedure, counter: true}`, or
    `{name: ifeval, path: FILE}`."""
    alphas: Sequence[float] = (1.0,)
    """Strengths that are measured in any case."""
    with_prompt: bool | Sequence[str] = False
    """Names of the methods that are tried under the prompt too; or true for all."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Target coherences and the search for them: `targets`, `at_prompt`, `prompt_margin`, `maximum`, `steps`, `tolerance`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How answers are sampled: the settings of `psr_lens.SamplingConfig`."""
    trait: str = ""
    """Trait, as a label in the table."""
    block: str = ""
    """Kind of questions, as a label in the table."""

    def __post_init__(self) -> None:
        """Refuse invalid settings before anything costly runs."""
        if (self.pairs is None) == (self.dataset is None):
            got = "neither" if self.pairs is None else "both"
            raise InputError("pairs", f"{got} of pairs and dataset", "one of the two")
        for name, kind in (("methods", Mapping), ("calibration", Mapping), ("sampling", Mapping), ("alphas", list | tuple)):
            if not isinstance(getattr(self, name), kind):
                raise InputError(name, repr(getattr(self, name)), "a list" if name == "alphas" else "a mapping, one entry per line")
        if not isinstance(self.verify, bool):
            raise InputError("verify", repr(self.verify), "true or false")
        for name in ("out", "model", "trait", "block"):
            if not isinstance(getattr(self, name), str):
                raise InputError(name, repr(getattr(self, name)), "a text")

    def calibrated_by(self) -> Calibration:
        """Strengths, target coherences and the search for them."""
        return Calibration.of(self.calibration, self.alphas)

    def sampled_by(self) -> SamplingConfig:
        """How answers are drawn."""
        check_keys("sampling", self.sampling, [each.name for each in fields(SamplingConfig)])
        return SamplingConfig(**self.sampling)


def read_config(path: str | Path) -> EvaluationConfig:
    """Settings from a YAML (or JSON) file.

    Raises:
        InputError: the file cannot be read or is not a mapping, or a setting is missing, unknown or invalid.
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


def load_methods(folders: Mapping[str, Any]) -> dict[str, Method]:
    """Replacements and plans by name, loaded from their folders.

    Raises:
        InputError: a folder is not a string.
        ArtifactError: a folder holds neither a replacement nor a plan.
    """
    found: dict[str, Method] = {}
    for name, folder in folders.items():
        if not isinstance(folder, str):
            raise InputError(f"methods.{name}", repr(folder), "the folder of a replacement or a plan")
        found[str(name)] = SteeringPlan.load(folder) if (Path(folder) / PLAN_FILE).exists() else Replacement.load(folder)
    return found


def load_pairs(model: HookedModel, config: EvaluationConfig) -> tuple[Sequence[PromptPair], Sequence[Any]]:
    """The questions, and the rows of the data set that they come from; no rows for a file of pairs.

    Raises:
        InputError: a file, data set or group that does not exist.
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
        raise InputError("dataset", repr(given), "a mapping with `name: organism` or `name: ifeval`")
    if given["name"] == "organism":
        check_keys("dataset", given, ("name", "trait", "paraphrase", "count", "kind", "split", "seed", "counter"))
        asked = {key: value for key, value in given.items() if key not in ("name", "trait", "paraphrase")}
        questions = organism.questions(**{"split": "held_out", **asked})
        return prompt_pairs(model, questions, organism.instruction(given.get("trait", ""), given.get("paraphrase", 0))), ()
    check_keys("dataset", given, ("name", "path"))
    if not isinstance(path := given.get("path"), str):
        raise InputError("dataset.path", repr(path), "the path of the IFEval file")
    rows = datasets.read_ifeval(path)
    return prompt_pairs_from_texts(model, [row.base for row in rows], [row.prompted for row in rows]), rows


@dataclass(frozen=True)
class JudgeServer:
    """Which key the person who starts a program sends to which address; a file of settings cannot say so."""

    api_key_env: str
    """Environment variable that holds the key."""
    base_url: str | None
    """The only address that it is sent to; None for OpenAI's own."""


def judge_at(given: Any, base_url: str) -> Any:
    """The settings of a judge with another address for every language model in it.

    Raises:
        InputError: none of its judges is a language model.
    """
    if isinstance(given, Mapping) and set(given) == {"trait", "coherence"}:
        asked = {side: each for side, each in given.items() if _is_llm(each) or _is_of_answers(each)}
        if asked:
            return {**given, **{side: judge_at(each, base_url) for side, each in asked.items()}}
    if _is_of_answers(given):
        return {**given, "judge": judge_at(given.get("judge"), base_url)}
    if not _is_llm(given):
        raise InputError("base_url", base_url, "no address, since the judge is no language model", "Give it with an `llm` judge.")
    prompt = given.partition(":")[2] if isinstance(given, str) else ""
    named = {"name": "llm", **({"trait_prompt": prompt} if prompt else {})} if isinstance(given, str) else dict(given)
    return {**named, "base_url": base_url}


def _is_llm(given: Any) -> bool:
    return (given.partition(":")[0] if isinstance(given, str) else isinstance(given, Mapping) and given.get("name")) == "llm"


def _is_of_answers(given: Any) -> bool:
    """Whether a judge has another one score answers alone."""
    return isinstance(given, Mapping) and given.get("name") == "answer_only"


def check_judge(given: Any, key: str = "judge") -> None:
    """Check the name of a judge before anything costly runs, and that no key is named.

    Raises:
        InputError: unknown judge, or settings that name the variable of a key.
    """
    if isinstance(given, Mapping) and set(given) == {"trait", "coherence"}:
        for side, each in given.items():
            check_judge(each, f"{key}.{side}")
    elif isinstance(given, str | Mapping):
        _factory(given.partition(":")[0] if isinstance(given, str) else given.get("name"), key)
        if isinstance(given, Mapping) and _is_of_answers(given):
            check_judge(given.get("judge"), f"{key}.judge")
        if isinstance(given, Mapping) and given.get("api_key_env") is not None:
            raise InputError(
                f"{key}.api_key_env",
                "a variable named by a file",
                "none, since a file must not say which secret is sent where",
                "Give `--api-key-env NAME --base-url URL` on the command line, or bind the key to its address in PSR_LENS_API_KEYS.",
            )
    else:
        raise InputError(key, repr(given), "a judge's name, or a mapping with its name and settings")


def load_judge(
    given: str | Mapping[str, Any],
    model: HookedModel,
    pairs: Sequence[PromptPair],
    rows: Sequence[Any] = (),
    key: str = "judge",
    defaults: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
    server: JudgeServer | None = None,
) -> Judge:
    """A judge from its name and settings.

    Args:
        given: Name and settings, as in `EvaluationConfig.judge`.
        model: Passed to a judge that requires `model`.
        pairs: Passed to a judge that requires `pairs`.
        rows: Rows of the data set, passed to a judge that requires `instructions`.
        key: What errors call the setting.
        defaults: Default settings by name of judge; only those of the chosen judge are computed.
        server: The key of the judges that are language models.

    Raises:
        InputError: unknown judge, settings that it does not take, or a key for another address than the judge's.
    """
    check_judge(given, key)
    if isinstance(given, Mapping) and set(given) == {"trait", "coherence"}:
        sides = {side: load_judge(each, model, pairs, rows, f"{key}.{side}", defaults, server) for side, each in given.items()}
        combined: Judge = _factory("combine", key)(**sides)
        return combined
    if isinstance(given, Mapping):
        name, values, place = given.get("name"), {name: value for name, value in given.items() if name != "name"}, []
    else:
        name, _, text = given.partition(":")
        values, place = {}, text.rsplit(":", 1) if name == "classifier" else [text] if text else []
    make = _factory(name, key)
    if name == "llm":
        place = [_prompt(text) for text in place]
        values = {setting: _prompt(value) if setting == "trait_prompt" else value for setting, value in values.items()}
        values |= _key_of(values.get("base_url"), server)
    if _is_of_answers(given):
        values["judge"] = load_judge(values["judge"], model, pairs, rows, f"{key}.judge", defaults, server)
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


def _prompt(given: Any) -> Any:
    """The content of a prompt's file, or a prompt as it is."""
    try:
        is_file = isinstance(given, str) and "{answer}" not in given and Path(given).is_file()
    except (OSError, ValueError):  # too long for a path
        is_file = False
    return Path(given).read_text(encoding="utf-8") if is_file else given


def _key_of(base_url: Any, server: JudgeServer | None) -> dict[str, str]:
    """The setting for the key that the person who starts the program wants sent to this address."""
    if server is None:
        return {}
    here, named = (OPENAI if address is None else str(address) for address in (base_url, server.base_url))
    if origin(here) != origin(named):
        raise InputError(
            "api_key_env",
            f"{server.api_key_env} for {named}, while the judge asks {here}",
            "the address that the key is for",
            f"Add `--base-url {here}` if that server may have this key.",
        )
    return {"api_key_env": server.api_key_env}


def _factory(name: Any, key: str) -> Callable[..., Any]:
    known = [each for each in judges.__all__ if each.islower() and callable(getattr(judges, each))]
    if name not in known:
        raise InputError(key, repr(name), f"one of {', '.join(known)}")
    found: Callable[..., Any] = getattr(judges, name)
    return found
