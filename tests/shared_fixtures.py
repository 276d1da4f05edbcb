"""What all tests share: run-time shape checks, few threads, tiny random models and the shipped organisms."""

# ruff: noqa: E402
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import hypothesis
import plotly.subplots  # noqa: F401
import pytest
import torch
import transformer_lens  # noqa: F401
import transformers
import typecheck
import typer.rich_utils  # noqa: F401
from jaxtyping import config as jaxtyping_config

# Large packages come first: whatever a hooked module is the first to import is compiled anew in every run.
typecheck.install("psr_lens")

import oracles
from architectures import FAMILIES
from chat_server import KEY, ChatServer
from helpers import BACKENDS, ORGANISMS, TINY, Case, save_tiny
from massive_model import Massive, massive_model

import psr_lens as psr
from psr_lens.evaluation import answer_cache
from psr_lens.evaluation.answer_cache import steering_digest
from psr_lens.generation.sampled_triplets import Triplets

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

hypothesis.settings.register_profile("psr_lens", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("psr_lens")


class Folders(dict[str, Path]):
    """Folders by family; a tiny random model is made when it is first asked for."""

    def __init__(self, root: Path, made: dict[str, Path]) -> None:
        super().__init__(made)
        self._root = root

    def __missing__(self, family: str) -> Path:
        if family not in FAMILIES:
            raise KeyError(family)
        self[family] = save_tiny(family, self._root / family)
        return self[family]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders by family: the tiny random models and the shipped organisms."""
    root = tmp_path_factory.mktemp("models")
    shipped = Path(psr.organism.__file__).parent / "weights"
    return Folders(root, {"organism": shipped / "llama", "organism-gpt2": shipped / "gpt2"})


@pytest.fixture
def fetched(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """`gpt2` lies in the Hub's cache; it is the tiny one of this folder."""
    from huggingface_hub import constants

    commit, cache = "0" * 40, tmp_path / "models--gpt2"
    shutil.copytree(folders["gpt2"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return folders["gpt2"]


@pytest.fixture(scope="session")
def load(folders: dict[str, Path]) -> Callable[[str, str], Case]:
    """`load(family, backend)`: a model that no test may change, loaded once."""

    @cache
    def loaded(family: str, backend: str) -> Case:
        name = family if family in ORGANISMS else folders[family]
        return Case(family, backend, folders[family], psr.load_model(name, backend=backend), oracles.transformer(folders[family]))

    return loaded


def _each(*families: str) -> list:
    return [pytest.param((family, backend), id=f"{family}-{backend}") for family in families for backend in BACKENDS]


@pytest.fixture(scope="session", params=_each(*TINY))
def tiny(request: pytest.FixtureRequest, load: Callable[[str, str], Case]) -> Case:
    """Each tiny architecture in each of TransformerLens's classes."""
    return load(*request.param)


@pytest.fixture(scope="session", params=_each(*ORGANISMS))
def shipped(request: pytest.FixtureRequest, load: Callable[[str, str], Case]) -> Case:
    """Each shipped organism in each of TransformerLens's classes."""
    return load(*request.param)


@pytest.fixture(params=_each("llama", "gpt2"))
def fresh(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Case:
    """Tiny models that a test may change as it likes."""
    family, backend = request.param
    model = psr.load_model(folders[family], backend=backend)
    return Case(family, backend, folders[family], model, oracles.transformer(folders[family]))


@pytest.fixture(scope="session")
def tiny_llama(load: Callable[[str, str], Case]) -> Case:
    """One tiny model, where the architecture cannot matter."""
    return load("llama", BACKENDS[0])


@pytest.fixture(scope="session")
def massive(tiny_llama: Case, tmp_path_factory: pytest.TempPathFactory) -> Massive:
    """A tiny model in which one token becomes massive in the prompted context only, and another in both."""
    folder = tmp_path_factory.mktemp("massive") / "llama"
    return massive_model(tiny_llama.model, tiny_llama.folder, folder, tiny_llama.backend)


@pytest.fixture(scope="session")
def organism(load: Callable[[str, str], Case]) -> Case:
    """The Llama-like organism."""
    return load("organism", BACKENDS[0])


@pytest.fixture(scope="session")
def pirate_triplets(organism: Case) -> Triplets:
    """Sixty responses of the organism as a pirate, judged."""
    questions = psr.organism.questions(60, split="train", seed=1)
    pairs = psr.prompt_pairs(organism.model, questions, psr.organism.INSTRUCTIONS["pirate"])
    return psr.sample_responses(organism.model, pairs, psr.judges.organism("pirate"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without run-time types, as users have it: what bad input does then is our own to say."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ChatServer]]:
    """`serve(answer)`: a chat server that answers `answer(request, number)`, with its key in the environment and no proxy before it."""
    for name in ("OPENAI_BASE_URL", *(f"{kind}_proxy" for kind in ("http", "https", "all"))):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(ChatServer(answer).running())


@pytest.fixture
def bars_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bars appear from the start."""
    monkeypatch.setattr("psr_lens._utils.progress.DELAY", 0.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every call of `generate`: which answers it was asked for."""
    calls = []
    real = answer_cache.generate

    def generate(model, pairs, replacement, *, context, alpha, sampling, streams, **given):
        digest = None if replacement is None else steering_digest(replacement)
        strengths = [alpha] * len(pairs) if isinstance(alpha, float) else alpha
        calls.append([(digest, strength, context, stream) for strength, stream in zip(strengths, streams, strict=True)])
        return real(model, pairs, replacement, context=context, alpha=alpha, sampling=sampling, streams=streams, **given)

    monkeypatch.setattr(answer_cache, "generate", generate)
    return calls
