"""Neurons in the MLPs that do what a replacement does, and can be written into an ordinary checkpoint.

They read what the MLP reads and write to its output, as its own neurons do: a checkpoint with them has a larger `intermediate_size`
(`n_inner`), and nothing else is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import digest_of
from psr_lens._utils.safe_files import brief, read_settings, read_tensors, write_artifact
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import ExtraNeurons, HookedModel, fingerprint, neurons_added
from psr_lens.replacement.checkpoint_export import Export, NeuronFidelity, write_checkpoint
from psr_lens.replacement.compatibility import check_depth_and_width
from psr_lens.replacement.spec import finite_number
from psr_lens.results.table import ResultTable

FORMAT: Final = 1
NEURONS_FILE: Final = "psr_neurons.json"
"""The settings file of the artifact."""
NEURON_WEIGHTS: Final = "psr_neurons.safetensors"
"""Its tensors."""
_PARTS: Final = ("read", "write", "bias", "up")


@dataclass(frozen=True, eq=False, repr=False)
class AddedNeurons:
    """Fitted neurons, as `adapt` returns them: functions that take a method take them as they take a replacement.

    Example:
        >>> neurons = psr.adapt(model, triplets[:4], psr.Neurons(rank=2))
        >>> neurons
        AddedNeurons(6 layers, 2 neurons a layer, for organism)
        >>> with neurons.steer(model, alpha=0.5):
        ...     logits = model("what is a bear ?")
    """

    layers: Mapping[int, ExtraNeurons]
    """The neurons' weights by layer, at a strength of 1."""
    model: Mapping[str, Any]
    """Fingerprint of the model that they were made for."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the fit, and the instructions that it learned from."""
    fidelity: NeuronFidelity | None = None
    """How close they are to the prompt and to the rule that they stand for; None if it was not measured."""
    data: str | None = None
    """xxh3_128 of the training triplets' tokens, in hexadecimal; None if unknown."""

    method = "Neurons"
    """Their name in tables."""

    def __post_init__(self) -> None:
        """Refuse fields that are not those of neurons."""
        whole = isinstance(self.layers, Mapping) and all(isinstance(each, ExtraNeurons) for each in self.layers.values())
        if not whole or not self.layers:
            raise InputError("layers", brief(self.layers), "a mapping from layers to `ExtraNeurons`", "`psr.adapt` makes it.")

    @property
    def rank(self) -> int:
        """The largest number of neurons of a layer."""
        return max(each.count for each in self.layers.values())

    @property
    def digest(self) -> str:
        """xxh3_128 of all that decides what they do, in hexadecimal."""
        found = xxhash.xxh3_128()
        for name, tensor in self._tensors().items():
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(raw_bytes(tensor))
        return digest_of([found.hexdigest()])

    def __repr__(self) -> str:
        """Layers and neurons in a line."""
        counts = sorted({each.count for each in self.layers.values()})
        several = "layer" if len(self.layers) == 1 else "layers"
        neurons = f"{'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} neurons a layer"
        return f"{type(self).__name__}({len(self.layers)} {several}, {neurons}, for {self.model.get('model_name')})"

    @contextmanager
    def steer(self, model: HookedModel, alpha: float = 1.0) -> Iterator[HookedModel]:
        """Give the model the neurons inside a `with` block; after it, it has the very weights that it had.

        That takes as much memory again as the MLPs that get neurons. They act on every token, those of the prompt too. The block is for
        one thread: functions of psr_lens refuse the model in others, whose own calls get the wider MLPs.

        Args:
            model: The model that they were made for, or one with the same layers.
            alpha: Strength, a factor of what they write: 0 is the base model, 1 what was fitted.

        Raises:
            InputError: `alpha` is not a finite number, `model` is not a model of TransformerLens.
            ModelError: the model does not compute with a transformers model's own weights, is of a family whose MLPs cannot get more
                neurons, or has more neurons already.
            ArtifactError: the model has another number of layers, or another width.

        Example:
            >>> neurons = psr.adapt(model, triplets[:4], psr.Neurons(rank=2))
            >>> with neurons.steer(model, alpha=0.0):
            ...     psr.generate(model, pairs[:1], sampling=psr.SamplingConfig(temperature=0, max_new_tokens=4))[0].text
            'first, carry the'
        """
        strength = _strength(alpha, "Neurons have one strength for all sequences.")
        if not hasattr(model, "cfg") or not hasattr(model, "hooks"):
            remedy = "`to_checkpoint` writes a folder that plain transformers loads."
            raise InputError("model", type(model).__name__, "a model of TransformerLens", remedy)
        check_depth_and_width(self.model, fingerprint(model))
        with neurons_added(model, self.layers, strength):
            yield model

    @checks_arguments
    def to_checkpoint(
        self,
        model: HookedModel,
        folder: str | Path,
        *,
        alpha: float = 1.0,
        max_kl: float = 0.05,
        multiple_of: int = 1,
        metrics: ResultTable | None = None,
    ) -> Path:
        """Write a plain transformers checkpoint of the model with the neurons in its MLPs; it needs no code of psr_lens.

        What was written is loaded once by transformers and compared with the model that has the neurons in force.

        Args:
            model: The model that they were made for.
            folder: The folder; it must not exist, or be empty.
            alpha: Strength; it is fixed in the checkpoint.
            max_kl: The largest KL divergence, in nats a token, from the rule that the neurons stand for, `ReLU(x·w + b)·z`, to the neurons,
                as `fidelity` has it.
            multiple_of: The number of neurons of an MLP is filled up to a multiple of this with neurons of zeros, which do nothing:
                quantised formats and tensor parallelism need multiples, e.g. 256.
            metrics: Measured results for the README.

        Returns:
            The folder.

        Raises:
            InputError: the folder has files in it, `alpha` is not a finite number, or `multiple_of` is below 1.
            ArtifactError: the neurons are not faithful enough, or were made for another model.
            ModelError: as for `steer`; the model is quantised; or the checkpoint does not compute what the model does.

        Example:
            >>> neurons = psr.adapt(model, triplets[:4], psr.Neurons(rank=2))
            >>> folder = neurons.to_checkpoint(model, "pirate-model", max_kl=10)
            >>> psr.load_model(folder).cfg.d_mlp - model.cfg.d_mlp
            2
        """
        strength = _strength(alpha, "It is fixed in the checkpoint.")
        check_depth_and_width(self.model, fingerprint(model))
        export = Export(self.layers, strength, max_kl, multiple_of, self.fidelity, metrics, self.settings)
        return write_checkpoint(model, Path(folder), export)

    @checks_arguments
    def save(self, folder: str | Path) -> Path:
        """Write a folder that `AddedNeurons.load` opens; older neurons there are replaced.

        Args:
            folder: The folder; created if it is missing.

        Returns:
            The folder.

        Example:
            >>> neurons = psr.adapt(model, triplets[:4], psr.Neurons(rank=2))
            >>> sorted(path.name for path in neurons.save("pirate-neurons").iterdir())
            ['psr_neurons.json', 'psr_neurons.safetensors']
        """
        folder = Path(folder)
        record = {
            "format": FORMAT,
            "layers": {
                str(layer): [part for part in _PARTS if getattr(each, part) is not None] for layer, each in self.layers.items()
            },
            "model": dict(self.model),
            "settings": dict(self.settings),
            "fidelity": None if self.fidelity is None else asdict(self.fidelity),
            "data": self.data,
            "digest": self.digest,
        }
        write_artifact(folder, (NEURONS_FILE, record), (NEURON_WEIGHTS, self._tensors()))
        return folder

    @classmethod
    @checks_arguments
    def load(cls, folder: str | Path) -> AddedNeurons:
        """Read neurons that `save` wrote.

        Args:
            folder: The folder.

        Raises:
            ArtifactError: a file is missing or damaged, or they do not belong together.

        Example:
            >>> neurons = psr.adapt(model, triplets[:4], psr.Neurons(rank=2))
            >>> psr.AddedNeurons.load(neurons.save("pirate-neurons")).rank
            2
        """
        folder = Path(folder)
        record = read_settings(folder / NEURONS_FILE, [FORMAT], "AddedNeurons.save", folder)
        try:
            parts = {int(layer): [str(part) for part in names] for layer, names in record["layers"].items()}
            if any(not {"read", "write"} <= set(names) <= set(_PARTS) for names in parts.values()):
                raise ValueError("parts of neurons that there are not")
            keys = [f"{layer}.{part}" for layer, names in parts.items() for part in names]
            tensors = read_tensors(folder / NEURON_WEIGHTS, keys, "AddedNeurons.save", folder)
            layers = {layer: ExtraNeurons(**{part: tensors[f"{layer}.{part}"] for part in names}) for layer, names in parts.items()}
            _check_shapes(layers)
            given = record["fidelity"]
            fidelity = None if given is None else NeuronFidelity(**given)
            found = cls(layers, dict(record["model"]), dict(record["settings"]), fidelity, record["data"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{folder / NEURONS_FILE}: is damaged ({error!r}). Save the neurons again.") from error
        if found.digest != record.get("digest"):
            raise ArtifactError(f"{folder}: {NEURONS_FILE} and {NEURON_WEIGHTS} do not belong together. Save the neurons again.")
        return found

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"{layer}.{part}": getattr(each, part) for layer, each in self.layers.items() for part in _PARTS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _check_shapes(layers: Mapping[int, ExtraNeurons]) -> None:
    for layer, each in layers.items():
        fit = each.read.ndim == 2 and each.write.shape == each.read.shape and (each.up is None or each.up.shape == each.read.shape)
        if not fit or (each.bias is not None and each.bias.shape != each.read.shape[:1]):
            raise ValueError(f"the shapes of layer {layer} do not fit together")


def _strength(alpha: Any, remedy: str) -> float:
    found = finite_number(alpha)
    if found is None:
        raise InputError("alpha", brief(alpha), "a finite number", remedy)
    return found
