"""Carrying a replacement over to another model in a folder: texts, a map, and a replacement for each rung, none of them made twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import xxhash

from psr_lens import transfer
from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import versions
from psr_lens._utils.safe_files import write_text
from psr_lens.activations.store.format import FORMAT as STORE_FORMAT
from psr_lens.activations.store.triplets import read_triplets, triplets_bytes
from psr_lens.apps.output_folder import check_folder
from psr_lens.errors import ArtifactError, InputError
from psr_lens.fitting.settings.solvers import Sequential
from psr_lens.generation.sampling import generate, stop_ids
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel, fingerprint, model_content, tokenizer_of
from psr_lens.prompts import Triplet
from psr_lens.replacement import Replacement
from psr_lens.replacement.content_digest import content_digest
from psr_lens.transfer.direction_map import Push
from psr_lens.transfer.origin import check_made_for, map_digest
from psr_lens.transfer.rungs import GATES_THROUGH_TEXT, THROUGH_TEXT

STATE_FILE: Final = "transfer.json"
"""The file of a transfer's folder that says what it is of, and what of it is finished."""
MAP_FOLDER: Final = "map"
P = TypeVar("P", Replacement, transfer.ActivationMap)
"""A piece of a transfer that is an artifact."""
_FORMAT: Final = 2
"""Format 1 did not say what a piece was made of; it is not read."""
_NO_ENDS: Final = "texts: no response has an end token, so where a response ends is not carried over"
_START_OVER: Final = "Give another folder with --out, or delete this one to start over."


