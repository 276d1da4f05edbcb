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

from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import versions
from psr_lens.errors import ArtifactError
from psr_lens.fitting.settings.adapters import LoRA
from psr_lens.fitting.settings.solvers import FitConfig, Joint
from psr_lens.models import HookedModel, model_content
from psr_lens.models.identity_by_content import alike, former_identity
from psr_lens.prompts import Triplet

FORMAT: Final = 2
"""Format 1 had a sample of the weights in place of all, and no versions; its checkpoints can be resumed, as can those of format 2 that
were begun before there was the entry `settings` of a model."""
RUN_FILE: Final = "run.json"
STATE_FILE: Final = "state.safetensors"


def identity(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: Joint, asked: FitConfig | LoRA
) -> dict[str, Any]:
    """What must be the same for a run to resume: the model and its weights, the triplets in their order, all settings, and versions.

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
    if settings.get("token_weights") == "uniform":  # older runs have no such setting
        del settings["token_weights"]
    settings |= {"start": "random"}  # older runs of the solver `joint` could start from another solver's result
    return {
        "model": model_content(model),
        "triplets": data.hexdigest(),
        "hook points": list(names),
        "settings": settings,
        "versions": dict(versions()),
    }


class Checkpoint:
    """A folder with `run.json`, which identifies the run, and `state.safetensors`, its state after the last finished epoch.

    The state is one file, written beside the old one and renamed over it, so that the folder always holds one complete state.
    """

    def __init__(self, folder: str | Path, wanted: Mapping[str, Any], model: HookedModel) -> None:
        """Check that a folder that exists is of this run.

        Args:
            folder: The folder; created when a state is saved.
            wanted: The run, see `identity`.
            model: Its model, which a folder of format 1 identifies in another way.

        Raises:
            ArtifactError: the folder holds another run, or cannot be read.
        """
        self.folder = Path(folder)
        self._run = json.loads(json.dumps({"format": FORMAT, **wanted}))
        """The content of `run.json`, or what it will be."""
        try:
            found = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.folder / RUN_FILE}: cannot be read ({error}). {_AFRESH}") from error
        if found is not None:
            self._compare(found, model)
            self._run = found

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and numbers that `save` wrote last; None if it never did.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                state = json.loads(file.metadata()["state"])
            run = state.pop("run", None) if isinstance(state, dict) else None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged ({error}). {_AFRESH}") from error
        if run is not None and run != digest_of(self._run):
            raise ArtifactError(f"{path}: is the state of another run than {RUN_FILE} beside it describes. {_AFRESH}")
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
            save_file(placed, temporary, {"state": json.dumps({**state, "run": digest_of(self._run)})})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
            temporary.replace(self.folder / STATE_FILE)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"checkpoint: {self.folder} cannot be written ({error}). Give another folder.") from error

    def _compare(self, found: Any, model: HookedModel) -> None:
        if not isinstance(found, dict) or found.get("format") not in range(1, FORMAT + 1):
            raise ArtifactError(f"{self.folder / RUN_FILE}: has another format. {_AFRESH}")
        run = self._run
        if found["format"] == 1:
            run = {name: value for name, value in run.items() if name != "versions"} | {
                "format": 1,
                "model": former_identity(model),
            }
        elif alike(found.get("model"), run["model"]):
            run = run | {"model": found["model"]}
        differ = [
            f"settings.{name}" if part == "settings" else part
            for part, wanted in run.items()
            for name in (wanted if part == "settings" else [part])
            if _at(found, part, name) != _at(run, part, name)
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
