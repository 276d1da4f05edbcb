"""`psr-lens run`."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from rich.table import Table
from rich.text import Text

from psr_lens.apps.cli.common import app, console, one_line_errors, open_file, say, say_where
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import (
    DTYPES,
    MODELS,
    ChatOptions,
    DeviceOption,
    JudgeServerOptions,
    MaybeVerifyOption,
    OpenOption,
)

if TYPE_CHECKING:
    from psr_lens.apps.pipeline import RunResult


@dataclass(frozen=True)
class TaskOptions:
    """What every run needs, and the file that can say it and all other settings."""

    model: Annotated[str | None, typer.Option(help=MODELS)] = None
    instruction: Annotated[str | None, typer.Option(help="The instruction to replace.")] = None
    questions: Annotated[
        Path | None, typer.Option(help="File of questions: text with one per line, or .jsonl or .csv with a `question` field.")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything that the run makes; an interrupted run is resumed from it.")
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, such as the run.yaml that every run writes; options override it."),
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the run's settings; None for those that were not given."""
        paths = {name: None if path is None else str(path) for name, path in (("questions", self.questions), ("out", self.out))}
        return {"model": self.model, "instruction": self.instruction, **paths}


@dataclass(frozen=True)
class MethodOptions:
    """What is fitted, on how many questions, and what it is measured with."""

    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge of the answers: llm:PROMPT.txt, classifier:FOLDER:LABEL, language:fr, perplexity, organism:TRAIT, …"
        ),
    ] = None
    paraphrase: Annotated[
        str | None, typer.Option(help="The instruction in other words, the baseline that methods are compared with.")
    ] = None
    layers: Annotated[str | None, typer.Option(help="Layers that A-PSR acts on: all, 3, or 3,4,5.")] = None
    limit: Annotated[int | None, typer.Option(help="Use only the first so many questions.")] = None
    held_out: Annotated[
        str | None, typer.Option(help="Questions to evaluate on, not to fit on: a share such as 0.25, or a number.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the split, the responses, the answers and the fits.")] = None

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the run's settings; None for those that were not given."""
        return {**vars(self), "layers": _value(self.layers), "held_out": _value(self.held_out)}


_ENGINE_KEY: Final = "--engine-key-env"


@dataclass(frozen=True)
class SamplingOptions:
    """How responses and answers are sampled; None for what the file says, or the default."""

    max_new_tokens: Annotated[int | None, typer.Option(help="Maximum length of a response in tokens.")] = None
    temperature: Annotated[float | None, typer.Option(help="Softmax temperature of sampling; 0 takes the likeliest token.")] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens whose probabilities add up to this, above 0 and at most 1."),
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(
            help="What samples in place of the model: vllm, the server that psr-lens serve started here, or vllm:http://host:8000/v1."
        ),
    ] = None
    engine_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the key of that server's API, which is sent to the address in --engine alone."
        ),
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the settings of sampling; None for those that were not given."""
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p}

    def check(self) -> None:
        """Refuse a key for an address that is not on the command line: a file of settings might name any.

        Raises:
            InputError: what names the key's variable is no such name, or there is a key, and no engine.
        """
        from psr_lens._utils.server_settings import check_variable
        from psr_lens.errors import InputError

        if self.engine_key_env is None:
            return
        check_variable(self.engine_key_env, _ENGINE_KEY)
        if self.engine is None:
            raise InputError(
                _ENGINE_KEY, self.engine_key_env, "--engine too", "The key is sent to the address on the command line alone."
            )

    def check_key(self) -> None:
        """Refuse a variable without a key before anything is loaded.

        Raises:
            InputError: there is no such variable, or its value cannot be sent.
        """
        from psr_lens.engines.vllm_server import key_in

        if self.engine_key_env is not None:
            key_in(self.engine_key_env, _ENGINE_KEY)


@dataclass(frozen=True)
class WeightOptions:
    """How the model is loaded; None for what the file says, or the default."""

    dtype: Annotated[str | None, typer.Option(help=f"Type of the weights: {DTYPES}.")] = None
    backend: Annotated[str | None, typer.Option(help="TransformerLens's class: hooked_transformer, bridge or auto.")] = None
    verify: MaybeVerifyOption = None
    device: DeviceOption = None

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the run's settings; None for those that were not given. The device is none of them."""
        return {"dtype": self.dtype, "backend": self.backend, "verify": self.verify}


