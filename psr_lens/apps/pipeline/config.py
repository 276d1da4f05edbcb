"""Settings of a run, read from a YAML file and written to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_args

import yaml

from psr_lens._utils.server_settings import check_address, may_hold_secrets
from psr_lens._utils.yaml_config import KnownSettings, by_text, check_keys, yaml_mapping
from psr_lens.engines.vllm_requests import check_sampling
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import ALSO_AT, check_also_at
from psr_lens.evaluation.evaluate import Calibration
from psr_lens.evaluation.judge_settings import check_judge
from psr_lens.evaluation.methods import NONE, PARAPHRASE, PROMPT
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import DTYPES, Backend
from psr_lens.prompts import Span
from psr_lens.prompts.chat_templates import NOW, ChatSettings, at_time, settled

NO_JUDGE: Final = "none: methods are fitted on all responses, and nothing is scored"

ENGINE: Final = "vllm"
LOCAL_SERVER: Final = "http://127.0.0.1:8000/v1"
"""Where `psr-lens serve` starts a server."""


@dataclass(frozen=True)
class RunConfig(KnownSettings):
    """Settings of `psr-lens run`; paths are relative to the working directory."""

    model: str
    """A model as for `psr_lens.load_model`: a name that TransformerLens knows, a local Hugging Face folder, or `organism`."""
    questions: str
    """File of questions: plain text with one per line; or `.jsonl` or `.csv` with a `question` and optionally an `instruction` and a
    `response`."""
    out: str
    """Folder for everything that the run makes; an interrupted run is resumed from it."""
    instruction: str | None = None
    """The instruction to replace; questions that have an instruction of their own in the file keep it."""
    paraphrase: str | None = None
    """The instruction in other words, for the comparison's paraphrase baseline."""
    judge: str | Mapping[str, Any] | None = None
    """Judge, as for `psr-lens evaluate`: `llm:trait_prompt.txt`, `{trait: classifier:FOLDER:LABEL, coherence: perplexity}`, …. Without a
    judge, methods are fitted on all responses and nothing is scored."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of each method's fit (`solver`, `rank`, …), by the method's name; empty for A-PSR and, at its middle layer, the difference
    in means."""
    layers: str | int | Sequence[int] | None = None
    """Layers of all methods except closed-form baselines, in place of their own."""
    held_out: float | int = 0.25
    """Questions that are not fitted on but answered, compared and scored: a share of all questions, or a number."""
    limit: int | None = None
    """Use only the first so many questions."""
    span: Span = "R"
    """Tokens that the methods act on, `R` or `QR`, unless their own settings say otherwise."""
    alpha: float = 1.0
    """Strength at which the methods answer and are compared."""
    alphas: Sequence[float] = (1.0,)
    """Strengths to measure besides those of the calibration (with a judge)."""
    also_at: Sequence[float] = ALSO_AT
    """Strengths at which each method answers the first 8 held-out questions, too, for the reader of the report to choose among; each costs
    8 answers a method."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Target coherences and the search for them (with a judge), as for `psr-lens evaluate`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How responses and answers are sampled: the settings of `psr_lens.SamplingConfig` except the seed."""
    engine: str | None = None
    """What samples responses and answers in place of the model: `vllm`, the server that `psr-lens serve` starts on this machine, or
    `vllm:http://host:8000/v1`, one elsewhere; None for the model itself."""
    chat: Mapping[str, Any] = field(default_factory=dict)
    """How prompts are built: `system_role`, `system`, `place`, `prefix`, `template_kwargs`, as for `prompt_pairs`."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16, float16, or auto for the one in the model's config."""
    backend: str = "auto"
    """TransformerLens's class: hooked_transformer, bridge or auto."""
    verify: bool = True
    """Whether the model is checked against plain transformers when it is loaded, as for `psr_lens.load_model`."""
    seed: int = 0
    """Seed of the split, the responses, the answers and the fits."""

    def __post_init__(self) -> None:
        """Check the settings before anything costly is done."""
        for name in ("model", "questions", "out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InputError(name, repr(getattr(self, name)), "a non-empty text")
        for name in ("instruction", "paraphrase"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise InputError(name, repr(value), "a text with at least one word")
        for name in ("methods", "calibration", "sampling", "chat"):
            if not isinstance(getattr(self, name), Mapping):
                raise InputError(name, repr(getattr(self, name)), "a mapping, one setting per line")
        for name, known in (("dtype", ("auto", *DTYPES)), ("backend", get_args(Backend)), ("span", get_args(Span))):
            if getattr(self, name) not in known:
                raise InputError(name, repr(getattr(self, name)), f"one of {', '.join(known)}")
        if not isinstance(self.verify, bool):
            raise InputError("verify", repr(self.verify), "true or false")
        if not _is_number(self.held_out) or self.held_out <= 0 or (isinstance(self.held_out, float) and self.held_out >= 1):
            raise InputError("held_out", repr(self.held_out), "a share of the questions between 0 and 1, or a whole number of them")
        if self.limit is not None and (not _is_whole(self.limit) or self.limit < 2):
            raise InputError(
                "limit", repr(self.limit), "a whole number of at least 2", "One question is used to fit and one to evaluate."
            )
        if not _is_number(self.alpha) or self.alpha < 0:
            raise InputError("alpha", repr(self.alpha), "a number, 0 or more")
        if not isinstance(self.alphas, list | tuple):
            raise InputError("alphas", repr(self.alphas), "a list of strengths")
        check_also_at(self.also_at)
        if not _is_whole(self.seed) or self.seed < 0:
            raise InputError("seed", repr(self.seed), "a whole number, 0 or more")
        if self.judge is not None:
            check_judge(self.judge)
        ChatSettings.of_mapping(self.chat)
        self.calibrated_by()
        sampling = self.sampled_by()
        if self.engine_address is not None:
            check_sampling(sampling)

    @property
    def engine_address(self) -> str | None:
        """The address of the server that samples; None if the model itself does.

        Raises:
            InputError: `engine` names no engine.
        """
        if self.engine is None:
            return None
        name, colon, address = str(self.engine).partition(":")
        if name != ENGINE:
            hidden = "an address with a user, a query or a fragment (not shown)"
            shown = hidden if may_hold_secrets(str(self.engine)) else repr(self.engine)
            raise InputError("engine", shown, f"`{ENGINE}`, or `{ENGINE}:` and the address of a server", "For example `vllm`.")
        address = address if colon else LOCAL_SERVER
        example = f"For example '{ENGINE}:{LOCAL_SERVER}'."
        check_address("engine", address, "the address of a server behind `vllm:`", example, key="--engine-key-env")
        return address

    def calibrated_by(self) -> Calibration:
        """Settings of the search for strengths; a run compares methods without the prompt, whose place they take."""
        alphas = [self.alpha, *(alpha for alpha in self.alphas if alpha != self.alpha)]
        return Calibration.of(self.calibration, alphas=alphas, with_prompt=False)

    def sampled_by(self, stream: int = 0) -> SamplingConfig:
        """Sampling of the responses (stream 0) or of the answers (stream 1), each with a seed of its own."""
        check_keys("sampling", self.sampling, [each.name for each in fields(SamplingConfig) if each.name != "seed"])
        return SamplingConfig(**{"seed": self.seed + stream, **self.sampling})

    def fits(self) -> dict[str, FitConfig]:
        """Settings of each method's fit, by name; `resolved` fills in the layers."""
        return {name: FitConfig.of(settings) for name, settings in self.methods.items()}

    def resolved(self, n_layers: int) -> RunConfig:
        """The same with all defaults filled in: of the methods, the sampling, the chat and the calibration.

        Raises:
            InputError: an unknown or invalid setting of a method.
        """
        common = {"seed": self.seed, "span": self.span}
        methods = {}
        for name, given in by_text(self.methods or self._default_methods(n_layers), "methods").items():
            if not isinstance(given, Mapping):
                raise InputError(f"methods.{name}", repr(given), "a mapping of the fit's settings, such as {solver: sequential}")
            settings = FitConfig.of(given, defaults=common)
            if self.layers is not None and (settings.is_trained or not settings.is_baseline):
                settings = replace(settings, layers=self.layers)
            methods[name] = settings.to_json()
        if taken := [name for name in methods if name in (NONE, PROMPT, PARAPHRASE)]:
            raise InputError("methods", f"the name {taken[0]!r}", "another name", "It is a row of its own in the tables.")
        sampling = {name: value for name, value in asdict(self.sampled_by()).items() if name != "seed"}
        sampling["stop"] = list(sampling["stop"])
        chat = {name: value for name, value in asdict(ChatSettings.of(**self.chat)).items() if name != "template_kwargs"}
        return replace(
            self,
            methods=methods,
            layers=None,
            sampling=sampling,
            chat={**chat, "template_kwargs": dict(self.chat.get("template_kwargs") or {})},
            alphas=[float(alpha) for alpha in self.alphas],
            also_at=[float(alpha) for alpha in self.also_at],
            calibration={
                name: value for name, value in asdict(self.calibrated_by()).items() if name not in ("alphas", "with_prompt")
            }
            | {"targets": list(self.calibrated_by().targets)},
        )

    def at_one_time(self, tokenizer: Any, begun: Mapping[str, Any] | None) -> RunConfig:
        """The same with the time that the chat template is told, if it asks for it: that of the run that is resumed, or the present.

        Args:
            tokenizer: The model's tokenizer.
            begun: The settings with which the run was begun, as its folder holds them; None for a new run.
        """
        if begun is None:
            told = settled(ChatSettings.of(**self.chat), tokenizer).variables
        else:
            told = (begun.get("chat") or {}).get("template_kwargs") or {}
        time = {name: value for name, value in told.items() if name == NOW}
        return replace(self, chat=at_time(self.chat, time))

    def _default_methods(self, n_layers: int) -> dict[str, dict[str, Any]]:
        layers = "all" if self.layers is None else self.layers
        chosen = list(range(n_layers)) if layers == "all" else [layers] if isinstance(layers, int) else layers
        if isinstance(chosen, str) or not chosen:
            raise InputError("layers", repr(layers), "'all', a layer, or a list of layers")
        one = len(chosen) == 1
        return {
            "S-PSR" if one else "A-PSR": {"layers": layers},
            "S-Const DiM": {"solver": "dim", "layers": chosen[len(chosen) // 2]},
        }

    def to_yaml(self) -> str:
        """The settings as YAML, for `read_config`."""
        return str(yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True, width=120))


def read_config(path: str | Path | None, changes: Mapping[str, Any]) -> RunConfig:
    """Read settings from a YAML (or JSON) file.

    Args:
        path: The file; None for no file.
        changes: Settings that override those of the file.

    Raises:
        InputError: the file cannot be read or does not hold a mapping; a missing, unknown or invalid setting.
    """
    given = {**({} if path is None else yaml_mapping(path, "`model: organism`")), **changes}
    check_keys("config", given, [each.name for each in fields(RunConfig)])
    for name in ("model", "questions", "out"):
        if given.get(name) is None:
            raise InputError(name, None, "a text", f"Give `--{name} …`, or a line `{name}: …` in the --config file.")
    return RunConfig(**given)


def _plain(value: Any) -> Any:
    """Values that YAML can hold: tuples and ranges as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and value == value and abs(value) != float("inf"))
