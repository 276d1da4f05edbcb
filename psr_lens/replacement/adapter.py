"""Adapters: low-rank changes of a model's weights, which act wherever a replacement does, at a strength.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685: W x becomes W x + α · s · B A x, with
s = lora_alpha / rank as in peft.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import brief, read_settings, read_tensors, write_artifact
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, LowRank, weights_added
from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.spec import finite_number

FORMAT: Final = 1
RECORD_FILE: Final = "psr_adapter.json"
"""What peft's own files have no place for."""
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
"""What peft puts before the names of the base model's layers."""


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """A trained LoRA, as `adapt` returns it: functions that take a method take it as they take a replacement.

    Example:
        >>> adapter = psr.adapt(model, triplets[:4], psr.LoRA(rank=2, epochs=1))
        >>> adapter
        Adapter(LoRA, 42 layers from model.layers.0.self_attn.q_proj, rank 2, for organism)
        >>> with adapter.steer(model, alpha=0.5):
        ...     logits = model("what is a bear ?")
    """

    layers: Mapping[str, LowRank]
    """The change of each linear layer, by its name in the transformers model."""
    scaling: float
    """s, lora_alpha / rank; the strength α is a factor on top of it."""
    model: Mapping[str, Any]
    """Fingerprint of the model that it was made for."""
    base: str
    """Where the base model was loaded from, as peft's files say it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training, and the instructions that it learned from."""
    curve: LearningCurve | None = None
    """Losses of the training, epoch by epoch."""
    data: str | None = None
    """xxh3_128 of the training triplets' tokens, in hexadecimal; None if unknown."""
    fan_in_fan_out: bool = False
    """Whether the layers keep their weights as `[in, out]`, as GPT-2's do; peft's files say it."""

    method = "LoRA"
    """Its name in tables."""

    @property
    def rank(self) -> int:
        """Rank of each change."""
        return len(next(iter(self.layers.values())).a)

    @property
    def trained_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(each.a.numel() + each.b.numel() for each in self.layers.values())

    @property
    def digest(self) -> str:
        """xxh3_128 of all that decides what it does, in hexadecimal."""
        found = xxhash.xxh3_128()
        for name, each in self.layers.items():
            for tensor in (each.a, each.b):
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(raw_bytes(tensor))
        return digest_of([found.hexdigest(), float(self.scaling)])

    def __repr__(self) -> str:
        """Layers and rank in a line."""
        first = next(iter(self.layers))
        return (
            f"Adapter({self.method}, {len(self.layers)} layers from {first}, rank {self.rank}, for {self.model.get('model_name')})"
        )

    @contextmanager
    def steer(self, model: HookedModel, alpha: float = 1.0) -> Iterator[HookedModel]:
        """Add the change to the model's weights inside a `with` block; after it they are bit-identical to what they were.

        That takes as much memory again as the weights that are changed. All tokens are read with the changed weights, those of the
        prompt too. The block is for one thread: functions of psr_lens refuse the model in others, whose own calls get the changed one.

        Args:
            model: The model that it was made for, or one with the same layers.
            alpha: Strength, a factor of the change: 0 is the base model, 1 what was trained.

        Raises:
            InputError: `alpha` is not a finite number, `model` is not a model of TransformerLens.
            ModelError: the model does not compute with a transformers model's own weights, lacks a layer, or has an adapter in force.

        Example:
            >>> adapter = psr.adapt(model, triplets[:4], psr.LoRA(rank=2, epochs=1))
            >>> with adapter.steer(model, alpha=0.0):
            ...     psr.generate(model, pairs[:1], sampling=psr.SamplingConfig(temperature=0, max_new_tokens=4))[0].text
            'first, carry the'
        """
        strength = finite_number(alpha)
        if strength is None:
            raise InputError("alpha", brief(alpha), "a finite number", "An adapter has one strength for all sequences.")
        if not hasattr(model, "cfg") or not hasattr(model, "hooks"):
            remedy = "`save` writes a folder that `peft.PeftModel.from_pretrained` puts into a plain transformers model."
            raise InputError("model", type(model).__name__, "a model of TransformerLens", remedy)
        with weights_added(model, self.layers, strength * self.scaling):
            yield model

    @checks_arguments
    def save(self, folder: str | Path) -> Path:
        """Write a folder that `peft`, `load_model` and `Adapter.load` open; an older adapter there is replaced.

        Args:
            folder: The folder; created if it is missing.

        Returns:
            The folder.

        Raises:
            MissingPackageError: peft is not installed.

        Example:
            >>> adapter = psr.adapt(model, triplets[:4], psr.LoRA(rank=2, epochs=1))
            >>> sorted(path.name for path in adapter.save("pirate-lora").iterdir())
            ['adapter_config.json', 'adapter_model.safetensors', 'psr_adapter.json']
        """
        folder, peft = Path(folder), package("peft", "peft")
        tensors = {}
        for name, each in self.layers.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = each.a
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = each.b
        record = {
            "format": FORMAT,
            "layers": list(self.layers),
            "scaling": self.scaling,
            "model": dict(self.model),
            "base": self.base,
            "settings": dict(self.settings),
            "curve": None if self.curve is None else self.curve.to_json(),
            "data": self.data,
            "fan_in_fan_out": self.fan_in_fan_out,
            "digest": self.digest,
        }
        write_artifact(folder, (RECORD_FILE, record), (WEIGHTS_FILE, tensors))
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.scaling * self.rank,
            target_modules=list(self.layers),
            fan_in_fan_out=self.fan_in_fan_out,
            base_model_name_or_path=self.base,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        config.save_pretrained(str(folder))
        return folder

    @classmethod
    @checks_arguments
    def load(cls, folder: str | Path) -> Adapter:
        """Read an adapter that `save` wrote; `load_model` opens those of others, as a model of their own.

        Args:
            folder: The folder.

        Raises:
            ArtifactError: a file is missing or damaged, or they do not belong together.

        Example:
            >>> adapter = psr.adapt(model, triplets[:4], psr.LoRA(rank=2, epochs=1))
            >>> psr.Adapter.load(adapter.save("pirate-lora")).rank
            2
        """
        folder = Path(folder)
        record = read_settings(folder / RECORD_FILE, [FORMAT], "Adapter.save", folder)
        try:
            names = [str(name) for name in record["layers"]]
            keys = {name: [f"{_PREFIX}{name}.lora_{part}.weight" for part in "AB"] for name in names}
            tensors = read_tensors(folder / WEIGHTS_FILE, [key for pair in keys.values() for key in pair], "Adapter.save", folder)
            curve = None if record["curve"] is None else LearningCurve.from_json(record["curve"])
            found = cls(
                {name: LowRank(tensors[a], tensors[b]) for name, (a, b) in keys.items()},
                float(record["scaling"]),
                dict(record["model"]),
                str(record["base"]),
                dict(record["settings"]),
                curve,
                record["data"],
                bool(record["fan_in_fan_out"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{folder / RECORD_FILE}: is damaged ({error!r}). Save the adapter again.") from error
        if found.digest != record.get("digest"):
            raise ArtifactError(f"{folder}: {RECORD_FILE} and {WEIGHTS_FILE} do not belong together. Save the adapter again.")
        return found
