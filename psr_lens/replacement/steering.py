"""What replacements and plans have in common: they steer a model, and are saved, shared on the Hub and described by a model card."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import CHECKS, checks_arguments
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, hooked
from psr_lens.replacement.actions import Start, actions_of
from psr_lens.replacement.attach_to_transformers import Attached, attach
from psr_lens.replacement.compatibility import check_compatible
from psr_lens.replacement.hub import download, upload
from psr_lens.replacement.model_card import model_card, write_card
from psr_lens.replacement.spec import ReplacementSpec
from psr_lens.replacement.steering_hooks import SteeringHooks, steering_hooks

_Kind = TypeVar("_Kind", bound="Steering")


class Steering(ABC):
    """Base of everything that steers a model: a `Replacement`, or a `SteeringPlan` of several."""

    _FILES: ClassVar[tuple[str, ...]]
    """Patterns of the artifact's files, the first of them the name of its settings file."""

    @abstractmethod
    def _weighted(self) -> Sequence[tuple[ReplacementSpec, float]]:
        """The replacements that steer, each with the factor of its strength."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the files of the artifact, without its model card; older ones are replaced."""

    @classmethod
    @abstractmethod
    def _read(cls: type[_Kind], folder: Path, root: Path) -> _Kind:
        """Read the files of an artifact; links are followed only within `root`."""

    # --- steering -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def steer(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
    ) -> Iterator[HookedModel]:
        """Steer `model` inside a `with` block: forward, `run_with_cache` and `generate`, with or without a KV cache.

        Where a prompt ends is read from the call, never guessed. In `generate` it is what `generate` was given. Otherwise all that a
        call reads into no cache, or into an empty one, is a prompt (padding aside), and what follows behind that cache is a response.
        So a text that contains a response needs `start`, as does a call behind a cache that was filled outside the block. A call
        that steers nothing, or only the end of a long text, warns once. Functions of psr_lens in the block know where prompts end.

        Calls of other threads raise an error, unless those threads have a block of their own.

        Args:
            model: The model that the replacement was made for, or one with the same sizes and hook points.
            alpha: Strength, one number or one per sequence; in a plan, each part's strength is this times its factor. At 0, with an
                `offset` of 0, every activation is bit-identical to the unsteered one.
            start: First steered position, counted from the left with padding and cached tokens, one number or one per sequence; or a
                mapping from span to such positions, needed for a plan whose parts have different spans. The default is the last
                token of the prompt for the span `R`, and for `QR` the question's first token, where it was in training.

        Raises:
            ArtifactError: the model has other sizes, its weights were processed differently, or it lacks a hook point.
            InputError: `model` is not a model of TransformerLens, `alpha` is not finite, or `start` is invalid, or needed and missing;
                in the block, a call that does not show where its prompts end, or one of another thread.

        Example:
            >>> with pirate.steer(model, alpha=1.0):
            ...     psr.generate(model, pairs[:1], sampling=psr.SamplingConfig(temperature=0, max_new_tokens=4))[0].text
            'arr, to begin'
        """
        hooks = self.hooks(model, alpha, start=start)
        with hooks.in_block(), hooked(model, hooks):
            yield model

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
    ) -> SteeringHooks:
        """The forward hooks that `steer` adds, for `model.hooks(fwd_hooks=…)` or `run_with_hooks`; arguments and errors as for `steer`.

        Example:
            >>> logits = model.run_with_hooks("what is a bear ?", fwd_hooks=pirate.hooks(model, alpha=0.5))
            >>> tuple(logits.shape)
            (1, 6, 369)
        """
        weighted = self._weighted()
        for replacement, _ in weighted:
            check_compatible(replacement, model)
        return steering_hooks(model, actions_of(weighted, alpha, start))

    def attach(self, model: Any, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None) -> Attached:
        """Steer a plain transformers model, its `generate` and its pipelines, as `steer` steers one of TransformerLens.

        Use it in a `with` block, or keep the returned handle and call its `remove()`. If two are attached one after the other, the
        second reads activations that the first has changed; attach their sum to have both read the unsteered ones.

        Prompts end as in `steer`. Beams, several answers to one prompt, chunked prefill, static caches, a cached prefix, and
        speculative or assisted decoding are steered as plain greedy decoding is. Calls of all threads are steered, each by itself.

        Args:
            model: The transformers model of an architecture listed in the docs (Artifacts), on any device.
            alpha: Strength, as for `steer`; at 0, with an `offset` of 0, no hook is added.
            start: First steered position in the prompt, as for `steer`.

        Raises:
            InputError: `model` is of another architecture, or not a transformers model; `alpha` is not finite; or `start` is missing.
            ArtifactError: the model has other sizes; or the replacement was made for weights that TransformerLens had processed, or acts
                at other hook points than `resid_post`, `attn_out`, `mlp_out` and `z`.

        Example:
            >>> from transformers import AutoModelForCausalLM
            >>> hf_model = AutoModelForCausalLM.from_pretrained(psr.organism.__path__[0] + "/weights/llama")
            >>> with pirate.attach(hf_model, alpha=1.0):
            ...     ids = hf_model.generate(model.to_tokens("what is a bear ?"), max_new_tokens=5)
            >>> tuple(ids.shape)
            (1, 11)
        """
        weighted = self._weighted()
        return attach(model, [replacement for replacement, _ in weighted], actions_of(weighted, alpha, start))

    # --- saving -------------------------------------------------------------------------------------------------------------

    @checks_arguments
    def save(self, folder: str | Path) -> Path:
        """Write a folder with the artifact's files and a model card, `README.md`; an older artifact there is replaced.

        A `README.md` that was edited, or that psr_lens did not write, is kept, with a warning.

        Args:
            folder: The folder; created if it is missing.

        Returns:
            The folder.

        Raises:
            TypeError: the settings cannot be written as JSON; nothing was written.
            InputError: the settings or metrics are too large to be read again; nothing was written.

        Example:
            >>> folder = pirate.save("pirate-psr")  # of a plan: plan.json, and a folder with these files for each part
            >>> sorted(path.name for path in folder.iterdir())
            ['README.md', 'replacement.json', 'replacement.safetensors']
        """
        folder = Path(folder)
        self._write(folder)
        write_card(folder, self.model_card(f"load({json.dumps(folder.resolve().name)})"))
        return folder

    @classmethod
    @checks_arguments
    def load(cls: type[_Kind], folder: str | Path) -> _Kind:
        """Read an artifact that `save` wrote. No code in it is run, and no file outside the folder is opened.

        Args:
            folder: The folder.

        Raises:
            ArtifactError: a file is missing, damaged, of a newer format, or a link out of the folder; or the files do not belong together.

        Example:
            >>> psr.Replacement.load(pirate.save("pirate-psr"))
            Replacement(A-PSR, 6 hook points from blocks.0.hook_resid_post, rank 4, span R, for organism)
        """
        return cls._read(Path(folder), Path(folder))

    @checks_arguments
    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, revision: str | None = None, message: str = "Upload with psr_lens"
    ) -> str:
        """Upload the artifact and its model card to a repository of the Hugging Face Hub, in one commit.

        Only these files are sent. Other files in the repository stay, and so does a `README.md` that was edited, with a warning. The
        login is that of huggingface_hub: `hf auth login`, or the variable HF_TOKEN.

        Args:
            repo_id: Owner and name, `"me/pirate-psr"`; created if it does not exist.
            private: Whether a new repository is private; None for the owner's default.
            revision: Branch; the main branch if None.
            message: Message of the commit.

        Returns:
            The address of the commit.

        Raises:
            ArtifactError: the Hub cannot be reached, refuses, or has no such branch.
            InputError: `repo_id` is not the name of a repository.

        Example:
            >>> pirate.push_to_hub("me/pirate-psr", private=True)  # doctest: +SKIP
            'https://huggingface.co/me/pirate-psr/commit/…'
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self._write(folder)
            write_card(folder, self.model_card(f"from_hub({json.dumps(repo_id)})"))
            return upload(repo_id, folder, self._FILES, private=private, revision=revision, message=message)

    @classmethod
    @checks_arguments
    def from_hub(cls: type[_Kind], repo_id: str, *, revision: str | None = None) -> _Kind:
        """Read an artifact from the Hugging Face Hub, or from huggingface_hub's cache if the Hub cannot be reached.

        Only the artifact's own files are downloaded. No code in them is run, and no file outside the repository's cache is opened.

        Args:
            repo_id: Owner and name, `"me/pirate-psr"`.
            revision: Branch, tag or commit; the main branch if None. Only a commit always gives the same artifact.

        Raises:
            ArtifactError: the Hub cannot be reached, refuses, or has no such repository or revision; or as for `load`.
            InputError: `repo_id` is not the name of a repository.

        Example:
            >>> pirate = psr.Replacement.from_hub("me/pirate-psr")  # doctest: +SKIP
        """
        return cls._read(*download(repo_id, cls._FILES, revision))

    @checks_arguments
    def model_card(self, load: str = 'load("this-folder")') -> str:
        """The model card in Markdown, made from what the artifact records.

        Args:
            load: The call that reads the artifact, as the card shows it.

        Example:
            >>> [line for line in pirate.model_card().splitlines() if line.startswith("| method")]
            ['| method | A-PSR |']
        """
        return model_card(type(self).__name__, self._weighted(), load)


def check_steering(replacement: object, argument: str = "replacement") -> None:
    """Refuse what cannot steer a model; the error calls it `argument`.

    Raises:
        InputError: `replacement` is neither None nor a replacement nor a plan.
    """
    is_model = isinstance(replacement, HookedModel)  # which has `hooks` too
    if replacement is not None and (is_model or not isinstance(replacement, Steering)):
        raise InputError(
            argument,
            type(replacement).__name__,
            "a Replacement, a SteeringPlan or None",
            "`psr.fit` returns a Replacement; None leaves the model as it is.",
        )


CHECKS[Steering] = check_steering
