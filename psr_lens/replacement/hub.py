"""Uploading artifacts to the Hugging Face Hub and downloading them: only their own files, through huggingface_hub and its login."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from warnings import warn

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement.model_card import CARD_FILE, is_ours, kept_warning

_LOG_IN: Final = "Log in (`hf auth login`, or the variable HF_TOKEN)"


def upload(repo_id: str, folder: Path, files: Sequence[str], *, private: bool | None, revision: str | None, message: str) -> str:
    """Upload an artifact's files and its model card in one commit; a missing repository is created.

    A card that was edited, or that psr_lens did not write, is kept, with a warning.

    Args:
        repo_id: Owner and name, `"me/pirate-psr"`.
        folder: Folder of the files.
        files: Patterns of the artifact's files; matching files of an older artifact are deleted if this one lacks them.
        private: Whether a new repository is private; None for the owner's default.
        revision: Branch; the main branch if None.
        message: Message of the commit.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: the Hub cannot be reached, refuses, or has no such branch.
        InputError: `repo_id` is not the name of a repository.
    """
    api = HfApi(library_name="psr-lens")
    with _our_errors(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        try:
            card = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_text(encoding="utf-8", errors="replace")
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # the Hub could not be reached
                raise
            card = None
        if card is not None and not is_ours(card):
            warn(kept_warning(f"{CARD_FILE} of {repo_id}"), stacklevel=3)
            (folder / CARD_FILE).unlink()
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[*files, CARD_FILE],
            delete_patterns=list(files),
            revision=revision,
            commit_message=message,
        )
    return str(commit.commit_url)


def download(repo_id: str, files: Sequence[str], revision: str | None) -> tuple[Path, Path]:
    """Download an artifact's files, or find them in huggingface_hub's cache.

    Args:
        repo_id: Owner and name, `"me/pirate-psr"`.
        files: Patterns of the artifact's files; the first is the name of a file that every such artifact has.
        revision: Branch, tag or commit; the main branch if None.

    Returns:
        The folder, and the folder of the cache around it, which the links in the folder point into.

    Raises:
        ArtifactError: the Hub cannot be reached, refuses, or has no such repository or revision; or the repository holds no such artifact.
        InputError: `repo_id` is not the name of a repository.
    """
    with _our_errors(repo_id, revision):
        found = HfApi(library_name="psr-lens").snapshot_download(repo_id, revision=revision, allow_patterns=list(files))
    folder = Path(found)
    if not (folder / files[0]).exists():
        raise ArtifactError(
            f"repo_id: {repo_id} holds no {files[0]}, so no artifact of this kind. "
            "`Replacement.from_hub` reads replacements, `SteeringPlan.from_hub` reads plans."
        )
    return folder, folder.parents[1]


@contextmanager
def _our_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise InputError("repo_id", repr(repo_id), "an owner and a name, 'owner/name'", _line(error)) from error
    except GatedRepoError as error:
        raise ArtifactError(f"repo_id: access to {repo_id} must be requested on its page. {_LOG_IN} afterwards.") from error
    except RepositoryNotFoundError as error:
        raise ArtifactError(
            f"repo_id: {repo_id} does not exist or is private. Check the spelling. {_LOG_IN} with an account that may read it."
        ) from error
    except RevisionNotFoundError as error:
        raise ArtifactError(
            f"revision: {repo_id} has no branch, tag or commit {revision!r}. Leave it out for the main branch."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = f"{_LOG_IN} with an account that may do this." if status in (401, 403) else "Try again later."
        raise ArtifactError(
            f"repo_id: the Hub refused the request for {repo_id} with status {status} ({_line(error)}). {remedy}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ArtifactError(
            f"repo_id: {repo_id} could not be reached ({type(error).__name__}: {_line(error)}). "
            "Check the network, and that HF_HUB_OFFLINE is not set."
        ) from error
    except (ValueError, RuntimeError) as error:  # raised by huggingface_hub for an unexpected reply or a failed upload
        raise ArtifactError(
            f"repo_id: the request for {repo_id} failed ({type(error).__name__}: {_line(error)}). Try again later."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