@app.command()
@flat_options
def run(
    task: TaskOptions,
    methods: MethodOptions,
    sampling: SamplingOptions,
    chat: ChatOptions,
    weights: WeightOptions,
    server: JudgeServerOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the run would do and cost; load no weights, write nothing.")
    ] = False,
    open_report: OpenOption = False,
) -> None:
    """Replace an instruction on your own model and questions.

    Samples responses, fits the methods, answers held-out questions with each of them, compares them token by token, and writes a report.
    """
    began = time.perf_counter()
    with one_line_errors():
        from psr_lens._utils.distributed import own_device
        from psr_lens.apps.pipeline import plan_run, read_config
        from psr_lens.apps.pipeline import run as run_all

        sampling.check()
        given = _config_changes(
            task.config,
            {**task.settings, **methods.settings, **weights.settings, "engine": sampling.engine},
            {"sampling": sampling.settings, "chat": chat.given},
        )
        settings = read_config(task.config, given)
        settings = replace(settings, judge=server.judge(settings.judge))
        if dry_run:
            plan = plan_run(settings, server.key)
            say(f"{plan}\n")
            console.print(plan.view)
            return
        sampling.check_key()
        device = weights.device or str(own_device())
        result = run_all(
            settings, device=device, say=say, show=console.print, server=server.key, engine_key_env=sampling.engine_key_env
        )
        say(_summary(result))
        console.print(_first_answers(result))
    say_where(result.out, began)
    if open_report:
        open_file(result.out / "report.html")


def _config_changes(config: Path | None, options: dict[str, Any], nested: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options that were given; nested ones are merged into the file's own mapping of that name."""
    from psr_lens._utils.yaml_config import yaml_mapping

    from_file = {} if config is None else yaml_mapping(config, "`model: organism`")
    changes = {name: value for name, value in options.items() if value is not None}
    for name, values in nested.items():
        given = {key: value for key, value in values.items() if value is not None}
        existing = from_file.get(name) or {}
        if given and isinstance(existing, dict):  # anything else is refused with the other settings
            changes[name] = {**existing, **given}
    return changes


def _value(text: str | None) -> Any:
    """An option's text as a number, a list of numbers or a string."""
    if text is None:
        return None
    try:
        return yaml.safe_load(f"[{text}]" if "," in text else text)
    except yaml.YAMLError:
        return text


def _first_answers(result: RunResult) -> Table:
    """The answers to the first held-out question with the prompt and with the first method, side by side."""
    from psr_lens.apps.pipeline.run_folder import ANSWERS_FILE
    from psr_lens.evaluation.methods import PROMPT

    with (result.out / ANSWERS_FILE).open(encoding="utf-8") as lines:
        row = json.loads(next(lines))
    columns = [PROMPT, next(iter(result.methods))]
    found = Table(title=Text(row["question"]), expand=True)
    for column in columns:
        found.add_column(Text(column), ratio=1, overflow="fold")
    found.add_row(*(Text(row[column]) for column in columns))
    return found


def _summary(result: RunResult) -> str:
    """Scores and relative RMSE with and without massive tokens, one line per method."""
    scores, distances = {each.method: each for each in result.comparison.scores}, result.comparison.distances
    lines = []
    for name in dict.fromkeys([*scores, *result.comparison.methods]):
        parts = []
        if name in scores:
            parts.append(f"trait {scores[name].trait:.1f}, coherence {scores[name].coherence:.1f} ({scores[name].n} answers)")
        if name in result.comparison.methods:
            rmse, without, median = distances[name].last
            more = "" if math.isnan(median) else f" ({without:.2f} without massive tokens, {median:.2f} at the median token)"
            parts.append(f"relative RMSE after the last layer {rmse:.2f}{more}")
        lines.append(f"{name}: {'; '.join(parts)}")
    return "\n".join(lines)
