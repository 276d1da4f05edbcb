"""`psr-lens generate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from psr_lens.apps.cli.common import (
    MODELS,
    DeviceOption,
    PlaceOption,
    PrefixOption,
    SystemOption,
    VerifyOption,
    app,
    chat_of,
    one_line_errors,
    say,
)

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


@app.command()
def generate(  # noqa: PLR0913  (a command: each parameter is an option)
    artifact: Annotated[Path, typer.Argument(help="Folder of a replacement, a plan or an adapter.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    alpha: Annotated[float, typer.Option(help="Strength.")] = 1.0,
    model: Annotated[str | None, typer.Option("--model", help=f"{MODELS} By default the one that the artifact names.")] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Also answer without steering (none) and with the instruction (prompt).")
    ] = False,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="The instruction of the prompt (with --beside); by default, in alphabetical order, the first that it was fitted on."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of an answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 always takes the likeliest token.")] = 1.0,
    place: PlaceOption = None,
    system: SystemOption = None,
    prefix: PrefixOption = None,
    verify: VerifyOption = True,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled tokens.")] = 0,
) -> None:
    """Answer a question with an artifact in force; the answer is printed as it is written."""
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device
        from psr_lens.apps.playground.artifacts import instruction_of, model_of, named_folders
        from psr_lens.evaluation.config import load_methods
        from psr_lens.evaluation.methods import NONE, PROMPT

        methods = load_methods({name: str(folder) for name, folder in named_folders([artifact]).items()})
        (name,) = methods
        asked = (instruction_of(methods) if beside else UNUSED) if instruction is None else instruction
        chat = chat_of(place, system, prefix)
        sampling = psr.SamplingConfig(temperature=temperature, seed=seed, max_new_tokens=max_new_tokens)
        loaded = psr.load_model(model or model_of(methods), device=device or own_device(), verify=verify)
        pair = psr.prompt_pairs(loaded, [question], asked, **chat)[0]  # type: ignore[arg-type]
        if not beside:
            for text in settled(psr.stream(loaded, pair, methods, alpha=alpha, columns=[name], sampling=sampling)):
                typer.echo(text, nl=False)
            typer.echo()
            return
        answers: dict[str, str] = {}
        for token in psr.stream(loaded, pair, methods, alpha=alpha, columns=[NONE, PROMPT, name], sampling=sampling):
            answers[token.column] = token.answer
        for column, answer in answers.items():
            say(f"{column}: {answer}")
