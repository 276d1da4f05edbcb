"""Options that several commands have, those that belong together as one group; the help of an option says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from psr_lens.apps.triplets import Lines

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.evaluation.judge_settings import JudgeServer
    from psr_lens.models import HookedModel

MODELS: Final = "organism, organism-gpt2, a model name that TransformerLens knows, or a local Hugging Face folder."
DTYPES: Final = "float32, bfloat16 or float16"
VERIFY: Final = "Whether to check the model against plain transformers when it is loaded."

ModelOption = Annotated[str, typer.Option("--model", help=MODELS)]
VerifyOption = Annotated[bool, typer.Option("--verify/--no-verify", help=VERIFY)]
MaybeVerifyOption = Annotated[bool | None, typer.Option("--verify/--no-verify", help=VERIFY)]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …; by default a GPU if there is one (one per process).")
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the report in the browser at the end.")]


@dataclass(frozen=True)
class LoadingOptions:
    """How a model is loaded."""

    verify: VerifyOption = True
    device: DeviceOption = None

    def load(self, name: str) -> HookedModel:
        """The model of that name, on the device that was asked for, or this process's own.

        Raises:
            InputError: as for `load_model`.
            ModelError: as for `load_model`.
        """
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device

        return psr.load_model(name, device=self.device or own_device(), verify=self.verify)


@dataclass(frozen=True)
class ChatOptions:
    """How prompts are put together."""

    place: Annotated[
        str | None,
        typer.Option(
            help="Where the instruction goes: before or after the question, or default_system: after the template's own message."
        ),
    ] = None
    system: Annotated[str | None, typer.Option(help="System message of both prompts, with and without the instruction.")] = None
    prefix: Annotated[str | None, typer.Option(help="Text that every response starts with.")] = None

    @property
    def given(self) -> dict[str, str]:
        """Those that were given, as arguments of `prompt_pairs`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ResponseOptions:
    """How responses are sampled if a file of questions has none."""

    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of a response in tokens, if the file has no responses.")] = 64
    seed: Annotated[int, typer.Option(help="Seed of the sampled responses, if the file has none.")] = 0

    def lines(self, read: Sequence[PairLine], chat: ChatOptions) -> Lines:
        """The lines of a file, with how prompts and responses are made of them."""
        return Lines(read, chat.given, self.max_new_tokens, self.seed)


@dataclass(frozen=True)
class JudgeServerOptions:
    """The server of a judge that is a language model."""

    base_url: Annotated[
        str | None, typer.Option(help="Address of the server of an llm judge, in place of that in the settings.")
    ] = None
    api_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the key for --base-url (OpenAI's own server without it). A file of settings cannot name one."
        ),
    ] = None

    def judge(self, given: Any) -> Any:
        """The settings of a judge, with the address if there is one.

        Raises:
            InputError: an address, but none of the judges is a language model.
        """
        from psr_lens.evaluation.judge_settings import judge_at

        return given if self.base_url is None else judge_at(given, self.base_url)

    @property
    def key(self) -> JudgeServer | None:
        """The key, and where alone it is sent; None without a key."""
        from psr_lens.evaluation.judge_settings import JudgeServer

        return None if self.api_key_env is None else JudgeServer(self.api_key_env, self.base_url)
