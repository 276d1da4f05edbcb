"""What a replacement and a plan have in common once they leave the session: a folder, a model card, a repository on the Hub."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, TypeVar

from psr_lens.replacement.model_card import write_card

_Kind = TypeVar("_Kind", bound="Portable")


class Portable(ABC):
    """Something that is saved as a folder of safetensors and JSON, with a model card beside them."""

    FILES: ClassVar[tuple[str, ...]]
    """Patterns of the artifact's files, the first of them the name of its settings file."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the files of the artifact, without its card; older ones are replaced."""

    @classmethod
    @abstractmethod
    def read(cls: type[_Kind], folder: Path, root: Path) -> _Kind:
        """Read the files of an artifact; links are followed within `root` and nowhere else.

        Raises:
            ArtifactError: as for `load`.
        """

    @abstractmethod
    def model_card(self, load: str = 'load("this-folder")') -> str:
        """The model card in Markdown, made from what is recorded.

        Args:
            load: The call that reads the artifact, as the card shows it.
        """

    def save(self, folder: str | Path) -> Path:
        """Write a folder with the artifact's files and a model card, `README.md`; an older artifact there is replaced.

        A `README.md` that was edited, or that this package did not write, is kept, with a warning.

        Returns:
            The folder.

        Raises:
            TypeError: the settings hold what JSON cannot; nothing was written then.
            InputError: settings or metrics are more than can be read again; nothing was written then.
        """
        folder = Path(folder)
        self.write(folder)
        write_card(folder, self.model_card(f"load({json.dumps(folder.resolve().name)})"))
        return folder

    @classmethod
    def load(cls: type[_Kind], folder: str | Path) -> _Kind:
        """Read an artifact that `save` wrote. No code in it is run, and no file outside the folder is opened.

        Raises:
            ArtifactError: a file is missing, damaged, of a newer format, or a link out of the folder; or the parts do not belong together.
        """
        return cls.read(Path(folder), Path(folder))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, revision: str | None = None, message: str = "Upload with psr_lens"
    ) -> str:
        """Put the artifact and its model card into a repository of the Hugging Face Hub, in one commit.

        Only these files are sent; other files in the repository stay, and so does a `README.md` that was edited, with a warning. The login
        is huggingface_hub's own: `hf auth login`, or the variable HF_TOKEN.

        Args:
            repo_id: Owner and name, `"me/pirate-psr"`; made if it is not there.
            private: Whether a repository that is made is private; None for the owner's default.
            revision: Branch; the main one if None.
            message: The commit's message.

        Returns:
            The address of the commit.

        Raises:
            ArtifactError: the Hub cannot be reached, refuses, or has no such branch.
            InputError: `repo_id` is no name of a repository.
        """
        from psr_lens.replacement.hub import upload

        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.write(folder)
            write_card(folder, self.model_card(f"from_hub({json.dumps(repo_id)})"))
            return upload(repo_id, folder, self.FILES, private=private, revision=revision, message=message)

    @classmethod
    def from_hub(cls: type[_Kind], repo_id: str, *, revision: str | None = None) -> _Kind:
        """Read an artifact from the Hugging Face Hub, or from huggingface_hub's cache where the Hub cannot be reached.

        Only the artifact's own files are fetched, no code in them is run, and no file outside the repository's cache is opened.

        Args:
            repo_id: Owner and name, `"me/pirate-psr"`.
            revision: Branch, tag or commit; the main branch if None. A commit is the same for ever.

        Raises:
            ArtifactError: the Hub cannot be reached, has no such repository or revision, or refuses; or what `load` raises.
            InputError: `repo_id` is no name of a repository.
        """
        from psr_lens.replacement.hub import download

        return cls.read(*download(repo_id, cls.FILES, revision))
