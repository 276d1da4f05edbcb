"""Evaluation settings from YAML: model, questions, judge, methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from psr_lens import datasets, organism
from psr_lens._utils.arguments import check
from psr_lens._utils.yaml_config import KnownSettings, by_text, check_keys, yaml_mapping
from psr_lens.errors import InputError
from psr_lens.evaluation.evaluate import Calibration, ways_to_answer
from psr_lens.evaluation.judge_settings import JudgeServer, check_settings
from psr_lens.evaluation.methods import NONE, PROMPT, Method, named_methods
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import WithTokenizer
from psr_lens.models.config_without_weights import outline_or_none
from psr_lens.prompts import PromptPairs, prompt_pairs, prompt_pairs_from_texts
from psr_lens.prompts.chat_templates import ChatSettings
from psr_lens.replacement import PLAN_FILE, Adapter, AddedNeurons, InWeights, Replacement, SteeringPlan
from psr_lens.replacement.adapter import RECORD_FILE
from psr_lens.replacement.added_neurons import NEURONS_FILE
from psr_lens.replacement.compatibility import check_depth_and_width


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
    chat: Mapping[str, Any] = field(default_factory=dict)
    """How prompts are built, as for `psr-lens run`: `system_role`, `system`, `place`, `prefix`, `template_kwargs`; of IFEval, whose prompts
    come with their instructions, `template_kwargs` alone. Give what the methods were fitted with."""
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
        for name in ("methods", "calibration", "chat", "sampling"):
            if not isinstance(getattr(self, name), Mapping):
                raise InputError(name, repr(getattr(self, name)), "a mapping, one entry per line")
        if not isinstance(self.verify, bool):
            raise InputError("verify", repr(self.verify), "true or false")
        for name in ("out", "model", "trait", "block"):
            if not isinstance(getattr(self, name), str):
                raise InputError(name, repr(getattr(self, name)), "a text")
        for name in ("pairs", "group"):
            check(getattr(self, name), str | None, name)
        self.calibrated_by()

    def calibrated_by(self) -> Calibration:
        """Strengths, methods under the prompt, target coherences and the search for them."""
        return Calibration.of(self.calibration, alphas=self.alphas, with_prompt=self.with_prompt)

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
    ChatSettings.of_mapping(config.chat)
    config.sampled_by()
    return config


def load_methods(folders: Mapping[str, Any]) -> dict[str, Method]:
    """Replacements, plans, adapters and added neurons by name, loaded from their folders.

    Raises:
        InputError: a folder is not a string, or two names are the same text.
        ArtifactError: a folder holds none of these.
    """
    found: dict[str, Method] = {}
    for name, folder in by_text(folders, "methods").items():
        if not isinstance(folder, str):
            raise InputError(f"methods.{name}", repr(folder), "the folder of a replacement, a plan, an adapter or added neurons")
        kinds: dict[str, type[Method]] = {PLAN_FILE: SteeringPlan, RECORD_FILE: Adapter, NEURONS_FILE: AddedNeurons}
        kind = next((each for file, each in kinds.items() if (Path(folder) / file).exists()), Replacement)
        found[name] = kind.load(folder)
    return found


@dataclass(frozen=True)
class Asked:
    """The questions of an evaluation, of which a model's tokenizer makes prompts."""

    questions: tuple[str, ...]
    """The questions, or IFEval's prompts without their instructions."""
    instructions: tuple[str, ...]
    """The instruction of each question; none of IFEval's prompts."""
    rows: tuple[datasets.IfevalRow, ...] = ()
    """The rows of IFEval."""

    def prompts(self, model: WithTokenizer, chat: Mapping[str, Any]) -> PromptPairs:
        """The prompts, made with the tokenizer of a model and the arguments of `prompt_pairs` in `chat`.

        Raises:
            InputError: as for `prompt_pairs`.
        """
        if self.rows:
            return prompt_pairs_from_texts(model, self.questions, [row.prompted for row in self.rows], **chat)
        return prompt_pairs(model, self.questions, self.instructions, **chat)


def read_asked(config: EvaluationConfig) -> Asked:
    """The questions of a file or a data set.

    Raises:
        InputError: a file, data set or group that does not exist.
    """
    if config.pairs is not None:
        lines = datasets.read_pairs(config.pairs)
        chosen = [line for line in lines if config.group in (None, line.group)]
        if not chosen:
            groups = sorted({line.group for line in lines})
            raise InputError("group", repr(config.group), f"one of those in {config.pairs}: {', '.join(map(repr, groups))}")
        return Asked(tuple(line.question for line in chosen), tuple(line.instruction for line in chosen))
    given = config.dataset
    if not isinstance(given, Mapping) or given.get("name") not in ("organism", "ifeval"):
        raise InputError("dataset", repr(given), "a mapping with `name: organism` or `name: ifeval`")
    if given["name"] == "organism":
        check_keys("dataset", given, ("name", "trait", "paraphrase", "count", "kind", "split", "seed", "counter"))
        asked = {key: value for key, value in given.items() if key not in ("name", "trait", "paraphrase")}
        questions = organism.questions(**{"split": "held_out", **asked})
        instruction = organism.instruction(given.get("trait", ""), given.get("paraphrase", 0))
        return Asked(tuple(questions), (instruction,) * len(questions))
    check_keys("dataset", given, ("name", "path"))
    if others := [name for name in config.chat if name != "template_kwargs"]:
        raise InputError("chat", repr(others[0]), "`template_kwargs` alone with IFEval, whose prompts come with their instructions")
    if not isinstance(path := given.get("path"), str):
        raise InputError("dataset.path", repr(path), "the path of the IFEval file")
    rows = datasets.read_ifeval(path)
    return Asked(tuple(row.base for row in rows), (), tuple(rows))


def check_before_weights(config: EvaluationConfig, methods: Mapping[str, Method], asked: Asked, server: JudgeServer | None) -> None:
    """Check all of an evaluation that can be checked without the model's weights, from its config and tokenizer.

    Args:
        config: The settings.
        methods: The methods by name.
        asked: The questions.
        server: The key of the judges that are language models.

    Raises:
        InputError: an invalid setting or question.
        ArtifactError: a method was made for a model of other sizes.
        ModelError: the model's config cannot be read, or it has no tokenizer.
        JudgeError: the key of a judge is missing.
    """
    ways_to_answer(named_methods(methods, (NONE, PROMPT)), config.calibrated_by())
    found = outline_or_none(config.model)
    if found is None:
        return
    for method in methods.values():
        parts = [method] if isinstance(method, InWeights) else [part.replacement for part in SteeringPlan.of(method).parts]
        for part in parts:
            check_depth_and_width(part.model, {"model_name": found.name, **asdict(found.cfg)})
    check_settings(config.judge, asked.prompts(found, config.chat), asked.rows, server=server)
