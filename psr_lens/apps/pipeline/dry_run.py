"""`psr-lens run --dry-run`: what a run will do and what it will cost, from the model's config and tokenizer alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from psr_lens._utils.sequences import ranges
from psr_lens.apps.pipeline import run_folder
from psr_lens.apps.pipeline.config import NO_JUDGE, RunConfig
from psr_lens.apps.pipeline.questions import QuestionSplit, make_prompts, read_split
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import SHOWN
from psr_lens.evaluation.judge_settings import JudgeServer, check_settings
from psr_lens.fitting.layerwise.rank import MOST_RANK
from psr_lens.fitting.settings.gradient_descent import GradientDescent
from psr_lens.fitting.settings.solvers import FitConfig, Layerwise
from psr_lens.models import tokenizer_of
from psr_lens.models.config_without_weights import ModelOutline, outline
from psr_lens.models.hook_points import check_layers
from psr_lens.prompts import PromptPairs, remade
from psr_lens.prompts.prompt_view import PromptView

_CLOSED_PASSES: Final = {"actadd": "1 forward pass of one pair", "last_token": "2 forward passes over the prompts"}


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    config: RunConfig
    """The settings, resolved."""
    lines: tuple[tuple[str, str], ...]
    """Headings and texts of the plan, one line each."""
    view: PromptView
    """Prompts of the first pair, as coloured text."""

    def __str__(self) -> str:
        """The plan as a table of two columns."""
        width = max(len(name) for name, _ in self.lines)
        return "\n".join(f"{name.ljust(width)}  {text}" for name, text in self.lines)


def plan_run(config: RunConfig, server: JudgeServer | None = None) -> Plan:
    """Plan what `run` would do with these settings, without loading weights or writing anything.

    Args:
        config: Settings.
        server: As for `run`.

    Raises:
        InputError: an invalid setting or question, or a folder that holds another run or other files.
        ModelError: the model's config cannot be read, or it has no tokenizer.
        JudgeError: the key of the judge is missing.
    """
    split = read_split(config)
    found = outline(config.model)
    out = Path(config.out)
    config = config.resolved(found.cfg.n_layers).at_one_time(tokenizer_of(found), run_folder.recorded(out))
    begun = run_folder.claim(out, config, split.digest(), None)
    pairs = make_prompts(cast(Any, found), config, (*split.fit, *split.held_out))
    _check_paraphrase(found, config, pairs[len(split.fit) :])
    if config.judge is not None:
        check_settings(config.judge, pairs, server=server, cached=begun)
    lines = [*_model_lines(found, config), *_question_lines(split, pairs, config), *_method_lines(found, config, split, pairs)]
    lines += [*_answer_lines(config, split, pairs), *_file_lines(config, begun)]
    return Plan(config, tuple(lines), pairs.show(span=config.span))


def _check_paraphrase(found: ModelOutline, config: RunConfig, held_out: PromptPairs) -> None:
    """Refuse a paraphrase whose prompts are too long, or that the methods cannot be compared with."""
    if config.paraphrase is None:
        return
    others = remade(found, held_out, instructions=[config.paraphrase] * len(held_out))
    if any(pair.span_length(config.span) != other.span_length(config.span) for pair, other in zip(held_out, others, strict=True)):
        raise InputError("span", repr(config.span), "'R', since the paraphrase changes how a question is split into tokens")


def _model_lines(found: ModelOutline, config: RunConfig) -> list[tuple[str, str]]:
    sizes = found.cfg
    return [
        (
            "model",
            f"{found.name} ({sizes.architecture}): {sizes.n_layers} layers, width {sizes.d_model:,}, "
            f"context of {sizes.n_ctx:,} tokens, {config.dtype}",
        )
    ]


def _question_lines(split: QuestionSplit, pairs: PromptPairs, config: RunConfig) -> list[tuple[str, str]]:
    base, prompted = (_range([len(pair.ids(context)) for pair in pairs]) for context in ("base", "prompted"))
    repeated = f"; {split.repeated} duplicates left out" if split.repeated else ""
    return [
        (
            "questions",
            f"{len(pairs)} from {config.questions}: {len(split.fit)} to fit on, {len(split.held_out)} held out, "
            f"split by seed {config.seed}{repeated}",
        ),
        ("prompts", f"{base} tokens, {prompted} with the instruction"),
        ("judge", NO_JUDGE if config.judge is None else str(config.judge)),
    ]


def _method_lines(found: ModelOutline, config: RunConfig, split: QuestionSplit, pairs: PromptPairs) -> list[tuple[str, str]]:
    longest = int(config.sampling["max_new_tokens"])
    sampled = f"{len(split.fit)} under the prompt, at most {len(split.fit) * longest:,} tokens"
    lines = [("responses", "from the file" if split.given else sampled)]
    to_fit = pairs[: len(split.fit)]
    tokens = sum(pair.span_length(config.span) for pair in to_fit) + len(to_fit) * longest
    for name, settings in config.fits().items():
        layers = check_layers(cast(Any, found), settings.layers)
        kind = "attn.hook_z" if settings.hook == "z" else f"hook_{settings.hook}"
        where = f"blocks.{layers[0]}.{kind}" if len(layers) == 1 else f"blocks.{{{ranges(layers)}}}.{kind}"
        width = found.cfg.d_model
        rank = getattr(settings, "rank", 1)
        parameters = len(layers) * (MOST_RANK if rank == "auto" else rank) * (2 * width + 1) * 4
        lines.append((f"fit {name}", f"{settings.solver}, rank {rank}, span {settings.span}, at {where}"))
        lines.append(
            (
                "",
                f"{_passes(settings)}; activations: {_size(4 * width)} per token and hook point, at most "
                f"{_size(2 * tokens * 4 * width)} per hook point; artifact: {'at most ' if rank == 'auto' else ''}{_size(parameters)}",
            )
        )
    return lines


def _answer_lines(config: RunConfig, split: QuestionSplit, pairs: PromptPairs) -> list[tuple[str, str]]:
    held, methods = len(split.held_out), len(config.methods)
    longest = int(config.sampling["max_new_tokens"])
    lines = []
    if config.engine_address is not None:
        lines.append(("engine", f"vLLM at {config.engine_address}, which has to serve the methods once they are fitted"))
    told = f"{held} × {methods + 2} (none, prompt, {', '.join(config.methods)}) at α = {config.alpha:g}"
    lines.append(("answers", f"{told}: at most {held * (methods + 2) * longest:,} tokens"))
    further = sorted({float(alpha) for alpha in config.also_at} - {float(config.alpha)})
    # At strength 0 they are those of none, without an offset.
    drawn = [
        alpha for settings in config.fits().values() for alpha in further if alpha or getattr(settings, "learned_offset", False)
    ]
    if drawn:
        shown, told = min(SHOWN, held), ", ".join(f"{alpha:g}" for alpha in sorted({*drawn}))
        tokens = shown * len(drawn) * longest
        lines.append(("", f"the first {shown} of each method at α = {told} too, for the report: at most {tokens:,} tokens"))
    if config.judge is not None:
        calibration = config.calibrated_by()
        targets = len(calibration.targets) + calibration.at_prompt
        most = (1 + math.ceil(math.log2(calibration.maximum)) + targets * calibration.steps) if targets else 0
        lines.append(("scores", f"a search over at most {most} further strengths per method, {held} answers each"))
    lines.append(("compare", f"{2 + methods + (config.paraphrase is not None)} forward passes over the held-out responses"))
    return lines


def _file_lines(config: RunConfig, begun: bool) -> list[tuple[str, str]]:
    scored = ("evaluation.json", "evaluation.md") if config.judge is not None else ()
    names = [run_folder.REPORT_FILE, run_folder.RESULTS_FILE, *scored, run_folder.ANSWERS_FILE, run_folder.SETTINGS_FILE]
    names += [f"{run_folder.ARTIFACTS}/{folder}/" for folder in run_folder.folder_names(config.methods).values()]
    resumed = " (begun before: existing results are reused)" if begun else ""
    return [("files", f"{config.out}{resumed}: {', '.join([*names, f'{run_folder.KEPT}/'])}")]


def _passes(settings: FitConfig) -> str:
    if settings.solver in _CLOSED_PASSES:
        return _CLOSED_PASSES[settings.solver]
    if isinstance(settings, GradientDescent):
        return f"{settings.epochs} epochs forward and backward, 1 forward pass for the targets"
    found = settings.polish if isinstance(settings, Layerwise) else None
    passes = 4 if isinstance(settings, Layerwise) and settings.token_weights == "kl" else 2
    polish = f", then {found.epochs} epochs forward and backward" if found is not None else ""
    return f"{passes} forward passes over the training responses{polish}"


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if min(numbers) < max(numbers) else str(numbers[0])


def _size(count: float) -> str:
    """A number of bytes in a readable unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return ""
