"""Loading a model by name, from a folder or a `.gguf` file, in the TransformerLens class that computes what transformers computes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from torch import nn

from psr_lens._utils.arguments import CHECKS, checks_arguments, described
from psr_lens.errors import InputError, ModelError
from psr_lens.models.cache_argument import carry_cache
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge
from psr_lens.models.kv_cache import takes_cache
from psr_lens.models.loaded_model import verify_loaded
from psr_lens.models.module_settings import record_settings
from psr_lens.models.placement import Placement
from psr_lens.models.sources import Source, find_source
from psr_lens.models.transformers_model import read_tokenizer, read_weights, readable
from psr_lens.models.verification import OTHERS_MAY_AGREE, DisagreementError, Probe, probe_of, record_verification, verify_model
from psr_lens.models.wrapping import USE_BRIDGE, CannotTakeError, as_bridge, as_hooked_transformer, toy_model

Backend = Literal["auto", "hooked_transformer", "bridge"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of weights by name."""


@checks_arguments
def load_model(
    name_or_path: str | Path | HookedModel,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = torch.float32,
    backend: Backend = "auto",
    device_map: str | Mapping[str, str | int] | None = None,
    n_devices: int = 1,
    verify: bool = True,
) -> HookedModel:
    """Load a model with unprocessed weights and check that its logits match plain transformers; refuse it if they do not.

    The weights are read by transformers, and a probe of token ids is run through that model first, then through the class of
    TransformerLens: all positions at once, and decode steps with a KV cache. What was found is the entry `verified` of the model's
    fingerprint, and of artifacts made with it.

    Args:
        name_or_path: `"organism"` or `"organism-gpt2"` (shipped with the package), a name that TransformerLens knows, a local
            Hugging Face folder (with an adapter: the adapted model), a `.gguf` file, or a model that is already loaded, which is
            returned unchanged: it is checked against the transformers model that it contains, or else against the one that its config
            names. If there is neither, a warning says so, and `verified` is False.
        device: Where the weights go; `"auto"` takes a GPU if there is one. This and the other options but `verify` say how weights
            are read, and cannot be given with a model that is already loaded.
        dtype: Floating-point type of the weights, by name too; `"auto"` takes the config's. Probes and directions stay in float32.
        backend: `"hooked_transformer"`, `"bridge"`, or `"auto"`: the first if TransformerLens has that class and it agrees with
            transformers, else, with a warning that says why, the second. Without a check, `"auto"` takes a bridge, which runs
            transformers' own modules.
        device_map: Spread the model over devices as accelerate does: `"auto"`, `"balanced"`, `"sequential"`, or a mapping from part of
            the model to device. Used instead of `device`; for a bridge only.
        n_devices: Number of GPUs to split the layers over.
        verify: Whether to check the model against plain transformers. It takes a few forward passes, over a sequence longer than the
            model's sliding windows; False is for models that are too large for that.

    Returns:
        A `HookedTransformer` or a `TransformerBridge`, in evaluation mode and without gradients to its weights.

    Raises:
        InputError: `name_or_path` is neither a known name, nor a folder, nor a `.gguf` file, nor a model; `backend` or `dtype` is
            unknown; torch has no such devices; or an option says how to load a model that is already loaded.
        ModelError: the model cannot be read, tensors are missing in its weights, the chosen class does not support it, or no class
            agrees with transformers.
        MissingPackageError: a `.gguf` file needs the extra `gguf`.

    Example:
        >>> model = psr.load_model("organism")
        >>> model.cfg.n_layers, model.cfg.d_model
        (6, 128)
    """
    if not isinstance(name_or_path, str | Path):
        _refuse_options(device=device, dtype=dtype, backend=backend, device_map=device_map, n_devices=n_devices)
        if verify:
            verify_loaded(name_or_path)
        return name_or_path
    placement = Placement.of(device, device_map, n_devices)
    try_hooked = _tries_hooked_transformer(backend, placement)
    source = find_source(name_or_path, known_only=backend == "hooked_transformer")
    loading = _Loading(source, placement, _dtype(dtype), verify)
    if source.is_of_transformer_lens:
        return loading.of_transformer_lens(try_hooked)
    if try_hooked and (verify or backend == "hooked_transformer"):
        try:
            return loading.hooked_transformer()
        except (CannotTakeError, DisagreementError) as error:
            if backend == "hooked_transformer":
                raise
            refused = str(error).removeprefix("model: ").removesuffix(USE_BRIDGE).removesuffix(OTHERS_MAY_AGREE).rstrip()
        try:
            model = loading.bridge()
        except ModelError as error:
            raise ModelError(f"{error} HookedTransformer is no way out: {refused}") from error
        warnings.warn(f"model: {source} is loaded as a TransformerBridge: {refused}", RuntimeWarning, stacklevel=2)
        return model
    return loading.bridge()


