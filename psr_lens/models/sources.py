"""Where a model comes from: one that ships with the package, a name, a folder, or a `.gguf` file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub.utils import HFValidationError, validate_repo_id

from psr_lens._utils.optional import package
from psr_lens.errors import InputError, ModelError

EMBEDDED: Final = {"organism": "llama", "organism-gpt2": "gpt2"}
"""The models that ship with the package: name to folder under `organism/weights`."""

ADAPTER_FILE: Final = "adapter_config.json"
"""The file that makes a folder one of an adapter, as peft saves it."""

_EXPECTED: Final = "'organism', 'organism-gpt2', a name that TransformerLens knows, a local Hugging Face folder, or a .gguf file"

_OWN: Final = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Owners of the models that only TransformerLens can read."""


@dataclass(frozen=True)
class Source:
    """A place that transformers can read a model from."""

    location: str
    """A folder or the name of a repository, as `from_pretrained` takes it."""
    asked: str
    """What the user gave, for messages."""
    name: str
    """The model's name in fingerprints."""
    is_local: bool
    """Whether it is a folder or a file."""
    gguf: str | None = None
    """Name of the `.gguf` file in the folder."""

    def __str__(self) -> str:
        """For messages: a path as it is, a name in quotation marks."""
        return self.asked if self.is_local else repr(self.asked)

    @property
    def folder(self) -> Path | None:
        """The folder, if it is local."""
        return Path(self.location) if self.is_local else None

    @property
    def is_of_transformer_lens(self) -> bool:
        """Whether only TransformerLens can read it, and transformers cannot: its own toy models."""
        return not self.is_local and self.location.startswith(_OWN)

    def for_transformers(self) -> dict[str, Any]:
        """Arguments that every `from_pretrained` of transformers takes; code of a repository is never run."""
        given: dict[str, Any] = {"local_files_only": self.is_local, "trust_remote_code": False}
        return given if self.gguf is None else given | {"gguf_file": self.gguf}


def find_source(name_or_path: str | Path, *, known_only: bool = False) -> Source:
    """What `load_model`'s first argument stands for.

    Args:
        name_or_path: A name, a folder or a `.gguf` file.
        known_only: Whether a repository that TransformerLens does not know by name is refused.

    Raises:
        InputError: it is neither a known name, nor a folder, nor a `.gguf` file.
        ModelError: the folder holds no model.
        MissingPackageError: a `.gguf` file needs gguf, which is not installed.
    """
    asked = str(name_or_path)
    if asked in EMBEDDED:
        shipped = Path(__file__).parents[1] / "organism" / "weights" / EMBEDDED[asked]
        return Source(str(shipped), asked, asked, is_local=True)
    path = Path(asked).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_FILE)):
            raise ModelError(f"model: {path} holds no config.json. {_instead_of_config(path)}")
        return Source(str(path), str(path), path.resolve().name, is_local=True)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError("model", repr(asked), "the path of a .gguf file", "There is no such file.")
        package("gguf", "gguf")
        return Source(str(path.parent), str(path), path.stem, is_local=True, gguf=path.name)
    if path.is_file():
        raise InputError("model", repr(asked), _EXPECTED, f"Give the folder that holds the file: {str(path.parent)!r}.")
    return _named(asked, known_only=known_only)


def _instead_of_config(folder: Path) -> str:
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if files:
        return f"To load the .gguf file in it, give its path: {str(folder / files[0])!r}."
    return "Give a folder saved with `save_pretrained`."


def _named(name: str, *, known_only: bool) -> Source:
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    official = {alias: str(repository) for repository, aliases in MODEL_ALIASES.items() for alias in aliases}
    official |= {repository: repository for repository in OFFICIAL_MODEL_NAMES}
    # A bridge loads any repository of a supported architecture.
    if name in official or (_names_a_repository(name) and not known_only):
        repository = official.get(name, name)
        return Source(repository, name, repository, is_local=False)
    close = difflib.get_close_matches(name, [*EMBEDDED, *official], n=3)
    raise InputError(
        "model",
        repr(name),
        _EXPECTED,
        f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check the spelling, or that the folder exists.",
    )


def is_known(repository: str) -> bool:
    """Whether `HookedTransformer` knows a repository by name."""
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    return repository in OFFICIAL_MODEL_NAMES


def _names_a_repository(name: str) -> bool:
    """Whether a name has the form of a Hub repository, `owner/model`; the path of a missing folder does not."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name
