"""`psr-lens generate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import MODELS, ChatOptions, LoadingOptions

if TYPE_CHECKING:
    from psr_lens.generation.streaming import StreamedToken


UNUSED: Final = "be brief ."
"""The instruction of a pair whose prompt with the instruction is not read."""


def settled(tokens: Iterable[StreamedToken]) -> Iterator[str]:
    """The pieces of an answer, as far as they can be printed: what two successive answers have in common, and at the end the rest.

    Some tokenizers change what they wrote before: "do n" becomes "don't".
    """
    from psr_lens._utils.sequences import common_prefix

    before = printed = ""
    for token in tokens:
        common = token.answer if token.is_last else before[: common_prefix(before, token.answer)]
        if common.startswith(printed):
            yield common[len(printed) :]
            printed = common
        elif token.is_last:
            yield f"\n{token.answer}"
        before = token.answer


@dataclass(frozen=True)
class BesideOptions:
    """What else answers the question."""

    beside: Annotated[
        bool, typer.Option("--beside", help="Also answer without steering (none) and with the instruction (prompt).")
    ] = False
    instruction: Annotated[
        str | None,
        typer.Option(
            help="The instruction of the prompt (with --beside); by default, in alphabetical order, the first that it was fitted on."
        ),
    ] = None


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are sampled."""

    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of an answer in tokens.")] = 128
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 always takes the likeliest token.")] = 1.0
    seed: Annotated[int, typer.Option(help="Seed of the sampled tokens.")] = 0


@app.command()
@flat_options
def generate(
    artifact: Annotated[Path, typer.Argument(help="Folder of a replacement, a plan or an adapter.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    *,
    alpha: Annotated[float, typer.Option(help="Strength.")] = 1.0,
    model: Annotated[str | None, typer.Option("--model", help=f"{MODELS} By default the one that the artifact names.")] = None,
    others: BesideOptions,
    answers: AnswerOptions,
    chat: ChatOptions,
    loading: LoadingOptions,
) -> None:
    """Answer a question with an artifact in force; the answer is printed as it is written."""
    with one_line_errors():
        import psr_lens as psr
        from psr_lens.apps.playground.artifacts import instruction_of, model_of, named_folders
        from psr_lens.evaluation.config import load_methods
        from psr_lens.evaluation.methods import NONE, PROMPT

        methods = load_methods({name: str(folder) for name, folder in named_folders([artifact]).items()})
        (name,) = methods
        asked = others.instruction
        if asked is None:
            asked = instruction_of(methods) if others.beside else UNUSED
        sampling = psr.SamplingConfig(**vars(answers))
        loaded = loading.load(model or model_of(methods))
        pair = psr.prompt_pairs(loaded, [question], asked, **chat.given)[0]  # type: ignore[arg-type]
        if not others.beside:
            for text in settled(psr.stream(loaded, pair, methods, alpha=alpha, columns=[name], sampling=sampling)):
                typer.echo(text, nl=False)
            typer.echo()
            return
        texts: dict[str, str] = {}
        for token in psr.stream(loaded, pair, methods, alpha=alpha, columns=[NONE, PROMPT, name], sampling=sampling):
            texts[token.column] = token.answer
        for column, answer in texts.items():
            say(f"{column}: {answer}")