def _check_nameable(model: object, argument: str) -> None:
    """Refuse what is neither a model nor names one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(model, str | Path | HookedModel):
        remedy = (
            "A transformers model is loaded from the folder that its `save_pretrained` writes."
            if isinstance(model, nn.Module)
            else ""
        )
        expected = "a name, a folder, a .gguf file, a HookedTransformer or a TransformerBridge"
        raise InputError(argument, described(model), expected, remedy)


CHECKS[str | Path | HookedModel] = _check_nameable


def _refuse_options(**options: Any) -> None:
    """Refuse options that say how to read weights that have been read.

    Raises:
        InputError: there is one.
    """
    for name, given in options.items():
        if given != inspect.signature(load_model).parameters[name].default:
            raise InputError(
                name, repr(given), "nothing, since the model is already loaded", "Give its name or folder to load it again."
            )


def _dtype(dtype: object, argument: str = "dtype") -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if isinstance(dtype, str) and (dtype == "auto" or dtype in DTYPES):
        return DTYPES.get(dtype, dtype)
    raise InputError(
        argument, repr(dtype), f"'auto', {', '.join(map(repr, DTYPES))}, or a floating-point torch.dtype, e.g. torch.bfloat16"
    )


CHECKS[str | torch.dtype] = _dtype


def _tries_hooked_transformer(backend: Backend, placement: Placement) -> bool:
    present = has_hooked_transformer()
    if backend == "hooked_transformer":
        if not present:
            raise ModelError(
                "backend: this TransformerLens has no HookedTransformer (removed in 4.0). "
                "Install `transformer-lens>=3.9,<4`, or use backend='bridge'."
            )
        if placement.device_map is not None:
            raise InputError(
                "device_map", repr(placement.device_map), "None for a HookedTransformer", "Use `n_devices`, or backend='bridge'."
            )
    return present and backend != "bridge" and placement.device_map is None


class _Loading:
    """One call of `load_model`: the transformers model and its probe, read once for the classes that are tried."""

    def __init__(self, source: Source, placement: Placement, dtype: str | torch.dtype, verify: bool) -> None:
        self.source, self.placement, self.dtype, self.verify = source, placement, dtype, verify
        self._plain: Any = None
        self._probe: Probe | None = None

    def hooked_transformer(self) -> HookedModel:
        """As a `HookedTransformer`, which shares the weights, or copies them if it splits them over several GPUs.

        Raises:
            CannotTakeError: that class does not support the model.
            DisagreementError: it computes something else than transformers.
        """
        # HookedTransformer splits a model over several GPUs by itself.
        self._read(Placement(torch.device("cpu")) if self.placement.n_devices > 1 else self.placement)
        model = as_hooked_transformer(self._plain, read_tokenizer(self.source), self.source, self.placement)
        return self._checked(model, "HookedTransformer")

    def bridge(self) -> HookedModel:
        """As a `TransformerBridge`, which takes over the transformers model.

        Raises:
            ModelError: TransformerLens does not know the architecture.
            DisagreementError: it computes something else than transformers.
        """
        if self.placement.n_devices > 1:
            self._plain = None
        self._read(self.placement)
        return self._checked(as_bridge(self._plain, read_tokenizer(self.source), self.source), "TransformerBridge")

    def of_transformer_lens(self, hooked: bool) -> HookedModel:
        """A toy model of TransformerLens's own; transformers has no version to compare it with."""
        dtype = torch.float32 if self.dtype == "auto" else self.dtype
        return _ready(toy_model(self.source, self.placement, dtype, hooked=hooked))

    def _read(self, placement: Placement) -> None:
        if self._plain is None:
            self._plain = read_weights(self.source, placement, self.dtype)
            with readable(self.source):
                self._probe = probe_of(self._plain) if self.verify else None

    def _checked(self, model: Any, kind: str) -> HookedModel:
        model.cfg.model_name = self.source.name
        ready = _ready(model)
        if is_bridge(ready) and not takes_cache(model.original_model):
            warnings.warn(
                f"model: {type(model.original_model).__name__} takes no cache of transformers' kinds, so each token of a response is "
                "sampled by reading the whole text again: slow, but exact.",
                RuntimeWarning,
                stacklevel=4,
            )
        if self._probe is not None:
            record_verification(ready, verify_model(ready, self._probe, kind))
            if self._probe.unreached is not None:
                warnings.warn(
                    f"model: {self.source} was checked against transformers on only {self._probe.length:,} tokens, fewer than its "
                    f"window or original context of {self._probe.unreached:,}, since more would take too long or too much memory here.",
                    RuntimeWarning,
                    stacklevel=4,
                )
        record_settings(ready)
        return ready


def _ready(model: Any) -> HookedModel:
    # A bridge inherits the training mode (dropout!) and the gradients of the wrapped model.
    model.eval()
    model.requires_grad_(False)
    carry_cache(model)
    return cast(HookedModel, model)