@dataclass(eq=False)
class Transfer:
    """A transfer in a folder. What is finished there is read again if its content is what was written; all else is made."""

    source: HookedModel
    """The model that the replacement was made for."""
    target: HookedModel
    """The model to be steered."""
    replacement: Replacement
    """What is carried over."""
    folder: Path
    """Where everything goes."""
    sample: Callable[[], Sequence[Triplet]]
    """Gives the source's responses with the instruction."""
    sampling: SamplingConfig
    """How the source's answers without the instruction are drawn, from which a map is learned."""
    say: Callable[[str], None]
    """Gets a line for each piece."""
    given_map: transfer.ActivationMap | None = None
    """A map of both models; None to learn one."""
    _state: dict[str, Any] = field(default_factory=dict, init=False)

    def claim(self, texts: Mapping[str, Any]) -> None:
        """Claim the folder, or check that it belongs to this transfer.

        Args:
            texts: What the texts are made of, as JSON content.

        Raises:
            InputError: the folder is a file, or holds another transfer or other files.
            ArtifactError: the replacement was made for another model than the source; or what the folder says of itself cannot be read.
        """
        check_made_for(self.replacement, fingerprint(self.source))
        models = {"source": model_content(self.source), "target": model_content(self.target)}
        about = {
            "source": digest_of(models["source"]),
            "target": digest_of(models["target"]),
            "replacement": content_digest(self.replacement),
            "texts": digest_of(dict(texts)),
            "map": None if self.given_map is None else map_digest(self.given_map),
            "settings": digest_of([{**asdict(self.sampling), "token_budget": None}, *(each.to_json() for each in _DEFAULTS)]),
            "versions": digest_of(dict(versions())),
        }
        path = check_folder(self.folder) / STATE_FILE
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                expected = "a new or empty folder, or the folder of this transfer"
                raise InputError("out", f"{self.folder}, which holds other files", expected)
            self._state = {"format": _FORMAT, "about": about, "finished": {}}
            self._save()
            return
        try:
            self._state = dict(json.loads(path.read_text(encoding="utf-8")))
            known, finished = self._state["about"], self._state["finished"]
            whole = self._state["format"] == _FORMAT and isinstance(known, dict) and isinstance(finished, dict)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path}: cannot be read ({error}). {_START_OVER}") from error
        if not whole:
            raise ArtifactError(f"{path}: is damaged or of another format. {_START_OVER}")
        # Begun before there was the entry `settings` of a model.
        former = {
            name: digest_of({key: each for key, each in content.items() if key != "settings"}) for name, content in models.items()
        }
        if differ := [name for name in about if known.get(name) not in (about[name], former.get(name, about[name]))]:
            got = f"{self.folder}, which holds another transfer (different: {', '.join(differ)})"
            raise InputError("out", got, "the folder of this transfer", _START_OVER)

    def carried(self, rung: str) -> Replacement:
        """The replacement of a rung, from its folder if it is finished.

        Raises:
            InputError: an unknown rung; or as the rung's function.
            ArtifactError, FitError: as the rung's function.
        """
        if rung not in RUNGS:
            raise InputError("rung", repr(rung), f"one of {', '.join(RUNGS)}")
        return self._piece(rung, Replacement.load, content_digest, lambda: RUNGS[rung].make(self))

    @cached_property
    def map(self) -> transfer.ActivationMap:
        """The map of both models that probes are pulled back through."""
        if self.given_map is not None:
            return self.given_map
        load = partial(transfer.ActivationMap.load, source=self.source, target=self.target)
        return self._piece(MAP_FOLDER, load, map_digest, lambda: transfer.fit_activation_map(self.source, self.target, self.plain))

    @cached_property
    def triplets(self) -> list[Triplet]:
        """The source's responses with the instruction."""
        found = self._texts("texts", self.sample)
        stops = stop_ids(self.source, tokenizer_of(self.source))
        if not any(each.response_ids[-1:] and each.response_ids[-1] in stops for each in found):
            self.say(_NO_ENDS)
        return found

    @cached_property
    def paired(self) -> list[transfer.PairedText]:
        """The same as both models read them."""
        return transfer.pair_texts(self.source, self.target, self.triplets)

    @cached_property
    def carried_texts(self) -> list[Triplet]:
        """The same as the target reads them."""
        return [each.target for each in self.paired]

    @cached_property
    def plain_triplets(self) -> list[Triplet]:
        """The source's answers to the same questions without the instruction."""

        def answers() -> list[Triplet]:
            asked = list({each.pair.base_ids: each.pair for each in self.triplets}.values())
            found = generate(self.source, asked, sampling=self.sampling)
            bare = (replace(pair, instruction="", prompted_ids=pair.base_ids) for pair in asked)
            return [Triplet(pair, each.ids, each.text) for pair, each in zip(bare, found, strict=True) if each.text.strip()]

        return self._texts("plain", answers)

    @cached_property
    def plain(self) -> list[transfer.PairedText]:
        """The same as both models read them."""
        return transfer.pair_texts(self.source, self.target, self.plain_triplets)

    def forward(self, kind: Push) -> transfer.DirectionMap:
        """A map of directions from the same texts and between the same layers."""
        return transfer.fit_direction_map(self.source, self.target, self.plain, kind, layers=self.map.layers)

    def _piece(self, name: str, load: Callable[[Path], P], digest: Callable[[P], str], make: Callable[[], P]) -> P:
        """An artifact of the folder, read if it is finished, else made."""
        folder = self.folder / name
        try:
            found = load(folder)
            if self._is_finished(name, digest(found)):
                self.say(f"{name}: finished before")
                return found
        except ArtifactError:
            pass  # there is none, or it is damaged
        found = make()
        found.save(folder)
        self._finish(name, digest(found))
        self.say(f"{name}: {found}")
        return found

    def _texts(self, name: str, make: Callable[[], Sequence[Triplet]]) -> list[Triplet]:
        path = self.folder / f"{name}.jsonl"
        known = self._state["finished"].get(name)
        if known is not None and self._is_finished(name, known["content"]):
            try:
                return list(read_triplets(path, known["content"], STORE_FORMAT))
            except ArtifactError:
                pass
        found = list(make())
        content = triplets_bytes(found, STORE_FORMAT)
        write_text(path, content.decode())
        self._finish(name, xxhash.xxh3_128_hexdigest(content))
        self.say(f"{name}: {len(found)} of the source's")
        return found

    def _is_finished(self, name: str, digest: str) -> bool:
        """Whether a piece has the content that was written, and was made of what is there now."""
        return bool(self._state["finished"].get(name) == {"content": digest, "of": self._made_of(name)})

    def _finish(self, name: str, digest: str) -> None:
        self._state["finished"][name] = {"content": digest, "of": self._made_of(name)}
        self._save()

    def _made_of(self, name: str) -> dict[str, str]:
        """Digests of the pieces that a piece is made of; those that are missing or damaged are made first."""
        return {each: self._digest(each) for each in (RUNGS[name].of if name in RUNGS else _MADE_OF[name])}

    def _digest(self, name: str) -> str:
        if name == MAP_FOLDER:
            return map_digest(self.map)
        _ = self.triplets if name == "texts" else self.plain_triplets
        return str(self._state["finished"][name]["content"])

    def _save(self) -> None:
        write_text(self.folder / STATE_FILE, json.dumps(self._state, indent=2) + "\n")


@dataclass(frozen=True)
class Rung:
    """How the replacement of a rung is made."""

    of: tuple[str, ...]
    """The pieces of the folder that it is made of."""
    make: Callable[[Transfer], Replacement]
    """Makes it."""


def _whole(kind: Push) -> Rung:
    return Rung(("plain", MAP_FOLDER), lambda each: transfer.whole(each.target, each.replacement, each.map, each.forward(kind)))


RUNGS: Final = {
    "through-text": Rung(("texts",), lambda each: transfer.through_text(each.source, each.target, each.triplets)),
    "gates": Rung(("texts", MAP_FOLDER), lambda each: transfer.gates(each.target, each.carried_texts, each.replacement, each.map)),
    "gates-through-text": Rung(
        ("texts", MAP_FOLDER), lambda each: transfer.gates_through_text(each.target, each.carried_texts, each.replacement, each.map)
    ),
    "whole-ridge": _whole("ridge"),
    "whole-procrustes": _whole("procrustes"),
    "whole-anchors": _whole("anchors"),
}
"""What is made, by the name of its folder."""
_MADE_OF: Final[dict[str, tuple[str, ...]]] = {"texts": (), "plain": ("texts",), MAP_FOLDER: ("plain",)}
_DEFAULTS: Final = (THROUGH_TEXT, GATES_THROUGH_TEXT, Sequential())
"""Settings of the rungs."""
