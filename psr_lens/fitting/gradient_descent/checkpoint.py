"""The state of a training run on disk. A run that was killed resumes from it and ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from psr_lens.errors import ArtifactError
from psr_lens.fitting.settings.solvers import FitConfig, Joint
from psr_lens.models import HookedModel, model_identity
from psr_lens.models.fingerprints import weights_digest
from psr_lens.prompts import Triplet

FORMAT: Final = 1
RUN_FILE: Final = "run.json"
STATE_FILE: Final = "state.safetensors"


def identity(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: Joint, asked: FitConfig
) -> dict[str, Any]:
    """What must be the same for a run to resume: the model and its weights, the triplets in their order, and all settings.

    Args:
        model: The model.
        triplets: What is learned from.
        names: Hook points acted at.
        config: How it is trained.
        asked: The config that the user gave.
    """
    data = hashlib.sha256()
    for triplet in triplets:
        pair = triplet.pair
        row = [pair.base_ids, pair.prompted_ids, pair.question_length, triplet.response_ids, triplet.trait / 100]
        data.update(json.dumps(row).encode())
    settings = config.to_json() | asked.to_json()
    settings.pop("polish", None)  # `config` has its settings
    settings |= {"layers": None}  # the hook points say it
    settings |= {"start": "random"}  # older runs of the solver `joint` could start from another solver's result
    return {
        "model": model_identity(model) | {"weights": weights_digest(model)},
        "triplets": data.hexdigest(),
        "hook points": list(names),
        "settings": settings,
    }


class Checkpoint:
    """A folder with `run.json`, which identifies the run, and `state.safetensors`, its state after the last finished epoch.

    The state is one file, written beside the old one and renamed over it, so that the folder always holds one complete state.
    """

    def __init__(self, folder: str | Path, wanted: Mapping[str, Any]) -> None:
        """Check that a folder that exists is of this run; see `identity`.

        Raises:
            ArtifactError: the folder holds another run, or cannot be read.
        """
        self.folder = Path(folder)
        self._run = json.loads(json.dumps({"format": FORMAT, **wanted}))
        try:
            found = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.folder / RUN_FILE}: cannot be read ({error}). {_AFRESH}") from error
        if found is not None:
            self._compare(found)

    @property
    def begun(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.folder / STATE_FILE).exists()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and numbers that `save` wrote last; None if it never did.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.folder / STATE_FILE
        if not self.begun:
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                state = json.loads(file.metadata()["state"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged ({error}). {_AFRESH}") from error
        return tensors, state

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the old state with a new one.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / RUN_FILE).exists():
                temporary = self.folder / f".{RUN_FILE}.new"
                temporary.write_text(json.dumps(self._run, indent=2) + "\n", encoding="utf-8")
                temporary.replace(self.folder / RUN_FILE)
            temporary = self.folder / f".{STATE_FILE}.new"
            placed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(placed, temporary, {"state": json.dumps(dict(state))})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
            temporary.replace(self.folder / STATE_FILE)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"checkpoint: {self.folder} cannot be written ({error}). Give another folder.") from error

    def _compare(self, found: Any) -> None:
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ArtifactError(f"{self.folder / RUN_FILE}: has another format. {_AFRESH}")
        differ = [
            f"settings.{name}" if part == "settings" else part
            for part, wanted in self._run.items()
            for name in (wanted if part == "settings" else [part])
            if _at(found, part, name) != _at(self._run, part, name)
        ]
        if differ:
            raise ArtifactError(
                f"checkpoint: {self.folder} holds another run, which differs in {', '.join(differ)}. {_AFRESH} "
                "To resume that run, call `fit` with its own arguments."
            )


_AFRESH: Final = "Give another folder, or delete this one to start again."


def _at(run: Mapping[str, Any], part: str, name: str) -> Any:
    values = run.get(part)
    return values.get(name) if part == "settings" and isinstance(values, dict) else values
